//! A shard in memory.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, RwLock};

use crate::shard::{RequestResult, Reserved, moved};
use crate::{
    Batch, BoxFuture, ChangeLog, Changes, Checkpoint, Deadline, Error, ErrorKind, Follower,
    Generations, Inspection, Key, LogPosition, Logged, MemoryStore, Page, PartKind, Read,
    ReadOptions, Receipt, Result, Rows, Runtime, Scan, Shard, ShardState, SlotSet, Status, Store,
    Version, Write, WriteOptions,
};

/// A [`MemoryStore`] that is one shard of several: what the port of shards means, in its simplest
/// form. Its log is its rows by version, so it is compacted, and can be delayed.
#[derive(Debug)]
pub struct MemoryShard {
    inner: Arc<Inner>,
    reserved: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<MemoryStore>,
    runtime: Runtime,
    /// Held for reading by every call; for writing by a change, which so waits for all of them.
    state: RwLock<Option<ShardState>>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    checkpoints: HashMap<String, Checkpoint>,
    /// Added to each call before it does anything.
    delay: Duration,
    down: bool,
    /// A broken variant: writes do not look at the epoch.
    unfenced: bool,
    /// A broken variant: versions are not raised.
    not_raised: bool,
}

impl MemoryShard {
    /// An empty database that is no shard yet.
    pub fn new(runtime: Runtime) -> Self {
        let store = Arc::new(MemoryStore::new(runtime.clone()));
        let inner = Inner { store, runtime, state: RwLock::default(), kept: Mutex::default() };
        Self { inner: Arc::new(inner), reserved: Arc::default() }
    }

    /// Makes every call fail as `Unavailable`, or no longer.
    pub fn set_down(&self, down: bool) {
        self.inner.kept().down = down;
    }

    /// Makes every call begin by up to this much later.
    pub fn set_delay(&self, delay: Duration) {
        self.inner.kept().delay = delay;
    }

    /// Breaks the fence: calls are let in under any epoch.
    #[must_use]
    pub fn without_fence(self) -> Self {
        self.inner.kept().unfenced = true;
        self
    }

    /// Breaks the rule that versions grow: they are not raised when slots come in.
    #[must_use]
    pub fn without_raising(self) -> Self {
        self.inner.kept().not_raised = true;
        self
    }

    /// The records themselves, whoever owns them.
    pub fn rows_now(&self) -> Vec<Logged> {
        self.inner.store.rows()
    }
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inspection(&self) -> Inspection {
        let part = Inspection::of(PartKind::Database, "memory");
        if self.kept().down { part.status(Status::Down, "down") } else { part }
    }

    /// A call arrives: late, or not at all.
    async fn arrive(&self) -> Result<()> {
        let (delay, down) = {
            let kept = self.kept();
            (kept.delay, kept.down)
        };
        let longest = u64::try_from(delay.as_micros()).unwrap_or(0);
        if longest > 0 {
            let pause = Duration::from_micros(self.runtime.random() % longest);
            self.runtime.sleep(pause).await;
        }
        if down {
            return Err(Error::new(ErrorKind::Unavailable, "this shard is down"));
        }
        Ok(())
    }

    fn admits(&self, state: Option<&ShardState>, epoch: u64) -> Result<()> {
        let same = state.is_some_and(|state| state.epoch == epoch);
        if same || self.kept().unfenced { Ok(()) } else { Err(moved()) }
    }
}

impl fmt::Display for MemoryShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl Shard for MemoryShard {
    fn at(&self, epoch: u64) -> Arc<dyn Store> {
        Arc::new(At { inner: Arc::clone(&self.inner), epoch })
    }

