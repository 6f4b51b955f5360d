//! A read model in a PostgreSQL database, or schema, of its own.

mod apply;
mod query;
mod rebuild;
mod steps;
mod tables;
mod words;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use terrace_core::read_model::{
    Activity, Batch, Counted, Difference, Parked, Projection, Row, Rows,
};
use terrace_core::{
    BoxFuture, Deadline, Inspection, Key, LogPosition, Origin, Page, ReadModel, Result, Runtime,
    Scan, Status, Task, Unit,
};

use super::inspect::{self, Health};
use super::options::PostgresOptions;
use super::pool::Pool;
use super::read::ScanPage;
use super::statements::Prepares;
use super::work::{Work, Worker};

use words::Words;

/// Keeps a read model in PostgreSQL 15 or later: `records(key, value, created_at, updated_at,
/// read_count, write_count, version)` with a full-text index, made by the first start.
///
/// Words are those of the configuration `simple`: without stemming, whatever the language. Of a value
/// the first 100 000 characters are searched, for an index entry has a limit. They are indexed behind
/// the projection, within seconds; where the projection is, before each search. A deleted record leaves
/// a row with `deleted`, which keeps its version and counts.
pub struct PostgresReadModel {
    worker: Worker,
    schema: String,
    health: Health,
    /// Whether the projection was here when the lease was last asked for.
    leads: AtomicBool,
    words: Arc<Words>,
    tasks: Mutex<Vec<Task>>,
}

impl PostgresReadModel {
    /// Connects and makes the tables that are missing.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`](super::PostgresStore::connect).
    pub async fn connect(options: PostgresOptions, runtime: Runtime) -> Result<Self> {
        let connector = super::connector(&options, Prepares::ReadModel, &runtime)?;
        let mut first = connector.open().await?;
        connector.examine(&mut first).await?;
        tables::make(first.client(), &options.schema).await?;
        drop(first);
        let pool = Arc::new(Pool::new(connector, &options.source, runtime.clone())?);
        pool.tend().await?;
        let patience = options.statement_timeout * 2 + Duration::from_secs(1);
        let worker = Worker {
            pool,
            runtime,
            patience,
            member: None,
            doubts: Arc::default(),
            apart: Arc::default(),
        };
        let words = Arc::new(Words::default());
        let indexing = {
            let (words, worker) = (Arc::clone(&words), worker.clone());
            async move { words.run(&worker).await }
        };
        let indexing = worker.runtime.spawn("words of the read model", indexing);
        let tasks = Mutex::new(vec![super::upkeep(worker.clone(), None), indexing]);
        let (schema, health) = (options.schema, Health::default());
        Ok(Self { worker, schema, health, leads: AtomicBool::default(), words, tasks })
    }

    fn patience(&self) -> Deadline {
        Deadline::at(self.worker.runtime.now() + self.worker.patience * 2)
    }

    async fn perform<W: Work>(&self, work: &W) -> Result<W::Answer> {
        self.worker.perform(work, self.patience()).await
    }
}

impl ReadModel for PostgresReadModel {
    fn checkpoint<'a>(
        &'a self,
        of: Projection,
        source: &'a str,
    ) -> BoxFuture<'a, Result<Option<LogPosition>>> {
        Box::pin(async move {
            let found = self.perform(&query::Checkpoint { of, source }).await?;
            Ok(found.map(|(position, behind)| {
                if of == Projection::Live && behind && self.leads.load(Ordering::Acquire) {
                    self.words.begin(position);
                }
                position
            }))
        })
    }

    fn begin<'a>(&'a self, of: Projection, source: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.perform(&rebuild::Begin { of, source }).await })
    }

    fn lease<'a>(&'a self, owner: &'a str, time: Duration) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            // Who gives it back leaves no words behind.
            if time.is_zero() {
                self.words.catch_up_soon(&self.worker).await;
            }
            let leads = self.perform(&query::Lease { owner, time }).await?;
            self.leads.store(leads, Ordering::Release);
            Ok(leads)
        })
    }

    fn apply<'a>(&'a self, of: Projection, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            if of == Projection::Live {
                self.words.applying(batch, &self.worker).await;
            }
            let applied = self.perform(&apply::Apply { of, batch }).await?;
            if applied && of == Projection::Live {
                self.words.applied(batch);
            }
            Ok(applied)
        })
    }

    fn read<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Rows>> {
        Box::pin(async move { self.perform(&query::ReadRows(keys)).await })
    }

    fn scan<'a>(&'a self, scan: &'a Scan) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let page = self.perform(&ScanPage { scan, asked: None, epoch: None }).await?;
            Ok(Page { origin: Origin::ReadModel, ..page })
        })
    }

    fn search<'a>(&'a self, words: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<Row>>> {
        Box::pin(async move {
            self.words.catch_up_soon(&self.worker).await;
            self.perform(&query::Search { words, limit }).await
        })
    }

    fn top(&self, by: Counted, limit: usize) -> BoxFuture<'_, Result<Vec<Row>>> {
        Box::pin(async move { self.perform(&query::Top { by, limit }).await })
    }

    fn activity(&self, bucket: Duration, limit: usize) -> BoxFuture<'_, Result<Vec<Activity>>> {
        Box::pin(async move { self.perform(&query::ByTime { bucket, limit }).await })
    }

    fn add_reads<'a>(&'a self, reads: &'a [(Key, u64)]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.perform(&apply::AddReads(reads)).await })
    }

    fn parked(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Parked>>> {
        Box::pin(async move { self.perform(&query::ParkedKeys(limit)).await })
    }

    fn retry<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move { self.perform(&apply::Retry(key)).await })
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.perform(&query::Pause(time)).await })
    }

    fn finish_rebuild(&self, swap: bool) -> BoxFuture<'_, Result<Option<Difference>>> {
        /// Two tables are compared row by row.
        const PATIENCE: Duration = Duration::from_secs(10 * 60);
        Box::pin(async move {
            let worker = Worker { patience: PATIENCE, ..self.worker.clone() };
            let deadline = Deadline::at(worker.runtime.now() + PATIENCE);
            worker.perform(&rebuild::Finish { swap }, deadline).await
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let health = self.health.ask(&self.worker).await;
            let well = health.0 != Status::Down;
            let durability = self.worker.pool.connector().durability();
            let mut tree = inspect::tree(&self.worker, &self.schema, durability, health);
            tree.name = "read-model";
            if well && let Ok((records, parked)) = self.perform(&query::Counts).await {
                tree = tree.gauge("records", records, Unit::Count).gauge(
                    "parked",
                    parked,
                    Unit::Count,
                );
                if parked > 0 {
                    let note = "keys are parked; see `terrace projections status`";
                    tree = tree.status(Status::Degraded, note);
                }
            }
            tree
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.words.catch_up_soon(&self.worker).await;
            self.worker.pool.close();
            let tasks =
                std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            for task in tasks {
                task.stop().await;
            }
            Ok(())
        })
    }
}

impl fmt::Display for PostgresReadModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres")
    }
}

impl fmt::Debug for PostgresReadModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresReadModel")
            .field("hosts", &self.worker.pool.connector().hosts())
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}
