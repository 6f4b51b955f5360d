//! The invalidations between the stacks of one process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Receiver, Sender};

use crate::{Key, Notice, Runtime, Version};

/// A numbered channel that never fails; only a subscriber that lags behind loses messages, and is
/// told so by a [`Notice::Disconnected`].
#[derive(Debug)]
pub(super) struct Notices {
    /// Guards the number together with the sending, so that numbers arrive in order.
    latest: Mutex<u64>,
    sender: Sender<Notice>,
    runtime: Runtime,
}

/// What a subscription does next.
enum Next {
    Connect(Receiver<Notice>),
    Receive(Receiver<Notice>),
}

impl Notices {
    /// How far a subscriber may lag behind.
    const KEPT: usize = 1024;
    /// How long nothing is said before the latest number is repeated.
    const HEARTBEAT: Duration = Duration::from_millis(500);

    pub(super) fn new(runtime: Runtime) -> Self {
        let (sender, _) = broadcast::channel(Self::KEPT);
        Self { latest: Mutex::new(0), sender, runtime }
    }

    pub(super) fn written(&self, keys: &[(Key, Version)]) {
        if !keys.is_empty() {
            self.send(|number| Notice::Written { number, keys: keys.to_vec() });
        }
    }

    pub(super) fn cleared(&self) {
        self.send(|number| Notice::Cleared { number });
    }

    fn send(&self, notice: impl FnOnce(u64) -> Notice) {
        let mut latest = self.latest();
        *latest += 1;
        if self.sender.receiver_count() > 0 {
            // Fails only when the last subscriber has just gone.
            let _ = self.sender.send(notice(*latest));
        }
    }

    fn latest(&self) -> MutexGuard<'_, u64> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(self: Arc<Self>) -> BoxStream<'static, Notice> {
        // Subscribed now, not at the first poll: what is sent from now on is not lost.
        let start = Next::Connect(self.sender.subscribe());
        stream::unfold((self, start), |(notices, next)| async move {
            let (notice, next) = match next {
                Next::Connect(receiver) => (Notice::Connected, Next::Receive(receiver)),
                Next::Receive(receiver) => notices.receive(receiver).await,
            };
            Some((notice, (notices, next)))
        })
        .boxed()
    }

    async fn receive(&self, mut receiver: Receiver<Notice>) -> (Notice, Next) {
        loop {
            let received = tokio::select! {
                biased;
                received = receiver.recv() => received,
                () = self.runtime.sleep(Self::HEARTBEAT) => {
                    let latest = self.latest();
                    if receiver.is_empty() {
                        return (Notice::Heartbeat { number: *latest }, Next::Receive(receiver));
                    }
                    continue;
                }
            };
            return match received {
                Ok(notice) => (notice, Next::Receive(receiver)),
                // `Closed` cannot be: this subscription keeps the sender alive.
                Err(RecvError::Lagged(_) | RecvError::Closed) => {
                    (Notice::Disconnected, Next::Connect(self.sender.subscribe()))
                }
            };
        }
    }
}
