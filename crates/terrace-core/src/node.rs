//! The port of what one database server of several says of itself.
//!
//! A primary and its replicas go through one history at different times. Whoever chooses between
//! them asks each for its [`NodeState`]; what a server cannot say of itself, as how far it is
//! behind, follows from comparing its log with where that of the primary was, and when.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{Deadline, Position, Result, Standing};

/// One server of a primary and its replicas. Its records are read and written by a
/// [`Store`](crate::Store) over it, whose answers prove by themselves how far it has come.
pub trait Node: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Asks the server. Not delayed by its requests. Cancellation safe.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer; `DeadlineExceeded`.
    fn state(&self, deadline: Deadline) -> BoxFuture<'_, Result<NodeState>>;

    /// From now on the store answers for this life of the server, and refuses to for a later one.
    /// A server that was restarted may have gone back, and whoever relied on what it showed must hear
    /// of the new one before it gets an answer.
    fn admit(&self, state: &NodeState);

    /// Raises the generation of its history, durably, and answers what it is now.
    ///
    /// # Errors
    /// `Unavailable` when the server cannot be reached or takes no writes; it may have been raised.
    fn raise(&self) -> BoxFuture<'_, Result<Standing>>;
}

/// What a server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads and writes.
    Primary,
    /// Reads; its changes come from a primary.
    Replica,
}

/// What a server said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// What it takes.
    pub role: Role,
    /// Which run of which server this is: within one, what it shows never goes back, and no other
    /// server has the same. So a server is known by whatever address it is reached.
    pub life: u64,
    /// Its history and generation, as its snapshot shows them. A replica shows those of its primary as
    /// soon as it has come to where they began.
    pub standing: Standing,
    /// Of two that take writes, the one with the higher timeline was promoted last.
    pub timeline: u64,
    /// Everything at or before it is visible.
    pub position: Position,
    /// How far its log has come, in whatever the engine counts: on a primary past everything
    /// acknowledged before it was asked, on a replica what it shows. Lag is told from it, and nothing
    /// else.
    pub log_end: u64,
    /// Of a replica, how long ago the newest transaction that it shows was committed, by its own clock and
    /// that of its primary; it shows everything before that. Counts where nobody has seen the primary.
    pub committed_ago: Option<Duration>,
}
