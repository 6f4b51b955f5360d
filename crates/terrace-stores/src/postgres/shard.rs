//! A PostgreSQL database that is one of several shards.
//!
//! The table `terrace_shard` has one row: the epoch, and what the shard says of itself. Two functions look at
//! it. `terrace_shard_look` is called by reads and is stable, so it sees what the read's own snapshot sees: a
//! read that is let in has begun before the shard gave anything up, and answers from that moment.
//! `terrace_shard_enter` is called by writes: it takes an advisory lock, shared, which it keeps until the
//! transaction has ended, and then looks in a new snapshot. Who changes the row takes the lock
//! alone: it waits for the writers that were let in, and those behind it see the new epoch. A
//! reader therefore costs nobody a lock, and a writer none that two writers compete for.

mod change;
mod rows;
mod take;

use std::fmt;
use std::sync::Arc;

use terrace_core::shard::{RequestResult, Reserved};
use terrace_core::{
    BoxFuture, ChangeLog, Deadline, Error, ErrorKind, Follower, Generations, Inspection, Key, Page,
    Read, ReadOptions, Receipt, Result, Rollup, Rows, Runtime, Scan, Shard, ShardState, SlotSet,
    Store, Version, Write, WriteOptions,
};
use tokio::sync::Mutex;
use tokio_postgres::Client;

use super::altering::{failed, lock, run};
use super::connection::Connection;
use super::inspect::CountRecords;
use super::rollup::PostgresRollup;
use super::sqlstate::{LOST_SHARD, Stage, explain};
use super::tables::{self, Table};
use super::{LogBegin, PostgresOptions, PostgresStore};

/// The class of the advisory lock of writers and changes; the object is the table.
pub(super) const LOCK: i32 = 1_952_805_492;
/// The class of the advisory lock of who moves slots.
const MOVING: i32 = 1_952_805_493;

const TABLES: [Table; 2] = [
    Table::new("terrace_shard", &["one", "epoch", "state"]).formerly("shard"),
    Table::new("terrace_shard_followed", &["source", "follow"]).formerly("shard_followed"),
];

/// Makes what is missing.
pub(super) async fn install(client: &mut Client, schema: &str) -> Result<()> {
    let known = "SELECT to_regproc('terrace_shard_look') IS NOT NULL \
         AND to_regproc('terrace_shard_enter') IS NOT NULL";
    // First the functions: an instance that makes all of it meanwhile has made the tables with them.
    let known: bool = client.query_one(known, &[]).await.map_err(failed)?.get(0);
    match tables::complete(client, &TABLES).await?[..] {
        [true, true] if known => return Ok(()),
        // Made anew it would be a shard that owns nothing, whatever its records are.
        [false, _] if known => {
            return Err(Error::new(ErrorKind::Unavailable, LOST_SHARD).during("migrate"));
        }
        _ => {}
    }
    let transaction = client.transaction().await.map_err(failed)?;
    lock(&transaction, schema).await?;
    if tables::rename(&transaction, &TABLES).await? {
        let earlier = "DROP FUNCTION IF EXISTS shard_look(bigint), shard_enter(bigint)";
        run(&transaction, earlier).await?;
    }
    tables::complete(transaction.client(), &TABLES).await?;
    run(
        &transaction,
        &format!(
            "CREATE TABLE IF NOT EXISTS terrace_shard (
                one boolean PRIMARY KEY DEFAULT true CHECK (one),
                epoch bigint NOT NULL,
                state text NOT NULL
            );
            CREATE TABLE IF NOT EXISTS terrace_shard_followed (
                source text PRIMARY KEY,
                follow text NOT NULL
            );
            CREATE OR REPLACE FUNCTION terrace_shard_look(asked bigint) RETURNS boolean
            LANGUAGE plpgsql STABLE AS $$ BEGIN
                IF (SELECT epoch FROM \"{schema}\".terrace_shard) IS DISTINCT FROM asked THEN
                    RAISE EXCEPTION 'moved' USING ERRCODE = 'TR001';
                END IF;
                RETURN true;
            END $$;
            CREATE OR REPLACE FUNCTION terrace_shard_enter(asked bigint) RETURNS boolean
            LANGUAGE plpgsql VOLATILE AS $$ BEGIN
                PERFORM pg_advisory_xact_lock_shared({LOCK}, {TABLE}::int);
                IF (SELECT epoch FROM \"{schema}\".terrace_shard) IS DISTINCT FROM asked THEN
                    RAISE EXCEPTION 'moved' USING ERRCODE = 'TR001';
                END IF;
                RETURN true;
            END $$",
            TABLE = number_of_table(schema),
        ),
    )
    .await?;
    transaction.commit().await.map_err(failed)
}

/// The number of the table, for locks.
fn number_of_table(schema: &str) -> String {
    format!("'\"{schema}\".terrace_shard'::regclass::oid")
}

/// A [`PostgresStore`] that is one shard of several.
#[derive(Clone)]
pub struct PostgresShard {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<PostgresStore>,
    schema: String,
    /// A session for what is done rarely and must not wait for the pool.
    session: Mutex<Option<Connection>>,
}

impl PostgresShard {
    /// Connects as [`PostgresStore::connect`] does, and makes the tables of a shard.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`].
    pub async fn connect(mut options: PostgresOptions, runtime: Runtime) -> Result<Self> {
        options.shard = true;
        let schema = options.schema.clone();
        let store = Arc::new(PostgresStore::connect(options, runtime).await?);
        let session = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { store, schema, session }) })
    }

    /// The wrong way, which a test must catch: counts that are committed apart from their place.
    #[cfg(feature = "mutants")]
    pub async fn rollup_apart(&self) -> Result<Arc<dyn Rollup>> {
        let log = self.inner.store.install_log(LogBegin::Counted).await?;
        Ok(Arc::new(PostgresRollup::new(self.inner.store.worker.clone(), log).apart()))
    }
}