    fn state(&self) -> BoxFuture<'_, Result<Option<ShardState>>> {
        Box::pin(async {
            self.inner.arrive().await?;
            Ok(self.inner.state.read().await.clone())
        })
    }

    fn found(&self, state: ShardState) -> BoxFuture<'_, Result<ShardState>> {
        Box::pin(async {
            self.inner.arrive().await?;
            Ok(self.inner.state.write().await.get_or_insert(state).clone())
        })
    }

    fn change(&self, from: u64, to: ShardState, floor: Version) -> BoxFuture<'_, Result<Version>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            let mut state = self.inner.state.write().await;
            let Some(known) = state.as_ref().filter(|state| state.epoch == from) else {
                return Err(moved());
            };
            // What is cached of slots that go is told of no later write to them.
            if !known.owned.without(&to.owned).is_empty() {
                self.inner.store.raise_generation();
            }
            *state = Some(to);
            let floor = if self.inner.kept().not_raised { Version::NONE } else { floor };
            Ok(self.inner.store.raise(floor))
        })
    }

    fn keep_log(&self) -> BoxFuture<'_, Result<Arc<dyn ChangeLog>>> {
        Box::pin(async {
            self.inner.arrive().await?;
            Ok(Arc::new(Log(Arc::clone(&self.inner))) as _)
        })
    }

    fn end_log(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.inner.kept().checkpoints.clear();
            Ok(())
        })
    }

    fn rows<'a>(
        &'a self,
        after: Option<Key>,
        quiet: Option<BoxFuture<'a, Result<()>>>,
    ) -> BoxFuture<'a, Result<Box<dyn Rows>>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            let mut all = match quiet {
                None => self.inner.store.rows(),
                Some(quiet) => {
                    let _nobody_writes = self.inner.state.write().await;
                    quiet.await?;
                    self.inner.store.rows()
                }
            };
            all.retain(|row| after.as_ref().is_none_or(|after| row.key > *after));
            Ok(Box::new(Snapshot(all)) as Box<dyn Rows>)
        })
    }

    fn follower(&self, epoch: u64, source: &str) -> Arc<dyn Follower> {
        Arc::new(Taker { inner: Arc::clone(&self.inner), epoch, source: source.to_owned() })
    }

    fn results(&self, slots: &SlotSet) -> BoxFuture<'_, Result<Vec<RequestResult>>> {
        let slots = slots.clone();
        Box::pin(async move {
            let of_slot = |(key, fingerprint, receipts): (String, [u8; 32], Vec<Receipt>)| {
                let slot = key.split_once(':')?.0.parse().ok()?;
                let result = serialized(&receipts);
                slots.contains(crate::Slot::new(slot)).then_some(RequestResult {
                    key,
                    fingerprint: fingerprint.to_vec(),
                    result,
                    at_micros: 0,
                })
            };
            Ok(self.inner.store.results().into_iter().filter_map(of_slot).collect())
        })
    }

    fn keep_results(&self, epoch: u64, results: Vec<RequestResult>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let state = self.inner.state.read().await;
            self.inner.admits(state.as_ref(), epoch)?;
            for result in results {
                let fingerprint = result.fingerprint.try_into().unwrap_or([0; 32]);
                let receipts = deserialized(&result.result);
                self.inner.store.keep_result(result.key, fingerprint, receipts);
            }
            Ok(())
        })
    }

    fn forget(&self, epoch: u64, keys: Vec<Key>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            let state = self.inner.state.read().await;
            self.inner.admits(state.as_ref(), epoch)?;
            self.inner.store.forget(&keys);
            Ok(())
        })
    }

    fn reserve(&self) -> BoxFuture<'_, Result<Reserved>> {
        let reserved = Arc::clone(&self.reserved).try_lock_owned();
        Box::pin(async move {
            let guard: OwnedMutexGuard<()> = reserved.map_err(|_| {
                Error::new(ErrorKind::Unavailable, "somebody else moves slots of this shard")
            })?;
            Ok(Box::new(guard) as Reserved)
        })
    }

    fn history(&self) -> Arc<str> {
        format!("memory-{:x}", Arc::as_ptr(&self.inner).addr()).into()
    }

    fn generations(&self) -> Arc<dyn Generations> {
        Arc::clone(&self.inner.store) as _
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { self.inner.inspection() })
    }

    fn size(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async {
            self.inner.arrive().await?;
            let rows = self.inner.store.rows();
            Ok(rows.iter().filter(|row| row.record.is_some()).count() as u64)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.store.close()
    }
}

