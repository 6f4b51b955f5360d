//! `WriteBuffer`: a write is acknowledged by a journal and applied later.

mod appends;
mod background;
mod direct;
mod horizon;
mod pending;
mod reads;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use terrace_core::{
    BatchLimits, Batcher, BoxFuture, Deadline, Error, ErrorKind, Generations, Inspection, Journal,
    JournalEntry, Key, Load, Page, Precondition, Progress, Read, ReadOptions, Receipt, Result,
    Runtime, Scan, Sequence, Status, Store, Task, Unit, Write, WriteOptions,
};

use self::appends::Appends;
use self::horizon::Horizon;
use self::pending::Pending;
use crate::flusher::{Acceptor as _, Flusher, FlusherOptions};

/// Acknowledges writes once a journal has them; a [`Flusher`] applies them to the inner store.
///
/// **On read.** Writes that wait are looked at first, on every path: single reads, batches and
/// scans; a delete that waits hides its record. What waits was written by this instance, or by
/// another one and looked up in the journal since. A record that waits has no version yet
/// ([`Version::NONE`](terrace_core::Version::NONE)) and origin `Journal`. A write is forgotten here
/// only when the journal says that it was settled and the generation of the caches below was looked at
/// since, so it is seen here or below, without a gap.
///
/// A read with a token of this journal is answered by an instance that knows every write up to it;
/// one that does not asks the journal for what it missed, and where that may be hidden behind an
/// older write that waits, it waits until that is applied. A token of the inner store's makes it ask
/// where a write of the same keys waits here, which may be older; a bound on staleness always. A
/// `Strong` read waits until the writes of its keys are applied,
/// and so has a version. When the journal cannot be asked, these answer `Unavailable`.
///
/// **On write.** Unconditional writes are appended to the journal, many callers' at once, and
/// answered with [`Outcome::Queued`](terrace_core::Outcome::Queued), the durability that the journal
/// reached, and a token. Writes with a precondition, and those that ask for more durability than the
/// journal has (`Committed`), are applied before the answer: they wait until every earlier write of
/// their keys is applied, then go to the inner store. With an idempotency key the journal, or for
/// the latter the inner store, makes sure that the request is done once.
///
/// **On delete.** As on write.
///
/// **On failure.** A journal that is full, or whose oldest write has waited longer than
/// [`max_age`](WriteBufferOptions::max_age), answers `Overloaded` with a wait. A journal that cannot
/// be reached answers `Unavailable`; when the connection dies after the append left,
/// `OutcomeUnknown`. The inner store may be down: writes are still accepted, and records that wait
/// are still read. `close` lets the flusher work for up to [`drain`](WriteBufferOptions::drain) and
/// says how much is left; the journal keeps it.
///
/// **Defaults.** See [`WriteBufferOptions`].
///
/// **Where it belongs.** At the top, above the caches: the flusher writes through them, so that an
/// invalidation follows its commit.
///
/// ```text
/// right:  WriteBuffer(journal) > CacheAside(far) > Coalesce > postgres
/// wrong:  CacheAside(far) > WriteBuffer(journal) > postgres    invalidates before the commit
/// wrong:  NearCache > WriteBuffer(journal) > ...               hits hide the writes that wait
/// ```
///
/// **What it gives up.** A default read through one instance may not see yet what another has
/// accepted; with the token of the write it does. A lost journal loses the writes that wait in it.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use terrace_core::{
///     JournalLimits, Key, MemoryJournal, MemoryStore, Outcome, Runtime, StoreExt, Value,
/// };
/// use terrace_layers::{WriteBuffer, WriteBufferOptions};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> terrace_core::Result<()> {
/// let runtime = Runtime::system();
/// let inner = Arc::new(MemoryStore::new(runtime.clone()));
/// let patience = Duration::from_secs(30);
/// let journal = MemoryJournal::new(JournalLimits::default(), patience, runtime.clone());
/// let options = WriteBufferOptions::default();
/// let caches = inner.clone();
/// let name = "journal-of-a";
/// let store =
///     WriteBuffer::open(inner, caches, Arc::new(journal), name, options, runtime).await;
/// assert_eq!(store.to_string(), "WriteBuffer(memory, memory)");
///
/// let key = Key::new("a")?;
/// let receipt = store.put(key.clone(), Value::new("1")?).await?;
/// assert_eq!(receipt.outcome, Outcome::Queued);
/// assert_eq!(store.get(&key).await?.unwrap().value.as_str(), "1");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct WriteBuffer {
    shared: Arc<Shared>,
    appends: Arc<Batcher<Appends>>,
    flusher: Option<Flusher>,
    closed: AtomicBool,
    // End with the layer.
    _background: [Task; 2],
}

