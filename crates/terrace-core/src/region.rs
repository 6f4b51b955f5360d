//! The port of a database that is one of several regions, each of which takes reads and writes.
//!
//! Each region follows the change log of every other one. What is written in two regions before either
//! has heard of the other is a conflict: the higher [`Version`] wins in every region, and the update
//! that is lost is listed ([`Conflict`]).
//!
//! # When an update is lost
//! A version says which region drew it ([`Version::region`]), and a change says which version it
//! replaced. Of all updates of a key that have arrived in a region, the one with the highest version is
//! the record. Of the others, those are lost that no other one has replaced: nobody overwrote them
//! knowingly. Both follow from the set of updates alone, whatever their order of arrival, so regions
//! that have heard the same have the same records and list the same losses. [`KeyState`] keeps of that
//! set what is needed, and nothing else decides.
//!
//! # Why versions have a clock
//! A version is drawn under the lock of the row, above every version that the region has stored and not
//! below its clock. So an update that overwrites another is always the newer one, and of two that know
//! nothing of each other the later one wins, as far as clocks agree.

mod clock;
mod merge;
mod name;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};

use crate::shard::RequestResult;
use crate::{
    ChangeLog, Checkpoint, Error, ErrorKind, Follower, Generations, Key, LeaderLease, LogPosition,
    Logged, Position, Record, Result, Store, Timestamp, Token, Value, Version,
};

pub use merge::{KeyState, Seen};
pub use name::{RegionId, RegionName};

/// A database that is one of several regions. See the [module](self).
///
/// Its own writes draw versions of its region; what comes from other regions keeps its version. Both
/// raise the position of its history, so a token tells of both.
pub trait RegionStore: Store + Generations {
    /// Which region it is.
    fn region(&self) -> &RegionOptions;

    /// Every change that was written in this region, and no other, without keys that stay here
    /// ([`RegionOptions::resident`]). Each says what it replaced, and the first of a repeatable request
    /// has its result ([`Ancestry::Change`]).
    fn own_log(&self) -> Arc<dyn ChangeLog>;

    /// Follows another region's log, or merges its rows. The checkpoint is kept under the origin's id.
    ///
    /// - `apply` merges changes and rows by [`KeyState`]. A change of a clock that is more than
    ///   [`RegionOptions::max_clock_drift`] ahead of this region's is refused with a retryable error,
    ///   and nothing of its batch was applied.
    /// - `begin_anew` forgets no record. It leaves a first copy to be made
    ///   ([`Checkpoint::complete`] is `false`): rows of the origin ([`RegionStore::rows`]), applied as
    ///   batches whose `to` says how far the copy has come. The origin's horizon of
    ///   [`RegionStore::collect`] comes with them.
    /// - Where there is no row, changes up to that horizon have arrived: so a log that is followed again
    ///   brings back nothing whose deletion was collected.
    fn follower_of(&self, origin: RegionId) -> Arc<dyn Follower>;

    /// Lets one of several instances follow this origin into this region; `None` where one process has
    /// the database to itself.
    fn lease(&self, origin: RegionId) -> Option<Arc<dyn LeaderLease>>;

    /// How far every origin was followed, in one snapshot. Cancellation safe.
    ///
    /// # Errors
    /// `Unavailable` when the database cannot be reached.
    fn checkpoints(&self) -> BoxFuture<'_, Result<Checkpoints>>;

    /// Whether this region's log has anything after a place that was visible at a position of its
    /// history. What is read here proves a position that other regions' changes have moved, too, and so
    /// lies beyond the log's end: who has followed to a place without news is as far.
    ///
    /// # Errors
    /// As [`RegionStore::checkpoints`].
    fn has_news(&self, after: LogPosition, until: Position) -> BoxFuture<'_, Result<bool>>;

    /// Forgets that an origin was ever followed: it is no region any more.
    ///
    /// # Errors
    /// As [`Follower::apply`].
    fn forget_origin(&self, origin: RegionId) -> BoxFuture<'_, Result<()>>;

    /// The updates that were lost, by key and version, after this one; at most `limit`.
    ///
    /// # Errors
    /// As [`RegionStore::checkpoints`].
    fn conflicts<'a>(
        &'a self,
        after: Option<&'a (Key, Version)>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Conflict>>>;

