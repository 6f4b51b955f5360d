//! What callers and threads of one store have in common.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use terrace_core::{
    Deadline, Durability, Error, ErrorKind, Histories, Line, Load, LogPosition, Outcome, Position,
    Receipt, Refused, Result, Runtime, Token, Version,
};
use tokio::sync::{oneshot, watch};

use super::connect::Engine;
use super::failure;
use super::file_identity::FileIdentity;
use super::job::{ReadJob, Reply, Task, WriteJob};
use super::options::SqliteOptions;
use super::vitals::{ThreadRole, Vitals};
use crate::held::Held;

/// How long a client is asked to wait when a queue is full.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The queues between callers and threads, and what both need to know.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: SqliteOptions,
    pub(super) runtime: Runtime,
    /// The history of the file. Its caches are in this process and never out of reach, so its generation
    /// is kept in memory.
    pub(super) histories: Arc<Histories>,
    /// The name of the change log, if the file keeps one.
    pub(super) log: Option<Arc<str>>,
    /// Whether the records are documents, whose words are kept.
    pub(super) documents: bool,
    /// Whether followers hold back what the log would remove.
    pub(super) held: Held,
    /// Raised by each COMMIT.
    pub(super) committed: watch::Sender<u64>,
    pub(super) engine: Engine,
    pub(super) durability: Durability,
    pub(super) file: FileIdentity,
    pub(super) reads: Line<ReadJob>,
    pub(super) writes: Line<WriteJob>,
    pub(super) vitals: Vitals,
    /// Whether the owner closed or dropped the store, so that threads end in good order.
    pub(super) closing: AtomicBool,
    /// How many threads run.
    pub(super) living: watch::Sender<usize>,
    /// Told of every commit of this process.
    pub(super) commits: watch::Sender<()>,
}

impl Shared {
    pub(super) fn is_replica(&self) -> bool {
        self.options.replica_of.is_some()
    }

    /// What a client has seen that knows this version: with one writer, versions are positions.
    pub(super) fn token(&self, version: Version) -> Token {
        Token::of(self.histories.name(), Position::new(version.get()))
    }

    /// Hands a job to the readers and waits for its answer.
    pub(super) async fn ask<T>(
        &self,
        job: impl FnOnce(Reply<T>) -> ReadJob,
        bytes: usize,
        deadline: Deadline,
    ) -> Result<T> {
        deadline.check(self.runtime.now())?;
        let (reply, answer) = oneshot::channel();
        let load = Load { parts: 1, bytes };
        // Whoever goes away takes its job along.
        let _ticket = self.reads.enter(job(reply), load).map_err(|why| self.refused(why))?;
        match self.runtime.within(deadline, answer).await {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(failure::dropped()),
            None => Err(Deadline::exceeded()),
        }
    }

    /// Hands a task to the writer and waits for its COMMIT.
    pub(super) async fn submit(
        &self,
        task: Task,
        bytes: usize,
        deadline: Deadline,
    ) -> Result<Vec<Receipt>> {
        deadline.check(self.runtime.now())?;
        let (reply, mut answer) = oneshot::channel();
        let (job, load) = (WriteJob { task, reply }, Load { parts: 1, bytes });
        let (mut ticket, _) = self.writes.enter(job, load).map_err(|why| self.refused(why))?;
        match self.runtime.within(deadline, &mut answer).await {
            Some(Ok(result)) => result,
            // Nothing was changed: the writer takes a job only when it begins with it.
            None if ticket.leave().is_some() => Err(Deadline::exceeded()),
            Some(Err(_)) | None => {
                answer.try_recv().unwrap_or_else(|_| Err(failure::outcome_unknown()))
            }
        }
    }

    fn refused(&self, why: Refused) -> Error {
        match why {
            Refused::Full => Error::new(
                ErrorKind::Overloaded,
                "too many requests wait for the database; try again a little later",
            )
            .retry_after(RETRY_AFTER),
            Refused::Closed => failure::closed(),
        }
    }

    /// The place of a write in the log.
    pub(super) fn event(&self, outcome: Outcome, version: Version) -> Option<LogPosition> {
        let region = self.options.region.as_ref().map(|region| region.id);
        // What was repeated may have been written in another region.
        let here = region.is_none() || version.region() == region;
        let logged = self.log.is_some() && outcome.is_applied() && here;
        logged.then(|| LogPosition { epoch: 0, offset: version.get() })
    }

    /// Takes no more work; the threads finish what was accepted and end.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.reads.close();
        self.writes.close();
    }
}

/// Starts a thread that goes on, whatever its work meets, until the store is closed. Its end is noticed by
/// all who wait for it.
pub(super) fn start(
    shared: &Arc<Shared>,
    role: ThreadRole,
    mut work: impl FnMut(&Shared) -> Result<()> + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    let name = match role {
        ThreadRole::Reader => "sqlite-reader",
        ThreadRole::Writer => "sqlite-writer",
    };
    // Counted before it runs, and uncounted by the drop also when it cannot be started.
    shared.living.send_modify(|living| *living += 1);
    shared.vitals.started(role);
    let ending = Ending { shared: Arc::clone(shared), role };
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let (shared, mut first) = (&*ending.shared, true);
        shared.runtime.keep_here(name, || {
            let again = !std::mem::replace(&mut first, false);
            // What cannot be worked off must not keep a store from closing.
            if again && shared.closing.load(Ordering::Acquire) { Ok(()) } else { work(shared) }
        });
    })
}

/// Says that a thread has ended, however it ended, so that nobody waits for it without end.
struct Ending {
    shared: Arc<Shared>,
    role: ThreadRole,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let left = self.shared.vitals.ended(self.role);
        if left == 0 {
            match self.role {
                ThreadRole::Reader => {
                    self.shared
                        .reads
                        .abandon()
                        .into_iter()
                        .for_each(|job| job.refuse(failure::dropped()));
                }
                ThreadRole::Writer => {
                    let left = self.shared.writes.abandon();
                    left.into_iter().for_each(|job| drop(job.reply.send(Err(failure::dropped()))));
                }
            }
        }
        self.shared.living.send_modify(|living| *living -= 1);
    }
}
