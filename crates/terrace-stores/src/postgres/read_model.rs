//! A read model in a PostgreSQL database, or schema, of its own.

mod apply;
mod query;
mod rebuild;
mod search;
mod steps;
mod tables;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use terrace_core::read_model::{
    Activity, Counted, Difference, Parked, Projection, Reached, Row, Rows,
};
use terrace_core::{
    Batch, BoxFuture, Budget, Checkpoint, Deadline, Follower, Inspection, Key, LeaderLease, Page,
    PartKind, ReadModel, Result, Runtime, Scan, Status, Task, Unit,
};

use super::inspect::{self, Health};
use super::lease::{Lease, Leased};
use super::options::PostgresOptions;
use super::pool::Pool;
use super::statements::Dialect;
use super::work::Work;
use super::worker::Worker;

use search::SearchIndex;

/// Keeps a read model in PostgreSQL 15 or later: `records(key, value, created_at, updated_at,
/// read_count, write_count, version)` with a full-text index, made by the first start.
///
/// Words are those of the configuration `simple`: without stemming, whatever the language. Of a value
/// the first 100 000 characters are searched, for an index entry has a limit. A deleted record leaves
/// a row with `deleted`, which keeps its version and counts.
pub struct PostgresReadModel {
    worker: Worker,
    schema: String,
    health: Health,
    upkeep: Mutex<Option<Task>>,
}

impl PostgresReadModel {
    /// Connects and makes the tables that are missing.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`](super::PostgresStore::connect).
    pub async fn connect(options: PostgresOptions, runtime: Runtime) -> Result<Self> {
        // Batches of one row's changes wait for each other, and what waits loses nothing.
        let options = PostgresOptions { lock_timeout: Duration::ZERO, ..options };
        let connector = super::connector(&options, Dialect::ReadModel, &runtime)?;
        let mut first = connector.open_first().await?;
        tables::make(first.client(), &options.schema).await?;
        drop(first);
        let pool = Pool::new(connector, &options.source, runtime.clone())?;
        let worker = Worker::new(pool, runtime, options.timeouts(), None);
        worker.pool.tend().await?;
        let upkeep = Mutex::new(Some(super::upkeep(worker.clone(), false)));
        let (schema, health) = (options.schema, Health::default());
        Ok(Self { worker, schema, health, upkeep })
    }

    fn patience(&self) -> Deadline {
        Deadline::at(self.worker.runtime.now() + self.worker.patience * 2)
    }

    async fn perform<W: Work>(&self, work: &W) -> Result<W::Answer> {
        self.worker.perform(work, self.patience()).await
    }
}

impl ReadModel for PostgresReadModel {
    fn follower(&self, of: Projection) -> Arc<dyn Follower> {
        Arc::new(Projecting { worker: self.worker.clone(), of })
    }

    fn search_index(&self) -> Option<Arc<dyn Follower>> {
        Some(Arc::new(SearchIndex(self.worker.clone())))
    }

    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        let of = Leased { table: "terrace_projection", name: "live", make: tables::ROWS };
        Some(Arc::new(Lease::new(self.worker.clone(), of)))
    }

    fn read<'a>(&'a self, keys: &'a [Key], budget: Budget) -> BoxFuture<'a, Result<Rows>> {
        Box::pin(async move { self.perform(&query::ReadRows { keys, budget }).await })
    }

    fn scan<'a>(&'a self, scan: &'a Scan) -> BoxFuture<'a, Result<(Page, Reached)>> {
        Box::pin(async move { self.perform(&query::ReadPage(scan)).await })
    }

    fn search<'a>(&'a self, words: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<Row>>> {
        Box::pin(async move { self.perform(&query::Search { words, limit }).await })
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
            let read = query::ReadRows { keys: &[], budget: Budget::default() };
            let health = self.health.ask(&self.worker, &read, async |_| Ok(())).await;
            let well = health.0 != Status::Down;
            let durability = self.worker.pool.connector().durability();
            let mut tree = inspect::tree(&self.worker, &self.schema, durability, health);
            (tree.kind, tree.name) = (PartKind::ReadModel, "read-model");
            // It may have fallen silent since the health was asked.
            let counts = self.worker.runtime.within(
                Deadline::at(self.worker.runtime.now() + inspect::Health::WITHIN),
                self.perform(&query::Counts),
            );
            if well && let Some(Ok((records, parked))) = counts.await {
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
            let upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(upkeep) = upkeep {
                upkeep.stop().await;
            }
            self.worker.pool.close().await;
            self.worker.apart.end().await;
            Ok(())
        })
    }
}

/// What makes a projection.
struct Projecting {
    worker: Worker,
    of: Projection,
}

impl Projecting {
    async fn perform<W: Work>(&self, work: &W) -> Result<W::Answer> {
        let deadline = Deadline::at(self.worker.runtime.now() + self.worker.patience * 2);
        self.worker.perform(work, deadline).await
    }
}

impl Follower for Projecting {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async { self.perform(&query::FindCheckpoint(tables::name(self.of))).await })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move { self.perform(&apply::Apply { of: self.of, batch }).await })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        let name = tables::name(self.of);
        Box::pin(async move { self.perform(&rebuild::Begin { name, log }).await })
    }
}

impl fmt::Display for Projecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.worker.pool.connector().fmt(f)
    }
}

impl fmt::Debug for Projecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Projecting").field(&self.of).finish()
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
