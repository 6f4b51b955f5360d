//! `Flusher`: takes accepted writes out of a journal and applies them.

mod open;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use terrace_core::{
    Backoff, Change, Deadline, Error, ErrorKind, Inspection, Journal, JournalEntry, Outcome, Place,
    Precondition, Progress, ReadOptions, Result, Runtime, Sequence, Settled, Status, Store, Task,
    Version, Write, WriteOptions, one,
};
use tokio::sync::watch;

use open::{Item, Open};

/// Applies what a journal holds to a store, and settles it after the commit: a plain loop.
///
/// ```text
/// claim ──▶ apply the latest write of each key ──▶ settle ──▶ pause, unless there was a full claim
/// ```
///
/// Any number of flushers may work on one journal, in any process. A write goes to the store under
/// [`Precondition::After`] its place, so a batch that is applied twice, late, or beside another
/// flusher's changes nothing that came later.
///
/// **Pace.** Accepting a burst and applying it compete for the same cores. After a claim that was not
/// full the flusher pauses: later writes supersede earlier ones meanwhile, which then never reach the
/// store. It does not pause while somebody waits for what is accepted to be applied.
///
/// **On failure.** A store that cannot be reached, or does not say what became of a batch, is tried
/// again with growing pauses, for as long as it takes: nothing is skipped. A batch that the store
/// refuses for what it holds is tried again in halves, the older first, until the write that is
/// refused stands alone; that one is tried [`Flusher::TRIES`] times, beside the others, and then set
/// aside as a dead letter. What is no fault of the write's own (a defect, a table that is missing)
/// does not make it one, unless other writes were applied meanwhile.
///
/// **Where it belongs.** On the stack below the `WriteBuffer`, caches included, so that they are
/// invalidated after each commit.
pub struct Flusher {
    shared: Arc<FlushLoop>,
    task: Mutex<Option<Task>>,
}

/// How a flusher works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlusherOptions {
    /// About how many writes are claimed at once. Default 20 000.
    pub claim: usize,
    /// The pause after a claim that was not full. Default 500 ms.
    pub pause: Duration,
    /// The longest that the store may take for a batch. Default 30 s.
    pub batch_timeout: Duration,
}

impl Default for FlusherOptions {
    fn default() -> Self {
        let (pause, batch_timeout) = (Duration::from_millis(500), Duration::from_secs(30));
        Self { claim: 20_000, pause, batch_timeout }
    }
}

/// Who accepts the writes that a flusher applies.
pub trait Acceptor: Send + Sync + 'static {
    /// Hears how far the journal has come whenever something was settled.
    fn learn(&self, progress: &Progress);

    /// How many wait for what is accepted to be applied, if that is known here.
    fn awaited(&self) -> Option<watch::Receiver<usize>>;
}

/// Nobody: a flusher apart. It pauses a tenth of the time, as it does not hear of those who wait.
impl Acceptor for () {
    fn learn(&self, _: &Progress) {}

    fn awaited(&self) -> Option<watch::Receiver<usize>> {
        None
    }
}

struct FlushLoop {
    journal: Arc<dyn Journal>,
    store: Arc<dyn Store>,
    options: FlusherOptions,
    runtime: Runtime,
    acceptor: Arc<dyn Acceptor>,
    /// See [`Place::settled`].
    settled: AtomicU64,
    applied: AtomicU64,
    superseded: AtomicU64,
    batches: AtomicU64,
    splits: AtomicU64,
    retries: AtomicU64,
    dead: AtomicU64,
    /// Why writes are not applied, while they are not.
    trouble: Mutex<Option<Error>>,
}

/// What became of a batch.
enum Sent {
    /// All of it is applied, now or before.
    Applied,
    /// Nobody refused it; the same again, later.
    Again(Error),
    /// The store refuses it for what it holds.
    Refused(Error),
}

impl Flusher {
    /// How often a write that the store refuses is tried; four times as often where nothing else gets
    /// through.
    pub const TRIES: u32 = 5;

