//! What a Redis cache is told at its start.

use std::fmt;
use std::time::Duration;

use terrace_core::{Error, Result};

/// The options of a [`RedisCache`](super::RedisCache). `Debug` shows no password.
#[derive(Clone)]
pub struct RedisCacheOptions {
    /// `redis://[user][:password@]host[:port][/database]`, or `rediss://` for TLS, with
    /// `?ca=FILE&cert=FILE&key=FILE`; `redis+sentinel://host:port,host:port/name` where sentinels name the
    /// server, `redis+cluster://host:port,host:port` where the nodes of a cluster do. Default: `redis://127.0.0.1:6379`.
    pub url: String,
    /// What the cache's keys begin with: 1 to 64 letters, digits or `-_.:/`. Instances that share a
    /// cache have the same. Default: `terrace`.
    pub namespace: String,
    /// How long a record is kept, counted from its load. Default: 300 s.
    pub ttl: Duration,
    /// How long the knowledge is kept that a key has no record. Default: 30 s.
    pub missing_ttl: Duration,
    /// By which share of it a time to live is made longer or shorter at random, so that entries
    /// filled together do not expire together: 0.0 to 0.9. Default: 0.1 (±10 %).
    pub ttl_jitter: f64,
    /// How long a tombstone keeps older fills out. A fill may be on its way for a sixth of it, so
    /// the slowest load from the database must take less than the other five. Default: 60 s.
    pub tombstone_ttl: Duration,
    /// How long one call may take. A call that takes longer ends the connection, so that later
    /// calls fail at once instead of waiting, too. Default: 200 ms.
    pub command_timeout: Duration,
    /// How long connecting and checking may take. Default: 1 s.
    pub connect_timeout: Duration,
    /// The wait after a failed connection; it doubles at each further failure. Default: 50 ms.
    pub backoff: Duration,
    /// The longest wait between connections. Default: 1 s.
    pub backoff_limit: Duration,
    /// Whether invalidations are published for the near caches of other instances. Default: false.
    pub announce: bool,
    /// How often an instance writes to see whether the server takes writes; while it does not, the
    /// cache is not used. An instance that announces or has subscribers also publishes the number
    /// of the latest message then, so that silence is noticed: a subscription that hears nothing
    /// for four of them connects anew. Default: 500 ms.
    pub heartbeat: Duration,
    /// Which rule to break, for tests that must see their check fail.
    #[cfg(feature = "mutants")]
    #[doc(hidden)]
    pub mutant: Option<super::mutants::Mutant>,
}

impl Default for RedisCacheOptions {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".into(),
            namespace: "terrace".into(),
            ttl: Duration::from_secs(300),
            missing_ttl: Duration::from_secs(30),
            ttl_jitter: 0.1,
            tombstone_ttl: Duration::from_secs(60),
            command_timeout: Duration::from_millis(200),
            connect_timeout: Duration::from_secs(1),
            backoff: Duration::from_millis(50),
            backoff_limit: Duration::from_secs(1),
            announce: false,
            heartbeat: Duration::from_millis(500),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

impl RedisCacheOptions {
    /// The defaults for a server at this address.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    pub(super) fn check(&self) -> Result<()> {
        let times = [
            self.ttl,
            self.missing_ttl,
            self.tombstone_ttl,
            self.command_timeout,
            self.connect_timeout,
            self.backoff,
            self.backoff_limit,
            self.heartbeat,
        ];
        if times.iter().any(|time| *time < Duration::from_millis(1)) {
            return Err(Error::invalid("the times of the Redis cache must be at least 1 ms"));
        }
        if !(0.0..=0.9).contains(&self.ttl_jitter) {
            return Err(Error::invalid("the jitter of the Redis cache must be 0.0 to 0.9"));
        }
        Ok(())
    }
}

impl fmt::Debug for RedisCacheOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCacheOptions")
            .field("namespace", &self.namespace)
            .field("ttl", &self.ttl)
            .field("missing_ttl", &self.missing_ttl)
            .field("tombstone_ttl", &self.tombstone_ttl)
            .field("command_timeout", &self.command_timeout)
            .field("announce", &self.announce)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_shows_the_password() {
        let options = RedisCacheOptions::new("redis://user:hush@example.org:7000/2");
        assert!(!format!("{options:?}").contains("hush"));
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let broken = RedisCacheOptions { ttl: Duration::ZERO, ..RedisCacheOptions::default() };
        assert!(broken.check().is_err());
        let broken = RedisCacheOptions { ttl_jitter: 1.5, ..RedisCacheOptions::default() };
        assert!(broken.check().is_err());
        assert!(RedisCacheOptions::default().check().is_ok());
    }
}
