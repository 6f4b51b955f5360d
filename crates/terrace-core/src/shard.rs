//! The port of a database that is one shard of several.
//!
//! # Who owns a slot
//! Every key falls into one of [`SLOTS`] slots, and a slot lives on one shard. Which slots a database
//! owns is written in that database ([`ShardState::owned`]), beside its epoch, and in no other place
//! that counts: the map of all shards is the union of what they say of themselves. A slot changes
//! hands in two steps, each one transaction: its owner gives it up under a new epoch, the fence; then
//! the other takes it. So no slot ever has two owners, and in between it has none.
//!
//! # What the epoch is for
//! A reader or writer names the epoch under which it looked its keys up, and the database checks it
//! in the snapshot of the read, and in the transaction of the write. Whoever comes with an older map
//! is answered [`ErrorKind::Moved`] and changes nothing. A fence waits for
//! the writes under way, and those that begin later see it.

mod slots;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    ChangeLog, Error, ErrorKind, Follower, Generations, Inspection, Key, Logged, Result, Rollup,
    Store, Version,
};

pub use slots::{SLOTS, Slot, SlotSet};

/// A database that is one shard of several. See the [module](self).
pub trait Shard: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The records, for as long as the shard's epoch is this one. Calls under any other epoch answer
    /// `Moved`, and nothing was applied. Which keys are asked for is not checked: whoever knows the
    /// epoch knows what is owned under it.
    fn at(&self, epoch: u64) -> Arc<dyn Store>;

    /// What the database says of itself; `None` before [`Shard::found`].
    fn state(&self) -> BoxFuture<'_, Result<Option<ShardState>>>;

    /// Makes this database a shard, unless it is one, and answers what it is.
    fn found(&self, state: ShardState) -> BoxFuture<'_, Result<ShardState>>;

    /// Replaces the state, when every write has ended that was let in under the old one, unless the
    /// epoch is not `from`: then `Moved`. Versions that are drawn later are above `floor`. Answers
    /// the latest version that was drawn or is now the floor.
    fn change(&self, from: u64, to: ShardState, floor: Version) -> BoxFuture<'_, Result<Version>>;

    /// The change log, which begins to be kept unless it is. Changes from before may be missing.
    fn keep_log(&self) -> BoxFuture<'_, Result<Arc<dyn ChangeLog>>>;

    /// Ends what [`Shard::keep_log`] began, and forgets how far other shards' logs were followed. A log whose
    /// changes are counted stays.
    fn end_log(&self) -> BoxFuture<'_, Result<()>>;

    /// What counts the shard's changes; `None` where it was not opened for that. What it takes from other
    /// shards, and what it forgets, is no change.
    fn rollup(&self) -> BoxFuture<'_, Result<Option<Arc<dyn Rollup>>>> {
        Box::pin(async { Ok(None) })
    }

    /// All rows after a key, in one snapshot. With `quiet` the snapshot is taken at a moment without
    /// a write under way, after `quiet` has ended, during which no write begins.
    fn rows<'a>(
        &'a self,
        after: Option<Key>,
        quiet: Option<BoxFuture<'a, Result<()>>>,
    ) -> BoxFuture<'a, Result<Box<dyn Rows>>>;

    /// Follows another shard, whose place is kept under the name of the source: puts its rows in the
    /// place of older ones, versions and times as they are. `Moved` when the epoch is another one. To
    /// begin anew it only forgets its place; the first copy brings what the log does not hold.
    fn follower(&self, epoch: u64, source: &str) -> Arc<dyn Follower>;

    /// Results of requests with an idempotency key for these slots ([`Idempotency::part`]).
    ///
    /// [`Idempotency::part`]: crate::Idempotency::part
    fn results(&self, slots: &SlotSet) -> BoxFuture<'_, Result<Vec<RequestResult>>>;

    /// Keeps results of another shard. `Moved` when the epoch is another.
    fn keep_results(&self, epoch: u64, results: Vec<RequestResult>) -> BoxFuture<'_, Result<()>>;

    /// Removes rows, without a trace. `Moved` when the epoch is another.
    fn forget(&self, epoch: u64, keys: Vec<Key>) -> BoxFuture<'_, Result<()>>;

    /// The right to move slots from and to this database, until it is dropped.
    fn reserve(&self) -> BoxFuture<'_, Result<Reserved>>;

    /// The name of its history, which no other database has.
    fn history(&self) -> Arc<str>;

    /// What caches must know of this database.
    fn generations(&self) -> Arc<dyn Generations>;

    /// Health, counters and structure.
    fn inspect(&self) -> BoxFuture<'_, Inspection>;

    /// How many records there are: exact up to 100 000, beyond that as good as is cheap.
    fn size(&self) -> BoxFuture<'_, Result<u64>>;

    /// Ends background work and connections.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// What [`Shard::reserve`] gives; dropping it gives the right back.
pub type Reserved = Box<dyn std::any::Any + Send + Sync>;

/// Rows in the order of their keys, out of one snapshot.
pub trait Rows: Send {
    /// The next rows; none at the end. A deleted record has a row for as long as its version is
    /// remembered.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Logged>>>;
}

/// What a shard says of itself. Stored as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// The name of the set of shards that this one belongs to.
    pub cluster: String,
    /// Which of them it is.
    pub number: u16,
    /// Grows with every change but that of `founded`; the highest of all shards is drawn from for the
    /// next.
    pub epoch: u64,
    /// How keys fall into slots, as text; the same on all shards.
    pub partitioner: String,
    /// The slots that live here.
    pub owned: SlotSet,
    /// Slots that this shard has given up last, and that may not have arrived yet.
    pub given: SlotSet,
    /// All shards that this one knows.
    pub members: Vec<Member>,
    /// Whether every member has been made a shard, as far as this one has heard.
    pub founded: bool,
    /// What is being moved.
    pub plan: Option<Plan>,
    /// The number of the next shard that is added. None is given out twice: a database that was removed
    /// still says which one it was.
    #[serde(default)]
    pub next: u16,
}

impl ShardState {
    /// Whether this database is a shard still. One that was removed is no member by its own word.
    pub fn is_member(&self) -> bool {
        self.members.iter().any(|member| member.number == self.number)
    }
}

/// One shard as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub number: u16,
    /// Where it is: a URL or a path.
    pub address: String,
}

/// Which slots move where. The same on all shards while it lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The moves, in the order in which they are made.
    pub moves: Vec<Move>,
    /// The shard that is given up in the end.
    pub removes: Option<u16>,
    /// The shard that was added for it.
    pub adds: Option<u16>,
    /// Whether the slots are on their way back.
    pub back: bool,
    /// Whether the way back has been given up and only tidying is left.
    pub finishing: bool,
}

/// Slots that move from one shard to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The shard that has them when the plan begins.
    pub from: u16,
    /// The shard that has them in the end.
    pub to: u16,
    /// Which.
    pub slots: SlotSet,
}

/// A stored result of a request with an idempotency key, as its database keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestResult {
    /// The key.
    pub key: String,
    /// The digest of the request.
    pub fingerprint: Vec<u8>,
    /// What it came to.
    pub result: String,
    /// When, in microseconds since 1970.
    pub at_micros: i64,
}

/// The error for a call under another epoch than the shard's.
pub fn moved() -> Error {
    let message = "what lives on this shard has changed, and nothing was applied; try again";
    Error::new(ErrorKind::Moved, message)
}