pub(crate) fn serialized(receipts: &[Receipt]) -> String {
    let done = receipts.iter().map(|it| (it.outcome, it.version)).collect::<Vec<_>>();
    serde_json::to_string(&done).unwrap_or_default()
}

pub(crate) fn deserialized(text: &str) -> Vec<Receipt> {
    let done: Vec<(crate::Outcome, Version)> = serde_json::from_str(text).unwrap_or_default();
    let receipt = |(outcome, version)| Receipt {
        outcome,
        version,
        durability: crate::Durability::Accepted,
        token: crate::Token::default(),
        origin: crate::Origin::PRIMARY,
        event: None,
        cached: false,
    };
    done.into_iter().map(receipt).collect()
}

/// What takes another shard's rows over.
#[derive(Debug)]
struct Taker {
    inner: Arc<Inner>,
    epoch: u64,
    source: String,
}

impl Taker {
    async fn keep(
        &self,
        to: Checkpoint,
        change: impl FnOnce(&MemoryStore, &Checkpoint) -> bool + Send,
    ) -> Result<bool> {
        self.inner.arrive().await?;
        let state = self.inner.state.read().await;
        self.inner.admits(state.as_ref(), self.epoch)?;
        let mut kept = self.inner.kept();
        let known = kept.checkpoints.entry(self.source.clone()).or_default();
        let changed = change(&self.inner.store, known);
        if changed {
            *known = to;
        }
        Ok(changed)
    }
}

impl fmt::Display for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl Follower for Taker {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async {
            self.inner.arrive().await?;
            Ok(self.inner.kept().checkpoints.get(&self.source).cloned().unwrap_or_default())
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.keep(batch.to.clone(), |store, known| {
            let fits = *known == batch.from;
            if fits {
                store.restore(batch.changes.clone());
            }
            fits
        }))
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        let to = Checkpoint { log: log.to_owned(), ..Checkpoint::default() };
        Box::pin(async { self.keep(to, |_, _| true).await.map(drop) })
    }
}

/// The rows of one moment, handed out a few at a time.
struct Snapshot(Vec<Logged>);

impl Rows for Snapshot {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Logged>>> {
        let rest = self.0.split_off(self.0.len().min(64));
        let part = std::mem::replace(&mut self.0, rest);
        Box::pin(async { Ok(part) })
    }
}

#[derive(Debug)]
struct Log(Arc<Inner>);

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl ChangeLog for Log {
    fn name(&self) -> Arc<str> {
        "log".into()
    }

    fn place_of(&self, position: crate::Position) -> LogPosition {
        LogPosition { epoch: 0, offset: position.get() }
    }

    fn position_of(&self, place: LogPosition) -> crate::Position {
        crate::Position::new(place.offset)
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            self.0.arrive().await?;
            let mut changes = self.0.store.rows();
            changes.retain(|change| change.position > position);
            changes.sort_by_key(|change| change.position);
            let more = changes.len() > limit;
            changes.truncate(limit);
            let position = changes.last().map_or(position, |change| change.position);
            Ok(Changes { changes, position, more })
        })
    }

    fn wait(&self, _: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let soon = Deadline::at(self.0.runtime.now() + Duration::from_millis(1));
            if let Some(when) = deadline.min(soon).instant() {
                self.0.runtime.sleep_until(when).await;
            }
            Ok(())
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async {
            self.0.arrive().await?;
            Ok(LogPosition { epoch: 0, offset: self.0.store.raise(Version::NONE).get() })
        })
    }
}

/// The records under one epoch.
#[derive(Debug)]
struct At {
    inner: Arc<Inner>,
    epoch: u64,
}

impl At {
    async fn under<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.inner.arrive().await?;
        let state = self.inner.state.read().await;
        self.inner.admits(state.as_ref(), self.epoch)?;
        call.await
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl Store for At {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.under(self.inner.store.read(keys, how)))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.under(self.inner.store.write(batch, how)))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.under(self.inner.store.scan(scan, how)))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { self.inner.inspection() })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.store.close()
    }
}
