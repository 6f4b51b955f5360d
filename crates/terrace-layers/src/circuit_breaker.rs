//! `CircuitBreaker`: a store that fails is left alone for a while.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::{
    Backoff, BoxFuture, Breaker, BreakerState, Deadline, Error, ErrorKind, Inspection, Key, Page,
    Pass, Read, ReadOptions, Receipt, Result, Runtime, Scan, Status, Store, Trip, Write,
    WriteOptions,
};

/// Refuses calls of a store of which too many have failed lately, until a few probes succeed.
///
/// **What it is.** Two [`Breaker`]s, one for reads and lists and one for writes: a database whose disk is
/// full, or which is read-only during a failover, goes on answering reads.
///
/// **On read, on write, on delete, on scan.** A call that is admitted goes down as it came. One that is
/// refused is answered at once, and the inner store is not called.
///
/// **On failure.** A failure is what [`Error::is_outage`] says: the store cannot be reached or has not
/// answered. What is wrong with the request, and a limit that is reached, is none. Nor is a deadline that
/// passes sooner than `patience` after the call began: the caller had no time. While it is open calls answer
/// `Unavailable`, with a wait of 1 s: nothing was applied. Half-open, no more than `probes` calls go down at
/// once; a probe whose caller goes away makes room for another. Who inspects a half-open one tries it with a
/// list of one record, as there may be no requests that do.
///
/// **Defaults.** Half of at least 20 calls within 4 s; 3 probes after 0.5 s, doubling to 5 s; patience 1 s:
/// [`CircuitBreakerOptions`].
///
/// **Where it belongs.** Around each of several stores that can fail alone, above what waits for it:
///
/// ```text
/// right:  ShardRouter(2 x Retry(CircuitBreaker(ConcurrencyLimit(Coalesce(postgres)))))
/// wrong:  CircuitBreaker(ShardRouter(...))             one dead shard takes all others with it
/// wrong:  ConcurrencyLimit(CircuitBreaker(...))        who is refused has waited for a turn first
/// ```
///
/// **What it gives up.** Calls that would have succeeded while it is open: up to half of them, and
/// those of up to 5 s after the store is well again.
#[derive(Debug)]
pub struct CircuitBreaker {
    inner: Arc<dyn Store>,
    reads: Breaker,
    writes: Breaker,
    patience: Duration,
    runtime: Runtime,
}

/// When calls are refused, and for how long.
#[derive(Clone, Debug)]
pub struct CircuitBreakerOptions {
    /// When it opens. Half of at least 20 calls within 4 s; 3 probes.
    pub trip: Trip,
    /// How long it stays open. From 0.5 s to 5 s.
    pub pauses: Backoff,
    /// A deadline that passes sooner says nothing of the store. 1 s.
    pub patience: Duration,
}

impl Default for CircuitBreakerOptions {
    fn default() -> Self {
        let within = Duration::from_secs(4);
        Self {
            trip: Trip::Rate { percent: 50, calls: 20, within, probes: 3 },
            pauses: Backoff::new(Duration::from_millis(500), Duration::from_secs(5)),
            patience: Duration::from_secs(1),
        }
    }
}

impl CircuitBreaker {
    /// Around this store.
    pub fn new(inner: Arc<dyn Store>, options: CircuitBreakerOptions, runtime: Runtime) -> Self {
        let CircuitBreakerOptions { trip, pauses, patience } = options;
        let breaker = || Breaker::new(trip, pauses.clone(), runtime.clone());
        Self { inner, reads: breaker(), writes: breaker(), patience, runtime }
    }

    async fn call<T>(
        &self,
        breaker: &Breaker,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let pass = breaker.admit().ok_or_else(|| left_alone().during(operation))?;
        let begun = self.runtime.now();
        let answer = work.await;
        match &answer {
            Ok(_) => {
                if pass.succeeded() {
                    tracing::info!(store = %self.inner, operation, "calls are let through again");
                }
            }
            Err(error) if error.is_outage() && !self.was_hurried(error, begun) => {
                if pass.failed() {
                    let store = &self.inner;
                    tracing::warn!(%store, operation, %error, "too many calls fail; they are refused");
                }
            }
            // It says nothing of the store.
            Err(_) => drop(pass),
        }
        answer
    }

    /// Whether the caller had no time.
    fn was_hurried(&self, error: &Error, begun: std::time::Instant) -> bool {
        error.kind() != ErrorKind::Unavailable && self.runtime.now() - begun < self.patience
    }

    /// Tries those that are half-open.
    async fn probe(&self) {
        let all = [&self.reads, &self.writes];
        if !all.iter().any(|breaker| breaker.state() == BreakerState::HalfOpen) {
            return;
        }
        let deadline = Deadline::at(self.runtime.now() + self.patience / 2);
        let (one, how) = (Scan { limit: 1, ..Scan::prefix("") }, ReadOptions::strong(deadline));
        let listed = self.runtime.within(deadline, self.inner.scan(&one, &how)).await;
        let is_well = listed.is_some_and(|listed| listed.is_ok());
        for breaker in all {
            while breaker.state() == BreakerState::HalfOpen
                && let Some(pass) = breaker.admit()
            {
                let _ = if is_well { Pass::succeeded(pass) } else { pass.failed() };
            }
        }
    }
}

fn left_alone() -> Error {
    let message = "the database fails and is left alone for a moment, and nothing was changed; try \
                   again a little later";
    Error::new(ErrorKind::Unavailable, message).retry_after(Duration::from_secs(1))
}

/// What a breaker says of itself.
fn part(breaker: &Breaker, of: &'static str) -> Inspection {
    let part = breaker.show(Inspection::new("breaker").instance(of));
    match breaker.state() {
        BreakerState::Closed => part,
        _ => part.status(Status::Degraded, "too many calls failed; it is tried again"),
    }
}

impl fmt::Display for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CircuitBreaker({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for CircuitBreaker {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.call(&self.reads, "read", self.inner.read(keys, how)))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.call(&self.writes, "write", self.inner.write(batch, how)))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.call(&self.reads, "scan", self.inner.scan(scan, how)))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            self.probe().await;
            Inspection::new("circuit-breaker")
                .helped_by(part(&self.reads, "reads"))
                .helped_by(part(&self.writes, "writes"))
                .needs(self.inner.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}
