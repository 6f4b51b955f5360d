//! A SQLite file that is one of several shards.
//!
//! What the shard says of itself is in the table `meta`: `shard` (JSON) and `shard_epoch`. Reads look
//! at the epoch in their snapshot, writes in their transaction; SQLite has one writer, so a change
//! of the epoch, a transaction too, has all earlier writes before it and all later ones behind it.
//!
//! What a reshard does is done on a connection of its own, which waits for the file's lock in short
//! steps: it competes with a serving process that commits without a pause.

mod rows;
mod take;

use std::fmt;
use std::fs::{File, TryLockError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use terrace_core::shard::{RequestResult, Reserved};
use terrace_core::{
    BoxFuture, ChangeLog, Error, ErrorKind, Follower, Generations, Inspection, Key, Page, Read,
    ReadOptions, Receipt, Result, Rollup, Rows, Runtime, Scan, Shard, ShardState, SlotSet, Store,
    Version, Write, WriteOptions,
};

use super::follow::{self, keep_counter};
use super::rollup::SqliteRollup;
use super::schema::{LATEST, check_epoch};
use super::{SqliteOptions, SqliteStore, connect, failure};

/// A [`SqliteStore`] that is one shard of several.
#[derive(Clone)]
pub struct SqliteShard {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<SqliteStore>,
    options: SqliteOptions,
    runtime: Runtime,
    own: Mutex<Connection>,
    /// How many records there were, and when they were counted.
    counted: Mutex<Option<(Instant, u64)>>,
}

impl SqliteShard {
    /// Opens the file as [`SqliteStore::open`] does.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open(mut options: SqliteOptions, runtime: Runtime) -> Result<Self> {
        options.path = connect::prepare_path(&options.path)?;
        options.shard = true;
        let store = Arc::new(SqliteStore::open(options.clone(), runtime.clone())?);
        let own = Mutex::new(open(&options)?);
        let counted = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { store, options, runtime, own, counted }) })
    }

    /// The wrong way, which a test must catch: counts that are committed apart from their place.
    #[cfg(feature = "mutants")]
    pub fn rollup_apart(&self) -> Option<Arc<dyn Rollup>> {
        let log = self.inner.store.log().ok()??;
        Some(Arc::new(SqliteRollup::new(log).apart()))
    }
}

/// A connection that takes the file's lock soon after it is free.
fn open(options: &SqliteOptions) -> Result<Connection> {
    let mut connection = connect::another(options)?;
    connection.busy_handler(Some(wait_a_little)).map_err(failure::of)?;
    Ok(connection)
}

#[expect(clippy::disallowed_methods, reason = "SQLite calls this where it waits for a file's lock")]
fn wait_a_little(times: i32) -> bool {
    const STEP: Duration = Duration::from_micros(250);
    std::thread::sleep(STEP);
    times < 20_000
}

impl Inner {
    fn own(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic left open was rolled back by its drop.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the work in one transaction under the file's lock.
    fn transact<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let mut own = self.own();
        let transaction =
            own.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failure::of)?;
        let done = work(&transaction)?;
        transaction.commit().map_err(failure::of_commit)?;
        Ok(done)
    }

    /// The same, where rows keep the versions that they bring.
    fn transact_as_is<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.transact(|connection| {
            follow::as_is(connection, |connection, counter| Ok((work(connection)?, counter)))
        })
    }

    fn change(&self, from: u64, to: &ShardState, floor: Version) -> Result<Version> {
        self.transact(|connection| {
            check_epoch(connection, from)?;
            keep_state(connection, to)?;
            let latest: i64 =
                connection.query_row(LATEST, [], |row| row.get(0)).map_err(failure::of)?;
            let latest = latest.max(signed(floor.get()));
            keep_counter(connection, latest)?;
            Ok(Version::new(u64::try_from(latest).unwrap_or(0)))
        })
    }

    fn size(&self) -> Result<u64> {
        const COUNT: &str = "SELECT (SELECT count(*) FROM records)
            - (SELECT count(*) FROM records WHERE deleted = 1)";
        const FEW: &str = "SELECT count(*) FROM (
            SELECT 1 FROM records WHERE deleted = 0 LIMIT 100001)";
        const KEPT_FOR: Duration = Duration::from_secs(1);
        let few: i64 = self.own().query_row(FEW, [], |row| row.get(0)).map_err(failure::of)?;
        if few <= 100_000 {
            return Ok(u64::try_from(few).unwrap_or(0));
        }
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.runtime.now();
        match *counted {
            Some((at, size)) if now.saturating_duration_since(at) < KEPT_FOR => Ok(size),
            _ => {
                let size: i64 =
                    self.own().query_row(COUNT, [], |row| row.get(0)).map_err(failure::of)?;
                let size = u64::try_from(size).unwrap_or(0);
                *counted = Some((now, size));
                Ok(size)
            }
        }
    }

    /// A lock of a file beside the database; the system ends it with its process.
    fn reserve(&self) -> Result<Reserved> {
        let failed = |error| {
            let message = "the file that says who moves slots cannot be made; check the directory";
            Error::new(ErrorKind::Unavailable, message).caused_by(error)
        };
        let file = File::create(self.options.path.with_extension("moving")).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Unavailable,
                "another terrace reshard or terrace backup is at work; wait for its end",
            )),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

