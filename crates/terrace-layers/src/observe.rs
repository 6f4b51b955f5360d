//! `Observe`: counts and times what passes, and says when a store begins to fail.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use terrace_core::{
    BoxFuture, Error, ErrorKind, Inspection, Key, Origin, Page, Read, ReadOptions, Receipt, Result,
    Runtime, Scan, Store, Tier, Unit, Write, WriteOptions,
};
use tracing::Instrument as _;

use crate::histogram::Histogram;

/// Counts calls, keys, errors by kind and hits by origin, and measures how long calls take.
///
/// **On read, on write, on delete.** The call goes through unchanged. Figures: `reads`, `writes`,
/// `scans` (calls begun), `read_keys`, `written_keys`, `from_near`, `from_far`, `from_primary`, and
/// for each operation a histogram of the last minute (`read_time`, `write_time`, `scan_time`), whose
/// percentiles are at most an eighth too high. What it costs is two looks at
/// the clock and a few atomic additions.
///
/// **On failure.** Errors go through unchanged and are counted: `errors`, and one figure a kind.
/// One line is logged when the inner store begins to fail (the first `Unavailable`,
/// `OutcomeUnknown`, `Corrupt` or `Internal`), and one when it works again, that is, at the first
/// success after 5 s without a failure: a store that serves some keys and fails others does not
/// fill the log. Never a line a request. Each call is a span at debug level. What the runtime keeps
/// going in the background and has failed lately ([`Runtime::failures`]) is a part that degrades.
///
/// **Defaults.** No options.
///
/// **Where it belongs.** Anywhere, several times where that tells something:
///
/// ```text
/// right:  Observe > CacheAside(far) > Observe > Coalesce > postgres   what is asked, what missed
/// wrong:  CacheAside(far) > Coalesce > Observe > postgres             counts batches, not callers
/// ```
///
/// **What it gives up.** Nothing but those nanoseconds: a call that was dropped is counted as begun and not timed.
#[derive(Debug)]
pub struct Observe {
    inner: Arc<dyn Store>,
    runtime: Runtime,
    reads: Operation,
    writes: Operation,
    scans: Operation,
    read_keys: AtomicU64,
    written_keys: AtomicU64,
    origins: [AtomicU64; ORIGINS.len()],
    errors: [AtomicU64; KINDS.len()],
    failing: AtomicBool,
    /// Nanoseconds from `started` to the latest failure.
    last_failure: AtomicU64,
    started: Instant,
}

/// How long nothing must have failed before a success counts as a recovery.
const CALM: Duration = Duration::from_secs(5);

/// Calls begun, and how long those that ended took.
#[derive(Debug)]
struct Operation {
    calls: AtomicU64,
    times: Histogram,
}

impl Operation {
    fn new(now: Instant) -> Self {
        Self { calls: AtomicU64::new(0), times: Histogram::new(now) }
    }
}

const ORIGINS: [&str; 7] = [
    "from_near",
    "from_far",
    "from_primary",
    "from_replica",
    "from_shard",
    "from_journal",
    "from_read_model",
];

/// The place of an origin in [`ORIGINS`].
fn place(origin: Origin) -> usize {
    match origin.tier {
        Tier::Near => 0,
        Tier::Far => 1,
        Tier::Database if origin.replica.is_some() => 3,
        Tier::Database if origin.shard.is_some() => 4,
        Tier::Database => 2,
        Tier::Journal => 5,
        Tier::ReadModel => 6,
    }
}

const KINDS: [(ErrorKind, &str); 10] = [
    (ErrorKind::InvalidInput, "errors_invalid_input"),
    (ErrorKind::Unavailable, "errors_unavailable"),
    (ErrorKind::Overloaded, "errors_overloaded"),
    (ErrorKind::DeadlineExceeded, "errors_deadline_exceeded"),
    (ErrorKind::OutcomeUnknown, "errors_outcome_unknown"),
    (ErrorKind::Unauthenticated, "errors_unauthenticated"),
    (ErrorKind::Forbidden, "errors_forbidden"),
    (ErrorKind::RateLimited, "errors_rate_limited"),
    (ErrorKind::Corrupt, "errors_corrupt"),
    (ErrorKind::Internal, "errors_internal"),
];

