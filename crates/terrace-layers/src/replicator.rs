//! `Replicator`: keeps a follower at the end of a change log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use terrace_core::{ChangeLog, Deadline, Follower, PositionLost, Result, Runtime, Task};

/// How a [`Replicator`] follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicatorOptions {
    /// Changes applied in one transaction. 1000.
    pub batch: usize,
    /// How long to hold changes back, to see what lag does; a follower is then between once and
    /// twice this behind. 0.
    pub delay: Duration,
    /// How long to wait after a failure; doubles up to 5 s. 50 ms.
    pub retry: Duration,
}

impl Default for ReplicatorOptions {
    fn default() -> Self {
        Self { batch: 1000, delay: Duration::ZERO, retry: Duration::from_millis(50) }
    }
}

/// Applies the changes of a log to a follower, one task for each follower.
///
/// It keeps nothing itself: the follower keeps its position in the transaction that applied it, so
/// after a crash it goes on where it was. When the log no longer has what follows, the follower
/// begins anew. It is woken by commits and ends when it is dropped.
#[derive(Debug)]
pub struct Replicator {
    task: Mutex<Option<Task>>,
    applied: Arc<AtomicU64>,
}

impl Replicator {
    /// Follows from now on.
    pub fn start(
        log: Arc<dyn ChangeLog>,
        follower: Arc<dyn Follower>,
        options: ReplicatorOptions,
        runtime: Runtime,
    ) -> Self {
        let applied = Arc::new(AtomicU64::new(0));
        let work = Following { log, follower, options, runtime, applied: Arc::clone(&applied) };
        let task = work.runtime.clone().spawn("replicator", work.run());
        Self { task: Mutex::new(Some(task)), applied }
    }

    /// How many changes were applied by this value.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Ends it; what was applied stays.
    pub async fn stop(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.stop().await;
        }
    }
}

struct Following {
    log: Arc<dyn ChangeLog>,
    follower: Arc<dyn Follower>,
    options: ReplicatorOptions,
    runtime: Runtime,
    applied: Arc<AtomicU64>,
}

impl Following {
    const LONGEST_RETRY: Duration = Duration::from_secs(5);

    async fn run(self) {
        let mut retry = self.options.retry;
        loop {
            let Err(error) = self.follow().await else {
                retry = self.options.retry;
                continue;
            };
            tracing::warn!(log = %self.log, follower = %self.follower, %error, "replication waits");
            self.runtime.sleep(self.runtime.jitter(retry, 0.2)).await;
            retry = (retry * 2).min(Self::LONGEST_RETRY);
        }
    }

    /// Waits for changes and applies them.
    async fn follow(&self) -> Result<()> {
        let from = self.follower.followed().await?;
        let changes = match self.log.after(from, self.options.batch).await {
            Err(error) if PositionLost::caused(&error) => {
                tracing::warn!(follower = %self.follower, %error, "a replica begins anew");
                return self.follower.begin_anew().await;
            }
            changes => changes?,
        };
        if changes.position == from && changes.changes.is_empty() {
            return self.log.wait(from, Deadline::NEVER).await;
        }
        if !self.options.delay.is_zero() {
            self.runtime.sleep(self.options.delay).await;
        }
        let count = changes.changes.len() as u64;
        match self.follower.apply(from, changes).await {
            // Somebody else moved it; the next round asks where it is.
            Err(error) if PositionLost::caused(&error) => Ok(()),
            applied => applied.map(|()| {
                self.applied.fetch_add(count, Ordering::Relaxed);
            }),
        }
    }
}
