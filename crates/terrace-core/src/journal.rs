//! The port of journals: durable, ordered queues of accepted writes.
//!
//! A write is acknowledged once a journal has it, and applied to the database later, by a flusher
//! that may run in any process. A journal promises four things.
//!
//! 1. **Sequences order.** Every write gets a [`Sequence`] when it is appended. Later appends get
//!    greater ones, whichever instance appends. A sequence begins with the time, so that a journal
//!    that was lost and made anew goes on above what rows already carry; [`Journal::raise`] makes
//!    sure of it where the clock was set back, too.
//! 2. **Nothing leaves before it is settled.** [`Journal::claim`] hands entries out, and an entry
//!    stays until [`Journal::settle`] was called for it. Entries of a claimer that died are handed
//!    out again after a while, also to others, so each is handed out *at least once*, and a claimer
//!    that only seemed dead may come back and apply late.
//! 3. **Durability is what was reached.** An append answers once the journal's point of durability
//!    is passed, and says which one it was, as the engine is really set up.
//! 4. **Bounds hold.** Past its limits a journal takes nothing more and says
//!    [`Overloaded`](crate::ErrorKind::Overloaded); it never drops.
//!
//! # Why applying at least once is enough
//! The row keeps the sequence that it was last written with, and a write of the journal is applied
//! only [`After`](crate::Precondition::After) that: under the row's lock, `WHERE seq < new seq`. A
//! repeat, a reordering between two flushers, and the late commit of a flusher that was taken for
//! dead all meet a row that has come further, and change nothing. That is the fence; no lease and no
//! clock takes part in it. Deletes leave a row with their sequence, or an older put that comes late
//! would bring the record back.
//!
//! # Dead letters
//! What a database refuses for good is set aside with the reason and does not hold up the others. It
//! can be looked at, tried again **under its old sequence** (so that a newer write of its key stays
//! what it is), or dropped.

mod memory;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{Deadline, Durability, Idempotency, Inspection, Result, Timestamp, Write};

pub use memory::MemoryJournal;

/// The place of a write in its journal: milliseconds since 1970, then a count.
///
/// 42 bits of time last until the year 2109, 21 bits count 2 million writes a millisecond; more than
/// that goes into the next millisecond. [`Sequence::NONE`] is before all.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Sequence(u64);

impl Sequence {
    /// Before the first write.
    pub const NONE: Self = Self(0);
    /// How many bits count the writes of one millisecond.
    pub const COUNT_BITS: u32 = 21;

    /// A sequence as it is stored.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The first sequence of a moment.
    pub fn at(time: Timestamp) -> Self {
        let millis = u64::try_from(time.as_millisecond()).unwrap_or(0);
        Self(millis << Self::COUNT_BITS)
    }

    /// The next to give out: of this moment, or right after the last where that has come as far.
    pub fn next(last: Self, now: Timestamp) -> Self {
        last.plus(1).max(Self::at(now))
    }

    /// This many further.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// The one before.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The number; it fits a signed column.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The time in it, in milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0 >> Self::COUNT_BITS
    }

    /// When the write was accepted.
    pub fn time(self) -> Timestamp {
        let millis = i64::try_from(self.millis()).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a write of a journal stands, as [`Precondition::After`](crate::Precondition::After) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its own sequence.
    pub sequence: Sequence,
    /// Everything at or below this is settled, and no dead letter is that old: no such write comes
    /// any more, but from a flusher that was taken for dead. A store may forget deletions up to here,
    /// and then refuses every write up to there.
    pub settled: Sequence,
}

/// One request to append: its writes stay together and in order.
#[derive(Clone, Debug)]
pub struct Append {
    /// The writes; none has a precondition.
    pub writes: Vec<Write>,
    /// Makes a repeated append answer the first one's place, for 24 hours.
    pub idempotency: Option<Arc<Idempotency>>,
}

/// What appends came to.
#[derive(Clone, Debug)]
pub struct Appended {
    /// Which journal this was; see [`Progress::epoch`].
    pub epoch: u64,
    /// The last sequence before these, whoever appended it: whoever knew it knows all in between.
    pub previous: Sequence,
    /// The last sequence after these.
    pub last: Sequence,
    /// How safe they are.
    pub durability: Durability,
    /// For each request its place, in the order given. A request that is refused on its own (its
    /// idempotency key was used for another) does not touch the others.
    pub spans: Vec<Result<Span>>,
}

/// Consecutive sequences of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The sequence of its first write; each further write has the next one.
    pub first: Sequence,
    /// Whether an earlier request under the same idempotency key did it.
    pub repeated: bool,
}

/// A part of a journal that is handed out and settled as one.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its place in the journal.
    pub id: Sequence,
    /// The sequence of its first write: its `id`, unless it is a dead letter that is tried again.
    pub first: Sequence,
    /// The writes, each with the next sequence.
    pub writes: Vec<Write>,
    /// Its size as the journal counts it.
    pub bytes: u64,
}

/// An entry that is done.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// See [`Entry::id`].
    pub id: Sequence,
    /// See [`Entry::first`].
    pub first: Sequence,
    /// How many writes it has.
    pub writes: u64,
    /// See [`Entry::bytes`].
    pub bytes: u64,
    /// Those of its writes that could not be applied.
    pub dead: Vec<DeadLetter>,
}

