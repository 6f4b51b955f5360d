//! How the writes of one partition are applied.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use terrace_core::{
    Deadline, Error, ErrorKind, Outcome, Place, Precondition, ReadOptions, Sequence, Write,
    WriteOptions,
};
use tokio::sync::watch;

use super::partition::{Next, Partition, Rests, Turn};
use super::{Item, Shared};

/// What became of a batch.
enum Sent {
    /// All of it is applied, now or before: so many rows.
    Applied(usize),
    /// Nobody refused it; the same again, later.
    Again(Error),
    /// The store refuses it for what it holds.
    Refused(Error),
}

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    rows: usize,
    /// For how long the store was at work on what it took.
    took: Duration,
}

impl Shared {
    /// Applies what arrives in a partition, one batch at a time.
    pub(super) async fn work(self: &Arc<Self>, index: usize) {
        let partition = &self.partitions[index];
        let mut awaited = self.follower.awaited();
        let mut rests = Rests::since(self.runtime.now());
        loop {
            let turn = self.turn(partition, &rests, &mut awaited).await;
            let (turn, batch) = partition.take(turn, &self.options);
            if batch.is_empty() {
                continue;
            }
            let Work { rows, took } = self.apply(batch).await;
            rests.after(turn, rows, took, self.runtime.now(), &self.options);
        }
    }

    /// Waits for something to do: what has rested; or all there is, when this flusher is behind or
    /// somebody waits.
    async fn turn(
        &self,
        partition: &Partition,
        rests: &Rests,
        awaited: &mut Option<watch::Receiver<usize>>,
    ) -> Turn {
        loop {
            let arrived = partition.arrived.notified();
            let next = partition.next(rests, self.runtime.now(), &self.options);
            // The oldest first: it is what holds up the others, and what is waited for.
            let wanted = awaited.as_ref().is_some_and(|count| *count.borrow() > 0);
            if next != Next::Nothing && (wanted || self.room_now().is_none()) {
                return Turn::ALL;
            }
            let due = match next {
                Next::Apply(turn) => return turn,
                Next::At(due) => due,
                Next::Nothing => {
                    arrived.await;
                    continue;
                }
            };
            tokio::select! {
                () = arrived => {}
                () = self.runtime.sleep_until(due) => {}
                () = somebody(awaited) => return Turn::ALL,
            }
        }
    }

