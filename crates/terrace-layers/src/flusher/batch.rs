//! How the writes of one partition are applied.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use terrace_core::{
    Deadline, Error, ErrorKind, Outcome, Place, Precondition, ReadOptions, Sequence, Write,
    WriteOptions,
};

use super::{Item, Partition, Shared};

/// What became of a batch.
enum Sent {
    /// All of it is applied, now or before.
    Applied,
    /// Nobody refused it; the same again, later.
    Again(Error),
    /// The store refuses it for what it holds.
    Refused(Error),
}

impl Shared {
    /// Applies what arrives in a partition, one batch at a time.
    pub(super) async fn work(self: &Arc<Self>, index: usize) {
        let partition = &self.partitions[index];
        loop {
            let batch = self.next(partition).await;
            self.apply(batch).await;
        }
    }

    /// The next batch: what is there, and when that is little, what comes within a moment.
    async fn next(&self, partition: &Partition) -> Vec<Item> {
        loop {
            let arrived = partition.arrived.notified();
            let (count, oldest) = {
                let waiting = partition.waiting();
                (waiting.len(), waiting.front().map(|item| item.since))
            };
            let Some(oldest) = oldest else {
                arrived.await;
                continue;
            };
            let now = self.runtime.now();
            let ripe = oldest + self.options.linger;
            if count < self.options.min_batch && now < ripe {
                tokio::select! {
                    () = arrived => {}
                    () = self.runtime.sleep_until(ripe) => {}
                }
                continue;
            }
            return self.take(partition);
        }
    }

    fn take(&self, partition: &Partition) -> Vec<Item> {
        let mut waiting = partition.waiting();
        let mut batch = Vec::with_capacity(waiting.len().min(self.options.max_batch));
        let mut bytes = 0;
        while let Some(item) = waiting.front() {
            bytes += item.write.bytes();
            let full = batch.len() >= self.options.max_batch.max(1)
                || (bytes > self.options.max_batch_bytes && !batch.is_empty());
            if full {
                break;
            }
            batch.extend(waiting.pop_front());
        }
        batch
    }

    /// Applies a batch; one that is refused for what it holds in halves, the older first.
    async fn apply(self: &Arc<Self>, batch: Vec<Item>) {
        let mut todo = vec![batch];
        let mut failures = 0;
        while let Some(mut batch) = todo.pop() {
            match self.send(&batch).await {
                Sent::Applied => {
                    if std::mem::take(&mut failures) > 0 {
                        tracing::info!("accepted writes are applied again");
                    }
                    self.troubled.store(false, Ordering::Relaxed);
                    self.applied.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    batch.iter().for_each(|item| self.finish(item, None));
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
    }

    /// A write that the store refuses: later again, beside the others, or never.
    async fn refuse(self: &Arc<Self>, mut item: Item, error: &Error) {
        const PATIENCE: u32 = 4;
        item.tries += 1;
        let tries = self.options.tries.max(1);
        // What the request itself is to blame for stays so. Anything else may be the whole store's
        // trouble, as long as nothing else gets through; but there may be nothing else.
        let own_fault = error.kind() == ErrorKind::InvalidInput
            || !self.troubled.swap(true, Ordering::Relaxed)
            || (item.tries >= tries.saturating_mul(PATIENCE) && self.answers(&item).await);
        if own_fault && item.tries >= tries {
            tracing::error!(%error, sequence = %item.sequence, "an accepted write is set aside");
            self.finish(&item, Some(error.message().to_owned()));
            return;
        }
        let this = Arc::clone(self);
        let work = async move {
            this.unless_stopped(async {
                this.pause(item.tries.min(16)).await;
                item.since = this.runtime.now();
                let partition = this.partition_of(&item.write);
                partition.waiting().push_back(item);
                partition.arrived.notify_one();
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
        Sent::Applied
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
