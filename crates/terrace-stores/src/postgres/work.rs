//! A piece of work on one connection, and why it was not done.

use std::sync::atomic::{AtomicBool, Ordering};

use terrace_core::{Error, ErrorKind, Result};

use super::connection::Connection;
use super::sqlstate::{Stage, explain, is_unknown};
use crate::row::in_row;

/// One piece of work on one connection, which can be done again from its beginning.
pub(super) trait Work: Sync {
    /// What it answers.
    type Answer: Send;

    /// Its name in errors.
    const OPERATION: &'static str;

    /// Whether another server may do it as well; then what a replica ends for the sake of its
    /// primary's changes is not tried again here.
    const ELSEWHERE: bool = false;

    /// Does it. Leaves the session idle when it succeeds, and when it fails with a refusal of the
    /// server, unless `progress` says that a transaction is open.
    fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

/// How far a piece of work has come; read when its answer does not come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    committing: AtomicBool,
    in_transaction: AtomicBool,
    /// How often others were faster before this try.
    races: u32,
}

impl Progress {
    /// The tries that give way to whom they may wait for in a circle; later ones wait as others do.
    const GIVE_WAY: u32 = 8;

    /// Of a try before which others were faster so often.
    pub(super) fn after(races: u32) -> Self {
        Self { races, ..Self::default() }
    }

    /// Whether to end the try where others are in the way for a moment.
    pub(super) fn gives_way(&self) -> bool {
        self.races < Self::GIVE_WAY
    }

    /// What is sent from now on commits by itself.
    pub(super) fn commits(&self) {
        self.committing.store(true, Ordering::Relaxed);
    }

    /// The server refused what was sent, and nothing of it was applied.
    pub(super) fn nothing_applied(&self) {
        self.committing.store(false, Ordering::Relaxed);
    }

    /// A transaction is open, or no longer.
    pub(super) fn in_transaction(&self, open: bool) {
        self.in_transaction.store(open, Ordering::Relaxed);
    }

    /// Whether a transaction may be open.
    pub(super) fn is_in_transaction(&self) -> bool {
        self.in_transaction.load(Ordering::Relaxed)
    }

    pub(super) fn stage(&self) -> Stage {
        if self.committing.load(Ordering::Relaxed) { Stage::Committing } else { Stage::Harmless }
    }
}

/// Why a piece of work was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// The driver or the server says so.
    Driver(tokio_postgres::Error),
    /// The work itself says so; the session is idle.
    Refused(Error),
    /// The session is of another history than the one in force, or of a server that was a replica
    /// when it began; nothing was done.
    AnotherHistory,
    /// Another writer made a row that was missing a moment ago; nothing was applied.
    Overtaken(tokio_postgres::Error),
}

impl Failure {
    /// Names the row in which something is damaged.
    pub(super) fn in_row(self, key: &str) -> Self {
        match self {
            Self::Refused(error) => Self::Refused(in_row(error, key)),
            other => other,
        }
    }

    /// Whether the work may have been done all the same, or may be still.
    pub(super) fn leaves_doubt(&self, stage: Stage) -> bool {
        match self {
            Self::Refused(error) => error.kind() == ErrorKind::OutcomeUnknown,
            Self::Driver(error) => is_unknown(error, stage),
            Self::AnotherHistory | Self::Overtaken(_) => false,
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Driver(error)
    }
}

/// The error of work that commits nothing and is not tried again.
pub(super) fn unfinished(failure: Failure) -> Error {
    match failure {
        Failure::Refused(error) => error,
        Failure::AnotherHistory => another_history(),
        Failure::Driver(error) | Failure::Overtaken(error) => explain(error, Stage::Harmless),
    }
}

pub(super) fn another_history() -> Error {
    let message = "the database is being restored or replaced by another; try again";
    Error::new(ErrorKind::Unavailable, message)
}

/// A row that no statement of this store can have written.
pub(super) fn corrupt(error: tokio_postgres::Error) -> Failure {
    let message = "a stored row cannot be read; check the columns of the table `records`";
    Failure::Refused(Error::new(ErrorKind::Corrupt, message).caused_by(error))
}

/// A key or value that the contract does not allow, as only people write it.
pub(super) fn not_allowed(error: Error) -> Failure {
    let message = "a stored key or value is longer than Terrace allows; correct or delete the row";
    Failure::Refused(Error::new(ErrorKind::Corrupt, message).caused_by(error))
}

/// Commits, or rolls back what has failed.
pub(super) async fn end_transaction<T>(
    connection: &Connection,
    progress: &Progress,
    done: Result<T, Failure>,
) -> Result<T, Failure> {
    let last = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    if done.is_ok() {
        progress.commits();
    }
    let ended = connection.command(last).await;
    if ended.is_ok() {
        progress.in_transaction(false);
    }
    let answer = done?;
    ended?;
    Ok(answer)
}
