//! `Timeout`: every call ends, whatever the store below does.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Page, Read, ReadOptions, Receipt,
    Result, Runtime, Scan, Store, Write, WriteOptions,
};

/// Gives every call a deadline, and ends the wait itself should the inner store not keep it.
///
/// **On read, on write, on delete.** The inner store is asked with the earlier of the caller's
/// deadline and now + the timeout of the operation. A call that is ready at once costs no timer.
///
/// **On failure.** Stores keep deadlines themselves and know best what to answer, so they get
/// [`TimeoutOptions::grace`] to do it. After that the inner call is dropped: a read or scan answers
/// `DeadlineExceeded`, a write `OutcomeUnknown`, because nobody knows how far it came.
///
/// **Defaults.** 5 s for reads, writes and scans; 50 ms of grace: [`TimeoutOptions`].
///
/// **Where it belongs.** At the top of a stack, so that one deadline covers all of it:
///
/// ```text
/// right:  Timeout > CacheAside(far) > Coalesce > postgres
/// wrong:  CacheAside(far) > Timeout > postgres     the far cache waits without end
/// wrong:  Retry > Timeout > postgres               each try gets the whole time anew
/// ```
///
/// **What it gives up.** Answers that would have come later; a timer for each call that has to
/// wait.
#[derive(Debug)]
pub struct Timeout {
    inner: Arc<dyn Store>,
    options: TimeoutOptions,
    runtime: Runtime,
    cut_off: AtomicU64,
}

/// How long calls may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutOptions {
    /// The longest time for a read. Default 5 s.
    pub read: Duration,
    /// The longest time for a write. Default 5 s.
    pub write: Duration,
    /// The longest time for a scan. Default 5 s.
    pub scan: Duration,
    /// How long past the deadline the inner store may still answer by itself. Default 50 ms.
    pub grace: Duration,
}

impl Default for TimeoutOptions {
    fn default() -> Self {
        let five = Duration::from_secs(5);
        Self { read: five, write: five, scan: five, grace: Duration::from_millis(50) }
    }
}

impl Timeout {
    /// Around this store.
    pub fn new(inner: Arc<dyn Store>, options: TimeoutOptions, runtime: Runtime) -> Self {
        Self { inner, options, runtime, cut_off: AtomicU64::new(0) }
    }

    /// The earlier of the caller's deadline and now + `time`.
    fn deadline(&self, asked: Deadline, time: Duration) -> Deadline {
        let own = self.runtime.now().checked_add(time).map_or(Deadline::NEVER, Deadline::at);
        own.min(asked)
    }

    /// What `work` answers, or `late` when it has not ended by the deadline and the grace.
    async fn bound<T>(
        &self,
        deadline: Deadline,
        work: BoxFuture<'_, Result<T>>,
        late: fn() -> Error,
    ) -> Result<T> {
        let end = deadline.instant().and_then(|when| when.checked_add(self.options.grace));
        let end = end.map_or(Deadline::NEVER, Deadline::at);
        self.runtime.within(end, work).await.unwrap_or_else(|| {
            self.cut_off.fetch_add(1, Ordering::Relaxed);
            Err(late())
        })
    }
}

fn unread() -> Error {
    Deadline::exceeded()
}

fn unwritten() -> Error {
    let message = "the write was not answered in time: it may or may not have been applied; read \
                   the key, or repeat with an Idempotency-Key";
    Error::new(ErrorKind::OutcomeUnknown, message)
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timeout({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Timeout {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            let deadline = self.deadline(how.deadline, self.options.read);
            let how = ReadOptions { deadline, ..how.clone() };
            let read = self.bound(deadline, self.inner.read(keys, &how), unread).await;
            read.map_err(|error| error.during("read"))
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            let deadline = self.deadline(how.deadline, self.options.write);
            // Checked here, so that a write that was too late from the start is not called unknown.
            deadline.check(self.runtime.now()).map_err(|error| error.during("write"))?;
            let how = WriteOptions { deadline, ..how.clone() };
            let written = self.bound(deadline, self.inner.write(batch, &how), unwritten).await;
            written.map_err(|error| error.during("write"))
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let deadline = self.deadline(how.deadline, self.options.scan);
            let how = ReadOptions { deadline, ..how.clone() };
            let page = self.bound(deadline, self.inner.scan(scan, &how), unread).await;
            page.map_err(|error| error.during("scan"))
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            Inspection::new("timeout")
                .fact("read", self.options.read)
                .fact("write", self.options.write)
                .fact("scan", self.options.scan)
                .fact("grace", self.options.grace)
                .counter("cut_off", self.cut_off.load(Ordering::Relaxed))
                .needs(self.inner.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}
