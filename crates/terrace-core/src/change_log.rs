//! The port of a database's committed changes: without a gap, in commit order.
//!
//! Replicas, shards that take slots over, projections and other regions all follow a database by
//! this port: they keep a [`Position`], ask for what comes after it, apply it, and keep the new
//! position in the transaction that applied it.
//!
//! # The trap that this port closes
//! A number drawn from a sequence says when a transaction *began* to write, not when it committed.
//! Whoever reads `WHERE id > last` loses the changes of a slow transaction with a small number that
//! commits after a fast one with a larger. An implementation therefore answers only what no
//! transaction can precede any more: on PostgreSQL what lies below the `xmin` horizon of one
//! snapshot, ordered by transaction and number; on SQLite, which has one writer, the order of numbers
//! is that of commits.

use std::fmt;

use futures_util::future::BoxFuture;

use crate::{Deadline, Key, Position, Record, Result, Version};

/// The committed changes of one database. See the [module](self) for what an answer may hold.
pub trait ChangeLog: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The changes after a position in commit order, at most `limit` and at least one if there is
    /// one. [`Position::default`] is before all of them. Cancellation safe.
    ///
    /// An implementation may leave out a change that a later one of the same key in this log has
    /// superseded, if it says so; the latest change of every key is always there.
    ///
    /// # Errors
    /// `Unavailable` when the database cannot be reached, or no longer has what follows the position
    /// (the follower must begin anew).
    fn after(&self, position: Position, limit: usize) -> BoxFuture<'_, Result<Changes>>;

    /// Returns when there may be something after the position, or the deadline has passed: woken by
    /// the database, not by a clock. May return early. Cancellation safe.
    ///
    /// # Errors
    /// As [`ChangeLog::after`].
    fn wait(&self, position: Position, deadline: Deadline) -> BoxFuture<'_, Result<()>>;

    /// A position with everything before it that was committed before the call, so that
    /// whoever has followed to there has seen it.
    ///
    /// # Errors
    /// As [`ChangeLog::after`].
    fn head(&self) -> BoxFuture<'_, Result<Position>>;
}

/// A part of a [`ChangeLog`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The changes, in commit order.
    pub changes: Vec<Logged>,
    /// Where to go on: whoever has applied the changes has followed to here. It may lie beyond the
    /// last change.
    pub position: Position,
}

/// One committed change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Where it stands in the log.
    pub position: Position,
    /// The key that was written.
    pub key: Key,
    /// The version written, or of the deletion.
    pub version: Version,
    /// The record as it was written; `None` for a deletion.
    pub record: Option<Record>,
}
