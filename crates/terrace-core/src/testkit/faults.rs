//! A store and a cache with faults, as a seed decides.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{
    BoxFuture, Budget, Cache, Error, ErrorKind, Inspection, Key, Lease, Lookup, Offer, Page, Read,
    ReadOptions, Receipt, Result, Runtime, Scan, Store, Version, Write, WriteOptions,
};

/// How often which fault happens, in calls of a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// The call is held for up to [`FaultRates::longest`] before it begins.
    pub delay: u64,
    /// The call fails with `Unavailable` and was not applied.
    pub error: u64,
    /// A write fails with `OutcomeUnknown` and was not applied.
    pub unknown: u64,
    /// A write was applied, but its reply is lost: `OutcomeUnknown`. A read's is lost as `Unavailable`.
    pub reply_lost: u64,
    /// The longest delay.
    pub longest: Duration,
}

/// What a draw decided for one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Error,
    Unknown,
    ReplyLost,
}

#[derive(Debug)]
pub(super) struct Faults {
    pub(super) rates: FaultRates,
    pub(super) runtime: Runtime,
}

impl Faults {
    /// Makes a call that changes nothing, or that may be made again: its reply is lost as
    /// `Unavailable`.
    pub(super) async fn apply<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        match self.draw().await {
            Fault::None => call.await,
            Fault::Error | Fault::Unknown => Err(unavailable()),
            Fault::ReplyLost => call.await.and_then(|_| Err(unavailable())),
        }
    }

    async fn draw(&self) -> Fault {
        let thousand = || self.runtime.random() % 1000;
        if thousand() < self.rates.delay {
            let longest = u64::try_from(self.rates.longest.as_micros()).unwrap_or(u64::MAX).max(1);
            self.runtime.sleep(Duration::from_micros(self.runtime.random() % longest)).await;
        }
        let (rates, number) = (self.rates, thousand());
        if number < rates.error {
            Fault::Error
        } else if number < rates.error + rates.unknown {
            Fault::Unknown
        } else if number < rates.error + rates.unknown + rates.reply_lost {
            Fault::ReplyLost
        } else {
            Fault::None
        }
    }
}

pub(super) fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "an injected fault")
}

fn unknown() -> Error {
    Error::new(ErrorKind::OutcomeUnknown, "an injected fault")
}

/// A layer that delays calls, fails them and loses replies, as its runtime's seed decides.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    faults: Faults,
}

impl FaultyStore {
    /// Faults at these rates around `inner`; delays pass on the runtime's clock.
    pub fn new(inner: Arc<dyn Store>, rates: FaultRates, runtime: Runtime) -> Self {
        Self { inner, faults: Faults { rates, runtime } }
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for FaultyStore {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.faults.apply(self.inner.read(keys, how)))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            match self.faults.draw().await {
                Fault::None => self.inner.write(batch, how).await,
                Fault::Error => Err(unavailable()),
                Fault::Unknown => Err(unknown()),
                Fault::ReplyLost => self.inner.write(batch, how).await.and_then(|_| Err(unknown())),
            }
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.faults.apply(self.inner.scan(scan, how)))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { Inspection::new("faulty").needs(self.inner.inspect().await) })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}

/// A cache that delays calls, fails them and loses replies, as its runtime's seed decides.
#[derive(Debug)]
pub struct FaultyCache {
    inner: Arc<dyn Cache>,
    faults: Faults,
}

impl FaultyCache {
    /// Faults at these rates around `inner`; delays pass on the runtime's clock.
    pub fn new(inner: Arc<dyn Cache>, rates: FaultRates, runtime: Runtime) -> Self {
        Self { inner, faults: Faults { rates, runtime } }
    }
}

impl fmt::Display for FaultyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Cache for FaultyCache {
    fn get<'a>(&'a self, keys: &'a [Key], budget: Budget) -> BoxFuture<'a, Result<Vec<Lookup>>> {
        Box::pin(self.faults.apply(self.inner.get(keys, budget)))
    }

    fn lease(&self, key: &Key) -> Option<Lease> {
        self.inner.lease(key)
    }

    fn fill(&self, offers: Vec<Offer>) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.faults.apply(self.inner.fill(offers)))
    }

    fn invalidate<'a>(&'a self, written: &'a [(Key, Version)]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.faults.apply(self.inner.invalidate(written)))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.faults.apply(self.inner.clear()))
    }

    fn interruptions(&self) -> u64 {
        self.inner.interruptions()
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
