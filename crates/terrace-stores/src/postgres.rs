//! Records in a PostgreSQL database, through a pool or with a connection for each request.
//!
//! The table is made for people, too: `INSERT INTO records (key, value) VALUES (...)` makes a record,
//! and rows may be deleted and the table truncated by hand. Who changes a row by hand sets
//! `version = nextval('records_version')`, or caches go on answering the old value. Who brings rows
//! with versions of their own, as from a backup, starts Terrace again afterwards, which goes on from
//! the highest. A deleted record leaves a row with `deleted`, which keeps its version for a week. One of
//! several regions gives each row that is changed by hand a version of its own, and keeps the rows of
//! deleted records until every region has passed them.
//!
//! **Batches.** A batch of reads is one statement, a batch of plain puts too, which commits by itself:
//! one round trip, one fsync. A batch with deletes, preconditions or an idempotency key is one
//! transaction of two round trips: the rows are locked in the order of their keys, so that no two
//! batches wait for each other in a circle, what the batch comes to is worked out over the locked
//! rows, and written.
//!
//! **Cancellation.** A connection is in doubt from before the first byte until the server has answered
//! everything and is in no transaction. A future that is dropped in between ends its connection; the
//! pool opens another in the background.

mod altering;
mod apart;
mod backup;
mod connect;
mod connection;
mod doubts;
mod history;
mod idempotency;
mod inspect;
mod lease;
mod ledger;
mod locked;
pub mod log;
mod made;
mod member;
mod migrate;
mod openings;
mod options;
mod plan;
mod pool;
mod prepare;
mod read;
mod read_model;
mod region;
mod report;
mod rollup;
mod setup;
mod shard;
mod snapshot;
mod sqlstate;
mod statements;
mod tables;
mod take_over;
mod tls;
mod tombstones;
mod url;
mod work;
mod worker;
mod write;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Generations, Histories, Inspection, Key, Node,
    NodeState, Page, Precondition, Proof, Read, ReadOptions, Receipt, Result, Role, Runtime, Scan,
    Sequence, Standing, Status, Store, Task, Token, Write, WriteOptions,
};
use tokio::sync::watch;

pub use backup::{BackupServer, PostgresBackup};
pub use ledger::PostgresLedger;
pub use log::{LogBegin, PostgresLog};
pub use options::{ConnectionSource, PoolOptions, PostgresOptions};
pub use read_model::PostgresReadModel;
pub use report::ServerReport;
pub use shard::PostgresShard;

use connect::Connector;
use inspect::Health;
use log::TrimLog;
use pool::Pool;
use read::{ReadKeys, ScanPage};
use region::RegionParts;
use statements::{Dialect, FURTHEST, NO_EPOCH};
use tombstones::Tombstones;
use worker::{Worker, watch};
use write::WriteBatch;

use crate::held::Held;
use crate::walks;

/// Keeps records in PostgreSQL 15 or later, with every promise of the contract.
///
/// An acknowledged write is on the server's disk when its settings say so, else its receipt says
/// [`Durability::Accepted`](terrace_core::Durability::Accepted). Every future may be dropped at any point.
pub struct PostgresStore {
    worker: Worker,
    schema: String,
    /// Whether its tables have a change log.
    logged: bool,
    /// Whether followers hold back what the log would remove.
    held: Held,
    /// What it needs as one of several regions.
    region: Option<RegionParts>,
    health: Health,
    upkeep: Mutex<Vec<Task>>,
}

impl PostgresStore {
    /// Connects, makes the tables that are missing, and fills the pool to its minimum.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for options, servers and
    /// tables that cannot be used; [`ErrorKind::Unavailable`]
    /// when the server cannot be reached, refuses the user, lacks the database or takes no writes.
    /// Each says what to check.
    pub async fn connect(mut options: PostgresOptions, runtime: Runtime) -> Result<Self> {
        options.change_log |= options.region.is_some();
        // Whoever makes tables needs a server that takes writes.
        let connector = connector(&options, options.dialect(), &runtime)?;
        let (first, log) = prepare::prepare(&options, &connector, &runtime).await?;
        let store = Self::assemble(options, connector, runtime)?;
        store.name_log(log);
        store.worker.apart.keep(first).await;
        store.worker.pool.tend().await?;
        Ok(store)
    }

