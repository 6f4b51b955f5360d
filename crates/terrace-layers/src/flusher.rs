//! `Flusher`: takes accepted writes out of a journal and applies them.

mod batch;
mod ledger;
mod partition;

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{
    DeadLetter, Deadline, Inspection, Journal, Progress, Runtime, Sequence, Status, Store, Task,
    Unit, Write,
};
use tokio::sync::{Notify, watch};

use self::ledger::Ledger;
use self::partition::Partition;

/// Applies what a journal holds to a store, in batches, and settles it after the commit.
///
/// Any number of flushers may work on one journal, in any process. Each claims entries, deals their
/// writes out to partitions by a hash of the key, and has one batch a partition under way. A write
/// goes to the store under [`Precondition::After`](terrace_core::Precondition::After) its place, so
/// a batch that is applied twice, late, or beside another flusher's changes nothing that came later.
/// An entry is settled when all of its writes are done.
///
/// **Pace.** Accepting a burst and applying it compete for the same cores. A partition that is up to
/// date rests after each batch, [`pace`](FlusherOptions::pace) times as long as that took: meanwhile
/// later writes supersede earlier ones, which then never reach the store. It does not rest while
/// somebody waits for what is accepted to be applied, nor while more waits than it may claim.
///
/// **On failure.** A store that cannot be reached, or does not say what became of a batch, is tried
/// again with growing pauses, for as long as it takes: nothing is skipped. A batch that the store
/// refuses for what it holds is tried again in halves, the older first, until the write that is
/// refused stands alone; that one is tried again [`tries`](FlusherOptions::tries) times, beside the
/// others, and then set aside as a dead letter. What is no fault of the write's own (a defect, a
/// table that is missing) does not make it one, unless other writes were applied meanwhile.
///
/// **Where it belongs.** On the stack below the `WriteBuffer`, caches included, so that they are
/// invalidated after each commit.
pub struct Flusher {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<Task>>,
}

/// How a flusher works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlusherOptions {
    /// Batches under way at once, each with keys of its own. Default 2. At least 1.
    pub partitions: usize,
    /// Writes of one batch, before those that a later one supersedes are left out. Default 5000.
    pub max_batch: usize,
    /// Keys and values of one batch, in bytes. Default 8 MiB.
    pub max_batch_bytes: usize,
    /// A smaller batch waits a little for more. Default 500.
    pub min_batch: usize,
    /// How long it waits. Default 5 ms.
    pub linger: Duration,
    /// After a batch a partition rests so many times as long as it took. Default 9: a tenth of the
    /// time is work. 0 never rests.
    pub pace: u32,
    /// The longest rest, and with it how long an accepted write may go unapplied in calm. Default 1 s.
    pub max_rest: Duration,
    /// Writes that are claimed and not done; about a quarter of it while more than it wait in the
    /// journal, as then nothing rests. Default 120 000.
    pub max_claimed: usize,
    /// Their bytes. Default 32 MiB.
    pub max_claimed_bytes: u64,
    /// The longest that the store may take for a batch. Default 30 s.
    pub batch_timeout: Duration,
    /// How often a write that the store refuses is tried. Default 5.
    pub tries: u32,
    /// The pause after a failure; it doubles at each further one. Default 50 ms.
    pub backoff: Duration,
    /// The longest pause. Default 2 s.
    pub backoff_limit: Duration,
    /// Which rule to break, for tests that must see their check fail.
    #[cfg(feature = "mutants")]
    #[doc(hidden)]
    pub mutant: Option<FlusherMutant>,
}

/// Broken variants for tests that prove that they would notice.
#[cfg(feature = "mutants")]
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlusherMutant {
    /// Settles what it claims before it is applied.
    SettlesFirst,
    /// Applies without the guard in the row.
    Unguarded,
    /// Says that everything is applied as soon as it is claimed.
    ForgetsEarly,
}