    /// Starts.
    pub fn start(
        journal: Arc<dyn Journal>,
        store: Arc<dyn Store>,
        mut options: FlusherOptions,
        runtime: Runtime,
        acceptor: Arc<dyn Acceptor>,
    ) -> Self {
        if acceptor.awaited().is_none() {
            options.pause /= 10;
        }
        let shared = Arc::new(FlushLoop {
            journal,
            store,
            options,
            runtime: runtime.clone(),
            acceptor,
            settled: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            splits: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            trouble: Mutex::default(),
        });
        let this = Arc::clone(&shared);
        let task = runtime.keep("flusher", move || {
            let this = Arc::clone(&this);
            async move { this.run().await }
        });
        Self { shared, task: Mutex::new(Some(task)) }
    }

    /// How many writes were applied, or had been before.
    pub fn applied(&self) -> u64 {
        self.shared.applied.load(Ordering::Relaxed)
    }

    /// How it does.
    pub fn inspect(&self) -> Inspection {
        let shared = &self.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tree = Inspection::new("flusher")
            .fact("claim", shared.options.claim)
            .fact("pause", shared.options.pause)
            .counter("applied", count(&shared.applied))
            .counter("superseded", count(&shared.superseded))
            .counter("batches", count(&shared.batches))
            .counter("splits", count(&shared.splits))
            .counter("retries", count(&shared.retries))
            .counter("dead", count(&shared.dead));
        if let Some(error) = &*shared.trouble() {
            let holder = error.fact("holder").map(|holder| format!(" ({holder})"));
            let note = format!(
                "accepted writes cannot be applied; trying again: {}{}",
                error.message(),
                holder.unwrap_or_default()
            );
            return tree.status(Status::Degraded, note);
        }
        tree
    }

    /// Ends at once: a batch that is under way may or may not be applied, and what is not settled
    /// stays in the journal for the next flusher.
    pub async fn stop(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.stop().await;
        }
    }
}

impl FlushLoop {
    fn trouble(&self) -> MutexGuard<'_, Option<Error>> {
        // It is one value, so poison means nothing.
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never ends. What it holds open is still the journal's, which hands it out again.
    async fn run(&self) -> Result<()> {
        let mut awaited = self.acceptor.awaited();
        let mut open = Open::default();
        loop {
            let entries = self.claim(&open).await;
            let writes: usize = entries.iter().map(|entry| entry.writes.len()).sum();
            let mut items = open.due(self.runtime.now());
            for entry in entries {
                items.extend(open.take_in(entry));
            }
            let items = self.without_outrun(items, &mut open).await;
            for (item, error) in self.apply(items).await {
                self.refuse(&mut open, item, &error).await;
            }
            let done = open.finished();
            if !done.is_empty() {
                self.settle(&done).await;
            }
            if writes > 0 && writes < self.options.claim {
                let pause = self.runtime.sleep(self.options.pause);
                tokio::select! {
                    () = pause => {}
                    () = somebody(&mut awaited) => {}
                }
            }
        }
    }

