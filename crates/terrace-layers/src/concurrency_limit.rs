//! `ConcurrencyLimit`: no more calls at once than the store below can bear.

mod aimd;
mod turns;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::{
    BoxFuture, Inspection, Key, Page, Read, ReadOptions, Receipt, Result, Runtime, Scan, Store,
    Write, WriteOptions,
};

use turns::{Turn, Wish};

pub use turns::Turns;

/// Lets at most so many calls of the inner store run at once; the others wait their turn.
///
/// It protects a database on the day when the cache above it dies and every hit becomes a load. How many
/// calls that are it finds out: one more while they are quick, a quarter less when they become slow (additive
/// increase, multiplicative decrease: Chiu and Jain, 1989).
///
/// **On read, on write, on delete.** The call takes a turn, waits for one in order of arrival
/// when there is none, and holds it until the inner call has ended or was dropped. A batch may take as long
/// as one call for each hundred keys, before that counts as slow.
///
/// **On scan.** Alike, but behind all reads and writes that wait, and in a quarter of the turns at most.
/// How long a list takes does not change the limit. [`ConcurrencyLimit::turns`] is for what looks through
/// many records of the same database and is no scan.
///
/// **On failure.** When the deadline passes in the queue the answer is `DeadlineExceeded`; when the
/// queue is full, or the call has waited for `max_wait`, it is `Overloaded`, with a wait of 1 s. In all cases
/// the inner store was not called. A caller that goes away leaves the queue. Writes
/// [in the background](WriteOptions::background) wait until their deadlines. Inspections never wait, so
/// health does not stand behind requests.
///
/// **Defaults.** 8 to 512 calls at once, fewer once they take longer than 250 ms; 4096 wait, for 250 ms each.
/// So a request that is let in is answered in about half a second, however many come:
/// [`ConcurrencyLimitOptions`].
///
/// **Where it belongs.** Between a cache and what the cache protects:
///
/// ```text
/// right:  CacheAside(far) > ConcurrencyLimit > Coalesce > postgres
/// wrong:  ConcurrencyLimit > CacheAside(far) > postgres     hits wait behind loads
/// wrong:  Coalesce > ConcurrencyLimit > postgres            a limit of batches bounds no callers
/// ```
///
/// **What it gives up.** Throughput that the inner store could have given beyond the limit.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    inner: Arc<dyn Store>,
    turns: Arc<Turns>,
}

/// How many calls run and wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcurrencyLimitOptions {
    /// Calls of the inner store at once, to begin with. Default 64.
    pub limit: u32,
    /// The limit is never less. Default 8; at least 1.
    pub least: u32,
    /// The limit is never more. Default 512.
    pub most: u32,
    /// A read or write that takes longer says that there are too many at once. Default 250 ms.
    pub slow: Duration,
    /// How long a call waits for its turn at most. Default 250 ms.
    pub max_wait: Duration,
    /// Calls that may wait for their turn. Default 4096. Beyond, calls answer `Overloaded`.
    pub max_waiting: usize,
}

impl Default for ConcurrencyLimitOptions {
    fn default() -> Self {
        let quarter = Duration::from_millis(250);
        let (slow, max_wait) = (quarter, quarter);
        Self { limit: 64, least: 8, most: 512, slow, max_wait, max_waiting: 4096 }
    }
}

impl ConcurrencyLimit {
    /// Around this store.
    pub fn new(inner: Arc<dyn Store>, options: &ConcurrencyLimitOptions, runtime: Runtime) -> Self {
        Self { inner, turns: Arc::new(Turns::new(options, runtime)) }
    }

    /// Its turns, for what is asked of the same database beside the store.
    pub fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    async fn turn(&self, operation: &'static str, wish: Wish) -> Result<Turn> {
        self.turns.take(wish).await.map_err(|error| error.during(operation))
    }
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
            let _turn = self.turn("read", Wish::read(keys.len(), how.deadline)).await?;
            self.inner.read(keys, how).await
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            let _turn = self.turn("write", Wish::write(batch.len(), how)).await?;
            self.inner.write(batch, how).await
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let _turn = self.turn("scan", Wish::list(how.deadline)).await?;
            self.inner.scan(scan, how).await
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let tree = self.turns.show(Inspection::new("concurrency-limit"));
            tree.needs(self.inner.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            // After everybody who was accepted before.
            self.turns.close().await;
            self.inner.close().await
        })
    }
}
