//! What a journal in Redis is told at its start.

use std::fmt;
use std::time::Duration;

use terrace_core::{Error, JournalLimits, Result};

/// The options of a [`RedisJournal`](super::RedisJournal). `Debug` shows no password.
#[derive(Clone)]
pub struct RedisJournalOptions {
    /// As [`RedisCacheOptions::url`](crate::RedisCacheOptions::url).
    pub url: String,
    /// What the journal's keys begin with: 1 to 64 letters, digits or `-_.:/`. Instances that share
    /// a journal have the same. Default: `terrace-journal`.
    pub namespace: String,
    /// How much it may hold.
    pub limits: JournalLimits,
    /// When entries are taken from a claimer that has not settled them. Default: 10 s.
    pub takeover: Duration,
    /// How long one call may take. Default: 3 s.
    pub command_timeout: Duration,
    /// How long connecting may take. Default: 1 s.
    pub connect_timeout: Duration,
}

impl RedisJournalOptions {
    /// The defaults for a server at this address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            namespace: "terrace-journal".into(),
            limits: JournalLimits::default(),
            takeover: Duration::from_secs(10),
            command_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
        if !(1..=64).contains(&self.namespace.len()) || !self.namespace.bytes().all(named) {
            return Err(Error::invalid(
                "the journal's namespace must have 1 to 64 letters, digits or -_.:/",
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for RedisJournalOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisJournalOptions")
            .field("namespace", &self.namespace)
            .field("limits", &self.limits)
            .field("takeover", &self.takeover)
            .finish_non_exhaustive()
    }
}