impl Default for FlusherOptions {
    fn default() -> Self {
        Self {
            partitions: 2,
            max_batch: 5000,
            max_batch_bytes: 8 * 1024 * 1024,
            min_batch: 500,
            linger: Duration::from_millis(5),
            pace: 9,
            max_rest: Duration::from_secs(1),
            max_claimed: 120_000,
            max_claimed_bytes: 32 * 1024 * 1024,
            batch_timeout: Duration::from_secs(30),
            tries: 5,
            backoff: Duration::from_millis(50),
            backoff_limit: Duration::from_secs(2),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// One write on its way.
#[derive(Clone, Debug)]
struct Item {
    /// The entry that it is a part of.
    entry: Sequence,
    sequence: Sequence,
    write: Write,
    tries: u32,
    since: Instant,
}

struct Shared {
    journal: Arc<dyn Journal>,
    store: Arc<dyn Store>,
    options: FlusherOptions,
    runtime: Runtime,
    follower: Arc<dyn Follower>,
    partitions: Vec<Partition>,
    ledger: Mutex<Ledger>,
    /// There is room for more, or something to settle.
    moved: Notify,
    finished: Notify,
    stop: watch::Sender<bool>,
    settled: AtomicU64,
    /// Writes that wait in the journal; more than any number before that is known.
    waiting: AtomicU64,
    applied: AtomicU64,
    superseded: AtomicU64,
    batches: AtomicU64,
    splits: AtomicU64,
    dead: AtomicU64,
    retries: AtomicU64,
    troubled: AtomicBool,
}

/// Who accepts the writes that a flusher applies.
pub trait Follower: Send + Sync + 'static {
    /// Hears how far the journal has come whenever something was settled.
    fn learn(&self, progress: &Progress);

    /// How many wait for what is accepted to be applied, if that is known here. Where it is not, the
    /// rests are short: [`Flusher::SHORT_REST`].
    fn awaited(&self) -> Option<watch::Receiver<usize>>;
}

/// Nobody: a flusher apart.
impl Follower for () {
    fn learn(&self, _: &Progress) {}

    fn awaited(&self) -> Option<watch::Receiver<usize>> {
        None
    }
}

impl Flusher {
    /// The longest rest of a flusher that does not hear of those who wait. 50 ms.
    pub const SHORT_REST: Duration = Duration::from_millis(50);

    /// Starts.
    pub fn start(
        journal: Arc<dyn Journal>,
        store: Arc<dyn Store>,
        mut options: FlusherOptions,
        runtime: Runtime,
        follower: Arc<dyn Follower>,
    ) -> Self {
        let partitions = options.partitions.max(1);
        if follower.awaited().is_none() {
            options.max_rest = options.max_rest.min(Self::SHORT_REST);
        }
        let shared = Arc::new(Shared {
            journal,
            store,
            runtime: runtime.clone(),
            follower,
            partitions: (0..partitions).map(|_| Partition::new()).collect(),
            ledger: Mutex::default(),
            moved: Notify::new(),
            finished: Notify::new(),
            stop: watch::Sender::new(false),
            settled: AtomicU64::new(0),
            waiting: AtomicU64::new(u64::MAX),
            applied: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            splits: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            troubled: AtomicBool::new(false),
            options,
        });
        let mut tasks = Vec::with_capacity(partitions + 2);
        for index in 0..partitions {
            let this = Arc::clone(&shared);
            let work = async move { this.unless_stopped(this.work(index)).await };
            tasks.push(runtime.spawn("flusher partition", work));
        }
        let this = Arc::clone(&shared);
        let work = async move { this.unless_stopped(this.settle_forever()).await };
        tasks.push(runtime.spawn("flusher settle", work));
        let this = Arc::clone(&shared);
        let work = async move { this.unless_stopped(this.claim_forever()).await };
        tasks.push(runtime.spawn("flusher claim", work));
        Self { shared, tasks: Mutex::new(tasks) }
    }

    /// How many writes were applied, or had been before.
    pub fn applied(&self) -> u64 {
        self.shared.applied.load(Ordering::Relaxed)
    }

    /// How it does.
    pub fn inspect(&self) -> Inspection {
        let shared = &self.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (claimed, bytes) = shared.ledger().size();
        let tree = Inspection::new("flusher")
            .option("partitions", shared.options.partitions)
            .option("max_batch", shared.options.max_batch)
            .option("pace", shared.options.pace)
            .counter("applied", count(&shared.applied))
            .counter("superseded", count(&shared.superseded))
            .counter("batches", count(&shared.batches))
            .counter("splits", count(&shared.splits))
            .counter("retries", count(&shared.retries))
            .counter("dead", count(&shared.dead))
            .gauge("claimed", claimed as u64, Unit::Count)
            .gauge("claimed_bytes", bytes, Unit::Bytes);
        if shared.troubled.load(Ordering::Relaxed) {
            let note = "accepted writes cannot be applied; trying again";
            return tree.status(Status::Degraded, note);
        }
        tree
    }

    /// Ends at once: batches that are under way may or may not be applied, and what is not settled
    /// stays in the journal for the next flusher.
    pub async fn stop(&self) {
        self.shared.stop.send_replace(true);
        let tasks = {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        for task in tasks {
            task.stop().await;
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.shared.stop.send_replace(true);
    }
}

impl Shared {
    async fn unless_stopped(&self, work: impl Future<Output = ()>) {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            () = work => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    /// Claims as much as there is room for, and deals it out.
    async fn claim_forever(&self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        let mut failures = 0;
        loop {
            let room = self.room().await;
            let wait = Deadline::at(self.runtime.now() + PATIENCE);
            match self.journal.claim(room, wait).await {
                Ok(entries) => {
                    if std::mem::take(&mut failures) > 0 {
                        tracing::info!("the journal can be read again");
                    }
                    for entry in entries {
                        self.deal_out(entry).await;
                    }
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "the journal cannot be read; trying again");
                    }
                    failures += 1;
                    self.pause(failures).await;
                }
            }
        }
    }

    /// How many writes may be claimed; waits until it is worth while.
    async fn room(&self) -> usize {
        loop {
            let moved = self.moved.notified();
            if let Some(room) = self.room_now() {
                return room;
            }
            // Whoever rests is told that it is behind.
            self.partitions.iter().for_each(|partition| partition.arrived.notify_one());
            moved.await;
        }
    }

    fn room_now(&self) -> Option<usize> {
        let (writes, bytes) = self.ledger().size();
        let most = self.options.max_claimed;
        let behind = self.waiting.load(Ordering::Relaxed) > most as u64;
        let most = if behind { most.div_ceil(4) } else { most };
        let room = most.saturating_sub(writes);
        let worth = room > most / 8 || writes == 0;
        (worth && bytes < self.options.max_claimed_bytes).then(|| room.max(1))
    }

    async fn deal_out(&self, entry: terrace_core::JournalEntry) {
        #[cfg(feature = "mutants")]
        self.break_a_rule(&entry).await;
        // One that this flusher is still at work on comes again when that takes long.
        if !self.ledger().open(&entry) {
            return;
        }
        if entry.writes.is_empty() {
            self.finished.notify_one();
        }
        let since = self.runtime.now();
        for (sequence, write) in (0..).map(|n| entry.first.plus(n)).zip(entry.writes) {
            self.hand_on(Item { entry: entry.id, sequence, write, tries: 0, since });
        }
    }

    #[cfg(feature = "mutants")]
    async fn break_a_rule(&self, entry: &terrace_core::JournalEntry) {
        match self.options.mutant {
            Some(FlusherMutant::SettlesFirst) => {
                let done = vec![terrace_core::Settled::of(entry)];
                let _ = self.journal.settle(done).await;
            }
            Some(FlusherMutant::ForgetsEarly) => {
                if let Ok(progress) = self.journal.progress().await {
                    self.follower.learn(&Progress { applied: progress.last, ..progress });
                }
            }
            _ => {}
        }
    }

    /// Gives a write to the partition of its key.
    fn hand_on(&self, item: Item) {
        let mut hasher = DefaultHasher::new();
        item.write.key.hash(&mut hasher);
        let (hash, count) = (hasher.finish(), self.partitions.len() as u64);
        // A remainder of a length fits its type.
        let index = usize::try_from(hash % count).unwrap_or(0);
        self.partitions[index].push(hash / count, item);
    }

    /// Settles entries whose writes are done, as many at once as there are.
    async fn settle_forever(&self) {
        loop {
            let finished = self.finished.notified();
            let done = self.ledger().finished();
            if done.is_empty() {
                finished.await;
                continue;
            }
            let mut failures = 0;
            loop {
                match self.journal.settle(done.clone()).await {
                    Ok(progress) => {
                        self.settled.store(progress.settled.get(), Ordering::Relaxed);
                        self.waiting.store(progress.writes, Ordering::Relaxed);
                        self.follower.learn(&progress);
                        break;
                    }
                    Err(error) => {
                        if failures == 0 {
                            tracing::warn!(%error, "applied writes cannot be settled; again");
                        }
                        failures += 1;
                        self.pause(failures).await;
                    }
                }
            }
            self.ledger().close(&done);
            self.moved.notify_one();
        }
    }

    /// Marks writes as done.
    fn finish(&self, items: &[Item]) {
        let mut ledger = self.ledger();
        let mut whole = false;
        for part in items.chunk_by(|one, other| one.entry == other.entry) {
            whole |= ledger.finish(part[0].entry, part.len(), None);
        }
        drop(ledger);
        if whole {
            self.finished.notify_one();
        }
    }

    /// Marks a write as one that cannot be applied.
    fn set_aside(&self, item: &Item, reason: &str) {
        self.dead.fetch_add(1, Ordering::Relaxed);
        let (sequence, write) = (item.sequence, item.write.clone());
        let letter = DeadLetter { sequence, write, reason: reason.to_owned() };
        if self.ledger().finish(item.entry, 1, Some(letter)) {
            self.finished.notify_one();
        }
    }

    async fn pause(&self, failures: u32) {
        let wait = self.options.backoff.saturating_mul(1 << (failures - 1).min(16));
        let wait = wait.min(self.options.backoff_limit);
        self.runtime.sleep(self.runtime.jitter(wait, 0.2)).await;
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Every change of it is complete when a panic could happen, so poison means nothing.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Flusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flusher").field("options", &self.shared.options).finish_non_exhaustive()
    }
}
