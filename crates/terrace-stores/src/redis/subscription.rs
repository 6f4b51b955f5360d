//! One subscriber's view of the messages: a connection of its own, kept up for as long as somebody
//! listens.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use futures_util::StreamExt as _;
use futures_util::stream::Stream;
use redis::aio::PubSub;
use terrace_core::{Backoff, Deadline, Lease, Notice, Result, Task};
use tokio::sync::mpsc;

use super::Shared;
use super::failure::Down;
use super::message::{Content, Message};

/// How many notices may wait for a slow listener before the connection is given up: a listener that
/// lags gets a reconnect to notice instead of unbounded memory.
const WAITING: usize = 4096;
/// How many heartbeats may be missing before the connection counts as dead.
const PATIENCE: u32 = 4;

/// The stream of notices; background work ends when it is dropped.
#[derive(Debug)]
pub(super) struct Subscription {
    notices: mpsc::Receiver<Notice>,
    _task: Task,
    _listener: Listener,
}

/// Makes the instance publish heartbeats.
#[derive(Debug)]
struct Listener(Arc<Shared>);

impl Listener {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.listeners.fetch_add(1, Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Relaxed);
    }
}

impl Subscription {
    pub(super) fn start(shared: &Arc<Shared>) -> Self {
        let (sender, notices) = mpsc::channel(WAITING);
        let listener = Listener::new(shared);
        let listens = Arc::clone(shared);
        let task = shared.runtime().keep("redis-subscription", move || {
            let (listens, sender) = (Arc::clone(&listens), sender.clone());
            async move { listens.listen_forever(&sender).await }
        });
        Self { notices, _task: task, _listener: listener }
    }
}

impl Stream for Subscription {
    type Item = Notice;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Notice>> {
        self.notices.poll_recv(context)
    }
}

impl Shared {
    async fn listen_forever(&self, sender: &mpsc::Sender<Notice>) -> Result<()> {
        let mut backoff = Backoff::new(self.options.backoff, self.options.backoff_limit);
        while !sender.is_closed() {
            match self.link.listen(&self.names.channel).await {
                Ok(listener) => {
                    backoff.reset();
                    let why = tokio::select! {
                        why = self.listen(listener, sender) => why,
                        () = self.link.gone() => "the cache was closed, or left its server",
                    };
                    tracing::debug!(why, "the invalidations from Redis were interrupted");
                    if sender.send(Notice::Disconnected).await.is_err() {
                        return Ok(());
                    }
                }
                Err(down) => {
                    tracing::debug!(
                        state = down.note(&self.names),
                        "cannot listen to invalidations"
                    );
                }
            }
            if self.link.down() == Some(Down::Closed) {
                sender.closed().await;
                return Ok(());
            }
            backoff.wait(self.runtime()).await;
        }
        Ok(())
    }

    /// Passes messages on until the connection is of no more use, and says why it is not.
    async fn listen(&self, listener: PubSub, sender: &mpsc::Sender<Notice>) -> &'static str {
        // Heartbeats carry the number from which on gaps are seen; the first must not take long.
        let _ = self.beat().await;
        let mut messages = listener.into_on_message();
        let mut follower = Follower::default();
        let mut connected = false;
        loop {
            let silence = Deadline::at(self.runtime().now() + self.options.heartbeat * PATIENCE);
            let message = match self.runtime().within(silence, messages.next()).await {
                Some(Some(message)) => message,
                Some(None) => return "the connection broke",
                None => return "no heartbeat came",
            };
            // Only now: a server that refuses writes takes subscriptions, and carries nothing.
            if !connected && sender.try_send(Notice::Connected).is_err() {
                return "the listener is too slow";
            }
            connected = true;
            for notice in follower.follow(Message::parse(message.get_payload_bytes())) {
                if sender.try_send(notice).is_err() {
                    return "the listener is too slow";
                }
            }
        }
    }
}

/// Watches that messages belong to one count: after a flush of the server it begins anew, and what
/// came before cannot be counted.
#[derive(Debug, Default)]
struct Follower {
    last: Option<(Lease, u64)>,
}

impl Follower {
    fn follow(&mut self, message: Option<Message>) -> Vec<Notice> {
        let Some(Message { epoch, number, content }) = message else {
            // It may have said anything, so nothing before it counts.
            self.last = None;
            return vec![Notice::Disconnected, Notice::Connected];
        };
        let continues = self.last.is_none_or(|(known, last)| match content {
            Content::Written(_) => epoch == known && number > last,
            // A clear is what begins an epoch in good order.
            Content::Cleared => number > last,
            Content::Heartbeat => epoch == known && number >= last,
        });
        self.last = Some((epoch, number));
        let notice = match content {
            Content::Written(keys) => Notice::Written { number, keys },
            Content::Cleared => Notice::Cleared { number },
            Content::Heartbeat => Notice::Heartbeat { number },
        };
        if continues { vec![notice] } else { vec![Notice::Disconnected, Notice::Connected, notice] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(epoch: u64, number: u64, content: Content) -> Option<Message> {
        Some(Message { epoch: Lease(epoch), number, content })
    }

    #[test]
    fn a_count_that_begins_anew_is_a_reconnect() {
        let again = |notice| vec![Notice::Disconnected, Notice::Connected, notice];
        let mut follower = Follower::default();
        let beat = |number| Notice::Heartbeat { number };
        assert_eq!(follower.follow(message(1, 7, Content::Heartbeat)), [beat(7)]);
        assert_eq!(follower.follow(message(1, 7, Content::Heartbeat)), [beat(7)]);
        let written = Notice::Written { number: 8, keys: vec![] };
        assert_eq!(follower.follow(message(1, 8, Content::Written(vec![]))), [written]);
        // A gap is passed on: the receiver sees it in the numbers.
        assert_eq!(follower.follow(message(1, 12, Content::Heartbeat)), [beat(12)]);
        assert_eq!(follower.follow(message(1, 3, Content::Heartbeat)), again(beat(3)));
        let cleared = Notice::Cleared { number: 4 };
        assert_eq!(follower.follow(message(2, 4, Content::Cleared)), [cleared]);
        assert_eq!(follower.follow(message(2, 4, Content::Heartbeat)), [beat(4)]);
        assert_eq!(follower.follow(message(3, 4, Content::Heartbeat)), again(beat(4)));
        assert_eq!(follower.follow(None), [Notice::Disconnected, Notice::Connected]);
    }
}