    /// For a server of a primary and its replicas, which may be down or take no writes now:
    /// nothing is asked of it yet. A server of another history is found out by [`Node::state`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for options that cannot be
    /// used.
    pub fn member(options: PostgresOptions, runtime: Runtime) -> Result<Self> {
        let options = PostgresOptions { member: true, ..options };
        let connector = connector(&options, options.dialect(), &runtime)?;
        Self::assemble(options, connector, runtime)
    }

    /// Asks the server whether it can be worked with.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for one that cannot be used as it is; [`ErrorKind::Unavailable`] for
    /// one that is down.
    pub async fn examine(&self) -> Result<()> {
        self.worker.pool.connector().open_first().await.map(drop)
    }

    /// Whether the server takes writes, as it says now. Only of one of several servers.
    pub async fn takes_writes(&self) -> bool {
        let patience = Deadline::at(self.worker.runtime.now() + self.worker.patience);
        self.state(patience).await.is_ok_and(|state| state.role == Role::Primary)
    }

    fn assemble(options: PostgresOptions, connector: Connector, runtime: Runtime) -> Result<Self> {
        let pool = Pool::new(connector, &options.source, runtime.clone())?;
        let member = options.member.then(Arc::default);
        let worker = Worker::new(pool, runtime, options.timeouts(), member);
        let (health, logged, held) = (Health::default(), options.change_log, Held::default());
        let mut tasks = vec![upkeep(worker.clone(), true), watch(worker.clone())];
        // A region keeps them for the others.
        if options.region.is_none() {
            let tombstones = Tombstones::new(worker.clone(), options.tombstones_kept_for);
            tasks.push(walks::start(&worker.runtime, tombstones));
        }
        if logged {
            let trim = TrimLog::new(worker.clone(), held.clone(), options.shard);
            tasks.push(walks::start(&worker.runtime, trim));
        }
        let upkeep = Mutex::new(tasks);
        let schema = options.schema;
        let region = options.region.map(|region| RegionParts::new(region, &worker));
        Ok(Self { worker, schema, logged, held, region, health, upkeep })
    }

    /// The name of this database's history, the same for whoever connects to it.
    pub fn history(&self) -> Arc<str> {
        self.histories().name()
    }

    /// What was heard last of its history and generation.
    pub fn standing(&self) -> Arc<Standing> {
        self.histories().standing()
    }

    /// What is heard of its histories and generations.
    pub fn histories(&self) -> Arc<Histories> {
        Arc::clone(self.worker.pool.connector().histories())
    }

    /// Begins a new lineage: for a physical copy that was made a database of its own, which nothing
    /// tells from its original.
    ///
    /// # Errors
    /// As [`PostgresStore::install_log`].
    pub async fn renew_history(&self) -> Result<Arc<str>> {
        let mut session = self.worker.pool.connector().open().await?;
        let asked = self.worker.runtime.now();
        let standing = history::renew(session.client(), &self.schema).await?;
        let name = Arc::clone(&standing.history);
        self.histories().heard(standing, asked);
        Ok(name)
    }

    /// The change log of this database; installed now, while it is in use, unless it is there.
    ///
    /// # Errors
    /// `Unavailable` when the server cannot be reached, or its user may not make tables.
    pub async fn install_log(&self, begin: LogBegin) -> Result<PostgresLog> {
        let name = self.change_log(Some(begin)).await?.unwrap_or_default();
        Ok(self.log_of(name))
    }

    fn log_of(&self, name: Arc<str>) -> PostgresLog {
        let region = self.region.as_ref().map(|region| region.options.clone());
        PostgresLog::new(self.worker.clone(), name, region)
    }

