//! What is asked of a store, and what it answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Key, LogPosition, Place, Proof, Record, RegionName, Result, Slot, Token, Value, Version,
};

/// What a store knows of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The record, if there is one.
    pub record: Option<Record>,
    /// The record's version, or for a missing key the version of its deletion, as far as the store
    /// remembers it, else [`Version::NONE`]. Cache fills are ordered by it.
    pub version: Version,
    /// Where the answer came from.
    pub origin: Origin,
    /// How long ago it was loaded from a database; zero when it comes from one.
    pub age: Duration,
    /// What the client has seen with this answer.
    pub token: Token,
    /// What it proves to a cache; nothing where it may not be kept.
    pub proof: Option<Proof>,
}

/// Where an answer came from. The HTTP edge makes words of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// What kind of place.
    pub tier: Tier,
    /// Which read replica, counted from 1; `None` for the database that takes the writes.
    pub replica: Option<u16>,
    /// Which shard, counted from 0.
    pub shard: Option<u16>,
    /// Which region, where there are several.
    pub region: Option<RegionName>,
}

/// A kind of place that answers; what comes later is further from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The cache in this process.
    Near,
    /// The shared cache.
    Far,
    /// The journal of writes that are accepted and not yet applied.
    Journal,
    /// The read side of separated commands and queries.
    ReadModel,
    /// A database.
    Database,
}

impl Origin {
    /// The cache in this process.
    pub const NEAR: Self = Self::of(Tier::Near);
    /// The shared cache.
    pub const FAR: Self = Self::of(Tier::Far);
    /// The journal.
    pub const JOURNAL: Self = Self::of(Tier::Journal);
    /// The read side.
    pub const READ_MODEL: Self = Self::of(Tier::ReadModel);
    /// The database that takes the writes.
    pub const PRIMARY: Self = Self::of(Tier::Database);

    const fn of(tier: Tier) -> Self {
        Self { tier, replica: None, shard: None, region: None }
    }

    /// A read replica, counted from 1.
    #[must_use]
    pub const fn replica(number: u16) -> Self {
        Self { replica: Some(number), ..Self::PRIMARY }
    }

    /// The same on a shard, counted from 0.
    #[must_use]
    pub const fn on_shard(self, number: u16) -> Self {
        Self { shard: Some(number), ..self }
    }

    /// The same in a region.
    #[must_use]
    pub const fn in_region(self, name: RegionName) -> Self {
        Self { region: Some(name), ..self }
    }

    /// Whether a cache answered.
    pub const fn is_cache(self) -> bool {
        matches!(self.tier, Tier::Near | Tier::Far)
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which key.
    pub key: Key,
    /// What to do with it.
    pub change: Change,
    /// What must be so, else nothing is done.
    pub precondition: Precondition,
}

impl Write {
    /// Sets a value.
    pub fn put(key: Key, value: Value) -> Self {
        Self { key, change: Change::Put(value), precondition: Precondition::None }
    }

    /// Removes the record.
    pub fn delete(key: Key) -> Self {
        Self { key, change: Change::Delete, precondition: Precondition::None }
    }

    /// The bytes of its key and value.
    pub fn bytes(&self) -> usize {
        let value = match &self.change {
            Change::Put(value) => value.as_str().len(),
            Change::Delete => 0,
        };
        self.key.as_str().len() + value
    }

    /// The same change under a precondition.
    #[must_use]
    pub fn when(mut self, precondition: Precondition) -> Self {
        self.precondition = precondition;
        self
    }
}

/// What a write does with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets the value, whether or not there is a record.
    Put(Value),
    /// Removes the record, if there is one.
    Delete,
}

/// What must be so for a write to be applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// There is no record (`If-None-Match: *`).
    Absent,
    /// The record has this version (`If-Match`).
    Version(Version),
    /// No write of the journal at this place or a later one was applied to the key; applying it
    /// notes this place in the row, a delete in the row that it leaves even where there was none.
    /// Failed means that it was applied already, or that a later one was.
    After(Place),
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// There was no record; now there is.
    Created,
    /// There was a record; now it has the new value.
    Replaced,
    /// There was a record; now there is none.
    Deleted,
    /// A delete found no record.
    Absent,
    /// The precondition did not hold; nothing was changed.
    PreconditionFailed,
    /// A journal has it; it is applied later, in order, and has no version yet.
    Queued,
    /// The store of this key could not be reached while others of the batch were; nothing was
    /// changed.
    Unavailable,
    /// Nobody knows whether the store of this key applied it, while others of the batch did.
    Unknown,
}

impl Outcome {
    /// Whether the write has changed something.
    pub fn is_applied(self) -> bool {
        matches!(self, Self::Created | Self::Replaced | Self::Deleted)
    }
}

/// How safe an acknowledged write is. Later variants promise more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// A server has it in memory.
    Accepted,
    /// It is on disk in a journal, to be applied.
    Journaled,
    /// It is applied and on the database's disk: survives `kill -9` and power loss.
    Committed,
    /// It is on the disks of several machines.
    Replicated,
}