    /// What the rows of a range come to, of deleted records too, without keys that stay in a region.
    /// Two regions have the same rows there exactly if their digests are equal.
    ///
    /// # Errors
    /// As [`RegionStore::checkpoints`].
    fn digest<'a>(&'a self, range: &'a KeyRange) -> BoxFuture<'a, Result<RangeDigest>>;

    /// The rows of a range in the order of their keys, at most `limit` and about 16 MiB of values, of
    /// deleted records too, without keys that stay in this region; none at the end of the range. Each
    /// with all that is known of its key ([`Ancestry::Row`]).
    ///
    /// # Errors
    /// As [`RegionStore::checkpoints`].
    fn rows<'a>(&'a self, range: &'a KeyRange, limit: usize) -> BoxFuture<'a, Result<Vec<Logged>>>;

    /// Merges rows of another region, outside of any log: for a repair.
    ///
    /// # Errors
    /// As [`Follower::apply`].
    fn merge_rows(&self, rows: Vec<Logged>) -> BoxFuture<'_, Result<()>>;

    /// Removes the traces of records that were deleted at or before `horizon`, a [`Version::at`] some
    /// time, and answers how many.
    ///
    /// The caller knows that every region has applied the deletions, and whatever any region wrote
    /// before it had applied them: it has seen all checkpoints at or past all heads, twice, where the
    /// second look at the heads came after the first one's checkpoints, and the first look at the heads
    /// after `horizon`.
    ///
    /// # Errors
    /// As [`Follower::apply`]. `InvalidInput` for a version of a region.
    fn collect(&self, horizon: Version) -> BoxFuture<'_, Result<u64>>;
}

/// Which region a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionOptions {
    /// Its number, which its versions carry. The database keeps it, and cannot be opened under another.
    pub id: RegionId,
    /// Its name; kept as the number is.
    pub name: RegionName,
    /// Keys that begin with one of these never leave this region: its log and its rows are without
    /// them. Default: none.
    pub resident: Vec<String>,
    /// How far the clock of a change may be ahead of this region's. Default: 5 s.
    pub max_clock_drift: std::time::Duration,
}

impl RegionOptions {
    /// The defaults for this region.
    pub fn new(id: RegionId, name: RegionName) -> Self {
        let max_clock_drift = std::time::Duration::from_secs(5);
        Self { id, name, resident: Vec::new(), max_clock_drift }
    }

    /// Whether the key never leaves this region.
    pub fn stays(&self, key: &str) -> bool {
        self.resident.iter().any(|prefix| key.starts_with(prefix))
    }

    /// Refuses changes from a clock that is too far ahead of `now`.
    ///
    /// # Errors
    /// `Unavailable`, which says when it will be taken.
    pub fn check_clock(&self, newest: Version, now: Timestamp) -> Result<()> {
        let ahead = newest.time().duration_since(now);
        let most = i128::try_from(self.max_clock_drift.as_nanos()).unwrap_or(i128::MAX);
        if newest.region() == Some(self.id) || ahead.as_nanos() <= most {
            return Ok(());
        }
        let message = "a change was written by a clock that is too far ahead of this region's; it is \
                       applied when this region's clock has come there: set the clocks of both";
        Err(Error::new(ErrorKind::Unavailable, message)
            .with("ahead_ms", ahead.as_millis().to_string())
            .with("most_ms", self.max_clock_drift.as_millis().to_string()))
    }
}

/// What a change or a row of a region says beyond its record, for other regions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ancestry {
    /// Of a change in a log.
    Change {
        /// The version that it overwrote. Where there was no row, the horizon of the last
        /// [`RegionStore::collect`]: deletions up to there are overwritten, too.
        replaced: Version,
        /// The first result of the repeatable request that wrote it, at the first of its changes.
        request: Option<RequestResult>,
    },
    /// Of a row: everything known of its key.
    Row {
        /// What has arrived of the key, and up to when the region has collected deletions.
        seen: Seen,
        /// What was lost.
        lost: Vec<Conflict>,
        /// What was replaced before it has arrived.
        awaited: Vec<Version>,
    },
}

