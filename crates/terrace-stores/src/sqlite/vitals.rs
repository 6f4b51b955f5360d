//! What the store counts, and how it notices that it does not go on.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{Error, ErrorKind, Runtime};

/// A COMMIT under way for longer than this is a disk that does not answer.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ThreadRole {
    Reader,
    Writer,
}

/// Counters of one store; threads write them, inspections read them.
#[derive(Debug)]
pub(super) struct Vitals {
    born: Instant,
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) usage_micros: AtomicU64,
    pub(super) busy: AtomicUsize,
    pub(super) readers: AtomicUsize,
    pub(super) writers: AtomicUsize,
    /// When the group that is being committed began, in microseconds since `born`; 0 for none.
    group_since: AtomicU64,
    /// What the last write ran into; cleared by the next COMMIT.
    trouble: Mutex<Option<String>>,
    troubled: AtomicBool,
}

impl Vitals {
    pub(super) fn new(born: Instant) -> Self {
        Self {
            born,
            reads: AtomicU64::default(),
            writes: AtomicU64::default(),
            commits: AtomicU64::default(),
            errors: AtomicU64::default(),
            usage_micros: AtomicU64::default(),
            busy: AtomicUsize::default(),
            readers: AtomicUsize::default(),
            writers: AtomicUsize::default(),
            group_since: AtomicU64::default(),
            trouble: Mutex::default(),
            troubled: AtomicBool::default(),
        }
    }

    pub(super) fn started(&self, role: ThreadRole) {
        self.threads(role).fetch_add(1, Relaxed);
    }

    /// Counts a thread that ended and answers how many of its role are left.
    pub(super) fn ended(&self, role: ThreadRole) -> usize {
        self.threads(role).fetch_sub(1, Relaxed).saturating_sub(1)
    }

    fn threads(&self, role: ThreadRole) -> &AtomicUsize {
        match role {
            ThreadRole::Reader => &self.readers,
            ThreadRole::Writer => &self.writers,
        }
    }

    /// Runs a thread's work on one batch, counted as use of its connection.
    pub(super) fn measured<T>(
        &self,
        runtime: &Runtime,
        role: ThreadRole,
        work: impl FnOnce() -> T,
    ) -> T {
        let began = runtime.now();
        self.busy.fetch_add(1, Relaxed);
        if role == ThreadRole::Writer {
            self.group_since.store(self.micros(began).max(1), Relaxed);
        }
        // Undone also by a panic, or the pool would seem in use for ever.
        let _busy = Busy { vitals: self, role };
        let done = work();
        let used = runtime.now().saturating_duration_since(began);
        self.usage_micros.fetch_add(saturated(used), Relaxed);
        done
    }

    /// Notes what a write ran into, for the inspection.
    pub(super) fn failed(&self, error: &Error) {
        // Whoever comes with an old map is sent on: nothing is wrong here.
        if error.kind() == ErrorKind::Moved {
            return;
        }
        self.errors.fetch_add(1, Relaxed);
        if error.is_retryable() {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(error.message().to_owned());
            self.troubled.store(true, Relaxed);
        }
    }

    /// Notes a COMMIT: whatever was wrong is over.
    pub(super) fn committed(&self, writes: u64) {
        self.commits.fetch_add(1, Relaxed);
        self.writes.fetch_add(writes, Relaxed);
        if self.troubled.swap(false, Relaxed) {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn stalled(&self, now: Instant) -> bool {
        let since = self.group_since.load(Relaxed);
        since > 0 && self.micros(now).saturating_sub(since) > saturated(STALLED_AFTER)
    }

    fn micros(&self, when: Instant) -> u64 {
        saturated(when.saturating_duration_since(self.born))
    }
}

struct Busy<'a> {
    vitals: &'a Vitals,
    role: ThreadRole,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.vitals.busy.fetch_sub(1, Relaxed);
        if self.role == ThreadRole::Writer {
            self.vitals.group_since.store(0, Relaxed);
        }
    }
}

fn saturated(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