impl Inner {
    async fn open(&self) -> Result<Connection> {
        self.store.worker.pool.connector().open().await
    }

    /// The session, taken out, so that one which is dropped half-way is not used again.
    async fn take_session(&self) -> Result<(Connection, SessionPlace<'_>)> {
        let mut place = self.session.lock().await;
        let session = place.take().filter(|session| !session.is_closed());
        let session = match session {
            Some(session) => session,
            None => self.open().await?,
        };
        Ok((session, place))
    }
}

type SessionPlace<'a> = tokio::sync::MutexGuard<'a, Option<Connection>>;

/// A failure of a session that this module uses.
fn refused(error: tokio_postgres::Error) -> terrace_core::Error {
    explain(error, Stage::Harmless).with("store", "postgres")
}

/// PostgreSQL's numbers are signed; an epoch grows by one.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl fmt::Display for PostgresShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres")
    }
}

impl fmt::Debug for PostgresShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresShard").field(&self.inner.store).finish()
    }
}

impl Shard for PostgresShard {
    fn at(&self, epoch: u64) -> Arc<dyn Store> {
        Arc::new(At { store: Arc::clone(&self.inner.store), epoch: signed(epoch) })
    }

    fn state(&self) -> BoxFuture<'_, Result<Option<ShardState>>> {
        Box::pin(self.inner.state())
    }

    fn found(&self, state: ShardState) -> BoxFuture<'_, Result<ShardState>> {
        Box::pin(self.inner.found(state))
    }

    fn change(&self, from: u64, to: ShardState, floor: Version) -> BoxFuture<'_, Result<Version>> {
        Box::pin(self.inner.change(from, to, floor))
    }

    fn keep_log(&self) -> BoxFuture<'_, Result<Arc<dyn ChangeLog>>> {
        Box::pin(async { Ok(Arc::new(self.inner.store.install_log(LogBegin::Empty).await?) as _) })
    }

    fn end_log(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.inner.store.remove_log().await?;
            self.inner.forget_followed().await
        })
    }

    fn rollup(&self) -> BoxFuture<'_, Result<Option<Arc<dyn Rollup>>>> {
        Box::pin(async {
            let Some(log) = self.inner.store.counted_log().await? else { return Ok(None) };
            let worker = self.inner.store.worker.clone();
            Ok(Some(Arc::new(PostgresRollup::new(worker, log)) as _))
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
        Box::pin(self.inner.results(slots.clone()))
    }

    fn keep_results(&self, epoch: u64, results: Vec<RequestResult>) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.inner.keep_results(epoch, results))
    }

    fn forget(&self, epoch: u64, keys: Vec<Key>) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.inner.forget(epoch, keys))
    }

    fn reserve(&self) -> BoxFuture<'_, Result<Reserved>> {
        Box::pin(self.inner.reserve())
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
        Box::pin(async {
            let worker = &self.inner.store.worker;
            let deadline = Deadline::at(worker.runtime.now() + worker.patience);
            worker.perform(&CountRecords, deadline).await
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.store.close()
    }
}

/// The records, under one epoch.
#[derive(Debug)]
struct At {
    store: Arc<PostgresStore>,
    epoch: i64,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres")
    }
}

impl Store for At {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.store.read_under(keys, how, self.epoch))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.store.write_under(batch, how, self.epoch))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.store.scan_under(scan, how, self.epoch))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.store.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.store.close()
    }
}