    /// The change log of this database, if it has one.
    ///
    /// # Errors
    /// As [`PostgresStore::install_log`].
    pub async fn log(&self) -> Result<Option<PostgresLog>> {
        let mut session = self.worker.pool.connector().open().await?;
        let name = log::current(session.client()).await.map_err(altering::failed)?;
        Ok(name.map(|name| self.log_of(name)))
    }

    /// The same of one that was opened with a log.
    async fn counted_log(&self) -> Result<Option<PostgresLog>> {
        if self.logged { self.log().await } else { Ok(None) }
    }

    /// Removes the change log with all that it holds, unless its changes are counted. Who follows it is
    /// refused from now on.
    ///
    /// # Errors
    /// As [`PostgresStore::install_log`].
    pub async fn remove_log(&self) -> Result<()> {
        self.change_log(None).await.map(drop)
    }

    async fn change_log(&self, begin: Option<LogBegin>) -> Result<Option<Arc<str>>> {
        let mut session = self.worker.pool.connector().open().await?;
        log::change(session.client(), &self.schema, begin, &self.worker.runtime).await
    }

    /// The furthest place in a journal that any record carries or carried: one walk over the table, for the start
    /// of a journal that is new.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the server cannot be
    /// reached.
    pub async fn furthest(&self) -> Result<Sequence> {
        let mut connection = self.worker.pool.connector().open().await?;
        let failed = |error| sqlstate::explain(error, sqlstate::Stage::Harmless).during("start");
        // A large table takes longer than a request may.
        connection.command("SET statement_timeout = '10min'").await.map_err(failed)?;
        let row = connection.client().query_one(FURTHEST, &[]).await.map_err(failed)?;
        Ok(Sequence::new(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0)))
    }

    /// Answers at once when there is nothing to do.
    fn nothing(&self, deadline: Deadline) -> Result<()> {
        deadline.check(self.worker.runtime.now())?;
        if self.worker.pool.is_closed() { Err(pool::closed()) } else { Ok(()) }
    }
}

fn connector(options: &PostgresOptions, dialect: Dialect, runtime: &Runtime) -> Result<Connector> {
    let max_lifetime = match &options.source {
        ConnectionSource::Pooled(pool) => pool.max_lifetime,
        ConnectionSource::PerRequest { .. } => Duration::MAX,
    };
    let of = (options.schema.clone(), options.member);
    Connector::new(options.target()?, runtime.clone(), max_lifetime, dialect, of)
}

/// Keeps the pool filled with young connections and, where there are records, removes old idempotency
/// keys.
fn upkeep(worker: Worker, of_records: bool) -> Task {
    let runtime = worker.runtime.clone();
    runtime.keep("postgres upkeep", move || tend(worker.clone(), of_records))
}

async fn tend(worker: Worker, of_records: bool) -> Result<()> {
    const TEND: Duration = Duration::from_secs(1);
    const FORGET_EVERY: u32 = 60;
    let (mut round, mut behind) = (0_u32, false);
    let mut failing = false;
    while !worker.pool.is_closed() {
        worker.runtime.sleep(TEND).await;
        round = round.wrapping_add(1);
        let mut tended = worker.pool.tend().await;
        let due = of_records && (behind || round.is_multiple_of(FORGET_EVERY));
        if due && worker.takes_writes() && tended.is_ok() {
            tended = idempotency::forget_old(&worker).await.map(|more| behind = more);
        }
        match tended {
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "PostgreSQL's pool or old requests cannot be tended");
            }
            Ok(()) if failing => {
                failing = false;
                tracing::info!("PostgreSQL's pool and old requests are tended again");
            }
            _ => {}
        }
    }
    Ok(())
}

impl PostgresStore {
    async fn read_under(&self, keys: &[Key], how: &ReadOptions, epoch: i64) -> Result<Vec<Read>> {
        if keys.is_empty() {
            return self.nothing(how.deadline).map(|()| Vec::new());
        }
        let work = ReadKeys { keys, asked: how.token.as_ref(), epoch, budget: how.budget };
        let reads = self.worker.perform(&work, how.deadline).await?;
        self.check(how).await.map(|()| reads)
    }

