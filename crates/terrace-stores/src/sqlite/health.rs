//! What the store counts, and how it tells how well it does.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{Error, ErrorKind, Inspection, Status, Unit};

use super::options::Connections;
use super::shared::{Role, Shared};

/// A COMMIT under way for longer than this is a disk that does not answer.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// Counters of one store; threads write them, inspections read them.
#[derive(Debug)]
pub(super) struct Vitals {
    born: Instant,
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) errors: AtomicU64,
    usage_micros: AtomicU64,
    busy: AtomicUsize,
    readers: AtomicUsize,
    writers: AtomicUsize,
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

    pub(super) fn started(&self, role: Role) {
        self.threads(role).fetch_add(1, Relaxed);
    }

    /// Counts a thread that ended and answers how many of its role are left.
    pub(super) fn ended(&self, role: Role) -> usize {
        self.threads(role).fetch_sub(1, Relaxed).saturating_sub(1)
    }

    fn threads(&self, role: Role) -> &AtomicUsize {
        match role {
            Role::Reader => &self.readers,
            Role::Writer => &self.writers,
        }
    }

    /// Runs a thread's work on one batch, counted as use of its connection.
    pub(super) fn measured<T>(&self, shared: &Shared, role: Role, work: impl FnOnce() -> T) -> T {
        let began = shared.runtime.now();
        self.busy.fetch_add(1, Relaxed);
        if role == Role::Writer {
            self.group_since.store(self.micros(began).max(1), Relaxed);
        }
        // Undone also by a panic, or the pool would seem in use for ever.
        let _busy = Busy { vitals: self, role };
        let done = work();
        let used = shared.runtime.now().saturating_duration_since(began);
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

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stalled(&self, now: Instant) -> bool {
        let since = self.group_since.load(Relaxed);
        since > 0 && self.micros(now).saturating_sub(since) > saturated(STALLED_AFTER)
    }

    fn micros(&self, when: Instant) -> u64 {
        saturated(when.saturating_duration_since(self.born))
    }
}

struct Busy<'a> {
    vitals: &'a Vitals,
    role: Role,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.vitals.busy.fetch_sub(1, Relaxed);
        if self.role == Role::Writer {
            self.vitals.group_since.store(0, Relaxed);
        }
    }
}

/// The inspection of a store.
pub(super) fn inspect(shared: &Shared) -> Inspection {
    let vitals = &shared.vitals;
    let connections = match shared.options.connections {
        Connections::PerRequest => "one for each request",
        Connections::Shared { .. } => "kept",
    };
    let tree = Inspection::new("sqlite")
        .option("path", shared.options.path.display())
        .option("connections", connections)
        .option("journal_mode", &shared.engine.journal_mode)
        .option("synchronous", shared.engine.synchronous)
        .option("durability", shared.durability)
        .counter("reads", vitals.reads.load(Relaxed))
        .counter("writes", vitals.writes.load(Relaxed))
        .counter("commits", vitals.commits.load(Relaxed))
        .counter("errors", vitals.errors.load(Relaxed))
        .gauge("file", shared.file.bytes(), Unit::Bytes);
    let (status, note) = judge(shared);
    shared.held.told(tree.status(status, note)).needs(pool(shared))
}

fn pool(shared: &Shared) -> Inspection {
    let vitals = &shared.vitals;
    let size = vitals.readers.load(Relaxed) + vitals.writers.load(Relaxed);
    let available = size.saturating_sub(vitals.busy.load(Relaxed));
    let waiting = shared.reads.len() + shared.writes.len();
    Inspection::new("pool")
        .gauge("pool_size", size as u64, Unit::Count)
        .gauge("pool_available", available as u64, Unit::Count)
        .gauge("requests_waiting", waiting as u64, Unit::Count)
        .counter("usage_ms", vitals.usage_micros.load(Relaxed) / 1000)
}

fn judge(shared: &Shared) -> (Status, String) {
    let vitals = &shared.vitals;
    let (readers, writers) = (vitals.readers.load(Relaxed), vitals.writers.load(Relaxed));
    if shared.closing.load(Relaxed) {
        return (Status::Down, "closed".to_owned());
    }
    if writers == 0 || readers == 0 {
        return (Status::Down, "its threads ended after a defect; restart Terrace".to_owned());
    }
    if !shared.file.is_there() {
        let note = "the file was moved, deleted or replaced; put it back and restart Terrace";
        return (Status::Down, note.to_owned());
    }
    if vitals.stalled(shared.runtime.now()) {
        return (Status::Down, "a COMMIT does not come back; check the disk".to_owned());
    }
    if readers < shared.options.connections.readers() {
        let note = "a reader thread ended after a defect; the others go on; restart Terrace";
        return (Status::Degraded, note.to_owned());
    }
    if let Some(trouble) = vitals.trouble() {
        return (Status::Degraded, format!("the last write failed: {trouble}"));
    }
    if shared.engine.journal_mode != "wal" {
        let note = "the file system cannot keep a write-ahead log, so writes are only accepted; \
                    move the file to a local disk";
        return (Status::Degraded, note.to_owned());
    }
    (Status::Healthy, String::new())
}

/// Which file was opened, to notice when its path leads elsewhere.
#[derive(Debug)]
pub(super) struct FileIdentity {
    path: PathBuf,
    opened: Option<(u64, u64)>,
}

impl FileIdentity {
    pub(super) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), opened: identity(path) }
    }

    /// Whether the path still leads to the file that was opened. One `stat`.
    pub(super) fn is_there(&self) -> bool {
        let found = identity(&self.path);
        found.is_some() && found == self.opened
    }

    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|_| (0, 0))
}

fn saturated(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
