//! Natural batching: single reads that come while others are on their way leave together.
//!
//! A read that comes alone leaves at once; under load the server answers one `MGET` of dozens of
//! keys instead of dozens of commands, and so does the driver. Nothing waits for a timer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::Value;
use terrace_core::{Key, Lease, Result};
use tokio::sync::{Notify, oneshot};

use super::Shared;
use super::failure::Down;
use super::lookups::CHUNK;

/// How many batches may be on their way. With 64 readers a read cost 4.4 µs of this process with
/// one, 3.1 with two, 3.5 with four, and 7 without batches; a second one also spares a read the
/// wait for a whole round trip before it leaves.
pub(super) const WORKERS: usize = 2;

/// What the server had under one key.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) epoch: [u8; 16],
    pub(super) lease: Lease,
    pub(super) value: Value,
}

/// The reads that have not left yet.
#[derive(Debug)]
pub(super) struct Batches {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug)]
struct Queue {
    waiting: Vec<Waiter>,
    open: bool,
}

#[derive(Debug)]
struct Waiter {
    key: Key,
    answer: oneshot::Sender<Result<Found>>,
}

impl Batches {
    pub(super) fn new() -> Self {
        let queue = Queue { waiting: Vec::new(), open: true };
        Self { queue: Mutex::new(queue), arrived: Notify::new() }
    }

    /// What the server has under this key. May be dropped at any point.
    pub(super) async fn find(&self, key: &Key) -> Result<Found> {
        let (answer, found) = oneshot::channel();
        {
            let mut queue = self.queue();
            if !queue.open {
                return Err(Down::Closed.error());
            }
            queue.waiting.push(Waiter { key: key.clone(), answer });
            // Whoever makes a batch looks for more before it rests.
            if queue.waiting.len() == 1 {
                self.arrived.notify_one();
            }
        }
        // The answer is dropped unsaid only when the workers are.
        found.await.map_err(|_| Down::Closed.error())?
    }

    /// Refuses reads from now on and those that wait.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.open = false;
        queue.waiting.clear();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that waits, up to one command's worth.
    fn take(&self) -> Vec<Waiter> {
        let mut queue = self.queue();
        let count = queue.waiting.len().min(CHUNK);
        let rest = queue.waiting.split_off(count);
        if !rest.is_empty() {
            self.arrived.notify_one();
        }
        std::mem::replace(&mut queue.waiting, rest)
    }
}

impl Shared {
    /// Sends batches for as long as it is polled.
    pub(super) async fn send_batches(&self) {
        loop {
            self.batches.arrived.notified().await;
            let mut batch = self.batches.take();
            // Nobody waits for reads whose callers left.
            batch.retain(|waiter| !waiter.answer.is_closed());
            if !batch.is_empty() {
                self.send_batch(batch).await;
            }
        }
    }

    async fn send_batch(&self, batch: Vec<Waiter>) {
        let (keys, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|waiter| (waiter.key, waiter.answer)).unzip();
        let found = async {
            let live = self.link.live()?;
            self.link.ask(&live, self.fetch(&live, &keys)).await
        };
        match found.await {
            Ok(fetched) => {
                for (answer, value) in answers.into_iter().zip(fetched.values) {
                    let (epoch, lease) = (fetched.epoch, fetched.lease);
                    let _ = answer.send(Ok(Found { epoch, lease, value }));
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }
}