/// What reads, writes and background work have in common.
#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Store>,
    caches: Arc<dyn Generations>,
    journal: Arc<dyn Journal>,
    horizon: Arc<Horizon>,
    options: WriteBufferOptions,
    runtime: Runtime,
    queued: AtomicU64,
    direct: AtomicU64,
    refused: AtomicU64,
    caught_up: AtomicU64,
}

/// How much waits, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteBufferOptions {
    /// Writes are refused while the oldest one that is not applied has waited longer than this.
    /// Default 15 min.
    pub max_age: Duration,
    /// The longest that a read or a direct write waits for earlier writes of its keys to be
    /// applied; its own deadline may be earlier. Default 2 s.
    pub patience: Duration,
    /// How often the journal is asked how far it has come while somebody waits for it, or while
    /// writes wait that a flusher elsewhere may have applied. Default 10 ms.
    pub poll: Duration,
    /// Requests that are appended at once. Default 1024.
    pub max_group: usize,
    /// Requests that may wait for an append. Default 16 384; beyond, writes are `Overloaded`.
    pub max_waiting: usize,
    /// How long `close` lets the flusher work. Default 5 s.
    pub drain: Duration,
    /// How this instance applies writes. Default: as [`FlusherOptions`] says; `None` leaves it to
    /// flushers elsewhere.
    pub flusher: Option<FlusherOptions>,
}

impl Default for WriteBufferOptions {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(15 * 60),
            patience: Duration::from_secs(2),
            poll: Duration::from_millis(10),
            max_group: 1024,
            max_waiting: 16_384,
            drain: Duration::from_secs(5),
            flusher: Some(FlusherOptions::default()),
        }
    }
}

impl WriteBuffer {
    /// In front of `inner`. Reads what waits in the journal, unless it cannot be reached yet, and
    /// starts the flusher. `history` names the journal in tokens; it is the same for every instance
    /// on one database, and for whichever journal stands before it.
    pub async fn open(
        inner: Arc<dyn Store>,
        caches: Arc<dyn Generations>,
        journal: Arc<dyn Journal>,
        history: impl Into<Arc<str>>,
        options: WriteBufferOptions,
        runtime: Runtime,
    ) -> Self {
        let horizon = Arc::new(Horizon::new(history.into(), runtime.clone()));
        let shared = Arc::new(Shared {
            inner: Arc::clone(&inner),
            caches,
            journal: Arc::clone(&journal),
            horizon: Arc::clone(&horizon),
            options: options.clone(),
            runtime: runtime.clone(),
            queued: AtomicU64::new(0),
            direct: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            caught_up: AtomicU64::new(0),
        });
        let deadline = Deadline::at(runtime.now() + Duration::from_secs(30));
        let begun = runtime.within(deadline, shared.begin()).await;
        if let Err(error) = begun.unwrap_or_else(|| Err(Deadline::exceeded())) {
            tracing::warn!(%error, "the journal cannot be read yet");
        }
        let limits = BatchLimits {
            // One: who appends next is then known to follow, and the group grows meanwhile.
            lanes: 1,
            batch: Load { parts: options.max_group, bytes: 8 * 1024 * 1024 },
            waiting: Load { parts: options.max_waiting, bytes: 64 * 1024 * 1024 },
        };
        let appends = Appends { shared: Arc::clone(&shared) };
        let appends = Batcher::new(appends, limits, runtime.clone());
        let background = [background::keep_polling(&shared), background::keep_forgetting(&shared)];
        let flusher = options
            .flusher
            .map(|options| Flusher::start(journal, inner, options, runtime, horizon));
        let closed = AtomicBool::new(false);
        Self { shared, appends, flusher, closed, _background: background }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "the store is closed"));
        }
        Ok(())
    }

    /// Whether these writes must be applied before they are answered.
    fn is_direct(&self, batch: &[Write], how: &WriteOptions) -> bool {
        let reached = self.shared.horizon.durability();
        how.durability.is_some_and(|wanted| wanted > reached)
            || batch.iter().any(|write| write.precondition != Precondition::None)
    }

    /// Lets the flusher work until all that this instance knows of is applied, for a bounded time.
    async fn drain(&self) {
        let Some(flusher) = &self.flusher else { return };
        let shared = &self.shared;
        let last = shared.horizon.last();
        let deadline = Deadline::at(shared.runtime.now() + shared.options.drain);
        let drained = shared.runtime.within(deadline, shared.horizon.until_applied(last)).await;
        flusher.stop().await;
        if drained.is_none() {
            let left = shared.horizon.progress().writes;
            tracing::warn!(left, "writes wait in the journal and are applied by the next start");
        }
    }
}

