//! What a store keeps: values under keys, each with a version and two times.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Error, Key, Result};

/// The content of a record: UTF-8 text without NUL, 0 bytes to 1 MiB. Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Value(Arc<str>);

impl Value {
    /// The most bytes that a value may have, unless the configuration says less.
    pub const MAX_BYTES: usize = 1024 * 1024;

    /// Checks a value.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when it is longer than
    /// [`Value::MAX_BYTES`] or holds a NUL character, which PostgreSQL's `text` cannot keep.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        if text.len() > Self::MAX_BYTES {
            return Err(Error::invalid("value is too large; send at most 1 MiB of UTF-8"));
        }
        if text.as_bytes().contains(&0) {
            return Err(Error::invalid("value holds a NUL character; remove it"));
        }
        Ok(Self(Arc::from(text)))
    }

    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Value {
    /// Shows the length only: values do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

/// The place of a record in the order of its database's writes.
///
/// Drawn by the database from one sequence while the row is locked, so for one key it grows strictly
/// for ever: across delete and re-create, and when somebody deletes rows by hand. ETags, cache fills,
/// projections and replication stand on it. [`Version::NONE`] stands for "never written". In a database
/// that is one of several regions the sequence is a clock, and a version says of which region it is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Version(pub(crate) u64);

impl Version {
    /// The version of a key that was never written.
    pub const NONE: Self = Self(0);
    /// Newer than every version a database gives; marks a write whose outcome is unknown.
    pub const UNKNOWN: Self = Self(u64::MAX);

    /// What every database draws stays below this, so that it is exact as a number of JSON.
    const END: i64 = 1 << 53;

    /// The version in a row; `None` for a number that no database draws and only a person can have
    /// set.
    pub const fn of_row(number: i64) -> Option<Self> {
        if 0 < number && number < Self::END { Some(Self(number.unsigned_abs())) } else { None }
    }

    /// A version as the database counted it.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One record as it stood at its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub key: Key,
    /// Its content.
    pub value: Value,
    /// Its place in the order of writes.
    pub version: Version,
    /// When the key came into being; survives updates, starts anew after a delete. Microseconds, UTC.
    pub created_at: Timestamp,
    /// When this version was written. Microseconds, UTC.
    pub updated_at: Timestamp,
}
