//! Records in a PostgreSQL database, through a pool or with a connection for each request.
//!
//! The table is made for people, too: `INSERT INTO records (key, value) VALUES (...)` makes a record,
//! and rows may be deleted and the table truncated by hand. Who changes a row by hand sets
//! `version = nextval('records_version')`, or caches go on answering the old value. Who brings rows
//! with versions of their own, as from a backup, starts Terrace again afterwards, which goes on from
//! the highest. A deleted record leaves a row with `deleted`, which keeps its version.
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

mod connect;
mod idempotency;
mod inspect;
mod migrate;
mod openings;
mod options;
mod plan;
mod pool;
mod read;
mod sqlstate;
mod statements;
mod tls;
mod url;
mod work;
mod write;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Deadline, Durability, Inspection, Key, Page, Read, ReadOptions, Receipt, Result,
    Runtime, Scan, Sequence, Store, Task, Write, WriteOptions,
};

pub use options::{ConnectionSource, PoolOptions, PostgresOptions};

use connect::Connector;
use inspect::Health;
use pool::Pool;
use read::{ReadKeys, ScanPage};
use work::Worker;
use write::WriteBatch;

/// Keeps records in PostgreSQL 15 or later, with every promise of the contract.
///
/// An acknowledged write is on the server's disk when its settings say so, else its receipt says
/// [`Durability::Accepted`]. Every future may be dropped at any point.
pub struct PostgresStore {
    worker: Worker,
    history: Arc<str>,
    schema: String,
    durability: Durability,
    health: Health,
    upkeep: Mutex<Option<Task>>,
}

impl PostgresStore {
    /// Connects, makes the tables that are missing, and fills the pool to its minimum.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](terrace_core::ErrorKind::InvalidInput) for options, servers and
    /// tables that cannot be used; [`ErrorKind::Unavailable`](terrace_core::ErrorKind::Unavailable)
    /// when the server cannot be reached, refuses the user, lacks the database or takes no writes.
    /// Each says what to check.
    pub async fn connect(options: PostgresOptions, runtime: Runtime) -> Result<Self> {
        let target = options.target()?;
        let max_lifetime = match &options.source {
            ConnectionSource::Pooled(pool) => pool.max_lifetime,
            ConnectionSource::PerRequest { .. } => Duration::MAX,
        };
        let connector =
            Connector::new(target, runtime.clone(), options.connect_timeout, max_lifetime)?;
        let mut first = connector.open().await?;
        let durability = connector.examine(&first).await?;
        let history = migrate::migrate(first.client(), &options.schema).await;
        let history = history.map_err(|error| error.with("hosts", connector.hosts()))?;
        drop(first);
        let pool = Arc::new(Pool::new(connector, &options.source, runtime.clone())?);
        pool.tend().await?;
        // Two statements at their limit, and what the network needs.
        let patience = options.statement_timeout * 2 + Duration::from_secs(1);
        let worker = Worker { pool, runtime, patience };
        let upkeep = Mutex::new(Some(upkeep(worker.clone())));
        let (schema, health) = (options.schema, Health::default());
        Ok(Self { worker, history, schema, durability, health, upkeep })
    }

    /// The name of this database's history: kept in it, the same for whoever connects to it.
    pub fn history(&self) -> Arc<str> {
        Arc::clone(&self.history)
    }

    /// The furthest place in a journal that any record carries: one walk over the table, for the start
    /// of a journal that is new.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](terrace_core::ErrorKind::Unavailable) when the server cannot be
    /// reached.
    pub async fn furthest(&self) -> Result<Sequence> {
        let mut connection = self.worker.pool.connector().open().await?;
        let failed = |error| sqlstate::explain(error, sqlstate::Stage::Harmless).during("start");
        // A large table takes longer than a request may.
        connection.command("SET statement_timeout = '10min'").await.map_err(failed)?;
        let furthest = "SELECT coalesce(max(seq), 0) FROM records";
        let row = connection.client().query_one(furthest, &[]).await.map_err(failed)?;
        Ok(Sequence::new(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0)))
    }

    /// Answers at once when there is nothing to do.
    fn nothing(&self, deadline: Deadline) -> Result<()> {
        deadline.check(self.worker.runtime.now())?;
        if self.worker.pool.is_closed() { Err(pool::closed()) } else { Ok(()) }
    }
}

/// Keeps the pool filled with young connections and forgets old idempotency keys.
fn upkeep(worker: Worker) -> Task {
    const PERIOD: Duration = Duration::from_secs(1);
    const FORGET_EVERY: u32 = 60;
    let runtime = worker.runtime.clone();
    runtime.spawn("postgres upkeep", async move {
        let (mut round, mut failing, mut behind) = (0_u32, false, false);
        while !worker.pool.is_closed() {
            worker.runtime.sleep(PERIOD).await;
            round = round.wrapping_add(1);
            let mut tended = worker.pool.tend().await;
            if tended.is_ok() && (behind || round.is_multiple_of(FORGET_EVERY)) {
                let forgotten = idempotency::forget_old(&worker).await;
                tended = forgotten.map(|more| behind = more);
            }
            match tended {
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "the pool of PostgreSQL cannot be kept filled");
                }
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("the pool of PostgreSQL is filled again");
                }
                _ => {}
            }
        }
    })
}

impl Store for PostgresStore {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            if keys.is_empty() {
                return self.nothing(how.deadline).map(|()| Vec::new());
            }
            let work = ReadKeys { keys, asked: how.token.as_ref(), history: &self.history };
            self.worker.perform(&work, how.deadline).await
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            let request = how.idempotency.as_deref();
            if batch.is_empty() && request.is_none() {
                return self.nothing(how.deadline).map(|()| Vec::new());
            }
            let work = WriteBatch { batch: &batch, request, history: &self.history };
            self.worker.perform(&work, how.deadline).await
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move { self.worker.perform(&ScanPage(scan), how.deadline).await })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let health = self.health.ask(&self.worker).await;
            inspect::tree(&self.worker, &self.schema, self.durability, health)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.worker.pool.close();
            let upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(upkeep) = upkeep {
                upkeep.stop().await;
            }
            Ok(())
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