fn state(connection: &Connection) -> Result<Option<ShardState>> {
    let ask = "SELECT value FROM meta WHERE name = 'shard'";
    let mut ask = connection.prepare_cached(ask).map_err(failure::of)?;
    let text: Option<String> =
        ask.query_row([], |row| row.get(0)).optional().map_err(failure::of)?;
    let parsed = text.map(|text| serde_json::from_str(&text)).transpose();
    parsed.map_err(|error| failure::corrupt("shard").caused_by(error))
}

fn keep_state(connection: &Connection, state: &ShardState) -> Result<()> {
    const KEEP: &str = "INSERT OR REPLACE INTO meta (name, value)
        VALUES ('shard', ?1), ('shard_epoch', ?2)";
    let text = serde_json::to_string(state).map_err(|error| {
        Error::new(ErrorKind::Internal, "the state cannot be written").caused_by(error)
    })?;
    connection.execute(KEEP, params![text, signed(state.epoch)]).map(drop).map_err(failure::of)
}

/// SQLite's integers are signed; what is counted by one will not reach their end.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl fmt::Display for SqliteShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlite")
    }
}

impl fmt::Debug for SqliteShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqliteShard").field(&self.inner.options.path).finish()
    }
}

impl Shard for SqliteShard {
    fn at(&self, epoch: u64) -> Arc<dyn Store> {
        Arc::new(At { store: Arc::clone(&self.inner.store), epoch })
    }

    fn state(&self) -> BoxFuture<'_, Result<Option<ShardState>>> {
        Box::pin(async { state(&self.inner.own()) })
    }

    fn found(&self, new: ShardState) -> BoxFuture<'_, Result<ShardState>> {
        Box::pin(async move {
            self.inner.transact(|connection| match state(connection)? {
                Some(state) => Ok(state),
                None => keep_state(connection, &new).map(|()| new),
            })
        })
    }

    fn change(&self, from: u64, to: ShardState, floor: Version) -> BoxFuture<'_, Result<Version>> {
        Box::pin(async move { self.inner.change(from, &to, floor) })
    }

    /// The rows by version are the log: it is always kept.
    fn keep_log(&self) -> BoxFuture<'_, Result<Arc<dyn ChangeLog>>> {
        Box::pin(async { Ok(Arc::new(self.inner.store.change_log()) as _) })
    }

    fn end_log(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.inner.transact(follow::forget_all) })
    }

    fn rollup(&self) -> BoxFuture<'_, Result<Option<Arc<dyn Rollup>>>> {
        Box::pin(async {
            let log = self.inner.store.log()?;
            Ok(log.map(|log| Arc::new(SqliteRollup::new(log)) as _))
        })
    }

    fn rows<'a>(
        &'a self,
        after: Option<Key>,
        quiet: Option<BoxFuture<'a, Result<()>>>,
    ) -> BoxFuture<'a, Result<Box<dyn Rows>>> {
        Box::pin(self.inner.rows(after, quiet))
    }

    fn follower(&self, epoch: u64, source: &str) -> Arc<dyn Follower> {
        let (inner, source) = (Arc::clone(&self.inner), source.to_owned());
        Arc::new(take::Taker { inner, epoch, source })
    }

    fn results(&self, slots: &SlotSet) -> BoxFuture<'_, Result<Vec<RequestResult>>> {
        let slots = slots.clone();
        Box::pin(async move { take::results(&self.inner.own(), &slots) })
    }

    fn keep_results(&self, epoch: u64, results: Vec<RequestResult>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.inner.keep_results(epoch, &results) })
    }

    fn forget(&self, epoch: u64, keys: Vec<Key>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.inner.forget(epoch, &keys) })
    }

    fn reserve(&self) -> BoxFuture<'_, Result<Reserved>> {
        Box::pin(async { self.inner.reserve() })
    }

    fn history(&self) -> Arc<str> {
        self.inner.store.history()
    }

    fn generations(&self) -> Arc<dyn Generations> {
        Arc::clone(&self.inner.store) as _
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.inner.store.inspect()
    }

    fn size(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async { self.inner.size() })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.store.close()
    }
}

/// The records, under one epoch.
#[derive(Debug)]
struct At {
    store: Arc<SqliteStore>,
    epoch: u64,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlite")
    }
}

impl Store for At {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.store.read_keys(keys, how, Some(self.epoch)))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.store.write_batch(batch, how, Some(self.epoch)))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.store.read_page(scan, how, Some(self.epoch)))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.store.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.store.close()
    }
}
