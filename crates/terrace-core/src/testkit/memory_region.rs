//! A region in memory.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use tokio::sync::watch;

use crate::memory_store::region::digest;
use crate::{
    Batch, BoxFuture, ChangeLog, Changes, Checkpoint, Checkpoints, Conflict, Deadline, Error,
    ErrorKind, Follower, Generations, Inspection, Key, KeyRange, LeaderLease, LogPosition, Logged,
    MemoryStore, Page, PartKind, Position, PositionLost, Proof, RangeDigest, Read, ReadOptions,
    Receipt, RegionId, RegionOptions, RegionStore, Result, Runtime, Scan, Status, Store, Token,
    Version, Write, WriteOptions, history,
};

/// A [`MemoryStore`] that is one region of several: what the port of regions means, in its simplest
/// form. It can be cut off, be slow, and have a clock of its own.
#[derive(Debug)]
pub struct MemoryRegion {
    inner: Arc<RegionState>,
}

#[derive(Debug)]
struct RegionState {
    store: MemoryStore,
    options: RegionOptions,
    runtime: Runtime,
    written: watch::Sender<()>,
    weather: Mutex<Weather>,
}

/// What the test does to calls.
#[derive(Debug, Default)]
struct Weather {
    delay: Duration,
    down: bool,
    /// A key whose changes and rows are refused.
    refused: Option<Key>,
}

impl MemoryRegion {
    /// An empty region.
    pub fn new(options: RegionOptions, runtime: Runtime) -> Self {
        let store = MemoryStore::new(runtime.clone());
        store.become_region(options.clone());
        let (written, weather) = (watch::Sender::new(()), Mutex::default());
        Self { inner: Arc::new(RegionState { store, options, runtime, written, weather }) }
    }

    /// Makes every call fail as `Unavailable`, or no longer.
    pub fn set_down(&self, down: bool) {
        self.inner.weather().down = down;
    }

    /// Makes every call begin by up to this much later.
    pub fn set_delay(&self, delay: Duration) {
        self.inner.weather().delay = delay;
    }

    /// Refuses what other regions have written to this key, or nothing any more.
    pub fn refuse(&self, key: Option<Key>) {
        self.inner.weather().refused = key;
    }

    /// Sets its clock so far before the runtime's, or after it.
    pub fn set_clock(&self, ahead: SignedDuration) {
        self.inner.store.set_ahead(ahead);
    }

    /// Begins another life, as a restored backup does: its log has another name.
    pub fn begin_history(&self) {
        self.inner.store.begin_history();
    }
}

impl RegionState {
    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call arrives: late, or not at all.
    async fn arrive(&self) -> Result<()> {
        let (delay, down) = {
            let weather = self.weather();
            (weather.delay, weather.down)
        };
        let longest = u64::try_from(delay.as_micros()).unwrap_or(0);
        if longest > 0 {
            let pause = Duration::from_micros(self.runtime.random() % longest);
            self.runtime.sleep(pause).await;
        }
        match down {
            true => Err(Error::new(ErrorKind::Unavailable, "this region is down")),
            false => Ok(()),
        }
    }

    fn merge(&self, origin: Option<RegionId>, batch: &Batch) -> Result<bool> {
        let refused = self.weather().refused.clone();
        if batch.changes.iter().any(|change| Some(&change.key) == refused.as_ref()) {
            return Err(Error::new(ErrorKind::Internal, "the test says so"));
        }
        self.store.merge_batch(origin, batch)
    }
}

impl fmt::Display for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner.options.name)
    }
}

impl Store for MemoryRegion {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            self.inner.store.read(keys, how).await
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            let mut receipts = self.inner.store.write(batch, how).await?;
            for receipt in &mut receipts {
                let offset = receipt.version.get();
                // What was repeated may have been written in another region.
                let here = receipt.version.region() == Some(self.inner.options.id);
                let applied = receipt.outcome.is_applied() && here;
                receipt.event = applied.then_some(LogPosition { epoch: 0, offset });
            }
            self.inner.written.send_replace(());
            Ok(receipts)
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            self.inner.store.scan(scan, how).await
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async {
            match self.inner.weather().down {
                true => Inspection::of(PartKind::Database, "memory").status(Status::Down, "down"),
                false => Inspection::of(PartKind::Database, "memory"),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.store.close()
    }
}

impl Generations for MemoryRegion {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.inner.store.admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.inner.store.looked_at()
    }

