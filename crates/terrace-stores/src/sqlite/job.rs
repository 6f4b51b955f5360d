//! What callers hand to the threads.

use std::sync::Arc;

use terrace_core::{
    Checkpoint, Error, Idempotency, Key, Page, Position, Read, Receipt, Result, Scan, Write,
};
use tokio::sync::oneshot;

use super::change_log::Part;
use super::follow::Follow;

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
    Log { after: u64, limit: usize, reply: Reply<Part> },
    /// How far this file has followed a source.
    Checkpoint { source: Arc<str>, reply: Reply<Checkpoint> },
}

impl ReadJob {
    /// Answers whoever waits with this error.
    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Keys { reply, .. } => drop(reply.send(Err(error))),
            Self::Scan { reply, .. } => drop(reply.send(Err(error))),
            Self::Log { reply, .. } => drop(reply.send(Err(error))),
            Self::Checkpoint { reply, .. } => drop(reply.send(Err(error))),
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
}
