//! A read model in a SQLite file of its own.

mod change;
mod query;
mod tables;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use terrace_core::read_model::{
    Activity, Counted, Difference, Parked, Projection, Reached, Row, Rows,
};
use terrace_core::{
    Batch, BoxFuture, Budget, Checkpoint, Follower, Inspection, Key, LeaderLease, Page, PartKind,
    ReadModel, Result, Runtime, Scan, Status, Unit,
};

use super::lane::Lane;
use super::options::{SqliteOptions, Synchronous};
use super::{connect, failure};

/// Keeps a read model in one file: `records(key, value, created_at, updated_at, read_count,
/// write_count, version)` with a full-text index (FTS5), made at the first start.
///
/// One thread changes it, one reads it, each in snapshots of the write-ahead log.
#[derive(Clone)]
pub struct SqliteReadModel {
    changes: Arc<Lane>,
    queries: Arc<Lane>,
    runtime: Runtime,
}

impl SqliteReadModel {
    /// Opens the file and makes the tables that are missing.
    ///
    /// # Errors
    /// As [`SqliteStore::open`](super::SqliteStore::open).
    pub fn open(mut options: SqliteOptions, runtime: Runtime) -> Result<Self> {
        // Effects and checkpoint are lost together or not at all, and the command side's log has what
        // was lost; so a commit need not wait for the disk.
        options.synchronous = Synchronous::Normal;
        options.path = connect::prepare_path(&options.path)?;
        let turn = connect::turn(&options.path);
        let mut first = connect::plain(&options, tables::examine)?;
        tables::make(&mut first)?;
        drop(turn);
        let changes = Arc::new(Lane::start(&options, "sqlite-project", runtime.clone())?);
        let queries = Arc::new(Lane::start(&options, "sqlite-query", runtime.clone())?);
        drop(first);
        Ok(Self { changes, queries, runtime })
    }

    fn now(&self) -> i64 {
        self.runtime.wall().as_microsecond()
    }

    /// Work in one transaction.
    async fn change<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = self.changes.run(move |connection| {
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(failure::of)?;
            let answer = work(&transaction)?;
            transaction.commit().map_err(failure::of_commit)?;
            Ok(answer)
        });
        done.await.map_err(|error| error.during(operation))
    }

    /// Questions to one snapshot.
    async fn query<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = self.queries.run(move |connection| {
            let transaction = connection.transaction().map_err(failure::of)?;
            work(&transaction)
        });
        done.await.map_err(|error| error.during(operation))
    }
}

impl ReadModel for SqliteReadModel {
    fn follower(&self, of: Projection) -> Arc<dyn Follower> {
        Arc::new(Projecting { model: self.clone(), of })
    }

    /// The words change with their rows.
    fn search_index(&self) -> Option<Arc<dyn Follower>> {
        None
    }

    /// One process has the file.
    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        None
    }

    fn read<'a>(&'a self, keys: &'a [Key], budget: Budget) -> BoxFuture<'a, Result<Rows>> {
        let keys = keys.to_vec();
        Box::pin(async move { self.query("read", move |it| query::rows(it, &keys, budget)).await })
    }

    fn scan<'a>(&'a self, scan: &'a Scan) -> BoxFuture<'a, Result<(Page, Reached)>> {
        let scan = scan.clone();
        Box::pin(async move { self.query("scan", move |it| query::page(it, &scan)).await })
    }

    fn search<'a>(&'a self, words: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<Row>>> {
        let words = words.to_owned();
        Box::pin(
            async move { self.query("search", move |it| query::search(it, &words, limit)).await },
        )
    }

    fn top(&self, by: Counted, limit: usize) -> BoxFuture<'_, Result<Vec<Row>>> {
        Box::pin(
            async move { self.query("find the top", move |it| query::top(it, by, limit)).await },
        )
    }

    fn activity(&self, bucket: Duration, limit: usize) -> BoxFuture<'_, Result<Vec<Activity>>> {
        Box::pin(async move {
            let told =
                self.query("tell the activity", move |it| query::activity(it, bucket, limit));
            told.await
        })
    }

    fn add_reads<'a>(&'a self, reads: &'a [(Key, u64)]) -> BoxFuture<'a, Result<()>> {
        let reads = reads.to_vec();
        Box::pin(async move {
            self.change("count reads", move |it| change::add_reads(it, &reads)).await
        })
    }

    fn parked(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Parked>>> {
        Box::pin(
            async move { self.query("list parked keys", move |it| query::parked(it, limit)).await },
        )
    }

    fn retry<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        let key = key.clone();
        Box::pin(async move {
            self.change("retry a parked key", move |it| change::retry(it, &key)).await
        })
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, Result<()>> {
        let now = self.now();
        Box::pin(async move {
            self.change("pause the projection", move |it| change::pause(it, now, time)).await
        })
    }

    fn finish_rebuild(&self, swap: bool) -> BoxFuture<'_, Result<Option<Difference>>> {
        Box::pin(async move {
            self.change("finish a rebuild", move |it| change::finish(it, swap)).await
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let path = self.queries.path().display().to_string();
            let tree = Inspection::of(PartKind::ReadModel, "read-model").text("path", path);
            match self.query("inspect", query::counts).await {
                Err(error) => tree.status(Status::Down, error.message()),
                Ok((records, parked)) => {
                    let note = "keys are parked; see `terrace projections status`";
                    let tree = match parked {
                        0 => tree,
                        _ => tree.status(Status::Degraded, note),
                    };
                    // One connection changes, one reads.
                    tree.gauge("records", records, Unit::Count)
                        .gauge("parked", parked, Unit::Count)
                        .gauge("pool_size", 2, Unit::Count)
                }
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.queries.close();
            self.changes.close();
            Ok(())
        })
    }
}

impl fmt::Display for SqliteReadModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlite")
    }
}

impl fmt::Debug for SqliteReadModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteReadModel").field("path", self.queries.path()).finish_non_exhaustive()
    }
}

/// What makes a projection.
#[derive(Debug)]
struct Projecting {
    model: SqliteReadModel,
    of: Projection,
}

impl Follower for Projecting {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        let of = self.of;
        Box::pin(self.model.query("find the checkpoint", move |it| change::checkpoint(it, of)))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        let (of, batch, now) = (self.of, batch.clone(), self.model.now());
        Box::pin(self.model.change("project", move |it| change::apply(it, of, &batch, now)))
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        let (of, log) = (self.of, log.to_owned());
        Box::pin(self.model.change("begin a projection", move |it| change::begin(it, of, &log)))
    }
}

impl fmt::Display for Projecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite {}", self.model.queries.path().display())
    }
}
