//! Regions' numbers and names.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result, Version};

/// The number of a region, 1 to 63. Versions carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(u8);

impl RegionId {
    /// The highest number, and how many regions there can be.
    pub const MAX: u8 = Version::REGIONS;

    /// The region with this number.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) unless it is 1 to 63.
    pub fn new(number: u8) -> Result<Self> {
        match Self::known(number) {
            Some(id) => Ok(id),
            None => Err(Error::invalid("a region has a number from 1 to 63")),
        }
    }

    pub(super) const fn known(number: u8) -> Option<Self> {
        if 0 < number && number <= Self::MAX { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a region: 1 to 20 of `a-z`, `0-9` and `-`, a letter first.
///
/// ```
/// # use terrace_core::RegionName;
/// let name: RegionName = "eu-west".parse()?;
/// assert_eq!((name.as_str(), name.to_string().as_str()), ("eu-west", "eu-west"));
/// assert!("EU".parse::<RegionName>().is_err() && "".parse::<RegionName>().is_err());
/// # Ok::<(), terrace_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionName {
    // In place, so that what carries it is copied without a count of references.
    text: [u8; Self::MAX_BYTES],
    bytes: u8,
}

impl RegionName {
    /// The most bytes of a name.
    pub const MAX_BYTES: usize = 20;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let text = &self.text[..usize::from(self.bytes)];
        // All of it is ASCII.
        std::str::from_utf8(text).unwrap_or_default()
    }
}

impl FromStr for RegionName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let bytes = u8::try_from(name.len()).unwrap_or(u8::MAX);
        let good = usize::from(bytes) <= Self::MAX_BYTES
            && name.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
            && name.bytes().all(fits);
        if !good {
            return Err(Error::invalid(
                "a region's name has 1 to 20 of a-z, 0-9 and -, and begins with a letter",
            )
            .with("name", name.to_owned()));
        }
        let mut text = [0; Self::MAX_BYTES];
        text[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self { text, bytes })
    }
}

impl fmt::Debug for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