impl Settled {
    /// All of it was applied.
    pub fn of(entry: &Entry) -> Self {
        let writes = entry.writes.len() as u64;
        Self { id: entry.id, first: entry.first, writes, bytes: entry.bytes, dead: Vec::new() }
    }
}

/// A write that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its sequence, by which it is named.
    pub sequence: Sequence,
    /// The write.
    pub write: Write,
    /// Why the database did not take it.
    pub reason: String,
}

/// How far a journal has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Names this life of the journal among those before: it grows when one is made anew, and when its
    /// engine may have lost its latest entries.
    pub epoch: u64,
    /// The last sequence given out.
    pub last: Sequence,
    /// Everything at or below it is settled; where writes wait, the oldest of them is the next.
    pub applied: Sequence,
    /// See [`Place::settled`].
    pub settled: Sequence,
    /// How many writes are not settled.
    pub writes: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// How long the oldest of them has waited, by the one clock that the journal has for all who
    /// append; zero where none waits.
    pub age: Duration,
    /// How many dead letters there are.
    pub dead: u64,
}

/// How much a journal may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalLimits {
    /// Writes that are not settled. Default 2 000 000.
    pub writes: u64,
    /// Bytes of entries that are not settled. Default 256 MiB.
    pub bytes: u64,
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self { writes: 2_000_000, bytes: 256 * 1024 * 1024 }
    }
}

/// A durable, ordered queue of accepted writes. See the [module](self) for what it promises.
///
/// All futures may be dropped at any point; what was sent to an engine happens all the same.
pub trait Journal: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Appends requests, in order, whole or not at all; returns once they are as safe as it says.
    ///
    /// # Errors
    /// `Overloaded` past the limits and `Unavailable` say that nothing was appended;
    /// `OutcomeUnknown` that nobody knows.
    fn append(&self, requests: Vec<Append>) -> BoxFuture<'_, Result<Appended>>;

    /// Hands out the next entries, oldest first, with at most about `writes` writes in all: those
    /// that nobody has claimed, and those whose claimer has not settled them for long. Returns
    /// empty when the deadline passes. A call that is dropped may have claimed.
    ///
    /// # Errors
    /// `Unavailable` when the journal cannot be reached.
    fn claim(&self, writes: usize, wait: Deadline) -> BoxFuture<'_, Result<Vec<Entry>>>;

    /// Removes entries that are done, and sets the dead letters aside in the same step. Entries that
    /// are gone already change nothing.
    ///
    /// # Errors
    /// `Unavailable` and `OutcomeUnknown`; settling again is harmless.
    fn settle(&self, done: Vec<Settled>) -> BoxFuture<'_, Result<Progress>>;

    /// The entries after a place that are not settled, claimed or not, oldest first, with at most
    /// about `writes` writes in all. Everything that was appended before the call and is not among
    /// them, up to the last of a full answer, was settled. Claims nothing.
    ///
    /// # Errors
    /// `Unavailable` when the journal cannot be reached.
    fn peek(&self, after: Sequence, writes: usize) -> BoxFuture<'_, Result<Vec<Entry>>>;

    /// How far it has come. What was appended before the call is counted.
    ///
    /// # Errors
    /// `Unavailable` when the journal cannot be reached.
    fn progress(&self) -> BoxFuture<'_, Result<Progress>>;

    /// Where an earlier life of this journal ended, whose entries this one has: what it gave out up to
    /// there is here, or settled. `None` for one that was lost as a whole.
    ///
    /// # Errors
    /// `Unavailable` when the journal cannot be reached.
    fn end_of(&self, epoch: u64) -> BoxFuture<'_, Result<Option<Sequence>>> {
        let _never_replaced = epoch;
        Box::pin(async { Ok(None) })
    }

    /// Gives out only sequences above `floor` from now on; this instance also when it fails.
    ///
    /// # Errors
    /// `Unavailable` when the journal cannot be reached.
    fn raise(&self, floor: Sequence) -> BoxFuture<'_, Result<()>>;

    /// The dead letters after a sequence, at most so many.
    ///
    /// # Errors
    /// `Unavailable` when the journal cannot be reached.
    fn dead(&self, after: Sequence, limit: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>>>;

    /// Puts dead letters back into the queue, under their old sequences; answers how many there
    /// were.
    ///
    /// # Errors
    /// As [`Journal::append`].
    fn retry(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>>;

    /// Drops dead letters for good; answers how many there were.
    ///
    /// # Errors
    /// `Unavailable` and `OutcomeUnknown`; dropping again is harmless.
    fn bury(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>>;

    /// Health and the durability that appends reach.
    fn inspect(&self) -> BoxFuture<'_, Inspection>;

    /// Ends background work and connections. What is not settled stays in the journal.
    ///
    /// # Errors
    /// What could not be ended in order.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_follow_the_time_and_never_go_back() {
        let time = |millis| Timestamp::from_millisecond(millis).unwrap();
        let first = Sequence::next(Sequence::NONE, time(1_700_000_000_000));
        assert_eq!(first.millis(), 1_700_000_000_000);
        assert_eq!(Sequence::next(first, time(1_700_000_000_000)), first.plus(1));
        assert_eq!(Sequence::next(first, time(5)), first.plus(1), "a clock that was set back");
        assert!(Sequence::next(first, time(1_700_000_000_001)) > first.plus(1 << 20));
        let end = Sequence::at("2109-01-01T00:00:00Z".parse().unwrap());
        assert!(i64::try_from(end.get()).is_ok(), "fits a signed column");
    }
}