impl Shared {
    /// Asks the journal how far it has come, and for the writes that this instance does not know.
    async fn refresh(&self, deadline: Deadline) -> Result<Progress> {
        let progress = self.ask(deadline, self.journal.progress()).await?;
        self.horizon.learn(&progress);
        self.until_begun(progress.epoch, deadline).await?;
        self.catch_up(progress.epoch, progress.last, deadline).await?;
        Ok(progress)
    }

    /// Returns once a life of the journal has begun here; [`background::keep_polling`] sees to it.
    async fn until_begun(&self, epoch: u64, deadline: Deadline) -> Result<()> {
        if epoch <= self.horizon.progress().epoch {
            return Ok(());
        }
        let begun = self.runtime.within(deadline, self.horizon.until_begun(epoch)).await;
        begun.ok_or_else(Deadline::exceeded)
    }

    /// Begins the present life of the journal: looks up all that waits in it.
    async fn begin(&self) -> Result<()> {
        let patience = || self.patience(Deadline::NEVER);
        let progress = self.ask(patience(), self.journal.progress()).await?;
        let mut backlog = Pending::default();
        let mut seen = progress.applied;
        while seen < progress.last {
            let entries;
            (entries, seen) = self.peek(progress.epoch, seen, progress.last, patience()).await?;
            for (sequence, write) in entries.iter().flat_map(horizon::waiting_of) {
                backlog.add(sequence, write);
            }
        }
        // What was settled in the life before stops waiting here, so reads below should see it.
        if self.horizon.progress().epoch > 0
            && let Err(error) = self.ask(patience(), self.caches.look()).await
        {
            tracing::debug!(%error, "the caches below cannot look");
        }
        let before = self.horizon.progress().epoch;
        let kept = self.ask(patience(), self.journal.end_of(before)).await?;
        self.horizon.begin(&progress, seen, backlog, kept.unwrap_or_default());
        Ok(())
    }

    /// Makes sure that every write of a life of the journal up to `to` is known here, or settled and
    /// seen below.
    async fn catch_up(&self, epoch: u64, to: Sequence, deadline: Deadline) -> Result<()> {
        while let Some(seen) = self.horizon.seen_short_of(to) {
            self.caught_up.fetch_add(1, Ordering::Relaxed);
            let (entries, end) = self.peek(epoch, seen, to, deadline).await?;
            // Of what was settled before its turn nothing else tells the caches of this instance.
            self.ask(deadline, self.caches.look()).await?;
            self.horizon.add_foreign(epoch, seen, end, entries);
        }
        Ok(())
    }