    async fn write_under(
        &self,
        batch: Vec<Write>,
        how: &WriteOptions,
        epoch: i64,
    ) -> Result<Vec<Receipt>> {
        let request = how.idempotency.as_deref();
        if batch.is_empty() && request.is_none() {
            return self.nothing(how.deadline).map(|()| Vec::new());
        }
        for write in &batch {
            if let Precondition::After(place) = write.precondition {
                self.worker.settled.fetch_max(place.settled.get(), Ordering::Relaxed);
            }
        }
        let work = WriteBatch { batch: &batch, request, epoch, again: AtomicBool::new(false) };
        self.worker.perform(&work, how.deadline).await
    }

    async fn scan_under(&self, scan: &Scan, how: &ReadOptions, epoch: i64) -> Result<Page> {
        let work = ScanPage { scan, asked: how.token.as_ref(), epoch };
        let page = self.worker.perform(&work, how.deadline).await?;
        self.check(how).await.map(|()| page)
    }

    /// Refuses tokens of an earlier life of the database, and of a later one than this server's. After
    /// the answer: the session that gave it may have found another history than was known before.
    async fn check(&self, how: &ReadOptions) -> Result<()> {
        let Some(asked) = &how.token else { return Ok(()) };
        self.histories().check(asked)?;
        if self.histories().is_behind(asked) {
            self.worker.runtime.within(how.deadline, self.worker.look()).await;
            self.histories().check(asked)?;
            if self.histories().is_behind(asked) {
                return Err(terrace_core::history::behind());
            }
        }
        Ok(())
    }
}

impl Generations for PostgresStore {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.histories().admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.histories().looked_at()
    }

    fn history(&self) -> Option<Arc<str>> {
        // A region's server may not have been reached yet.
        Some(self.histories().name()).filter(|name| self.region.is_none() || !name.is_empty())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.histories().changes()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.worker.look())
    }

    fn raise<'a>(&'a self, _: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.worker.raise())
    }
}

impl Store for PostgresStore {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.read_under(keys, how, NO_EPOCH))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.write_under(batch, how, NO_EPOCH))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.scan_under(scan, how, NO_EPOCH))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let health = self.health.of_records(&self.worker).await;
            let well = health.0 != Status::Down;
            let durability = self.worker.pool.connector().durability();
            let tree = inspect::tree(&self.worker, &self.schema, durability, health);
            if self.logged && well {
                let tree = inspect::with_count(&self.worker, tree).await;
                return self.held.told(self.with_conflicts(tree).await);
            }
            tree
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            // What is still in doubt when nobody looks any more stays so.
            let settled = self.worker.settle_doubts().await;
            if settled.is_err() || !self.worker.doubts.is_empty() {
                tracing::warn!(
                    "a write whose answer was lost may still be applied: caches may show what was \
                     before it until they expire"
                );
            }
            let take =
                || std::mem::take(&mut *self.upkeep.lock().unwrap_or_else(PoisonError::into_inner));
            for task in take() {
                task.stop().await;
            }
            self.worker.pool.close().await;
            self.worker.apart.end().await;
            Ok(())
        })
    }
}

impl Node for PostgresStore {
    fn state(&self, deadline: Deadline) -> BoxFuture<'_, Result<NodeState>> {
        Box::pin(async move {
            let Some(member) = &self.worker.member else {
                return Err(Error::new(ErrorKind::Internal, "the store is not one of several"));
            };
            let connector = self.worker.pool.connector();
            member.ask(connector, &self.worker.runtime, deadline).await
        })
    }

    fn admit(&self, state: &NodeState) {
        if let Some(member) = &self.worker.member {
            member.admit(state);
        }
    }

    fn raise(&self) -> BoxFuture<'_, Result<Standing>> {
        Box::pin(async move {
            self.worker.raise().await?;
            Ok((*self.histories().standing()).clone())
        })
    }
}

impl fmt::Display for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres")
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("hosts", &self.worker.pool.connector().hosts())
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}
