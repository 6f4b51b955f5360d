//! The port of caches that cannot be filled with something old.
//!
//! # The race that this port closes
//! A reader misses and loads version 1; a writer commits version 2 and empties the cache; the reader
//! now stores version 1, and everybody reads it until it expires. `get`, `set` and `delete` cannot
//! prevent that. This port can, by two rules that every implementation keeps atomically:
//!
//! 1. A miss answers a [`Lease`], and [`Cache::fill`] stores nothing under a lease from before the
//!    cache lost its memory (a flush, a restart, a [`Cache::clear`]) or, where the cache keeps count
//!    of them, from before the latest invalidation of the key. (Leases: Nishtala et al., "Scaling
//!    Memcache at Facebook", NSDI 2013.)
//! 2. Entries are ordered by the record's version. [`Cache::invalidate`] leaves a tombstone with the
//!    new version, which outlives the slowest load, and a fill older than what is there is refused.
//!
//! Missing keys are cached under the same rules, with the version of their deletion.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::{Budget, Inspection, Key, Proof, Record, Result, Version};

/// A cache of records whose fills are ordered by version. See the [module](self) for the rules.
///
/// Any call may fail when the cache cannot be reached; no answer of a cache is ever needed to be
/// right, only to be fast. A failed `invalidate` is the exception: the caller must not trust the
/// cache for those keys until it was repeated. All futures may be dropped at any point; a dropped
/// `invalidate` counts as failed.
pub trait Cache: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Looks keys up; one answer a key, in the order asked. What does not fit into the budget is not
    /// loaded: it is no hit.
    fn get<'a>(&'a self, keys: &'a [Key], budget: Budget) -> BoxFuture<'a, Result<Vec<Lookup>>>;

    /// The lease that a miss of this key would answer now, for whoever cannot use what was hit; `None`
    /// when the cache cannot be reached.
    fn lease(&self, key: &Key) -> Option<Lease>;

    /// Offers what was loaded after a miss. Whether it was stored is not told: an offer that came
    /// too late is no failure.
    fn fill(&self, offers: Vec<Offer>) -> BoxFuture<'_, Result<()>>;

    /// Says that these keys have been written, at these versions; returns once no later `get` can
    /// hit anything older. [`Version::UNKNOWN`] keeps every fill out until the tombstone expires.
    fn invalidate<'a>(&'a self, written: &'a [(Key, Version)]) -> BoxFuture<'a, Result<()>>;

    /// Forgets everything, for every instance that shares the cache.
    fn clear(&self) -> BoxFuture<'_, Result<()>>;

    /// How often it may have been out of reach; grows with every loss of a connection.
    fn interruptions(&self) -> u64;

    /// For how long its memory has been whole: every write that was told to it since has left a trace,
    /// while that lasts, or an entry as new. Of a write that was told before, it may know nothing.
    fn whole_for(&self) -> Duration;

    /// Health, size, hits and misses.
    fn inspect(&self) -> BoxFuture<'_, Inspection>;

    /// Ends background work and connections.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// What a cache holds of one key: the record, or the knowledge that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The record; `None` for a key known to be missing.
    pub record: Option<Record>,
    /// See [`Read::version`](crate::Read::version).
    pub version: Version,
    /// What its load proved, and nothing that a client asked for.
    pub proof: Proof,
    /// How long ago it was loaded from a database, when it was put in or taken out.
    pub age: Duration,
}

impl Entry {
    /// The bytes of its value.
    pub fn value_bytes(&self) -> usize {
        self.record.as_ref().map_or(0, |record| record.value.as_str().len())
    }
}

/// The answer of [`Cache::get`] for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is there.
    Hit(Entry),
    /// It is not; whoever loads it may offer it under this lease.
    Miss(Lease),
    /// It is not, and it was written a moment ago: as [`Lookup::Miss`], but who loads it from a
    /// replica may find it older than this. A cache that has lost the trace of a write answers `Miss`;
    /// see [`Cache::whole_for`].
    Written {
        /// As of a miss.
        lease: Lease,
        /// The version that was written; [`Version::UNKNOWN`] when nobody knows.
        version: Version,
    },
}

/// The right to fill one key, taken before the load. Opaque; only its cache can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(pub u64);

/// Something loaded after a miss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which key.
    pub key: Key,
    /// The lease of the miss.
    pub lease: Lease,
    /// What was loaded.
    pub entry: Entry,
}

/// The invalidations that all instances which share a cache send each other.
///
/// A transport, which may lose its connection; the receiver watches the numbers and the silence and
/// decides what it can still trust.
pub trait Invalidations: fmt::Debug + Send + Sync + 'static {
    /// The messages from now on. The stream never ends by itself: it reconnects and says so.
    fn subscribe(&self) -> BoxStream<'static, Notice>;
}

/// One message of [`Invalidations`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The subscription stands. What was sent before is lost; from now on nothing is, as far as the
    /// numbers are without a gap.
    Connected,
    /// These keys have been written. Numbers of one connection grow by one.
    Written {
        /// The number of this message.
        number: u64,
        /// The keys and their new versions.
        keys: Vec<(Key, Version)>,
    },
    /// Nothing new: the number of the latest message.
    Heartbeat {
        /// The number of the latest message.
        number: u64,
    },
    /// Everything was forgotten; the number is as in [`Notice::Written`].
    Cleared {
        /// The number of this message.
        number: u64,
    },
    /// The connection is gone; nothing will come until the next [`Notice::Connected`].
    Disconnected,
}