impl Observe {
    /// Around this store.
    pub fn new(inner: Arc<dyn Store>, runtime: Runtime) -> Self {
        let started = runtime.now();
        Self {
            inner,
            runtime,
            reads: Operation::new(started),
            writes: Operation::new(started),
            scans: Operation::new(started),
            read_keys: AtomicU64::new(0),
            written_keys: AtomicU64::new(0),
            origins: std::array::from_fn(|_| AtomicU64::new(0)),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            failing: AtomicBool::new(false),
            last_failure: AtomicU64::new(0),
            started,
        }
    }

    /// Counts and times `work`, and looks at how it ended.
    async fn watch<T>(
        &self,
        operation: &Operation,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        operation.calls.fetch_add(1, Relaxed);
        let start = self.runtime.now();
        let result = work.await;
        let end = self.runtime.now();
        operation.times.record(end.saturating_duration_since(start), end);
        match &result {
            Ok(_) => self.works(end),
            Err(error) => self.failed(error, end),
        }
        result
    }

    fn works(&self, now: Instant) {
        // Read before it is written: the flag's line stays shared among the cores.
        if !self.failing.load(Relaxed) {
            return;
        }
        let calm = self.since_start(now).saturating_sub(self.last_failure.load(Relaxed));
        if Duration::from_nanos(calm) >= CALM && self.failing.swap(false, Relaxed) {
            tracing::info!(store = %self.inner, "the store works again");
        }
    }

    fn since_start(&self, now: Instant) -> u64 {
        let time = now.saturating_duration_since(self.started).as_nanos();
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    fn failed(&self, error: &Error, now: Instant) {
        if let Some(kind) = KINDS.iter().position(|(kind, _)| *kind == error.kind()) {
            self.errors[kind].fetch_add(1, Relaxed);
        }
        let fails = matches!(
            error.kind(),
            ErrorKind::Unavailable
                | ErrorKind::OutcomeUnknown
                | ErrorKind::Corrupt
                | ErrorKind::Internal
        );
        if !fails {
            return;
        }
        self.last_failure.store(self.since_start(now), Relaxed);
        if !self.failing.swap(true, Relaxed) {
            tracing::warn!(store = %self.inner, %error, "the store begins to fail");
        }
    }

    fn came_from(&self, reads: &[Read]) {
        for read in reads {
            self.origins[place(read.origin)].fetch_add(1, Relaxed);
        }
    }
}

impl fmt::Display for Observe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observe({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Observe {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        let work = async move {
            self.read_keys.fetch_add(keys.len() as u64, Relaxed);
            let reads = self.watch(&self.reads, self.inner.read(keys, how)).await?;
            self.came_from(&reads);
            Ok(reads)
        };
        Box::pin(work.instrument(tracing::debug_span!("read", keys = keys.len())))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        let span = tracing::debug_span!("write", keys = batch.len());
        let work = async move {
            self.written_keys.fetch_add(batch.len() as u64, Relaxed);
            self.watch(&self.writes, self.inner.write(batch, how)).await
        };
        Box::pin(work.instrument(span))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        let work = self.watch(&self.scans, self.inner.scan(scan, how));
        Box::pin(work.instrument(tracing::debug_span!("scan", limit = scan.limit)))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let errors = || self.errors.iter().map(|count| count.load(Relaxed));
            let mut tree = Inspection::new("observe")
                .counter("reads", self.reads.calls.load(Relaxed))
                .counter("writes", self.writes.calls.load(Relaxed))
                .counter("scans", self.scans.calls.load(Relaxed))
                .counter("read_keys", self.read_keys.load(Relaxed))
                .counter("written_keys", self.written_keys.load(Relaxed))
                .counter("errors", errors().sum());
            for ((_, name), count) in KINDS.iter().zip(errors()) {
                tree = tree.counter(name, count);
            }
            for (name, count) in ORIGINS.iter().zip(&self.origins) {
                tree = tree.counter(name, count.load(Relaxed));
            }
            // Degrades: answers are right without it, and somebody should look.
            for failure in self.runtime.failures() {
                tree = tree.helped_by(failure);
            }
            let now = self.runtime.now();
            let spread = |operation: &Operation| operation.times.spread(now);
            tree.histogram("read_time", spread(&self.reads), Unit::Micros)
                .histogram("write_time", spread(&self.writes), Unit::Micros)
                .histogram("scan_time", spread(&self.scans), Unit::Micros)
                .needs(self.inner.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}
