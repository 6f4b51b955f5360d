//! The stream of frames: server-sent events, one connection for all levels.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Either, StreamBody};
use hyper::Response;
use hyper::body::Frame as Piece;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use tokio::sync::broadcast;

use crate::http::app::App;
use crate::http::call::Call;
use crate::http::reply::{Reply, WithHeaders as _};
use crate::live::{EVERY, Frame, Live};
use terrace_core::Deadline;

/// Frames that do not come for this long do not come any more.
const PATIENCE: u32 = 20;

/// One who looks.
struct Watcher {
    app: Arc<App>,
    /// What was before, the latest first.
    first: Vec<Arc<Frame>>,
    next: broadcast::Receiver<Arc<Frame>>,
}

/// Answers with frames for as long as the client takes them.
pub(super) fn frames(live: &Arc<Live>, call: &Call) -> Reply {
    let after = call.parts.headers.get("last-event-id");
    let after = after.and_then(|id| id.to_str().ok());
    let (mut first, next) = live.watch(after);
    first.reverse();
    let watcher = Watcher { app: Arc::clone(&call.app), first, next };
    let pieces = stream::unfold(watcher, async |mut watcher| {
        let frame = watcher.frame().await?;
        Some((Ok::<_, Infallible>(Piece::data(frame)), watcher))
    });
    // A browser that lost the stream comes back soon, with the number of its last frame.
    let retry = stream::once(async { Ok(Piece::data(Bytes::from_static(b"retry: 1000\n\n"))) });
    let body = UnsyncBoxBody::new(StreamBody::new(retry.chain(pieces).boxed()));
    Response::new(Either::Right(body))
        .with(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))
        .with(CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

impl Watcher {
    /// The next one; none when the service stops, or when this one has fallen too far behind and must begin
    /// anew.
    async fn frame(&mut self) -> Option<Bytes> {
        if let Some(frame) = self.first.pop() {
            return Some(frame.text.clone());
        }
        for _ in 0..PATIENCE {
            if self.app.draining.load(Ordering::Relaxed) {
                return None;
            }
            let runtime = &self.app.runtime;
            let until = Deadline::at(runtime.now() + EVERY);
            match runtime.within(until, self.next.recv()).await {
                Some(Ok(frame)) => return Some(frame.text.clone()),
                Some(Err(_)) => return None,
                None => {}
            }
        }
        None
    }
}