impl Durability {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Journaled => "journaled",
            Self::Committed => "committed",
            Self::Replicated => "replicated",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a write answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// What it came to.
    pub outcome: Outcome,
    /// The version written; of the deletion for [`Outcome::Deleted`]; the current one, or
    /// [`Version::NONE`] without a record, for [`Outcome::Absent`] and
    /// [`Outcome::PreconditionFailed`].
    pub version: Version,
    /// How safe it is now.
    pub durability: Durability,
    /// Proof of having written it.
    pub token: Token,
    /// What answered.
    pub origin: Origin,
    /// Its place in the change log, where the database keeps one.
    pub event: Option<LogPosition>,
    /// Whether the caches were filled with it before the answer.
    pub cached: bool,
}

/// Names one request of a client, so that repeating it is safe.
///
/// The first result is stored in the transaction of the write and answered again for
/// [`Idempotency::KEPT_FOR`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Idempotency {
    key: Arc<str>,
    fingerprint: [u8; 32],
}

impl Idempotency {
    /// How long a result is kept.
    pub const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

    /// The client's key, and a digest of the request that tells another request under the same key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) unless the key has 1 to 255
    /// printable ASCII characters.
    pub fn new(key: &str, fingerprint: [u8; 32]) -> Result<Self> {
        if key.is_empty() || key.len() > 255 || !key.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            return Err(Error::invalid(
                "Idempotency-Key must have 1 to 255 printable ASCII characters",
            ));
        }
        Ok(Self { key: Arc::from(key), fingerprint })
    }

    /// The same request as far as it concerns one part of the keys, which keeps a result of its own:
    /// a slot takes its results along when it moves. The name sorts by slot.
    #[must_use]
    pub fn part(&self, slot: Slot) -> Self {
        let key = format!("{:05}:{}", slot.get(), self.key).into();
        Self { key, fingerprint: self.fingerprint }
    }

    /// The request's claim of its own key, which has a slot as records have. No client's key has a
    /// control character, so no part has this name.
    #[must_use]
    pub fn claim(&self, slot: Slot) -> Self {
        let key = format!("{:05}:\n{}", slot.get(), self.key).into();
        Self { key, fingerprint: self.fingerprint }
    }

    /// The same request as far as it concerns keys of one home, or of none: each part keeps a result of
    /// its own, under which other regions know it, too. No client's key has a control character.
    #[must_use]
    pub fn in_region(&self, home: Option<RegionName>) -> Self {
        let home = home.map(|home| home.to_string()).unwrap_or_default();
        Self { key: format!("\n{home}:{}", self.key).into(), fingerprint: self.fingerprint }
    }

    /// The same request of one of several clients: what one has used under a key is nothing to another.
    #[must_use]
    pub fn of_client(&self, client: &str) -> Self {
        let digest = Sha256::digest(format!("{client}\n{}", self.key).as_bytes());
        let key =
            digest.iter().fold("client:".to_owned(), |key, byte| key + &format!("{byte:02x}"));
        Self { key: key.into(), fingerprint: self.fingerprint }
    }

    /// The client's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The digest of the request.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The error for another request under a key that was used.
    pub fn reused() -> Error {
        Error::invalid(
            "Idempotency-Key was used for another request; send a new key with a new request",
        )
    }
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Idempotency").field(&self.key).finish()
    }
}

/// Which records to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Only keys that begin with this; empty for all.
    pub prefix: String,
    /// Only keys after this one, in byte order.
    pub after: Option<Key>,
    /// At most this many records, 1 to [`Scan::MAX_LIMIT`].
    pub limit: usize,
}

impl Scan {
    /// The most records of one page.
    pub const MAX_LIMIT: usize = 1000;

    /// The first page of all records under a prefix.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), after: None, limit: 100 }
    }
}

/// One page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The records, by key in byte order.
    pub records: Vec<Record>,
    /// The cursor of the next page; `None` when this page reached the end.
    pub next: Option<Key>,
    /// Where it came from.
    pub origin: Origin,
    /// How old it may be; zero when it comes from the database that takes the writes.
    pub age: Duration,
    /// What the client has seen with this answer.
    pub token: Token,
}

impl Page {
    /// A page that has so many bytes of values ends, though there are more records.
    pub const MAX_BYTES: usize = 16 * 1024 * 1024;

    /// The page of up to `limit` records, and [`Page::MAX_BYTES`], out of one more than that, which
    /// shows whether there is another page.
    pub fn cut(mut records: Vec<Record>, limit: usize, origin: Origin) -> Self {
        let mut bytes = 0;
        let fitting = records.iter().take(limit).take_while(|record| {
            let fits = bytes < Self::MAX_BYTES;
            bytes += record.value.as_str().len();
            fits
        });
        let fitting = fitting.count();
        let more = records.len() > fitting;
        records.truncate(fitting);
        let next = if more { records.last().map(|record| record.key.clone()) } else { None };
        Self { records, next, origin, age: Duration::ZERO, token: Token::default() }
    }

    /// The same, with what a client has seen that gets it.
    #[must_use]
    pub fn proving(mut self, token: Token) -> Self {
        self.token = token;
        self
    }
}
