//! The port of a database's committed changes: without a gap, in commit order.
//!
//! Whatever follows a database does it by this port, as a [`Follower`](crate::Follower).
//!
//! # The trap that this port closes
//! A number drawn from a sequence says when a transaction *began* to write, not when it committed.
//! Whoever reads `WHERE id > last` loses the changes of a slow transaction with a small number that
//! commits after a fast one with a larger. An implementation therefore answers only what no
//! transaction can precede any more: on PostgreSQL what lies below the `xmin` horizon of one
//! snapshot, ordered by transaction and number; on SQLite, which has one writer, the order of numbers
//! is that of commits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::read_model::Difference;
use crate::{Ancestry, Deadline, Error, ErrorKind, Key, Position, Record, Result, Version};

/// A place in one named log. Never compared with a version, nor with a place in another log.
///
/// On PostgreSQL `epoch` is the transaction and `offset` the version that it wrote; on SQLite `epoch`
/// is 0 and `offset` the number of the change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct LogPosition {
    /// The greater part.
    pub epoch: u64,
    /// The lesser part.
    pub offset: u64,
}

impl From<(u64, u64)> for LogPosition {
    fn from((epoch, offset): (u64, u64)) -> Self {
        Self { epoch, offset }
    }
}

impl From<LogPosition> for (u64, u64) {
    fn from(position: LogPosition) -> Self {
        (position.epoch, position.offset)
    }
}

impl fmt::Display for LogPosition {
    /// The name of an event on the wire, in answers and in streams: `epoch-offset`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.offset)
    }
}

/// The committed changes of one database. See the [module](self) for what an answer may hold.
pub trait ChangeLog: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The name of this log in the present life of its database. Another name says that places in it
    /// mean nothing here: the log was begun anew, or its database was restored or promoted, and may
    /// have lost changes that a follower has seen.
    fn name(&self) -> Arc<str>;

    /// The changes after a position in commit order, at most `limit` and at least one if there is
    /// one. [`LogPosition::default`] is before all of them. Cancellation safe.
    ///
    /// An implementation may leave out a change that a later one of the same key in this log has
    /// superseded, if it says so; the latest change of every key is always there. See
    /// [`Changes::more`] for what such a log proves, and when.
    ///
    /// # Errors
    /// `Unavailable` when the database cannot be reached, or no longer has what follows the position
    /// ([`PositionLost`]: the follower must begin anew).
    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>>;

    /// Returns when there may be something after the position, or the deadline has passed: woken by
    /// the database, not by a clock. May return early. Cancellation safe.
    ///
    /// # Errors
    /// As [`ChangeLog::after`].
    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>>;

    /// Notes that this follower has come to this position, so that the log keeps what comes after it.
    /// A follower calls it before its first read and then about once a minute. The name belongs to
    /// what follows, not to the process: its successor has the same.
    ///
    /// A log that never removes a change some follower has yet to see needs none of this.
    ///
    /// # Errors
    /// As [`ChangeLog::after`]. [`PositionLost`] when something after the position was removed.
    fn keep_for<'a>(
        &'a self,
        follower: &'a str,
        position: LogPosition,
    ) -> BoxFuture<'a, Result<()>> {
        let _keeps_everything = (follower, position);
        Box::pin(async { Ok(()) })
    }

    /// A position with everything before it that was committed before the call, so that
    /// whoever has followed to there has seen it.
    ///
    /// # Errors
    /// As [`ChangeLog::after`].
    fn head(&self) -> BoxFuture<'_, Result<LogPosition>>;

    /// What was committed after a position and cannot be read yet, because somebody who is slow to end
    /// may still come before it. `None` where nothing is, and for a log that holds nothing back.
    ///
    /// # Errors
    /// As [`ChangeLog::after`].
    fn held_back(&self, position: LogPosition) -> BoxFuture<'_, Result<Option<HeldBack>>> {
        let _nothing_after = position;
        Box::pin(async { Ok(None) })
    }

    /// Finds the keys whose record is not what their latest change in this log says, as after somebody
    /// has changed records past it; with `mend` what the records are is logged as a change.
    ///
    /// A log that nobody can go past finds nothing, and has compared nothing.
    ///
    /// # Errors
    /// As [`ChangeLog::after`].
    fn compare_with_records(&self, mend: bool) -> BoxFuture<'_, Result<Difference>> {
        let _nothing_to_mend = mend;
        Box::pin(async { Ok(Difference::default()) })
    }

    /// Where a follower is that has applied every change of the writes at or before a position of the
    /// database's history.
    fn place_of(&self, position: Position) -> LogPosition;

    /// What a client has seen that got an answer of a follower at this place.
    fn position_of(&self, place: LogPosition) -> Position;
}

/// A part of a [`ChangeLog`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The changes, in commit order.
    pub changes: Vec<Logged>,
    /// Where to go on: whoever has applied the changes has followed to here. It may lie beyond the
    /// last change.
    pub position: LogPosition,
    /// Whether the log went on when it was read.
    ///
    /// In the middle of a log that leaves out superseded changes, a follower is in a state in which
    /// its origin never was: it has seen a later change of one key, and not yet the last one before
    /// that of another. So only with `false` it has seen everything up to `position`, and may
    /// answer whoever asks for that.
    pub more: bool,
}

/// Changes that are committed and cannot be read yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldBack {
    /// How many they are; of many, a lower bound.
    pub changes: u64,
    /// How long the oldest of them has waited.
    pub waited: Duration,
    /// Who holds them back, for people; empty when nobody knows.
    pub by: String,
}

/// One committed change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Where it stands in the log.
    pub position: LogPosition,
    /// The key that was written.
    pub key: Key,
    /// The version written, or of the deletion.
    pub version: Version,
    /// The record as it was written; `None` for a deletion.
    pub record: Option<Record>,
    /// What other regions must know of it; `None` where the database is no region.
    pub ancestry: Option<Arc<Ancestry>>,
}

/// The cause of an error that says that a place in a log is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PositionLost;

impl PositionLost {
    /// The error with this cause; the message says what to do.
    pub fn error(message: &'static str) -> Error {
        Error::new(ErrorKind::Unavailable, message).caused_by(Self)
    }

    /// Whether it is the cause of this error.
    pub fn caused(error: &Error) -> bool {
        std::error::Error::source(error).is_some_and(|cause| cause.is::<Self>())
    }
}

impl fmt::Display for PositionLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the position is lost")
    }
}

impl std::error::Error for PositionLost {}
