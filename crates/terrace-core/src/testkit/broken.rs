//! Stores and caches with one flaw each: what a checker must have been seen to catch.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{
    BoxFuture, Budget, Cache, Entry, Inspection, Key, Lease, Lookup, Offer, Page, Read,
    ReadOptions, Receipt, Result, Scan, Store, Version, Write, WriteOptions,
};

/// What is wrong with a [`BrokenStore`].
#[derive(Clone, Debug)]
pub enum StoreFlaw {
    /// Reads ask for nothing that a client has seen.
    IgnoresTokens,
    /// Writes tell this cache before they commit, and not after.
    InvalidatesFirst(Arc<dyn Cache>),
}

/// A store with a flaw.
#[derive(Debug)]
pub struct BrokenStore {
    inner: Arc<dyn Store>,
    flaw: StoreFlaw,
}

impl BrokenStore {
    /// Around a sound store.
    pub fn new(inner: Arc<dyn Store>, flaw: StoreFlaw) -> Self {
        Self { inner, flaw }
    }

    fn options(&self, how: &ReadOptions) -> ReadOptions {
        let token = match self.flaw {
            StoreFlaw::IgnoresTokens => None,
            StoreFlaw::InvalidatesFirst(_) => how.token.clone(),
        };
        ReadOptions { token, ..how.clone() }
    }
}

impl Store for BrokenStore {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move { self.inner.read(keys, &self.options(how)).await })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            if let StoreFlaw::InvalidatesFirst(cache) = &self.flaw {
                let early = batch.iter().map(|write| (write.key.clone(), Version::NONE));
                cache.invalidate(&early.collect::<Vec<_>>()).await?;
            }
            self.inner.write(batch, how).await
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move { self.inner.scan(scan, &self.options(how)).await })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.inner.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}

impl fmt::Display for BrokenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// What is wrong with a [`BrokenCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheFlaw {
    /// Says of invalidations that failed that they were delivered.
    HidesFailures,
    /// Delivers no invalidation.
    IgnoresInvalidations,
    /// Is `get`, `set` and `delete`: keeps whatever is offered, and of what was written nothing.
    Naive,
}

/// A cache with a flaw.
#[derive(Debug)]
pub struct BrokenCache {
    inner: Arc<dyn Cache>,
    flaw: CacheFlaw,
    /// What a naive one keeps.
    entries: Mutex<HashMap<Key, Entry>>,
}

impl BrokenCache {
    /// Around a sound cache.
    pub fn new(inner: Arc<dyn Cache>, flaw: CacheFlaw) -> Self {
        Self { inner, flaw, entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache for BrokenCache {
    fn get<'a>(&'a self, keys: &'a [Key], budget: Budget) -> BoxFuture<'a, Result<Vec<Lookup>>> {
        Box::pin(async move {
            if self.flaw != CacheFlaw::Naive {
                return self.inner.get(keys, budget).await;
            }
            let entries = self.entries();
            let found = keys.iter().map(|key| match entries.get(key) {
                Some(entry) => Lookup::Hit(entry.clone()),
                None => Lookup::Miss(Lease(0)),
            });
            Ok(found.collect())
        })
    }

    fn lease(&self, key: &Key) -> Option<Lease> {
        self.inner.lease(key)
    }

    fn fill(&self, offers: Vec<Offer>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.flaw != CacheFlaw::Naive {
                return self.inner.fill(offers).await;
            }
            self.entries().extend(offers.into_iter().map(|offer| (offer.key, offer.entry)));
            Ok(())
        })
    }

    fn invalidate<'a>(&'a self, written: &'a [(Key, Version)]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if self.flaw == CacheFlaw::IgnoresInvalidations {
                return Ok(());
            }
            written.iter().for_each(|(key, _)| drop(self.entries().remove(key)));
            match self.inner.invalidate(written).await {
                Err(_) if self.flaw == CacheFlaw::HidesFailures => Ok(()),
                told => told,
            }
        })
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.clear()
    }

    /// A failure that nobody hears of is none of the connection either.
    fn interruptions(&self) -> u64 {
        0
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

impl fmt::Display for BrokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