    /// Applies a batch; one that is refused for what it holds in halves, the older first.
    async fn apply(self: &Arc<Self>, batch: Vec<Item>) -> Work {
        let mut todo = vec![batch];
        let mut failures = 0;
        let mut done = Work::default();
        while let Some(mut batch) = todo.pop() {
            let begun = self.runtime.now();
            match self.send(&batch).await {
                Sent::Applied(rows) => {
                    done.rows += rows;
                    done.took += self.runtime.now() - begun;
                    if std::mem::take(&mut failures) > 0 {
                        tracing::info!("accepted writes are applied again");
                    }
                    self.troubled.store(false, Ordering::Relaxed);
                    self.applied.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    self.finish(&batch);
                }
                Sent::Again(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "accepted writes cannot be applied; trying again");
                    }
                    failures += 1;
                    self.troubled.store(true, Ordering::Relaxed);
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    todo.push(batch);
                    self.pause(failures).await;
                }
                Sent::Refused(error) if batch.len() > 1 => {
                    self.splits.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, writes = batch.len(), "refused batch is split");
                    let newer = batch.split_off(batch.len() / 2);
                    todo.push(newer);
                    todo.push(batch);
                }
                Sent::Refused(error) => {
                    for item in batch {
                        self.refuse(item, &error).await;
                    }
                }
            }
        }
        done
    }

    /// A write that the store refuses: later again, beside the others, or never.
    async fn refuse(self: &Arc<Self>, mut item: Item, error: &Error) {
        const PATIENCE: u32 = 4;
        item.tries += 1;
        self.ledger().refuse(item.entry);
        // Those behind it need no longer wait for it.
        self.finished.notify_one();
        let tries = self.options.tries.max(1);
        // What the request itself is to blame for stays so. Anything else may be the whole store's
        // trouble, as long as nothing else gets through; but there may be nothing else.
        let own_fault = error.kind() == ErrorKind::InvalidInput
            || !self.troubled.swap(true, Ordering::Relaxed)
            || (item.tries >= tries.saturating_mul(PATIENCE) && self.answers(&item).await);
        if own_fault && item.tries >= tries {
            tracing::error!(%error, sequence = %item.sequence, "an accepted write is set aside");
            self.set_aside(&item, error.message());
            return;
        }
        let this = Arc::clone(self);
        let work = async move {
            this.unless_stopped(async {
                this.pause(item.tries.min(16)).await;
                item.since = this.runtime.now();
                this.hand_on(item);
            })
            .await;
        };
        self.runtime.spawn("flusher retry", work).detach();
    }

    /// Whether the store can be read where it refuses a write.
    async fn answers(&self, item: &Item) -> bool {
        let deadline = Deadline::at(self.runtime.now() + self.options.batch_timeout);
        let how = ReadOptions::strong(deadline);
        let work = self.store.read(std::slice::from_ref(&item.write.key), &how);
        self.runtime.within(deadline, work).await.is_some_and(|read| read.is_ok())
    }

    async fn send(&self, batch: &[Item]) -> Sent {
        let latest = latest(batch);
        let superseded = (batch.len() - latest.len()) as u64;
        let settled = Sequence::new(self.settled.load(Ordering::Relaxed));
        let writes = latest.iter().map(|item| self.placed(item, settled)).collect();
        let deadline = Deadline::at(self.runtime.now() + self.options.batch_timeout);
        let how = WriteOptions { deadline, ..WriteOptions::default() };
        self.batches.fetch_add(1, Ordering::Relaxed);
        // A store that hangs must not hang the claims of this flusher with it.
        let limit = Deadline::at(self.runtime.now() + self.options.batch_timeout * 2);
        let work = self.store.write(writes, &how);
        let done = self.runtime.within(limit, work).await;
        let receipts = match done.unwrap_or_else(|| Err(Deadline::exceeded())) {
            Ok(receipts) => receipts,
            Err(error) if error.is_retryable() => return Sent::Again(error),
            Err(error) => return Sent::Refused(error),
        };
        // A store of several databases says for each write whether its own could be reached.
        let missed = |outcome| matches!(outcome, Outcome::Unavailable | Outcome::Unknown);
        if receipts.len() != latest.len() || receipts.iter().any(|it| missed(it.outcome)) {
            let message = "a part of the store did not take its part of the batch";
            return Sent::Again(Error::new(ErrorKind::Unavailable, message));
        }
        self.superseded.fetch_add(superseded, Ordering::Relaxed);
        Sent::Applied(latest.len())
    }

    fn placed(&self, item: &Item, settled: Sequence) -> Write {
        #[cfg(feature = "mutants")]
        if self.options.mutant == Some(super::FlusherMutant::Unguarded) {
            return item.write.clone();
        }
        let place = Place { sequence: item.sequence, settled };
        item.write.clone().when(Precondition::After(place))
    }
}

/// Returns when somebody waits for writes to be applied.
async fn somebody(awaited: &mut Option<watch::Receiver<usize>>) {
    if let Some(count) = awaited
        && count.wait_for(|count| *count > 0).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// The latest write of each key. A batch that is refused is cut before this, so that an older write
/// of a key is still there when the later one turns out to be bad.
fn latest(batch: &[Item]) -> Vec<&Item> {
    let mut latest: HashMap<_, &Item> = HashMap::with_capacity(batch.len());
    for item in batch {
        let place = latest.entry(&item.write.key).or_insert(item);
        if place.sequence < item.sequence {
            *place = item;
        }
    }
    let mut latest: Vec<_> = latest.into_values().collect();
    latest.sort_unstable_by_key(|item| item.sequence);
    latest
}
