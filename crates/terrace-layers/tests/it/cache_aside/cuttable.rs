//! A cache whose connection the test cuts and mends.

use std::fmt;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Budget, Cache, Error, ErrorKind, Inspection, Key, Lease, Lookup, Offer, Result,
    Version,
};

/// How the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Up,
    /// Every call fails.
    Down,
    /// No call is ever answered.
    Silent,
}

#[derive(Debug)]
pub(crate) struct Cuttable {
    inner: Arc<dyn Cache>,
    mode: Mutex<Mode>,
    interruptions: AtomicU64,
}

impl Cuttable {
    pub(crate) fn new(inner: Arc<dyn Cache>) -> Arc<Self> {
        let interruptions = AtomicU64::new(0);
        Arc::new(Self { inner, mode: Mutex::new(Mode::Up), interruptions })
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// The connection was lost and stands again, and no call was under way.
    pub(crate) fn interrupt(&self) {
        self.interruptions.fetch_add(1, Ordering::SeqCst);
    }

    async fn pass<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let mode = *self.mode.lock().unwrap();
        match mode {
            Mode::Up => call.await,
            Mode::Down => Err(Error::new(ErrorKind::Unavailable, "cut")),
            Mode::Silent => pending().await,
        }
    }
}

impl fmt::Display for Cuttable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Cache for Cuttable {
    fn get<'a>(&'a self, keys: &'a [Key], budget: Budget) -> BoxFuture<'a, Result<Vec<Lookup>>> {
        Box::pin(self.pass(self.inner.get(keys, budget)))
    }

    fn lease(&self, key: &Key) -> Option<Lease> {
        self.inner.lease(key)
    }

    fn fill(&self, offers: Vec<Offer>) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.pass(self.inner.fill(offers)))
    }

    fn invalidate<'a>(&'a self, written: &'a [(Key, Version)]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.pass(self.inner.invalidate(written)))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.pass(self.inner.clear()))
    }

    fn interruptions(&self) -> u64 {
        self.interruptions.load(Ordering::SeqCst)
    }

    fn whole_for(&self) -> Duration {
        self.inner.whole_for()
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.inner.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}
