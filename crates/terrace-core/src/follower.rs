//! The port of everything that follows the committed changes of a database.
//!
//! Replicas, read models, search indexes, event streams and shards on the move all do the same: they
//! take changes out of a [`ChangeLog`](crate::ChangeLog) and keep their [`Checkpoint`] in the
//! transaction that has the effect. So a change has its effect once, whatever dies, and however many
//! instances follow for one checkpoint.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{LogPosition, Logged, Result};

/// Follows a change log and keeps its place in it.
pub trait Follower: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// How far it has come.
    ///
    /// # Errors
    /// `Unavailable` when the target cannot be reached.
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>>;

    /// Applies a batch and moves the checkpoint, in one transaction. Answers `false`, and changes
    /// nothing, unless the checkpoint is where the batch begins: another instance was faster. A change
    /// of a key that has a newer one does nothing. A dropped future has applied all or nothing.
    ///
    /// # Errors
    /// A retryable kind when the target is unwell; any other for a change that it refuses. Nothing was
    /// changed. `OutcomeUnknown` when nobody knows: the checkpoint tells.
    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>>;

    /// Forgets what it has of any log, and stands at the beginning of this one.
    ///
    /// # Errors
    /// As [`Follower::apply`].
    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>>;
}

/// Lets one of several instances work. It only saves work: what must not happen twice is decided by
/// the checkpoint.
pub trait LeaderLease: fmt::Debug + Send + Sync + 'static {
    /// Takes the lease for this time, or keeps it; gives it back when the time is zero. `false` while
    /// another instance has it. The lease of one that has died is free at once, where the database sees
    /// that its session has ended.
    ///
    /// # Errors
    /// `Unavailable` when the database that keeps it cannot be reached.
    fn hold(&self, time: Duration) -> BoxFuture<'_, Result<bool>>;
}

/// How far a follower has come in a log. Stored as JSON by some followers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The name of the log; empty before the first one.
    pub log: String,
    /// Everything at or before it has had its effect.
    pub position: LogPosition,
    /// The last key of the first copy that has arrived.
    pub copied: Option<String>,
    /// Whether the first copy is complete, or none is needed.
    pub complete: bool,
    /// Which of the beginnings it goes on from, in a follower that tells them apart: what was read before
    /// another one says nothing of what is there after it.
    #[serde(default)]
    pub beginning: u64,
}

impl Checkpoint {
    /// The name of the log that is kept by a follower which goes on whatever log it is given.
    pub const ANY_LOG: &str = "*";

    /// Whether it is a place in the log of this name.
    pub fn is_in(&self, log: &str) -> bool {
        self.log == log || self.log == Self::ANY_LOG
    }

    /// The beginning of a log that holds everything, so that no first copy is needed.
    pub fn beginning(log: impl Into<String>) -> Self {
        Self { log: log.into(), complete: true, ..Self::default() }
    }

    /// Whether nothing was begun anew between the other one and this.
    pub fn goes_on_from(&self, other: &Self) -> bool {
        (&self.log, self.beginning) == (&other.log, other.beginning)
    }

    /// The same at another position of the log.
    #[must_use]
    pub fn at(&self, position: LogPosition) -> Self {
        Self { position, ..self.clone() }
    }
}

/// Changes that are applied together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The checkpoint before it.
    pub from: Checkpoint,
    /// The checkpoint after it.
    pub to: Checkpoint,
    /// The changes, in commit order; or rows of the first copy.
    pub changes: Vec<Logged>,
    /// As [`Changes::more`](crate::Changes::more).
    pub more: bool,
    /// Why the changes cannot be applied: they are set aside, visibly, with all that follows of their
    /// keys. A follower that cannot set aside refuses again.
    pub refused: Option<String>,
}
