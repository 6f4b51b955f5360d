//! A span for each batch that is projected.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::read_model::{
    Activity, Counted, Difference, Parked, Projection, Reached, Row, Rows,
};
use terrace_core::{
    Batch, BoxFuture, Budget, Checkpoint, Follower, Inspection, Key, LeaderLease, Page, ReadModel,
    Result, Scan,
};

use super::on::Tracing;

/// A read model whose projection has a span for each batch with a write of a traced request, and links
/// to them; the rest goes through.
#[derive(Debug)]
pub(super) struct SpannedModel {
    inner: Arc<dyn ReadModel>,
    tracing: &'static Tracing,
}

impl SpannedModel {
    pub(super) fn new(inner: Arc<dyn ReadModel>, tracing: &'static Tracing) -> Self {
        Self { inner, tracing }
    }
}

impl fmt::Display for SpannedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl ReadModel for SpannedModel {
    fn follower(&self, of: Projection) -> Arc<dyn Follower> {
        let inner = self.inner.follower(of);
        match of {
            Projection::Live => Arc::new(SpannedFollower { inner, tracing: self.tracing }),
            Projection::Next => inner,
        }
    }

    fn search_index(&self) -> Option<Arc<dyn Follower>> {
        self.inner.search_index()
    }

    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        self.inner.lease()
    }

    fn read<'a>(&'a self, keys: &'a [Key], budget: Budget) -> BoxFuture<'a, Result<Rows>> {
        self.inner.read(keys, budget)
    }

    fn scan<'a>(&'a self, scan: &'a Scan) -> BoxFuture<'a, Result<(Page, Reached)>> {
        self.inner.scan(scan)
    }

    fn search<'a>(&'a self, words: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<Row>>> {
        self.inner.search(words, limit)
    }

    fn top(&self, by: Counted, limit: usize) -> BoxFuture<'_, Result<Vec<Row>>> {
        self.inner.top(by, limit)
    }

    fn activity(&self, bucket: Duration, limit: usize) -> BoxFuture<'_, Result<Vec<Activity>>> {
        self.inner.activity(bucket, limit)
    }

    fn add_reads<'a>(&'a self, reads: &'a [(Key, u64)]) -> BoxFuture<'a, Result<()>> {
        self.inner.add_reads(reads)
    }

    fn parked(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Parked>>> {
        self.inner.parked(limit)
    }

    fn retry<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        self.inner.retry(key)
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, Result<()>> {
        self.inner.pause(time)
    }

    fn finish_rebuild(&self, swap: bool) -> BoxFuture<'_, Result<Option<Difference>>> {
        self.inner.finish_rebuild(swap)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.inner.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}

#[derive(Debug)]
struct SpannedFollower {
    inner: Arc<dyn Follower>,
    tracing: &'static Tracing,
}

impl fmt::Display for SpannedFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Follower for SpannedFollower {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        self.inner.checkpoint()
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async {
            let places = batch.changes.iter().map(|change| (&change.key, change.position.into()));
            let (links, keys) = self.tracing.accepted.applied(places);
            let work = async { self.inner.apply(batch).await };
            let applied = self.tracing.linked("projection apply".to_owned(), links, work).await?;
            self.tracing.accepted.forget(&keys);
            Ok(applied)
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        self.inner.begin_anew(log)
    }
}