    /// Some of what waits after a place, and up to where that is all there is: `to`, or earlier.
    ///
    /// # Errors
    /// `Unavailable` when the life of the journal has ended.
    async fn peek(
        &self,
        epoch: u64,
        after: Sequence,
        to: Sequence,
        deadline: Deadline,
    ) -> Result<(Vec<JournalEntry>, Sequence)> {
        const AT_ONCE: usize = 4096;
        let entries = self.ask(deadline, self.journal.peek(after, AT_ONCE)).await?;
        let after_it = self.ask(deadline, self.journal.progress()).await?;
        if after_it.epoch != epoch {
            let ended = "the journal was restarted or replaced just now; try again";
            return Err(Error::new(ErrorKind::Unavailable, ended));
        }
        let writes: usize = entries.iter().map(|entry| entry.writes.len()).sum();
        let end = entries.last().map_or(after, end_of);
        Ok((entries, if writes < AT_ONCE { end.max(to) } else { end }))
    }

    async fn ask<T>(&self, deadline: Deadline, work: BoxFuture<'_, Result<T>>) -> Result<T> {
        let answer = self.runtime.within(deadline, work).await;
        answer.unwrap_or_else(|| Err(Deadline::exceeded()))
    }

    /// The earlier of the caller's deadline and the longest that is waited here.
    fn patience(&self, deadline: Deadline) -> Deadline {
        deadline.min(Deadline::at(self.runtime.now() + self.options.patience))
    }
}

/// The last place that an entry takes up.
fn end_of(entry: &JournalEntry) -> Sequence {
    entry.id.plus((entry.writes.len() as u64).max(1)).before()
}

impl fmt::Display for WriteBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteBuffer({}, {})", self.shared.journal, self.shared.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for WriteBuffer {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            self.check_open()?;
            self.shared.read(keys, how).await
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            self.check_open()?;
            how.deadline.check(self.shared.runtime.now())?;
            if self.is_direct(&batch, how) {
                return self.shared.write_through(batch, how).await;
            }
            if batch.is_empty() && how.idempotency.is_none() {
                return Ok(Vec::new());
            }
            self.shared.append(&self.appends, batch, how).await
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            self.check_open()?;
            self.shared.scan(scan, how).await
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let shared = &self.shared;
            let (inner, journal) = tokio::join!(shared.inner.inspect(), shared.journal.inspect());
            let progress = shared.horizon.progress();
            let age = shared.horizon.age();
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let processed = self.flusher.as_ref().map_or(0, Flusher::applied);
            let mut tree = Inspection::new("write-buffer")
                .fact("max_age", shared.options.max_age)
                .fact("patience", shared.options.patience)
                .counter("writes_queued", count(&shared.queued))
                .counter("writes_processed", processed)
                .counter("writes_direct", count(&shared.direct))
                .counter("writes_refused", count(&shared.refused))
                .counter("catch_ups", count(&shared.caught_up))
                .gauge("queue_length", progress.writes, Unit::Count)
                .gauge("queue_bytes", progress.bytes, Unit::Bytes)
                .gauge("dead", progress.dead, Unit::Count)
                .gauge("keys_waiting", shared.horizon.waiting() as u64, Unit::Count)
                .gauge("oldest", micros(age), Unit::Micros);
            if progress.dead > 0 {
                let note = "the database refuses some writes; see `terrace journal dead list`";
                tree = tree.status(Status::Degraded, note);
            } else if age > shared.options.max_age {
                tree = tree.status(Status::Degraded, TOO_OLD);
            }
            // Without the one nothing is accepted, without the other nothing is applied; only
            // without both is there nothing left to do.
            let down = inner.status == Status::Down && journal.status == Status::Down;
            tree = tree.helped_by(journal).helped_by(inner);
            match &self.flusher {
                Some(flusher) if !down => tree.helped_by(flusher.inspect()),
                _ if down => tree.status(Status::Down, "neither the database nor the journal"),
                _ => tree,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.closed.swap(true, Ordering::AcqRel) {
                return Ok(());
            }
            self.appends.close().await;
            self.drain().await;
            self.shared.horizon.close();
            let journal = self.shared.journal.close().await;
            self.shared.inner.close().await.and(journal)
        })
    }
}

const TOO_OLD: &str = "writes wait for too long to be applied; new ones are refused until the \
                       database or the flusher works again";

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