/// An update that was lost, because another region had written the key without having seen it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The key that was written.
    pub key: Key,
    /// The version that the record had when the loss was noticed. It is the higher one.
    pub winner: Version,
    /// The version that was lost.
    pub loser: Version,
    /// The digest of the lost value; `None` for a deletion.
    pub digest: Option<ValueDigest>,
    /// When this region noticed. Microseconds, UTC.
    pub noticed_at: Timestamp,
}

impl Conflict {
    /// How conflicts are decided.
    pub const RULE: &'static str = "the higher version wins";

    /// What is kept of a loser when a change or a row has arrived. `digest` is that of the value that
    /// this region had, where that is the loser.
    pub fn noticed(
        arrived: &Logged,
        loser: Version,
        winner: Version,
        digest: Option<Option<ValueDigest>>,
        noticed_at: Timestamp,
    ) -> Self {
        if let Some(Ancestry::Row { lost, .. }) = arrived.ancestry.as_deref()
            && let Some(known) = lost.iter().find(|conflict| conflict.loser == loser)
        {
            return known.clone();
        }
        let theirs = || arrived.record.as_ref().map(|record| digest_of(&record.value));
        let digest = digest.unwrap_or_else(theirs);
        Self { key: arrived.key.clone(), winner, loser, digest, noticed_at }
    }
}

/// SHA-256 of a value.
pub type ValueDigest = [u8; 32];

/// The digest of a value.
pub fn digest_of(value: &Value) -> ValueDigest {
    Sha256::digest(value.as_str()).into()
}

/// How far a region has followed the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoints {
    /// By origin.
    pub origins: Vec<(RegionId, Checkpoint)>,
    /// Who reads this region with it sees everything up to the checkpoints.
    pub token: Token,
    /// Who has seen this region up to this position of the token's history has seen nothing of other
    /// regions beyond the checkpoints. It may lie before the token, where a follower has not ended its
    /// transaction yet, and after it.
    pub through: Position,
}

impl Checkpoints {
    /// How far this origin was followed.
    pub fn of(&self, origin: RegionId) -> Option<&Checkpoint> {
        self.origins.iter().find(|(id, _)| *id == origin).map(|(_, checkpoint)| checkpoint)
    }
}

/// Keys after one and up to another; the default is all keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// Only keys after this one.
    pub after: Option<Key>,
    /// Only keys up to this one.
    pub through: Option<Key>,
}

impl KeyRange {
    /// Whether the key is in it.
    pub fn has(&self, key: &Key) -> bool {
        self.after.as_ref().is_none_or(|after| key > after)
            && self.through.as_ref().is_none_or(|through| key <= through)
    }

    /// Its two parts: up to a key of it, and after that.
    pub fn halves(&self, at: &Key) -> (Self, Self) {
        let lower = Self { through: Some(at.clone()), ..self.clone() };
        (lower, Self { after: Some(at.clone()), ..self.clone() })
    }
}

/// What the rows of a range come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeDigest {
    /// How many rows there are, of deleted records too.
    pub rows: u64,
    /// The sum of [`RangeDigest::of_row`] over them, modulo 2^60.
    pub sum: u64,
    /// The key in the middle, at which to halve; `None` without rows.
    pub middle: Option<Key>,
}

impl RangeDigest {
    /// What sums are taken modulo.
    pub const MODULUS: u64 = 1 << 60;

    /// The digest of one row: the first 60 bits of SHA-256 over `version:key:value`, where a deleted
    /// record has no last part and no last colon.
    pub fn of_row(key: &Key, version: Version, record: Option<&Record>) -> u64 {
        let mut digest = Sha256::new();
        digest.update(format!("{version}:{key}"));
        if let Some(record) = record {
            digest.update(":");
            digest.update(record.value.as_str());
        }
        let first = digest.finalize().into_iter().take(8);
        first.fold(0, |number, byte| (number << 8) | u64::from(byte)) >> 4
    }

    /// Counts a row.
    pub fn add(&mut self, row: u64) {
        self.rows += 1;
        self.sum = (self.sum + row) % Self::MODULUS;
    }
}