    /// The next entries; none when a refused write is due before any comes.
    async fn claim(&self, open: &Open) -> Vec<JournalEntry> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let mut backoff = backoff();
        let mut failing = false;
        loop {
            let wait = Deadline::at(self.runtime.now() + PATIENCE).min(open.next_due());
            match self.journal.claim(self.options.claim, wait).await {
                Ok(mut entries) => {
                    if failing {
                        tracing::info!("the journal can be read again");
                    }
                    // One that has a refused write comes again when that takes long.
                    entries.retain(|entry| !open.has(entry.id));
                    return entries;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "the journal cannot be read; trying again");
                    }
                    backoff.wait(&self.runtime).await;
                }
            }
        }
    }

    /// Sets aside again what was a dead letter and is, or may be, older than its record: a direct write since
    /// then has no sequence that the guard in the row could tell.
    async fn without_outrun(&self, items: Vec<Item>, open: &mut Open) -> Vec<Item> {
        let (letters, mut items): (Vec<_>, Vec<_>) = items.into_iter().partition(|it| it.was_dead);
        for letter in letters {
            match self.outrun(&letter).await {
                Ok(None) => items.push(letter),
                Ok(Some(reason)) => {
                    self.dead.fetch_add(1, Ordering::Relaxed);
                    open.set_aside(letter, reason);
                }
                Err(error) => {
                    tracing::debug!(%error, "a dead letter waits for a look at its record");
                    open.try_again(letter, self.runtime.now() + Duration::from_secs(1));
                }
            }
        }
        items
    }

    /// Why a dead letter is, or may be, older than what there is now.
    async fn outrun(&self, letter: &Item) -> Result<Option<&'static str>> {
        let how =
            ReadOptions::strong(Deadline::at(self.runtime.now() + self.options.batch_timeout));
        let read = self.store.read(std::slice::from_ref(&letter.write.key), &how).await?;
        let read = one(read)?;
        Ok(match read.record {
            Some(record) => (record.updated_at > letter.sequence.time())
                .then_some("the record was written since; drop this one"),
            // The trace of a deletion does not say when that was.
            None => (read.version != Version::NONE).then_some(
                "the record is deleted, and whether before this write or since is not known; drop this \
                 one, and write it anew if it is wanted",
            ),
        })
    }

    /// Applies writes, in the order of their sequences; answers those that the store refuses. A batch
    /// that is refused for what it holds is tried in halves, the older first.
    async fn apply(&self, mut items: Vec<Item>) -> Vec<(Item, Error)> {
        items.sort_by_key(|item| item.sequence);
        let (mut todo, mut refused) = (vec![items], Vec::new());
        let mut backoff = backoff();
        let mut failing = false;
        while let Some(mut batch) = todo.pop() {
            if batch.is_empty() {
                continue;
            }
            match self.send(&batch).await {
                Sent::Applied => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("accepted writes are applied again");
                    }
                    backoff.reset();
                    *self.trouble() = None;
                    self.applied.fetch_add(batch.len() as u64, Ordering::Relaxed);
                }
                Sent::Again(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "accepted writes cannot be applied; trying again");
                    }
                    *self.trouble() = Some(error);
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    todo.push(batch);
                    backoff.wait(&self.runtime).await;
                }
                Sent::Refused(error) if batch.len() > 1 => {
                    self.splits.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, writes = batch.len(), "refused batch is split");
                    let newer = batch.split_off(batch.len() / 2);
                    todo.extend([newer, batch]);
                }
                Sent::Refused(error) => {
                    refused.extend(batch.into_iter().map(|item| (item, error.clone())));
                }
            }
        }
        refused
    }

    /// A write that the store refuses: later again, beside the others, or never.
    async fn refuse(&self, open: &mut Open, mut item: Item, error: &Error) {
        const PATIENCE: u32 = 4;
        item.tries += 1;
        // What the request itself is to blame for stays so. Anything else may be the whole store's
        // trouble, as long as nothing else gets through; but there may be nothing else.
        let own_fault = error.kind() == ErrorKind::InvalidInput
            || self.trouble().replace(error.clone()).is_none()
            || (item.tries >= Flusher::TRIES * PATIENCE && self.answers(&item).await);
        if own_fault && item.tries >= Flusher::TRIES {
            tracing::error!(%error, sequence = %item.sequence, "an accepted write is set aside");
            self.dead.fetch_add(1, Ordering::Relaxed);
            open.set_aside(item, error.message());
        } else {
            let pause = Duration::from_millis(50 << item.tries.min(5));
            open.try_again(item, self.runtime.now() + self.runtime.jitter(pause, 0.2));
        }
    }

    /// Whether the store can be read where it refuses a write.
    async fn answers(&self, item: &Item) -> bool {
        let deadline = Deadline::at(self.runtime.now() + self.options.batch_timeout);
        let how = ReadOptions::strong(deadline);
        let work = self.store.read(std::slice::from_ref(&item.write.key), &how);
        self.runtime.within(deadline, work).await.is_some_and(|read| read.is_ok())
    }

    /// Sends the [`latest`] of a batch, at most so much at once as a store takes well.
    async fn send(&self, batch: &[Item]) -> Sent {
        const ROWS: usize = 5000;
        const BYTES: usize = 8 * 1024 * 1024;
        let latest = latest(batch);
        let superseded = (batch.len() - latest.len()) as u64;
        let settled = Sequence::new(self.settled.load(Ordering::Relaxed));
        let mut rows = Vec::new();
        let mut bytes = 0;
        for item in latest {
            if rows.len() >= ROWS || bytes >= BYTES {
                match self.write(std::mem::take(&mut rows)).await {
                    Sent::Applied => bytes = 0,
                    failed => return failed,
                }
            }
            bytes += item.write.bytes();
            let place = Place { sequence: item.sequence, settled };
            rows.push(item.write.clone().when(Precondition::After(place)));
        }
        self.superseded.fetch_add(superseded, Ordering::Relaxed);
        self.write(rows).await
    }

    async fn write(&self, rows: Vec<Write>) -> Sent {
        let (count, now) = (rows.len(), self.runtime.now());
        let deadline = Deadline::at(now + self.options.batch_timeout);
        let how = WriteOptions { deadline, background: true, ..WriteOptions::default() };
        self.batches.fetch_add(1, Ordering::Relaxed);
        // A store that hangs must not hang the claims of this flusher with it.
        let limit = Deadline::at(now + self.options.batch_timeout * 2);
        let done = self.runtime.within(limit, self.store.write(rows, &how)).await;
        let receipts = match done.unwrap_or_else(|| Err(Deadline::exceeded())) {
            Ok(receipts) => receipts,
            Err(error) if error.is_retryable() => return Sent::Again(error),
            Err(error) => return Sent::Refused(error),
        };
        // A store of several databases says for each write whether its own could be reached.
        let missed = |outcome| matches!(outcome, Outcome::Unavailable | Outcome::Unknown);
        if receipts.len() != count || receipts.iter().any(|it| missed(it.outcome)) {
            let message = "a part of the store did not take its part of the batch";
            return Sent::Again(Error::new(ErrorKind::Unavailable, message));
        }
        Sent::Applied
    }

    async fn settle(&self, done: &[Settled]) {
        let mut backoff = backoff();
        let mut failing = false;
        loop {
            match self.journal.settle(done.to_vec()).await {
                Ok(progress) => {
                    self.settled.store(progress.settled.get(), Ordering::Relaxed);
                    return self.acceptor.learn(&progress);
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "applied writes cannot be settled; again");
                    }
                    backoff.wait(&self.runtime).await;
                }
            }
        }
    }
}

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
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

/// The latest write of each key, in the order of sequences, and where that is a put, the latest delete
/// before it: the record that comes into being has its own time, not that of the one that went. A batch
/// that is refused is cut before this, so that an older write of a key is still there when the later one
/// turns out to be bad.
fn latest(batch: &[Item]) -> Vec<&Item> {
    let mut keys: HashMap<_, [Option<&Item>; 2]> = HashMap::with_capacity(batch.len());
    for item in batch {
        let places = keys.entry(&item.write.key).or_default();
        let deletes = item.write.change == Change::Delete;
        for place in if deletes { &mut places[..] } else { &mut places[1..] } {
            if place.is_none_or(|other| other.sequence < item.sequence) {
                *place = Some(item);
            }
        }
    }
    let mut latest: Vec<_> = keys.into_values().flatten().flatten().collect();
    latest.sort_unstable_by_key(|item| item.sequence);
    // A delete that nothing follows is both.
    latest.dedup_by_key(|item| item.sequence);
    latest
}

impl fmt::Debug for Flusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flusher").field("options", &self.shared.options).finish_non_exhaustive()
    }
}
