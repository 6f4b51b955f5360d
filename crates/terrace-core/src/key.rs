//! The name of a record.

use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

/// The name of a record: 1 to 255 characters of UTF-8 without NUL.
///
/// A key may hold spaces, slashes and any script. Keys order by their bytes, which for UTF-8 is the
/// order of code points; every engine is told to use that order. Cloning is a reference count.
///
/// ```
/// # use terrace_core::Key;
/// let key = Key::new("user:123")?;
/// assert_eq!(key.as_str(), "user:123");
/// assert!(Key::new("").is_err());
/// assert!(Key::new("nul\0").is_err());
/// assert!(Key::new("é".repeat(255)).is_ok());
/// assert!(Key::new("é".repeat(256)).is_err());
/// # Ok::<(), terrace_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The most characters (not bytes) that a key may have.
    pub const MAX_CHARS: usize = 255;

    /// Checks a key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when it is empty, too long or
    /// holds a NUL character.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        if text.is_empty() {
            return Err(Error::invalid("key is empty; send 1 to 255 characters"));
        }
        // The byte length decides for nearly every key; characters are counted only near the limit.
        if text.len() > Self::MAX_CHARS && text.chars().count() > Self::MAX_CHARS {
            return Err(Error::invalid("key is too long; send at most 255 characters"));
        }
        if text.as_bytes().contains(&0) {
            return Err(Error::invalid("key holds a NUL character; remove it"));
        }
        Ok(Self(Arc::from(text)))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}
