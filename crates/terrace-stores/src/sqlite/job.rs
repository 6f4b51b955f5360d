//! What callers hand to the threads.

use std::sync::Arc;

use terrace_core::{
    Batch, Budget, Checkpoint, Error, Idempotency, Key, Logged, Page, Position, Read, Receipt,
    Result, Scan, Write,
};
use tokio::sync::oneshot;

use super::ledger::{Accounts, Question};

/// Where an answer goes; closed when the caller is gone.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// Something to read. `asked` is what the caller's token asks of this database.
#[derive(Debug)]
pub(super) enum ReadJob {
    Keys {
        keys: Vec<Key>,
        /// The epoch of the shard under which they are looked for.
        epoch: Option<u64>,
        asked: Option<Position>,
        budget: Budget,
        reply: Reply<Vec<Read>>,
    },
    Scan {
        scan: Scan,
        /// The epoch of the shard under which the records are looked for.
        epoch: Option<u64>,
        asked: Option<Position>,
        reply: Reply<Page>,
    },
    /// The change log after a version.
    Log { after: u64, limit: usize, reply: Reply<LogPart> },
    /// How far this file has followed a source.
    Checkpoint { source: Arc<str>, reply: Reply<Checkpoint> },
    /// What a ledger is asked.
    Ledger(Question),
    /// What requests need, of no key: whether records can be read, and within, whether written.
    Nothing { reply: Reply<Result<()>> },
}

impl ReadJob {
    /// Answers whoever waits with this error.
    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Keys { reply, .. } => drop(reply.send(Err(error))),
            Self::Scan { reply, .. } => drop(reply.send(Err(error))),
            Self::Log { reply, .. } => drop(reply.send(Err(error))),
            Self::Checkpoint { reply, .. } => drop(reply.send(Err(error))),
            Self::Ledger(question) => question.refuse(error),
            Self::Nothing { reply } => drop(reply.send(Err(error))),
        }
    }
}

/// One caller's batch: applied whole or not at all.
#[derive(Debug)]
pub(super) struct WriteJob {
    pub(super) task: Task,
    pub(super) reply: Reply<Vec<Receipt>>,
}

/// What the writer has to do in a transaction.
#[derive(Debug)]
pub(super) enum Task {
    Write {
        writes: Vec<Write>,
        idempotency: Option<Arc<Idempotency>>,
        /// The epoch of the shard under which they are made.
        epoch: Option<u64>,
    },
    Follow(Follow),
    /// What a ledger has to write.
    Ledger(Accounts),
}

/// What a follower hands to the writer.
#[derive(Debug)]
pub(super) struct Follow {
    pub(super) source: Arc<str>,
    pub(super) step: Step,
}

#[derive(Debug)]
pub(super) enum Step {
    Apply(Batch),
    BeginAnew(String),
    /// Rows of another region, of no log.
    Merge(Vec<Logged>),
}

impl Follow {
    /// How many tombstones it brings.
    pub(super) fn deletions(&self) -> usize {
        match &self.step {
            Step::Apply(batch) => batch.changes.iter().filter(|it| it.record.is_none()).count(),
            Step::BeginAnew(_) | Step::Merge(_) => 0,
        }
    }
}

/// Part of the log out of one snapshot.
#[derive(Debug)]
pub(super) struct LogPart {
    /// The latest version that was drawn.
    pub(super) head: u64,
    /// The latest tombstone that was collected.
    pub(super) floor: u64,
    pub(super) changes: Vec<Logged>,
    /// Whether there is more after these.
    pub(super) more: bool,
}
