//! Publishes a change log on a stream for others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use terrace_core::{
    ChangeLog, Deadline, EventStream, Inspection, Position, Result, Runtime, Status,
};

/// Publishes every change at least once, in the order of the log, under its position. The stream
/// itself keeps the checkpoint: it takes a position once, and tells the last.
///
/// While the broker is down the log keeps what it lacks, and commands do not wait for it.
#[derive(Debug)]
pub struct Relay {
    log: Arc<dyn ChangeLog>,
    stream: Arc<dyn EventStream>,
    runtime: Runtime,
    published: AtomicU64,
    /// How many events are published at once: fewer where that was too much.
    limit: AtomicUsize,
    trouble: Mutex<Option<String>>,
}

impl Relay {
    /// The most events published at once.
    const BATCH: usize = 1000;
    /// The least time from one publication to the next.
    const PACE: Duration = Duration::from_millis(20);
    /// The first wait after a failure; doubles up to [`Self::LAST_BACKOFF`].
    const BACKOFF: Duration = Duration::from_millis(100);
    const LAST_BACKOFF: Duration = Duration::from_secs(3);
    /// The longest wait without a look at the stream, which may have lost its end.
    const LOOK: Duration = Duration::from_secs(2);

    /// A relay from a log to a stream.
    pub fn new(log: Arc<dyn ChangeLog>, stream: Arc<dyn EventStream>, runtime: Runtime) -> Self {
        let (published, limit) = (AtomicU64::new(0), AtomicUsize::new(Self::BATCH));
        Self { log, stream, runtime, published, limit, trouble: Mutex::default() }
    }

    /// The same from another view of the log.
    pub(super) fn following(self, log: Arc<dyn ChangeLog>) -> Self {
        Self { log, ..self }
    }

    /// Publishes without end. Cancellation safe.
    pub async fn run(&self) {
        let mut backoff = Self::BACKOFF;
        loop {
            match self.step().await {
                Ok(()) => {
                    backoff = Self::BACKOFF;
                    self.settle(None);
                }
                Err(error) => {
                    self.settle(Some(error.message()));
                    self.runtime.sleep(self.runtime.jitter(backoff, 0.2)).await;
                    backoff = (backoff * 2).min(Self::LAST_BACKOFF);
                }
            }
        }
    }

    /// Publishes what follows the stream's last event; waits when there is nothing.
    ///
    /// # Errors
    /// Of the log or the stream; a later step goes on.
    pub async fn step(&self) -> Result<()> {
        let mut position = self.stream.last().await?;
        loop {
            let limit = self.limit.load(Relaxed);
            let page = self.log.after(position, limit).await?;
            if page.changes.is_empty() {
                let until = self.runtime.now() + Self::LOOK;
                return self.log.wait(page.position, Deadline::at(until)).await;
            }
            let published = self.stream.publish(position, &page.changes).await;
            let next = if published.is_ok() { limit * 2 } else { limit / 2 };
            self.limit.store(next.clamp(1, Self::BATCH), Relaxed);
            if !published? {
                return Ok(());
            }
            self.published.fetch_add(page.changes.len() as u64, Relaxed);
            // What comes meanwhile is published at once.
            self.runtime.sleep(Self::PACE).await;
            position = self.stream.last().await?;
        }
    }

    /// The position after which nothing was published, as the stream tells.
    ///
    /// # Errors
    /// Of the stream.
    pub async fn last(&self) -> Result<Position> {
        self.stream.last().await
    }

    fn settle(&self, trouble: Option<&str>) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(message), None) = (trouble, &*known) {
            tracing::warn!(message, "events are not published; the log keeps them");
        }
        *known = trouble.map(str::to_owned);
    }

    pub(super) async fn inspect(&self) -> Inspection {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tree = Inspection::new("relay").counter("published", self.published.load(Relaxed));
        let tree = match trouble {
            Some(note) => tree.status(Status::Degraded, note),
            None => tree,
        };
        tree.helped_by(self.stream.inspect().await)
    }
}
