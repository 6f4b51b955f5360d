//! Publishes a change log on a stream for others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use terrace_core::{
    ChangeLog, Deadline, EventStream, Inspection, LogPosition, Result, Runtime, Status,
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
            // Back slowly: what does not arrive in time costs its whole timeout.
            let next = if published.is_ok() { limit + limit / 8 + 1 } else { limit / 2 };
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
    pub async fn last(&self) -> Result<LogPosition> {
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

#[cfg(test)]
mod tests {
    use std::fmt;

    use terrace_core::testkit::key;
    use terrace_core::{BoxFuture, Changes, Error, ErrorKind, Logged, Version};

    use super::*;

    fn at(offset: u64) -> LogPosition {
        LogPosition { epoch: 1, offset }
    }

    /// The changes 1 to 100.
    #[derive(Debug)]
    struct Hundred;

    impl ChangeLog for Hundred {
        fn place_of(&self, position: terrace_core::Position) -> LogPosition {
            LogPosition { epoch: position.get(), offset: u64::MAX }
        }

        fn position_of(&self, place: LogPosition) -> terrace_core::Position {
            terrace_core::Position::new(place.epoch)
        }

        fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
            let next = (position.offset + 1..=100).take(limit).map(|offset| {
                let (position, version) = (at(offset), Version::new(offset));
                Logged { position, key: key("k"), version, record: None }
            });
            let changes: Vec<_> = next.collect();
            let position = changes.last().map_or(position, |change| change.position);
            Box::pin(async move { Ok(Changes { changes, position, more: position < at(100) }) })
        }

        fn wait(&self, _: LogPosition, _: Deadline) -> BoxFuture<'_, Result<()>> {
            Box::pin(async { Ok(()) })
        }

        fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
            Box::pin(async { Ok(at(100)) })
        }
    }

    /// A broker on a slow link: more than ten events at once do not arrive in time.
    #[derive(Debug, Default)]
    struct Slow(Mutex<Vec<LogPosition>>);

    impl EventStream for Slow {
        fn last(&self) -> BoxFuture<'_, Result<LogPosition>> {
            let last = self.0.lock().unwrap().last().copied().unwrap_or_default();
            Box::pin(async move { Ok(last) })
        }

        fn publish<'a>(
            &'a self,
            _: LogPosition,
            events: &'a [Logged],
        ) -> BoxFuture<'a, Result<bool>> {
            Box::pin(async move {
                if events.len() > 10 {
                    return Err(Error::new(ErrorKind::Unavailable, "not in time"));
                }
                self.0.lock().unwrap().extend(events.iter().map(|event| event.position));
                Ok(true)
            })
        }

        fn inspect(&self) -> BoxFuture<'_, Inspection> {
            Box::pin(async { Inspection::new("slow") })
        }
    }

    impl fmt::Display for Hundred {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("hundred")
        }
    }

    impl fmt::Display for Slow {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("slow")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_much_at_once_is_published_in_parts() {
        let stream = Arc::new(Slow::default());
        let relay = Relay::new(Arc::new(Hundred), Arc::clone(&stream) as _, Runtime::system());
        let mut failures = 0;
        while *stream.0.lock().unwrap().last().unwrap_or(&at(0)) < at(100) {
            failures += u32::from(relay.step().await.is_err());
            assert!(failures < 200, "the same again and again");
        }
        let published = stream.0.lock().unwrap().clone();
        assert_eq!(published, (1..=100).map(at).collect::<Vec<_>>());
    }
}
