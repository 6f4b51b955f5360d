//! The settings: one struct a concern, each field with its unit and default.
//!
//! Defaults < `terrace.toml` < environment < command line. [`sources`] merges them and remembers
//! where each value came from; unknown keys are refused with the nearest known one.

mod redact;
pub mod sources;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use redact::redacted;
pub use sources::{ConfigError, Loaded, Overrides, load};

/// All settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Listening and limits.
    pub server: ServerConfig,
    /// Which engines.
    pub stores: StoresConfig,
    /// The SQL database.
    pub database: DatabaseConfig,
    /// The far and the near cache.
    pub cache: CacheConfig,
    /// The journal of accepted writes.
    pub journal: JournalConfig,
    /// What is logged.
    pub log: LogConfig,
}

/// Listening and limits of the HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// The address to listen on. Default `127.0.0.1`: this machine only.
    pub host: String,
    /// Level N listens on this port + N. Default 8000.
    pub port_base: u16,
    /// Threads that serve requests. Default 0: one fewer than there are cores, at least one.
    pub worker_threads: usize,
    /// A request is answered within this time, in milliseconds. Default 5000.
    pub request_timeout_ms: u64,
    /// A client sends its headers within this time, in milliseconds. Default 10 000.
    pub header_timeout_ms: u64,
    /// A client sends its body within this time, in milliseconds. Default 10 000.
    pub body_timeout_ms: u64,
    /// Requests in flight may take this long after a stop was asked for, in milliseconds.
    /// Default 10 000.
    pub drain_timeout_ms: u64,
    /// At most this many connections at once, a level. Default 10 000.
    pub max_connections: usize,
    /// The largest request body, in bytes. Default 2 MiB.
    pub max_body_bytes: usize,
    /// The largest value, in bytes; never above 1 MiB. Default 1 MiB.
    pub max_value_bytes: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port_base: 8000,
            worker_threads: 0,
            request_timeout_ms: 5_000,
            header_timeout_ms: 10_000,
            body_timeout_ms: 10_000,
            drain_timeout_ms: 10_000,
            max_connections: 10_000,
            max_body_bytes: 2 * 1024 * 1024,
            max_value_bytes: 1024 * 1024,
        }
    }
}

/// Where the data lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// SQLite files and in-process caches under the data directory; nothing to install.
    Embedded,
    /// Private PostgreSQL and Redis servers that Terrace starts on this machine.
    Local,
    /// Your own servers, by URL.
    Servers,
}

impl Mode {
    /// The word in settings and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Local => "local",
            Self::Servers => "servers",
        }
    }
}

/// Which engines, and where they keep their files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoresConfig {
    /// `embedded`, `local` or `servers`. Default `auto`: `servers` when `database.url` is set, else
    /// `embedded`.
    pub mode: String,
    /// Files of the embedded and local modes. Default `.terrace` in the working directory.
    pub data_dir: PathBuf,
}

impl Default for StoresConfig {
    fn default() -> Self {
        Self { mode: "auto".into(), data_dir: ".terrace".into() }
    }
}

/// The SQL database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://user:password@host:port/name`, several hosts separated by commas. Default none.
    pub url: String,
    /// Connections kept open even when idle. Default 2.
    pub pool_min: usize,
    /// At most this many connections. Default 10.
    pub pool_max: usize,
    /// A request waits at most this long for a connection, in milliseconds. Default 2000.
    pub acquire_timeout_ms: u64,
    /// Connecting takes at most this long, in milliseconds. Default 3000.
    pub connect_timeout_ms: u64,
    /// The database gives a statement up after this time, in milliseconds. Default 5000.
    pub statement_timeout_ms: u64,
    /// Level 0 opens at most this many connections at once. Default 32.
    pub per_request_limit: usize,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            pool_min: 2,
            pool_max: 10,
            acquire_timeout_ms: 2_000,
            connect_timeout_ms: 3_000,
            statement_timeout_ms: 5_000,
            per_request_limit: 32,
        }
    }
}

