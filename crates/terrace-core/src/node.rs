//! The port of what one database server of several says of itself.
//!
//! A primary and its replicas go through one history at different times. Whoever chooses between
//! them asks each for its [`NodeState`]; what a server cannot say of itself, as how far it is
//! behind, follows from comparing its position with where the primary was, and when.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::{Deadline, Position, Result};

/// One server of a primary and its replicas. Its records are read and written by a
/// [`Store`](crate::Store) over it, whose answers' tokens name [`NodeState::log`].
pub trait Node: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Asks the server. Not delayed by its requests. Cancellation safe.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer; `DeadlineExceeded`.
    fn state(&self, deadline: Deadline) -> BoxFuture<'_, Result<NodeState>>;

    /// From now on the store answers for this life of the server, and refuses to for a later one.
    /// A server that was restarted may have gone back, and whoever relied on its position must
    /// hear of the new one before it gets an answer.
    fn admit(&self, state: &NodeState);
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
    /// Which run of the server this is: within one, its position never goes back.
    pub life: u64,
    /// The name of the records' history; versions are positions in it.
    pub history: Arc<str>,
    /// The name of the log that positions are of; the same as `history` where they are versions.
    pub log: Arc<str>,
    /// How far it has come: on a primary everything acknowledged before it was asked, on a replica
    /// everything that it shows. The epoch is that of the history it follows.
    pub position: Position,
    /// Where each earlier epoch of its history ended, as far as it tells.
    pub forks: Vec<Position>,
}
