//! The settings of single levels.

use serde::{Deserialize, Serialize};

/// The read replicas of level 3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplicasConfig {
    /// The primary, `postgres://user:password@host:port/name`. Default: `database.url`. Several hosts
    /// are a primary and its replicas, whichever is which.
    pub primary_url: String,
    /// The replicas, as many URLs as there are, separated by spaces or commas; several hosts in one
    /// URL are as many replicas. Default none.
    pub urls: String,
    /// How many replicas Terrace makes in the embedded and local modes. Default 2.
    pub count: u16,
    /// How old what a replica shows may be, in milliseconds. Default 5000.
    pub max_lag_ms: u64,
}

impl Default for ReplicasConfig {
    fn default() -> Self {
        Self { primary_url: String::new(), urls: String::new(), count: 2, max_lag_ms: 5_000 }
    }
}

/// The shards of level 4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShardsConfig {
    /// `postgres://...` of each shard, in their order. Default none: of the one database, each shard
    /// has a schema. `SHARD_0_URL`, `SHARD_1_URL`, ... name them, too.
    pub urls: Vec<String>,
    /// How many shards a new set has where the URLs do not say it. Default 3.
    pub count: u16,
    /// How keys are shared out: `hash`, `range:<first keys>` or `geo:<places>`; for ever. Default
    /// `hash`.
    pub partitioner: String,
}

impl Default for ShardsConfig {
    fn default() -> Self {
        Self { urls: Vec::new(), count: 3, partitioner: "hash".into() }
    }
}

/// Level 7: the databases of commands and of queries, and the stream between them and others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CqrsConfig {
    /// The database that takes commands. Default: `database.url`.
    pub write_url: String,
    /// The database that answers queries. Default: a schema of its own in the one for commands.
    pub read_url: String,
    /// About how many events the stream keeps. Default 1 000 000.
    pub stream_max_events: u64,
}

impl Default for CqrsConfig {
    fn default() -> Self {
        Self { write_url: String::new(), read_url: String::new(), stream_max_events: 1_000_000 }
    }
}

/// Level 8: the owners of transactions and of documents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolyglotConfig {
    /// The database that owns transactions. Default: `database.url`.
    pub postgres_url: String,
    /// The document store, `mongodb://user:password@host:port`; its database is `polyglot_db` unless
    /// the URL names another. Default none.
    pub mongodb_url: String,
}

/// The journal of level 6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    /// `sqlite`, `redis`, `nats` or `auto`. Default `auto`: what the URL names; without one a file in
    /// the embedded mode, else Redis.
    pub engine: String,
    /// `redis://:password@host:port` or `rediss://...`, set up with `appendfsync always`, or
    /// `nats://user:password@host:port` with JetStream. Default: in the local mode a
    /// private server of its own; with servers that of the cache, which rarely is as safe.
    pub url: String,
    /// Servers of a NATS cluster that keep a copy, when its streams are made. Default 1.
    pub replicas: usize,
    /// `inside`, or `apart` when `terrace flush` does it. Default `inside`.
    pub flusher: String,
    /// At most this many writes wait. Default 2 000 000.
    pub max_writes: u64,
    /// At most this many bytes wait. Default 256 MiB.
    pub max_bytes: u64,
    /// Entries are taken from a flusher that has not settled them for this long, in seconds.
    /// Default 10.
    pub takeover_seconds: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            engine: "auto".into(),
            url: String::new(),
            replicas: 1,
            flusher: "inside".into(),
            max_writes: 2_000_000,
            max_bytes: 256 * 1024 * 1024,
            takeover_seconds: 10,
        }
    }
}

/// Level 10.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnterpriseConfig {
    /// `postgres://...` of each shard, in their order. Default none: of the one database, each of two
    /// shards has a schema. `DB_SHARD1_URL`, `DB_SHARD2_URL`, ... name them, too.
    pub shard_urls: Vec<String>,
    /// What `/health` and `/stats` call the installation. Default `production`.
    pub environment: String,
}

impl Default for EnterpriseConfig {
    fn default() -> Self {
        Self { shard_urls: Vec::new(), environment: "production".into() }
    }
}