/// The far and the near cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// `redis://:password@host:port/number`. Default none.
    pub url: String,
    /// Prefix of all keys in Redis. Default: made from the database's own name, so that all
    /// instances on one database share entries and others do not.
    pub namespace: String,
    /// A record is cached this long, in seconds, ± 10 %. Default 300.
    pub ttl_seconds: u64,
    /// The knowledge that a key is missing is cached this long, in seconds. Default 30.
    pub missing_ttl_seconds: u64,
    /// Redis answers within this time or is taken for down, in milliseconds. Default 250.
    pub command_timeout_ms: u64,
    /// The far cache of the embedded mode holds this many bytes. Default 64 MiB.
    pub embedded_max_bytes: u64,
    /// The near cache holds this many bytes. Default 64 MiB.
    pub near_max_bytes: u64,
    /// The near cache holds at most this many records. Default 1 000 000.
    pub near_max_records: u64,
    /// A record stays in the near cache this long, in seconds. Default 30.
    pub near_ttl_seconds: u64,
    /// The near cache is not trusted after this much silence of its channel, in milliseconds.
    /// Default 2000.
    pub near_heartbeat_ms: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            namespace: String::new(),
            ttl_seconds: 300,
            missing_ttl_seconds: 30,
            command_timeout_ms: 250,
            embedded_max_bytes: 64 * 1024 * 1024,
            near_max_bytes: 64 * 1024 * 1024,
            near_max_records: 1_000_000,
            near_ttl_seconds: 30,
            near_heartbeat_ms: 2_000,
        }
    }
}

/// The journal of level 6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    /// `sqlite`, `redis`, `nats` or `auto`. Default `auto`: what the URL names; without one a file in
    /// the embedded mode, else Redis.
    pub engine: String,
    /// `redis://:password@host:port`, set up with `appendfsync always`, or
    /// `nats://user:password@host:port` with JetStream. Default: in the local mode a
    /// private server of its own; with servers that of the cache, which rarely is as safe.
    pub url: String,
    /// Prefix of all its keys. Default: made from the database's own name.
    pub namespace: String,
    /// Servers of a NATS cluster that keep a copy, when its streams are made. Default 1.
    pub replicas: usize,
    /// `inside`, or `apart` when `terrace flush` does it. Default `inside`.
    pub flusher: String,
    /// At most this many writes wait. Default 2 000 000.
    pub max_writes: u64,
    /// At most this many bytes wait. Default 256 MiB.
    pub max_bytes: u64,
    /// Nothing is accepted while a write has waited longer than this, in seconds. Default 900.
    pub max_age_seconds: u64,
    /// Entries are taken from a flusher that has not settled them for this long, in seconds.
    /// Default 30.
    pub takeover_seconds: u64,
    /// Redis answers within this time, in milliseconds. Default 3000.
    pub command_timeout_ms: u64,
    /// A request waits at most this long for earlier writes to be applied, in milliseconds.
    /// Default 2000.
    pub patience_ms: u64,
    /// A stop lets the flusher work for this long, in milliseconds. Default 5000.
    pub drain_ms: u64,
    /// Batches that are applied at once. Default 2.
    pub partitions: usize,
    /// Writes of one batch. Default 5000.
    pub max_batch: usize,
    /// A small batch waits this long for more, in milliseconds. Default 5.
    pub linger_ms: u64,
    /// A write that the database refuses is tried this often. Default 5.
    pub tries: u32,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            engine: "auto".into(),
            url: String::new(),
            namespace: String::new(),
            replicas: 1,
            flusher: "inside".into(),
            max_writes: 2_000_000,
            max_bytes: 256 * 1024 * 1024,
            max_age_seconds: 900,
            takeover_seconds: 30,
            command_timeout_ms: 3_000,
            patience_ms: 2_000,
            drain_ms: 5_000,
            partitions: 2,
            max_batch: 5_000,
            linger_ms: 5,
            tries: 5,
        }
    }
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, or a filter such as `info,terrace_stores=debug`.
    /// Default `info`.
    pub level: String,
    /// `text` or `json`. Default `text`.
    pub format: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: "text".into() }
    }
}

