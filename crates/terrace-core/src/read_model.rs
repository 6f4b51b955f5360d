//! The port of read models: what a projector makes of a change log.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::{
    Budget, Checkpoint, Follower, Inspection, Key, LeaderLease, LogPosition, Logged, Page, Record,
    Result, Scan, Version,
};

/// Records as the query side keeps them, with what the command side does not answer: counts, full
/// text, activity. Only a projector changes it, batch by batch, each with its checkpoint in one
/// transaction.
pub trait ReadModel: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Makes this projection of a change log. Changes that it cannot apply it sets aside.
    fn follower(&self, of: Projection) -> Arc<dyn Follower>;

    /// Makes the search index, behind the projection; `None` where the projection does that itself.
    fn search_index(&self) -> Option<Arc<dyn Follower>>;

    /// Lets one of several instances project, where several may.
    fn lease(&self) -> Option<Arc<dyn LeaderLease>>;

    /// One row a key in the order asked, and how far the projection had come, out of one snapshot. More values than the
    /// budget holds are refused before they are loaded.
    ///
    /// # Errors
    /// As [`Follower::checkpoint`].
    fn read<'a>(&'a self, keys: &'a [Key], budget: Budget) -> BoxFuture<'a, Result<Rows>>;

    /// As [`Store::scan`](crate::Store::scan), and how far the projection had come, out of one snapshot. While
    /// keys are stopped, no page is whole.
    ///
    /// # Errors
    /// As [`Follower::checkpoint`].
    fn scan<'a>(&'a self, scan: &'a Scan) -> BoxFuture<'a, Result<(Page, Reached)>>;

    /// Records whose key or value has all these words, the best first.
    ///
    /// # Errors
    /// As [`Follower::checkpoint`].
    fn search<'a>(&'a self, words: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<Row>>>;

    /// Records with the highest counts, the highest first.
    ///
    /// # Errors
    /// As [`Follower::checkpoint`].
    fn top(&self, by: Counted, limit: usize) -> BoxFuture<'_, Result<Vec<Row>>>;

    /// Values written by time: the latest buckets of this length that have any, the latest first.
    ///
    /// # Errors
    /// As [`Follower::checkpoint`].
    fn activity(&self, bucket: Duration, limit: usize) -> BoxFuture<'_, Result<Vec<Activity>>>;

    /// Adds reads to the counts of keys.
    ///
    /// # Errors
    /// As [`Follower::apply`].
    fn add_reads<'a>(&'a self, reads: &'a [(Key, u64)]) -> BoxFuture<'a, Result<()>>;

    /// Keys that are stopped, at most `limit`.
    ///
    /// # Errors
    /// As [`Follower::checkpoint`].
    fn parked(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Parked>>>;

    /// Applies what a stopped key missed and lets it go on; `false` when it is not stopped.
    ///
    /// # Errors
    /// As [`Follower::apply`].
    fn retry<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>>;

    /// Lets nobody apply to [`Projection::Live`] for this time.
    ///
    /// # Errors
    /// As [`Follower::apply`].
    fn pause(&self, time: Duration) -> BoxFuture<'_, Result<()>>;

    /// Compares both projections at one checkpoint, and puts the next one in the place of the live
    /// one, with the counts of reads, when `swap` says so; `None`, and nothing is changed, unless both
    /// have come as far. After it the next one is of no source.
    ///
    /// # Errors
    /// As [`Follower::apply`].
    fn finish_rebuild(&self, swap: bool) -> BoxFuture<'_, Result<Option<Difference>>>;

    /// As [`Store::inspect`](crate::Store::inspect).
    fn inspect(&self) -> BoxFuture<'_, Inspection>;

    /// As [`Store::close`](crate::Store::close).
    ///
    /// # Errors
    /// What could not be finished.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// Which tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Projection {
    /// Those that answer.
    Live,
    /// Those that a rebuild fills.
    Next,
}

/// All changes of one key in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// The change with the highest version.
    pub newest: Logged,
    /// How many they are; each is one command.
    pub commands: u64,
    /// When values were written.
    pub written: Vec<Timestamp>,
}

/// Gathers changes by key, in the order of keys. Of a key's changes the one with the highest version
/// counts, wherever it stands: transactions overlap.
pub fn fold(changes: &[Logged]) -> Vec<Folded> {
    let mut keys = BTreeMap::<&Key, Folded>::new();
    for change in changes {
        let folded = keys.entry(&change.key).or_insert_with(|| Folded {
            newest: change.clone(),
            commands: 0,
            written: Vec::new(),
        });
        folded.commands += 1;
        folded.written.extend(change.record.as_ref().map(|record| record.updated_at));
        if change.version > folded.newest.version {
            folded.newest = change.clone();
        }
    }
    keys.into_values().collect()
}

/// Answers out of one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// One a key.
    pub rows: Vec<Row>,
    /// How far the projection had come.
    pub reached: Reached,
}

/// How far a projection had come when it answered.
///
/// One that begins anew, because its log did or because somebody emptied it, is right from its first change
/// on and lacks all that it has yet to come to. So it is not whole before a batch has brought the end of
/// the log; that is kept with the checkpoint, where every instance sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Where it was.
    pub checkpoint: Checkpoint,
    /// Whether it has come to the end of the log since it began, and a page lacks nothing of a stopped key.
    pub whole: bool,
}

impl Reached {
    /// Its place in this log, in which it is whole.
    pub fn place_in(&self, log: &str) -> Option<LogPosition> {
        (self.whole && self.checkpoint.is_in(log)).then_some(self.checkpoint.position)
    }
}

/// One record with its counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The record, if there is one.
    pub record: Option<Record>,
    /// Its version, or that of its deletion.
    pub version: Version,
    /// How often it was read, as far as that was stored.
    pub reads: u64,
    /// How many commands its key has had.
    pub writes: u64,
    /// Whether the key is stopped, so that the record may be old.
    pub parked: bool,
}

/// A key whose changes are not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// The key.
    pub key: Key,
    /// The first change that could not be applied.
    pub position: LogPosition,
    /// How many changes wait.
    pub commands: u64,
    /// Why.
    pub reason: String,
}

/// What to order by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// How often a record was read.
    Reads,
    /// How many commands its key has had.
    Writes,
}

/// Values written within a bucket of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// The bucket's beginning.
    pub from: Timestamp,
    /// How many.
    pub writes: u64,
}

/// What a comparison of two projections found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// How many keys were compared.
    pub keys: u64,
    /// How many differ in anything but reads.
    pub differing: u64,
    /// Some of them.
    pub examples: Vec<String>,
}
