//! `Retry`: a read that met a failure which may be over is made again, if that is affordable.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use terrace_core::{
    Backoff, BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Page, Read, ReadOptions,
    Receipt, Result, Runtime, Scan, Store, Unit, Write, WriteOptions,
};

use crate::budget::Budget;

/// Makes reads and lists again that failed because the inner store could not be reached.
///
/// **On read, on scan.** A call that answers `Unavailable` is made again, twice at most, each time after a
/// random part of a pause that doubles ("full jitter": Brooker, "Exponential Backoff And Jitter", AWS
/// Architecture Blog, 2015), while there is time. Retries are 10 % of the calls at most, and ten at once:
/// against a store that is down they add little to its load, and with it nobody waits longer. What says when to
/// come back (`Overloaded`, a breaker that is open) is answered at once, and so is everything else.
///
/// **On write, on delete.** As they come, once. `Unavailable` says that nothing was applied, so a repetition
/// would do no harm; but a write has more to lose by waiting behind its repetitions than a read, and one whose
/// outcome is unknown must not be made again here: only the client knows whether it sent an `Idempotency-Key`
/// to be able to do so.
///
/// **On failure.** The last failure is the answer.
///
/// **Defaults.** 25 ms, doubling to 100 ms: [`RetryOptions`].
///
/// **Where it belongs.** Once in a stack, directly above the breaker of one store. Everything that else goes on
/// after a failure goes elsewhere, or goes on before there was a call: a `ReplicaRouter` asks another server,
/// a `ShardRouter` follows a key that has moved, and the PostgreSQL store replaces a session which had ended
/// before its statement was taken.
///
/// ```text
/// right:  ShardRouter(2 x Retry(CircuitBreaker(ConcurrencyLimit(Coalesce(postgres)))))
/// wrong:  Coalesce(Retry(postgres))         a retry repeats everybody's calls
/// wrong:  Retry(ReplicaRouter(...))         each try is already made on two servers and the primary
/// wrong:  Retry(CacheAside(Retry(...)))     three tries of three tries are nine
/// ```
///
/// **What it gives up.** A read of a store that is down may be answered 150 ms later.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn Store>,
    options: RetryOptions,
    budget: Budget,
    runtime: Runtime,
    retries: AtomicU64,
    recovered: AtomicU64,
    unaffordable: AtomicU64,
}

/// How often, and after how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOptions {
    /// Retries of one call at most. 2.
    pub most: u32,
    /// The first pause is a random part of this. 25 ms.
    pub first: Duration,
    /// Later ones of twice as much, up to this. 100 ms.
    pub longest: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { most: 2, first: ms(25), longest: ms(100) }
    }
}

impl Retry {
    /// Retries, of 100 calls.
    const PERCENT: u32 = 10;

    /// Around this store.
    pub fn new(inner: Arc<dyn Store>, options: RetryOptions, runtime: Runtime) -> Self {
        let [retries, recovered, unaffordable] = [0; 3].map(AtomicU64::new);
        let budget = Budget::new(Self::PERCENT);
        Self { inner, options, budget, runtime, retries, recovered, unaffordable }
    }

    async fn call<'a, T>(
        &self,
        deadline: Deadline,
        make: impl Fn() -> BoxFuture<'a, Result<T>> + Send,
    ) -> Result<T> {
        self.budget.earn();
        let mut answer = make().await;
        let mut pauses = Backoff::with_full_jitter(self.options.first, self.options.longest);
        for _ in 0..self.options.most {
            let Err(error) = &answer else { break };
            let pause = pauses.next_pause(&self.runtime);
            if !may_be_over(error) || deadline.passed(self.runtime.now() + pause) {
                break;
            }
            if !self.budget.spend() {
                self.unaffordable.fetch_add(1, Relaxed);
                break;
            }
            self.retries.fetch_add(1, Relaxed);
            self.runtime.sleep(pause).await;
            answer = make().await;
            self.recovered.fetch_add(u64::from(answer.is_ok()), Relaxed);
        }
        answer
    }
}

/// Whether the failure may be over in a moment, and nobody has said when to come back.
fn may_be_over(error: &Error) -> bool {
    error.kind() == ErrorKind::Unavailable && error.is_outage() && error.wait().is_none()
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retry({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Retry {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.call(how.deadline, || self.inner.read(keys, how)))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        self.inner.write(batch, how)
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.call(how.deadline, || self.inner.scan(scan, how)))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            Inspection::new("retry")
                .counter("retries", self.retries.load(Relaxed))
                .counter("recovered", self.recovered.load(Relaxed))
                .counter("unaffordable", self.unaffordable.load(Relaxed))
                .gauge("budget", self.budget.left(), Unit::Count)
                .needs(self.inner.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}
