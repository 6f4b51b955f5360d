//! The cache as `CacheAside` calls it: never for long, and not at all while it fails.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use terrace_core::{
    Backoff, Breaker, BreakerState, Cache, Deadline, Error, ErrorKind, Inspection, Key, Lease,
    Lookup, Offer, Pass, ReadOptions, Result, Runtime, Trip, Version,
};

use crate::alarm::Alarm;

#[derive(Debug)]
pub(super) struct Far {
    cache: Arc<dyn Cache>,
    timeout: Duration,
    runtime: Runtime,
    breaker: Breaker,
    failures: AtomicU64,
    alarm: Alarm,
}

impl Far {
    pub(super) fn new(
        cache: Arc<dyn Cache>,
        timeout: Duration,
        rest: Duration,
        runtime: Runtime,
    ) -> Self {
        Self {
            cache,
            timeout,
            // One failure opens it: each costs a read the whole timeout.
            breaker: Breaker::new(Trip::InARow(1), Backoff::new(rest, 5 * rest), runtime.clone()),
            failures: AtomicU64::new(0),
            alarm: Alarm::new(runtime.clone()),
            runtime,
        }
    }

    /// See [`Cache::whole_for`].
    pub(super) fn whole_for(&self) -> Duration {
        self.cache.whole_for()
    }

    /// How often it may have been out of reach: what it holds may then not have heard of writes.
    pub(super) fn interruptions(&self) -> u64 {
        self.failures.load(Ordering::Acquire) + self.cache.interruptions()
    }

    /// The lease for whoever cannot use what was hit.
    pub(super) fn lease(&self, key: &Key) -> Option<Lease> {
        self.cache.lease(key)
    }

    /// Whether it is left alone now, because it has just failed.
    pub(super) fn is_resting(&self) -> bool {
        self.breaker.state() == BreakerState::Open
    }

    /// What the cache has of each key, or nothing when it has no say now.
    pub(super) async fn get(&self, keys: &[Key], how: &ReadOptions) -> Option<Vec<Lookup>> {
        let pass = self.breaker.admit()?;
        let lookups = self.look_up(keys, how, pass).await.ok()?;
        (lookups.len() == keys.len()).then_some(lookups)
    }

    async fn look_up(&self, keys: &[Key], how: &ReadOptions, pass: Pass) -> Result<Vec<Lookup>> {
        let mut work = self.cache.get(keys, how.budget);
        // What is ready at once needs no timer.
        let first = poll_fn(|context| Poll::Ready(work.as_mut().poll(context)));
        if let Poll::Ready(result) = first.await {
            return self.noted(result, Some(pass));
        }
        let ring = self.alarm.after(self.timeout);
        if how.deadline.passed(ring.at) {
            return self.call(self.timeout, how.deadline, Some(pass), work).await;
        }
        tokio::select! {
            biased;
            result = work => self.noted(result, Some(pass)),
            () = ring.end => self.noted(Err(late()), Some(pass)),
        }
    }

    /// Offers what was loaded, waiting no longer than this.
    pub(super) async fn fill(&self, offers: Vec<Offer>, wait: Duration, deadline: Deadline) {
        // Not a `call`: a cache that is full refuses fills and still has to hear of writes.
        let until = Deadline::at(self.runtime.now() + wait).min(deadline);
        let _ = self.runtime.within(until, self.cache.fill(offers)).await;
    }

    /// Delivers invalidations, or fails within the timeout.
    pub(super) async fn invalidate(
        &self,
        written: &[(Key, Version)],
        deadline: Deadline,
    ) -> Result<()> {
        // Told also while it is left alone: what it hears now it need not be suspected of later.
        self.call(self.timeout, deadline, None, self.cache.invalidate(written)).await
    }

    pub(super) async fn clear(&self) -> Result<()> {
        self.call(self.timeout, Deadline::NEVER, None, self.cache.clear()).await
    }

    pub(super) async fn inspect(&self) -> Inspection {
        self.cache.inspect().await
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    pub(super) async fn close(&self) -> Result<()> {
        self.cache.close().await
    }

    async fn call<T>(
        &self,
        time: Duration,
        deadline: Deadline,
        pass: Option<Pass>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let own = Deadline::at(self.runtime.now() + time);
        let Some(result) = self.runtime.within(own.min(deadline), work).await else {
            // A client in a hurry says nothing of the cache's health.
            let failed = own.passed(self.runtime.now());
            return if failed { self.noted(Err(late()), pass) } else { Err(late()) };
        };
        self.noted(result, pass)
    }

    /// The same result, after what it says of the cache's health was noted.
    fn noted<T>(&self, result: Result<T>, pass: Option<Pass>) -> Result<T> {
        match &result {
            Ok(_) => {
                if pass.map_or_else(|| self.breaker.succeeded(), Pass::succeeded) {
                    tracing::debug!(cache = %self.cache, "the cache answers again");
                }
            }
            Err(error) => self.failed(error, pass),
        }
        result
    }

    fn failed(&self, error: &Error, pass: Option<Pass>) {
        self.failures.fetch_add(1, Ordering::AcqRel);
        if pass.map_or_else(|| self.breaker.failed(), Pass::failed) {
            tracing::debug!(
                cache = %self.cache, %error,
                "the cache fails; reads go to the store below until it answers"
            );
        }
    }
}

fn late() -> Error {
    Error::new(ErrorKind::Unavailable, "the cache did not answer in time")
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cache.fmt(f)
    }
}
