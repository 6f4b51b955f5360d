//! What can be set, with units and defaults.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::RegionOptions;

/// How to keep records in one SQLite file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteOptions {
    /// The file. It and its directory are made when they are missing. Beside it SQLite keeps
    /// `-wal` and `-shm` files while it is open.
    pub path: PathBuf,
    /// Kept connections or a new one for each request. Default: two readers and one writer, kept.
    pub connections: Connections,
    /// When COMMIT reaches the disk. Default: before it is answered.
    pub synchronous: Synchronous,
    /// How long to wait while another program holds the file's write lock. Default: 5 s.
    pub busy_timeout: Duration,
    /// Reads that may wait for a reader; one more is refused as overloaded. Default: 1024.
    pub max_queued_reads: usize,
    /// Writes that may wait for the writer; one more is refused as overloaded. Default: 1024.
    pub max_queued_writes: usize,
    /// Bytes of keys and values that may wait in each queue. Default: 64 MiB.
    pub max_queued_bytes: usize,
    /// Reads that a reader answers out of one snapshot. Default: 64.
    pub max_read_batch: usize,
    /// Callers' batches that share one COMMIT. Default: 512.
    pub max_group: usize,
    /// Page cache of each connection. Default: 8 MiB.
    pub cache_bytes: usize,
    /// How much of the file is mapped into memory for reading. 0 turns mapping off, which is wise
    /// where another program may truncate the file. Default: 256 MiB.
    pub mmap_bytes: u64,
    /// The largest size of the file (without its log); writes that need more are refused as on a
    /// full disk. Default: none.
    pub max_file_bytes: Option<u64>,
    /// Keeps a log of changes (see [`SqliteLog`](super::SqliteLog)), and lets tokens name the place of
    /// a write in it. Made at open, with the records that there are; on a shard with none of them, and its
    /// changes are counted (see [`Rollup`](terrace_core::Rollup)). Default: false.
    pub change_log: bool,
    /// Whether the file is one of several shards, as [`SqliteShard`](super::SqliteShard) sets it. Default:
    /// false.
    pub shard: bool,
    /// How long a tombstone is kept. Later writes collect older ones, a few at a time. Default: 7
    /// days.
    pub tombstones_kept_for: Duration,
    /// The history of which this file is a replica: its records come from a change log by
    /// [`SqliteStore::follower`](super::SqliteStore::follower) alone, and writes are refused. A
    /// replica of another history is emptied, another database is refused. Default: none.
    pub replica_of: Option<Arc<str>>,
    /// Makes the file one of several regions: its versions have a clock, it keeps a log of its own changes
    /// whatever `change_log` says, and tombstones until they are collected by
    /// [`RegionStore::collect`](terrace_core::RegionStore::collect). Its records get new versions the first
    /// time. Default: none.
    pub region: Option<RegionOptions>,
}

impl SqliteOptions {
    /// The defaults, in this file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            connections: Connections::default(),
            synchronous: Synchronous::default(),
            busy_timeout: Duration::from_secs(5),
            max_queued_reads: 1024,
            max_queued_writes: 1024,
            max_queued_bytes: 64 * 1024 * 1024,
            max_read_batch: 64,
            max_group: 512,
            cache_bytes: 8 * 1024 * 1024,
            mmap_bytes: 256 * 1024 * 1024,
            max_file_bytes: None,
            change_log: false,
            shard: false,
            tombstones_kept_for: Duration::from_secs(7 * 24 * 60 * 60),
            replica_of: None,
            region: None,
        }
    }
}

/// Where a request's connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Opened for each read and each write and closed after it, with a COMMIT for each write: what
    /// a program without a pool pays. At most [`Connections::PER_REQUEST_READS`] reads and one write
    /// at a time.
    PerRequest,
    /// Kept open: one writer with group commit and this many readers.
    Shared {
        /// Reader threads, at least 1. Default: 2.
        readers: usize,
    },
}

impl Connections {
    /// How many reads run at a time under [`Connections::PerRequest`].
    pub const PER_REQUEST_READS: usize = 4;

    pub(super) fn readers(self) -> usize {
        match self {
            Self::PerRequest => Self::PER_REQUEST_READS,
            Self::Shared { readers } => readers.max(1),
        }
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self::Shared { readers: 2 }
    }
}

/// When COMMIT reaches the disk (`PRAGMA synchronous`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// Before it is answered: receipts say `committed`.
    #[default]
    Full,
    /// At the next checkpoint; a power loss may take the last writes back. Receipts say `accepted`.
    Normal,
}
