//! Answers of HTTP/2 that nobody fetches.
//!
//! The library takes an answer over as a whole, and what of it the client lets nobody send stays in memory for
//! as long as the connection. So an answer ends only when its last byte was written, and until then its task
//! can give it up: what the library has of an answer goes with the task, if the end was not said yet.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use terrace_core::Runtime;

use super::connection::Alarm;
use super::reply;

tokio::task_local! {
    /// How far the answer of this task is fetched.
    static PROGRESS: Arc<FetchProgress>;
}

/// Answers a request, and gives up when nothing is taken of the answer for so long.
pub(super) async fn while_fetched(
    request: impl Future<Output = ()>,
    limit: Duration,
    runtime: Runtime,
) {
    let progress = Arc::new(FetchProgress { runtime: runtime.clone(), fetching: Mutex::default() });
    let mut request = pin!(PROGRESS.scope(Arc::clone(&progress), request));
    let mut alarm = Alarm::default();
    std::future::poll_fn(|context| {
        if request.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        // Without a piece that waits, it is not the client who is waited for.
        let Some(since) = progress.fetching().since else { return Poll::Pending };
        ready!(alarm.poll(since + limit, &runtime, context));
        tracing::debug!("an answer is given up, as the client does not fetch it");
        Poll::Ready(())
    })
    .await;
}

/// How far an answer is fetched.
struct FetchProgress {
    runtime: Runtime,
    fetching: Mutex<Fetching>,
}

#[derive(Default)]
struct Fetching {
    /// Pieces that are not yet written.
    pieces: usize,
    /// When a piece was last begun or moved on; `None` while there is none.
    since: Option<Instant>,
    /// Who waits for the last piece to be written.
    waits: Option<Waker>,
}

impl FetchProgress {
    fn fetching(&self) -> MutexGuard<'_, Fetching> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of an answer, which ends when all of it was written.
pub(super) struct Fetched {
    body: reply::Body,
    /// None outside of [`while_fetched`], where nobody could give it up.
    progress: Option<Arc<FetchProgress>>,
}

impl Fetched {
    /// The body of the answer that this task gives.
    pub(super) fn new(body: reply::Body) -> Self {
        Self { body, progress: PROGRESS.try_with(Arc::clone).ok() }
    }
}

impl Body for Fetched {
    type Data = Piece;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Infallible>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = frame {
            let progress = self.progress.as_ref();
            return Poll::Ready(Some(Ok(frame.map_data(|bytes| Piece::new(bytes, progress)))));
        }
        if let Some(progress) = &self.progress {
            let mut fetching = progress.fetching();
            if fetching.pieces > 0 {
                fetching.waits = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        let is_waiting = |progress: &Arc<FetchProgress>| progress.fetching().pieces > 0;
        self.body.is_end_stream() && !self.progress.as_ref().is_some_and(is_waiting)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A part of an answer, until it is written or dropped.
pub(super) struct Piece {
    bytes: Bytes,
    progress: Option<Arc<FetchProgress>>,
}

impl Piece {
    fn new(bytes: Bytes, progress: Option<&Arc<FetchProgress>>) -> Self {
        if let Some(progress) = progress {
            let mut fetching = progress.fetching();
            fetching.pieces += 1;
            fetching.since = Some(progress.runtime.now());
        }
        Self { bytes, progress: progress.cloned() }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(progress) = &self.progress {
            progress.fetching().since = Some(progress.runtime.now());
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let Some(progress) = &self.progress else { return };
        let mut fetching = progress.fetching();
        fetching.pieces -= 1;
        if fetching.pieces == 0 {
            fetching.since = None;
            let waits = fetching.waits.take();
            drop(fetching);
            waits.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_moves_is_not_given_up_and_one_that_stands_still_is() {
        let runtime = Runtime::system();
        let (begun, clock) = (runtime.now(), runtime.clone());
        let request = async move {
            // The store takes its time, which is not the client's.
            clock.sleep(3 * LIMIT).await;
            let mut body = Fetched::new(reply::full("0123456789"));
            let frame = body.frame().await.expect("a frame").expect("no error");
            let mut piece = frame.into_data().ok().expect("data");
            assert!(!body.is_end_stream(), "it is not written");
            for _ in 0..5 {
                clock.sleep(LIMIT - Duration::from_secs(1)).await;
                piece.advance(1);
            }
            assert!(body.frame().await.is_none());
            drop(piece);
        };
        while_fetched(request, LIMIT, runtime.clone()).await;
        let moved = 3 * LIMIT + 5 * (LIMIT - Duration::from_secs(1));
        let took = runtime.now() - begun;
        assert!(took >= moved + LIMIT && took < moved + LIMIT + Duration::from_secs(1), "{took:?}");
    }

    #[tokio::test]
    async fn an_answer_ends_when_it_was_written() {
        let request = async {
            let mut body = Fetched::new(reply::full("all"));
            let piece = body.frame().await.expect("a frame");
            let written = async {
                tokio::task::yield_now().await;
                drop(piece);
            };
            assert!(tokio::join!(body.frame(), written).0.is_none());
            assert!(body.is_end_stream());
            assert!(Fetched::new(reply::full("")).is_end_stream());
        };
        while_fetched(request, LIMIT, Runtime::system()).await;
    }
}
