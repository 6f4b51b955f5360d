//! `ConcurrencyLimit`: no more calls at once than the store below can bear.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Page, Read, ReadOptions, Receipt,
    Result, Runtime, Scan, Store, Unit, Write, WriteOptions,
};
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};

/// Lets at most so many calls of the inner store run at once; the others wait their turn.
///
/// It protects a database on the day when the cache above it dies and every hit becomes a load.
///
/// **On read, on write, on delete.** The call takes a permit, waits for one in order of arrival
/// when there is none, and holds it until the inner call has ended or was dropped. Scans count
/// alike.
///
/// **On failure.** When the deadline passes in the queue the answer is `DeadlineExceeded`; when the
/// queue is full it is `Overloaded`, with a wait of 1 s. In both cases the inner store was not
/// called. A caller that goes away leaves the queue.
///
/// **Defaults.** 64 calls at once, 4096 waiting: [`ConcurrencyLimitOptions`].
///
/// **Where it belongs.** Between a cache and what the cache protects:
///
/// ```text
/// right:  CacheAside(far) > ConcurrencyLimit > postgres
/// wrong:  ConcurrencyLimit > CacheAside(far) > postgres     hits wait behind loads
/// wrong:  ConcurrencyLimit > Coalesce > postgres            few calls at once make small batches
/// ```
///
/// Above a `Coalesce`, which bounds its batches itself, it would only make them smaller.
///
/// **What it gives up.** Throughput that the inner store could have given beyond the limit.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    inner: Arc<dyn Store>,
    limit: u32,
    max_waiting: usize,
    runtime: Runtime,
    permits: Semaphore,
    waiting: AtomicUsize,
    rejected: AtomicU64,
}

/// How many calls run and wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcurrencyLimitOptions {
    /// Calls of the inner store at once. Default 64; at least 1, at most 2^29 - 1.
    pub limit: u32,
    /// Calls that may wait for their turn. Default 4096. Beyond, calls answer `Overloaded`.
    pub max_waiting: usize,
}

impl Default for ConcurrencyLimitOptions {
    fn default() -> Self {
        Self { limit: 64, max_waiting: 4096 }
    }
}

impl ConcurrencyLimit {
    /// As many permits as tokio's semaphore has on every platform.
    const MOST: u32 = u32::MAX >> 3;

    /// Around this store.
    pub fn new(inner: Arc<dyn Store>, options: ConcurrencyLimitOptions, runtime: Runtime) -> Self {
        let limit = options.limit.clamp(1, Self::MOST);
        Self {
            inner,
            limit,
            max_waiting: options.max_waiting,
            runtime,
            permits: Semaphore::new(limit as usize),
            waiting: AtomicUsize::new(0),
            rejected: AtomicU64::new(0),
        }
    }

    /// A turn for one call.
    async fn turn(
        &self,
        operation: &'static str,
        deadline: Deadline,
    ) -> Result<SemaphorePermit<'_>> {
        match self.permits.try_acquire() {
            Ok(permit) => return Ok(permit),
            Err(TryAcquireError::Closed) => return Err(closed().during(operation)),
            Err(TryAcquireError::NoPermits) => {}
        }
        let _place = self.queue().map_err(|error| error.during(operation))?;
        match self.runtime.within(deadline, self.permits.acquire()).await {
            Some(Ok(permit)) => Ok(permit),
            Some(Err(_)) => Err(closed().during(operation)),
            None => Err(Deadline::exceeded().during(operation)),
        }
    }

    fn queue(&self) -> Result<Place<'_>> {
        let place = Place(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.max_waiting {
            return Ok(place);
        }
        self.rejected.fetch_add(1, Ordering::Relaxed);
        let message = "too many calls are waiting for the database; try again a little later";
        Err(Error::new(ErrorKind::Overloaded, message).retry_after(Duration::from_secs(1)))
    }
}

/// A place in the queue, counted until it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is closed")
}

impl fmt::Display for ConcurrencyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConcurrencyLimit({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for ConcurrencyLimit {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            let _turn = self.turn("read", how.deadline).await?;
            self.inner.read(keys, how).await
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            let _turn = self.turn("write", how.deadline).await?;
            self.inner.write(batch, how).await
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let _turn = self.turn("scan", how.deadline).await?;
            self.inner.scan(scan, how).await
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let in_use = u64::from(self.limit) - self.permits.available_permits() as u64;
            Inspection::new("concurrency-limit")
                .fact("limit", self.limit)
                .fact("max_waiting", self.max_waiting)
                .gauge("in_use", in_use, Unit::Count)
                .gauge("waiting", self.waiting.load(Ordering::Relaxed) as u64, Unit::Count)
                .counter("rejected", self.rejected.load(Ordering::Relaxed))
                .needs(self.inner.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            // All permits at once come after everybody who was accepted before.
            let all = self.permits.acquire_many(self.limit).await;
            self.permits.close();
            drop(all);
            self.inner.close().await
        })
    }
}
