//! `FillOnWrite`: what was written is in the caches before the answer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Deadline, Inspection, Key, Origin, Outcome, Page, Read, ReadOptions, Receipt,
    Result, Runtime, Scan, Store, Token, Write, WriteOptions,
};

/// Reads what was written back through the caches below, so that the next read is a near hit.
///
/// **What it is.** A cache may not keep what a writer believes to have written: between its commit and
/// its fill another write may come. So this layer writes no cache. It reads the keys once more, as any
/// reader would, and the caches fill themselves by their own leases and versions.
///
/// **On read, on scan.** Straight through.
///
/// **On write.** Straight through. Keys that have a new value are then read with the write's token, which
/// loads them from the database into all caches, and once more, which shows whether the near cache took
/// them: [`Receipt::cached`]. All of it gets [`FillOnWrite::PATIENCE`], and the write's deadline.
///
/// **On delete.** Straight through.
///
/// **On failure.** A key that could not be read in time is not cached; the write's answer is the same.
///
/// **Defaults.** No options.
///
/// **Where it belongs.** At the top, above all caches:
///
/// ```text
/// right:  FillOnWrite > NearCache > CacheAside(far) > ... > postgres
/// wrong:  NearCache > FillOnWrite > CacheAside(far) > ...    the near cache hears of it afterwards
/// ```
///
/// **What it gives up.** Each write costs a read of the database, and an answer waits for it.
#[derive(Debug)]
pub struct FillOnWrite {
    inner: Arc<dyn Store>,
    runtime: Runtime,
    filled: AtomicU64,
    not_filled: AtomicU64,
}

impl FillOnWrite {
    /// How long an answer waits for the caches to be filled.
    pub const PATIENCE: Duration = Duration::from_millis(100);

    /// Above the caches of this store.
    pub fn new(inner: Arc<dyn Store>, runtime: Runtime) -> Self {
        Self { inner, runtime, filled: AtomicU64::new(0), not_filled: AtomicU64::new(0) }
    }

    async fn write_and_fill(&self, batch: Vec<Write>, how: &WriteOptions) -> Result<Vec<Receipt>> {
        let keys = batch.iter().map(|write| write.key.clone()).collect::<Vec<_>>();
        let mut receipts = self.inner.write(batch, how).await?;
        let has_value =
            |receipt: &Receipt| matches!(receipt.outcome, Outcome::Created | Outcome::Replaced);
        let (keys, mut written): (Vec<_>, Vec<_>) =
            keys.into_iter().zip(&mut receipts).filter(|(_, it)| has_value(it)).unzip();
        if keys.is_empty() {
            return Ok(receipts);
        }
        let deadline = Deadline::at(self.runtime.now() + Self::PATIENCE).min(how.deadline);
        let mut token = Token::default();
        written.iter().for_each(|receipt| token.merge(&receipt.token));
        let seen = self.runtime.within(deadline, self.fill(&keys, token, deadline)).await;
        let seen = seen.and_then(Result::ok).unwrap_or_default();
        let mut filled = 0;
        for (receipt, read) in written.iter_mut().zip(seen) {
            receipt.cached = read.origin == Origin::NEAR && read.version >= receipt.version;
            filled += u64::from(receipt.cached);
        }
        self.filled.fetch_add(filled, Ordering::Relaxed);
        self.not_filled.fetch_add(written.len() as u64 - filled, Ordering::Relaxed);
        Ok(receipts)
    }

    /// What anybody is answered after the caches were filled.
    async fn fill(&self, keys: &[Key], token: Token, deadline: Deadline) -> Result<Vec<Read>> {
        let anybody = ReadOptions { deadline, ..ReadOptions::default() };
        let writer = ReadOptions { token: Some(token), ..anybody.clone() };
        self.inner.read(keys, &writer).await?;
        self.inner.read(keys, &anybody).await
    }
}

impl fmt::Display for FillOnWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FillOnWrite({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for FillOnWrite {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        self.inner.read(keys, how)
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.write_and_fill(batch, how))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.inner.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            Inspection::new("fill-on-write")
                .counter("filled", self.filled.load(Ordering::Relaxed))
                .counter("not_filled", self.not_filled.load(Ordering::Relaxed))
                .needs(self.inner.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}
