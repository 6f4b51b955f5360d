//! The settings: one struct a concern, each field with its unit and default.
//!
//! Defaults < `terrace.toml` < environment < command line. [`sources`] merges them and remembers
//! where each value came from; unknown keys are refused with the nearest known one.

mod bounds;
mod edge;
mod guards;
mod levels;
mod live;
mod redact;
mod regions;
mod service_links;
pub mod sources;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use edge::EdgeConfig;
pub use guards::{AuthConfig, JwtConfig, LimitsConfig, MetricsConfig, TracesConfig};
pub use levels::{
    CqrsConfig, EnterpriseConfig, JournalConfig, PolyglotConfig, ReplicasConfig, ShardsConfig,
};
pub use live::{LiveConfig, LivePlace};
pub use redact::redacted;
pub use regions::{HomeSettings, RegionSettings, RegionsConfig};
pub use sources::{ConfigError, Loaded, Overrides, load};
pub use tls::TlsConfig;

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
    /// The shards of level 4.
    pub shards: ShardsConfig,
    /// The far and the near cache.
    pub cache: CacheConfig,
    /// Level 7: commands and queries.
    pub cqrs: CqrsConfig,
    /// Level 8: transactions and documents.
    pub polyglot: PolyglotConfig,
    /// The read replicas of level 3.
    pub replicas: ReplicasConfig,
    /// The journal of accepted writes.
    pub journal: JournalConfig,
    /// The regions of level 9.
    pub regions: RegionsConfig,
    /// Level 10.
    pub enterprise: EnterpriseConfig,
    /// Keys of clients.
    pub auth: AuthConfig,
    /// Tokens of an identity provider, beside keys.
    pub jwt: JwtConfig,
    /// What clients may ask for.
    pub limits: LimitsConfig,
    /// Caches in front.
    pub edge: EdgeConfig,
    /// What is measured of requests.
    pub metrics: MetricsConfig,
    /// Spans of requests.
    pub traces: TracesConfig,
    /// The certificate of this server.
    pub tls: TlsConfig,
    /// The page that shows all levels as they work.
    pub live: LiveConfig,
    /// How far the private servers of the local mode are.
    pub distance: DistanceConfig,
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
    /// Requests are served for this long after SIGTERM, while `/readyz` answers 503, in milliseconds.
    /// Default 0: 5000 at level 10, and no time elsewhere.
    pub drain_delay_ms: u64,
    /// Requests in flight may take this long after a stop was asked for, in milliseconds.
    /// Default 10 000.
    pub drain_timeout_ms: u64,
    /// At most this many connections at once, a level. Default 10 000.
    pub max_connections: usize,
    /// The largest request body, in bytes. Default 2 MiB.
    pub max_body_bytes: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port_base: 8000,
            worker_threads: 0,
            request_timeout_ms: 5_000,
            drain_delay_ms: 0,
            drain_timeout_ms: 10_000,
            max_connections: 10_000,
            max_body_bytes: 2 * 1024 * 1024,
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
    /// What all names on Redis and NATS begin with; the database's own name follows, so that all
    /// instances on one database share them and others do not. Default `terrace`.
    pub namespace: String,
}

impl Default for StoresConfig {
    fn default() -> Self {
        Self { mode: "auto".into(), data_dir: ".terrace".into(), namespace: "terrace".into() }
    }
}

/// The SQL database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://user:password@host:port/name`, several hosts separated by commas. Default none.
    pub url: String,
    /// The schema of the tables, made when it is missing: lower case letters, digits and `_`. With
    /// several levels in one database it is what the names of their schemas begin with. Default
    /// `public` (`terrace` for those of several levels).
    pub schema: String,
    /// Connections kept open even when idle. Default 2.
    pub pool_min: usize,
    /// At most this many connections. Default 10.
    pub pool_max: usize,
    /// A request waits at most this long for a connection, in milliseconds. Default 2000.
    pub acquire_timeout_ms: u64,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            schema: "public".into(),
            pool_min: 2,
            pool_max: 10,
            acquire_timeout_ms: 2_000,
        }
    }
}

/// The far and the near cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Whether levels 3 and 4 have a far cache. Default `true`. Levels that are about their cache
    /// have one in any case.
    pub enabled: bool,
    /// `redis://:password@host:port/number` or `rediss://...`. Default none.
    pub url: String,
    /// A record is cached this long, in seconds, ± 10 %. Default 300.
    pub ttl_seconds: u64,
    /// Redis answers within this time or is taken for down, in milliseconds. Default 250.
    pub command_timeout_ms: u64,
    /// The near cache holds this many bytes. Default 64 MiB.
    pub near_max_bytes: u64,
    /// The near cache holds at most this many records. Default 1 000 000.
    pub near_max_records: u64,
    /// A record stays in the near cache this long, in seconds. Default 30.
    pub near_ttl_seconds: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            url: String::new(),
            ttl_seconds: 300,
            command_timeout_ms: 250,
            near_max_bytes: 64 * 1024 * 1024,
            near_max_records: 1_000_000,
            near_ttl_seconds: 30,
        }
    }
}

/// Round trips that the local mode puts between this process and its private servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistanceConfig {
    /// To a database, in microseconds. Default 0: it is on this machine.
    pub database_us: u64,
    /// To a cache or a broker, in microseconds. Default 0.
    pub cache_us: u64,
    /// Between two regions, in milliseconds: `us-east:eu-west=80`. Default none: they are one place.
    /// `--wan` sets three regions of the world apart.
    pub regions: Vec<String>,
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
    /// Whether what each section says fits together.
    fn check_sections(&self) -> Result<(), ConfigError> {
        self.regions.check(&self.distance)?;
        self.tls.check()?;
        self.edge.check()?;
        self.limits.windows()?;
        self.traces.check()?;
        self.live.place(true, self.server.port_base)?;
        tls::names_a_file("jwt.jwks", &self.jwt.jwks)
    }

    /// Which engines these settings ask for.
    ///
    /// # Errors
    /// When the word is none of the known ones.
    pub fn mode(&self) -> Result<Mode, ConfigError> {
        match self.stores.mode.as_str() {
            "embedded" => Ok(Mode::Embedded),
            "local" => Ok(Mode::Local),
            "servers" => Ok(Mode::Servers),
            "auto"
                if self.database.url.is_empty()
                    && self.replicas.primary_url.is_empty()
                    && self.shards.urls.is_empty()
                    && self.enterprise.shard_urls.is_empty()
                    && self.regions.database_urls.is_empty()
                    && self.cqrs.write_url.is_empty()
                    && self.polyglot.postgres_url.is_empty() =>
            {
                Ok(Mode::Embedded)
            }
            "auto" => Ok(Mode::Servers),
            other => Err(ConfigError::new(format!(
                "stores.mode is {other:?}; it must be auto, embedded, local or servers"
            ))),
        }
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