impl Config {
    /// Which engines these settings ask for.
    ///
    /// # Errors
    /// When the word is none of the known ones.
    pub fn mode(&self) -> Result<Mode, ConfigError> {
        match self.stores.mode.as_str() {
            "embedded" => Ok(Mode::Embedded),
            "local" => Ok(Mode::Local),
            "servers" => Ok(Mode::Servers),
            "auto" if self.database.url.is_empty() => Ok(Mode::Embedded),
            "auto" => Ok(Mode::Servers),
            other => Err(ConfigError::new(format!(
                "stores.mode is {other:?}; it must be embedded, local, servers or auto"
            ))),
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first setting that cannot work, and what would.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.mode()?;
        let positive = [
            ("server.request_timeout_ms", self.server.request_timeout_ms),
            ("server.header_timeout_ms", self.server.header_timeout_ms),
            ("server.body_timeout_ms", self.server.body_timeout_ms),
            ("server.max_connections", self.server.max_connections as u64),
            ("server.max_body_bytes", self.server.max_body_bytes as u64),
            ("database.pool_max", self.database.pool_max as u64),
            ("database.acquire_timeout_ms", self.database.acquire_timeout_ms),
            ("database.connect_timeout_ms", self.database.connect_timeout_ms),
            ("database.statement_timeout_ms", self.database.statement_timeout_ms),
            ("database.per_request_limit", self.database.per_request_limit as u64),
            ("cache.ttl_seconds", self.cache.ttl_seconds),
            ("cache.missing_ttl_seconds", self.cache.missing_ttl_seconds),
            ("cache.command_timeout_ms", self.cache.command_timeout_ms),
            ("cache.near_ttl_seconds", self.cache.near_ttl_seconds),
            ("cache.near_heartbeat_ms", self.cache.near_heartbeat_ms),
            ("journal.max_writes", self.journal.max_writes),
            ("journal.max_bytes", self.journal.max_bytes),
            ("journal.max_age_seconds", self.journal.max_age_seconds),
            ("journal.takeover_seconds", self.journal.takeover_seconds),
            ("journal.command_timeout_ms", self.journal.command_timeout_ms),
            ("journal.patience_ms", self.journal.patience_ms),
            ("journal.partitions", self.journal.partitions as u64),
            ("journal.max_batch", self.journal.max_batch as u64),
            ("journal.tries", u64::from(self.journal.tries)),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::new(format!("{name} is 0; it must be at least 1")));
        }
        if self.database.pool_min > self.database.pool_max {
            return Err(ConfigError::new(format!(
                "database.pool_min is {} and database.pool_max is {}; the minimum must not be above \
                 the maximum",
                self.database.pool_min, self.database.pool_max
            )));
        }
        if self.server.max_value_bytes > terrace_core::Value::MAX_BYTES {
            return Err(ConfigError::new(
                "server.max_value_bytes is above 1 MiB, the most there is",
            ));
        }
        if self.server.port_base > u16::MAX - 10 {
            return Err(ConfigError::new(
                "server.port_base leaves no room for level 10; take less",
            ));
        }
        if !["auto", "sqlite", "redis", "nats"].contains(&self.journal.engine.as_str()) {
            return Err(ConfigError::new("journal.engine must be auto, sqlite, redis or nats"));
        }
        if !["inside", "apart"].contains(&self.journal.flusher.as_str()) {
            return Err(ConfigError::new("journal.flusher must be inside or apart"));
        }
        if !["text", "json"].contains(&self.log.format.as_str()) {
            return Err(ConfigError::new("log.format must be text or json"));
        }
        Ok(())
    }
}

/// A duration of the settings.
pub fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// A duration of the settings.
pub fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}
