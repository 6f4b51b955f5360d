//! A feed whose messages the test sends.

use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use terrace_core::{Invalidations, Notice};
use tokio::sync::mpsc;

#[derive(Debug)]
struct Scripted(Mutex<Option<mpsc::UnboundedReceiver<Notice>>>);

/// The test's end of the feed.
#[derive(Debug)]
pub(super) struct Script(mpsc::UnboundedSender<Notice>);

/// A feed for one subscriber, and what sends it messages.
pub(super) fn script() -> (Arc<dyn Invalidations>, Script) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Arc::new(Scripted(Mutex::new(Some(receiver)))), Script(sender))
}

impl Script {
    pub(super) fn send(&self, notice: Notice) {
        self.0.send(notice).expect("the near cache listens");
    }

    /// Waits until nobody listens.
    pub(super) async fn abandoned(&self) {
        self.0.closed().await;
    }
}

impl Invalidations for Scripted {
    fn subscribe(&self) -> BoxStream<'static, Notice> {
        let receiver = self.0.lock().unwrap().take().expect("one subscriber");
        stream::unfold(receiver, |mut receiver| async move {
            let notice = receiver.recv().await?;
            Some((notice, receiver))
        })
        .boxed()
    }
}
