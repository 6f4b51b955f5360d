//! A journal in one SQLite file: the journal of the embedded mode.
//!
//! One thread does everything: what waits for it is appended, settled and committed in one
//! transaction, so many callers pay for one fsync, and are answered after it. Claims are kept in
//! this process: whoever opens the file after a crash may claim everything at once, and a second
//! process that flushes the same file would be handed the same entries, which the guard in the rows
//! makes harmless.
//!
//! # The file
//! - `entries(id, payload)`: what is not settled; the id is the sequence of the first write;
//! - `dead(sequence, payload, reason)`: dead letters; `again(sequence)`: those being tried again;
//! - `requests(key, fingerprint, first, created_at)`: idempotency keys, for a day;
//! - `meta`: the last sequence, the name of this journal, and how much is in it.
//!
//! # Durability
//! Appends say `journaled` when SQLite itself answers that it uses the write-ahead log with
//! `synchronous=FULL`: COMMIT then returns after fsync. Else they say `accepted`.

mod file;
mod steps;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use terrace_core::{
    Append, Appended, BoxFuture, DeadLetter, Deadline, Durability, Error, ErrorKind, Inspection,
    Journal, JournalEntry, JournalLimits, Line, Load, PartKind, Progress, Refused, Result, Runtime,
    Sequence, Settled, Status, Unit,
};
use tokio::sync::{Notify, oneshot};

use self::worker::{Job, Work};
use crate::journal;
use crate::sqlite::file_identity::FileIdentity;

/// How to keep a journal in one SQLite file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteJournalOptions {
    /// The file. It and its directory are made when they are missing.
    pub path: PathBuf,
    /// How much it may hold.
    pub limits: JournalLimits,
    /// When entries are taken from a claimer that has not settled them. Default: 10 s.
    pub takeover: Duration,
    /// How long to wait while another program holds the file's lock. Default: 5 s.
    pub busy_timeout: Duration,
}

impl SqliteJournalOptions {
    /// The defaults, in this file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            limits: JournalLimits::default(),
            takeover: Duration::from_secs(10),
            busy_timeout: Duration::from_secs(5),
        }
    }
}

/// A journal in one SQLite file. See the [module](self).
///
/// Its thread ends when it is closed or dropped, after it has done what was accepted.
#[derive(Debug)]
pub struct SqliteJournal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What callers and the thread have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    options: SqliteJournalOptions,
    runtime: Runtime,
    durability: Durability,
    file: FileIdentity,
    jobs: Line<Job>,
    arrived: Notify,
    /// When each entry was claimed in this process.
    claimed: Mutex<BTreeMap<u64, Instant>>,
}

impl SqliteJournal {
    /// How often a claim that waits looks for what another process has put into the file.
    const LOOK: Duration = Duration::from_millis(250);
    /// What may wait; one call more is refused.
    const WAITING: Load = Load { parts: 16_384, bytes: 64 * 1024 * 1024 };

    /// Opens the file, or makes it, and starts the thread. Does its file work on the calling thread.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a file of another program or a newer Terrace;
    /// [`ErrorKind::Unavailable`] when it cannot be opened for writing.
    pub fn open(mut options: SqliteJournalOptions, runtime: Runtime) -> Result<Self> {
        options.path = file::prepare(&options.path)?;
        let (connection, file, durability) = file::open(&options, &runtime)?;
        let shared = Arc::new(Shared {
            jobs: Line::new(Self::WAITING, 0),
            arrived: Notify::new(),
            claimed: Mutex::default(),
            durability,
            file,
            options,
            runtime,
        });
        let work = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("sqlite-journal".to_owned())
            .spawn(move || {
                work.runtime.keep_here("sqlite-journal", || worker::run(&work, &connection));
            })
            .map_err(|error| {
                let message = "a thread could not be started; raise the limit on processes";
                Error::new(ErrorKind::Unavailable, message).caused_by(error)
            })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.shared.options.path
    }

    async fn ask<T>(&self, bytes: usize, make: impl FnOnce(Reply<T>) -> Work) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job = Job { work: make(reply) };
        let load = Load { parts: 1, bytes };
        let _ticket = self.shared.jobs.enter(job, load).map_err(|why| match why {
            Refused::Full => journal::full(),
            Refused::Closed => journal::closed(),
        })?;
        // The thread answers everything that it has taken, unless it dies.
        answer.await.unwrap_or_else(|_| Err(journal::outcome_unknown()))
    }

    async fn claim_some(&self, writes: usize, wait: Deadline) -> Result<Vec<JournalEntry>> {
        loop {
            let mut arrived = std::pin::pin!(self.shared.arrived.notified());
            arrived.as_mut().enable();
            let entries = self.ask(0, |reply| Work::Claim { writes, reply }).await?;
            if !entries.is_empty() || wait.passed(self.shared.runtime.now()) {
                return Ok(entries);
            }
            let look = Deadline::at(self.shared.runtime.now() + Self::LOOK);
            self.shared.runtime.within(wait.min(look), arrived).await;
        }
    }
}

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T>>;

impl Drop for SqliteJournal {
    fn drop(&mut self) {
        self.shared.jobs.close();
    }
}

impl Journal for SqliteJournal {
    fn append(&self, requests: Vec<Append>) -> BoxFuture<'_, Result<Appended>> {
        Box::pin(async move {
            let packed = journal::Packed::of(&requests);
            let bytes = packed.chunks.iter().map(|chunk| chunk.payload.len()).sum();
            self.ask(bytes, |reply| Work::Append { packed, reply }).await
        })
    }

    fn claim(&self, writes: usize, wait: Deadline) -> BoxFuture<'_, Result<Vec<JournalEntry>>> {
        Box::pin(self.claim_some(writes, wait))
    }

    fn settle(&self, done: Vec<Settled>) -> BoxFuture<'_, Result<Progress>> {
        Box::pin(self.ask(0, |reply| Work::Settle { done, reply }))
    }

    fn peek(&self, after: Sequence, writes: usize) -> BoxFuture<'_, Result<Vec<JournalEntry>>> {
        Box::pin(self.ask(0, move |reply| Work::Peek { after, writes, reply }))
    }

    fn progress(&self) -> BoxFuture<'_, Result<Progress>> {
        Box::pin(self.ask(0, |reply| Work::Settle { done: Vec::new(), reply }))
    }

    fn raise(&self, floor: Sequence) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.ask(0, move |reply| Work::Raise { floor, reply }))
    }

    fn dead(&self, after: Sequence, limit: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        Box::pin(self.ask(0, move |reply| Work::Dead { after, limit, reply }))
    }

    fn retry(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.ask(0, |reply| Work::Retry { sequences, reply }))
    }

    fn bury(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.ask(0, |reply| Work::Bury { sequences, reply }))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let tree = Inspection::of(PartKind::Journal, "sqlite-journal")
                .text("path", self.shared.options.path.display())
                .text("durability", self.shared.durability)
                .gauge(
                    "requests_waiting",
                    self.shared.jobs.counts().waiting.parts as u64,
                    Unit::Count,
                );
            match self.progress().await {
                Ok(_) => tree,
                Err(error) => tree.status(Status::Down, error.message().to_owned()),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.jobs.close();
            self.shared.arrived.notify_waiters();
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            // It ends with the commit under way, also when it rests after a failure.
            while let Some(thread) = thread.as_ref().filter(|thread| !thread.is_finished()) {
                thread.thread().unpark();
                self.shared.runtime.sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        })
    }
}

impl fmt::Display for SqliteJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlite")
    }
}