    fn history(&self) -> Option<Arc<str>> {
        Generations::history(&self.inner.store)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.store.changes()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.inner.arrive().await?;
            self.inner.store.look().await
        })
    }

    fn raise<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async {
            self.inner.arrive().await?;
            Generations::raise(&self.inner.store, keys).await
        })
    }
}

impl RegionStore for MemoryRegion {
    fn region(&self) -> &RegionOptions {
        &self.inner.options
    }

    fn own_log(&self) -> Arc<dyn ChangeLog> {
        Arc::new(Log(Arc::clone(&self.inner)))
    }

    fn follower_of(&self, origin: RegionId) -> Arc<dyn Follower> {
        Arc::new(Follows { inner: Arc::clone(&self.inner), origin })
    }

    fn lease(&self, _: RegionId) -> Option<Arc<dyn LeaderLease>> {
        None
    }

    fn checkpoints(&self) -> BoxFuture<'_, Result<Checkpoints>> {
        Box::pin(async {
            self.inner.arrive().await?;
            Ok(self.inner.store.checkpoints())
        })
    }

    fn has_news(&self, after: LogPosition, until: Position) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            let next = self.inner.store.log_after(after).into_iter().next();
            Ok(next.is_some_and(|change| change.position.offset <= until.get()))
        })
    }

    fn forget_origin(&self, origin: RegionId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            self.inner.store.set_checkpoint(origin, None);
            Ok(())
        })
    }

    fn conflicts<'a>(
        &'a self,
        after: Option<&'a (Key, Version)>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Conflict>>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            Ok(self.inner.store.conflicts(after, limit))
        })
    }

    fn digest<'a>(&'a self, range: &'a KeyRange) -> BoxFuture<'a, Result<RangeDigest>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            Ok(digest(&self.inner.store.region_rows(range, usize::MAX)))
        })
    }

    fn rows<'a>(&'a self, range: &'a KeyRange, limit: usize) -> BoxFuture<'a, Result<Vec<Logged>>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            let mut bytes = 0;
            let rows = self.inner.store.region_rows(range, limit).into_iter().take_while(|row| {
                let fits = bytes < Page::MAX_BYTES;
                bytes += row.record.as_ref().map_or(0, |record| record.value.as_str().len());
                fits
            });
            Ok(rows.collect())
        })
    }

    fn merge_rows(&self, rows: Vec<Logged>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            let batch = Batch { changes: rows, ..Batch::default() };
            self.inner.merge(None, &batch).map(drop)
        })
    }

    fn collect(&self, horizon: Version) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            horizon.check_horizon()?;
            Ok(self.inner.store.collect_deleted(horizon))
        })
    }
}

#[derive(Debug)]
struct Follows {
    inner: Arc<RegionState>,
    origin: RegionId,
}

impl fmt::Display for Follows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner.options.name)
    }
}

impl Follower for Follows {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async {
            self.inner.arrive().await?;
            Ok(self.inner.store.checkpoint(self.origin))
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            self.inner.merge(Some(self.origin), batch)
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.inner.arrive().await?;
            let anew = Checkpoint { log: log.to_owned(), ..Checkpoint::default() };
            self.inner.store.set_checkpoint(self.origin, Some(anew));
            Ok(())
        })
    }
}

#[derive(Debug)]
struct Log(Arc<RegionState>);

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log of {}", self.0.options.name)
    }
}

impl ChangeLog for Log {
    fn name(&self) -> Arc<str> {
        history::log_in("log", &self.0.store.name_now())
    }

    fn place_of(&self, position: Position) -> LogPosition {
        LogPosition { epoch: 0, offset: position.get() }
    }

    fn position_of(&self, place: LogPosition) -> Position {
        Position::new(place.offset)
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            self.0.arrive().await?;
            if position != LogPosition::default() && !self.0.store.has_logged(position) {
                return Err(PositionLost::error("the log has lost this position"));
            }
            let mut changes = self.0.store.log_after(position);
            let more = changes.len() > limit;
            changes.truncate(limit);
            let position = changes.last().map_or(position, |change| change.position);
            Ok(Changes { changes, position, more })
        })
    }

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut written = self.0.written.subscribe();
            while self.0.store.log_after(position).is_empty() {
                let heard = self.0.runtime.within(deadline, written.changed()).await;
                if heard.is_none() {
                    break;
                }
            }
            self.0.arrive().await
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async {
            self.0.arrive().await?;
            let all = self.0.store.log_after(LogPosition::default());
            Ok(all.last().map_or(LogPosition::default(), |change| change.position))
        })
    }
}
