//! The databases and caches of the mode in force: SQLite files, private servers, or yours.

mod broker;
mod cqrs;
mod journal;
mod nats;
mod replicas;
mod servers;
mod shards;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::{Arc, PoisonError};

use terrace_core::history::lineage;
use terrace_core::{
    Cache, Error, ErrorKind, Generations, Invalidations, MemoryCache, MemoryCacheOptions, Result,
    Runtime, Store,
};
use terrace_layers::NearCacheOptions;
use terrace_stores::postgres::{ConnectionSource, PoolOptions};
use terrace_stores::{
    PostgresOptions, PostgresStore, RedisCache, RedisCacheOptions, SqliteOptions, SqliteStore,
    sqlite,
};

pub use cqrs::QuerySide;
pub use servers::Servers;
use servers::{no_database, no_directory};
pub use shards::ShardEngines;

use super::Level;
use crate::config::{Config, millis, seconds};

/// Gives one level its databases and caches.
#[derive(Debug)]
pub struct Engines {
    level: u8,
    /// Whether other levels of this process use the same database.
    shared: bool,
    config: Arc<Config>,
    servers: Arc<Servers>,
    runtime: Runtime,
}

/// How a level uses its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connections {
    /// A new connection for every request.
    PerRequest,
    /// A few that stay open.
    Pooled,
}

/// A database of a level.
#[derive(Debug)]
pub(super) struct Database {
    /// Its records.
    pub(super) store: Arc<dyn Store>,
    /// Its own name, kept in it: what is cached under this name belongs to it.
    pub(super) history: Arc<str>,
    /// What it is, for questions that only its own engine answers.
    rows: Rows,
}

impl Database {
    /// What caches must know of it.
    pub(super) fn generations(&self) -> Arc<dyn Generations> {
        match &self.rows {
            Rows::Sqlite(store) => Arc::clone(store) as _,
            Rows::Postgres(store) => Arc::clone(store) as _,
        }
    }
}

/// The engine of a [`Database`].
#[derive(Debug)]
enum Rows {
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>),
}

/// A far cache, and the channel on which it announces what was written.
#[derive(Debug)]
pub(super) struct FarCache {
    pub(super) cache: Arc<dyn Cache>,
    pub(super) feed: Arc<dyn Invalidations>,
}

impl Engines {
    /// For one level; `shared` when other levels of the process use the same servers, so that each
    /// gets a schema of its own.
    pub fn new(
        level: u8,
        shared: bool,
        config: Arc<Config>,
        servers: Arc<Servers>,
        runtime: Runtime,
    ) -> Self {
        Self { level, shared, config, servers, runtime }
    }

    /// Time, randomness and background work.
    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(super) async fn database(&self, connections: Connections) -> Result<Database> {
        match &*self.servers {
            Servers::Embedded { directory, locks } => {
                // A second process would not hear what this one's caches forget.
                let lock = lock(directory, self.level)?;
                locks.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
                let path = directory.join(format!("l{}.sqlite", self.level));
                let connections = match connections {
                    Connections::PerRequest => sqlite::Connections::PerRequest,
                    Connections::Pooled => sqlite::Connections::default(),
                };
                let options = SqliteOptions { connections, ..SqliteOptions::new(path) };
                let store = Arc::new(SqliteStore::open(options, self.runtime.clone())?);
                let (history, rows) = (store.history(), Rows::Sqlite(Arc::clone(&store)));
                Ok(Database { store, history, rows })
            }
            Servers::Urls { database, .. } | Servers::Local { database, .. } => {
                if database.is_empty() {
                    return Err(no_database());
                }
                let options = self.postgres_options(database, connections);
                let store = PostgresStore::connect(options, self.runtime.clone()).await?;
                let store = Arc::new(store);
                let (history, rows) = (store.history(), Rows::Postgres(Arc::clone(&store)));
                Ok(Database { store, history, rows })
            }
        }
    }

    fn postgres_options(&self, url: &str, connections: Connections) -> PostgresOptions {
        let config = &self.config.database;
        let mut options = PostgresOptions::new(url);
        options.source = match connections {
            Connections::PerRequest => {
                ConnectionSource::PerRequest { limit: config.per_request_limit }
            }
            Connections::Pooled => ConnectionSource::Pooled(PoolOptions {
                min: config.pool_min,
                max: config.pool_max,
                acquire_timeout: millis(config.acquire_timeout_ms),
                ..PoolOptions::default()
            }),
        };
        options.statement_timeout = millis(config.statement_timeout_ms);
        options.connect_timeout = millis(config.connect_timeout_ms);
        if self.shared {
            options.schema = format!("terrace_l{}", self.level);
        }
        options
    }

    /// Whether the level has its far cache.
    pub(super) fn has_cache(&self, level: &Level) -> bool {
        level.uses_cache(&self.config)
    }

    pub(super) async fn far_cache(&self, database: &Database) -> Result<FarCache> {
        self.far_cache_of(&database.history).await
    }

    /// The far cache for what belongs to this history.
    pub(super) async fn far_cache_of(&self, history: &str) -> Result<FarCache> {
        let config = &self.config.cache;
        let (ttl, missing_ttl) = (seconds(config.ttl_seconds), seconds(config.missing_ttl_seconds));
        match &*self.servers {
            Servers::Embedded { .. } => {
                let max_bytes = config.embedded_max_bytes;
                let options =
                    MemoryCacheOptions { max_bytes, ttl, missing_ttl, ..Default::default() };
                let cache = Arc::new(MemoryCache::new(options, self.runtime.clone()));
                Ok(FarCache { cache: Arc::clone(&cache) as _, feed: cache })
            }
            Servers::Urls { cache, .. } | Servers::Local { cache, .. } => {
                // Whoever shares the database shares its cached records, and nobody else does.
                let namespace = match config.namespace.as_str() {
                    "" => format!("terrace:{}", lineage(history)),
                    chosen if self.shared => format!("{chosen}:l{}", self.level),
                    chosen => chosen.to_owned(),
                };
                let options = RedisCacheOptions {
                    namespace,
                    ttl,
                    missing_ttl,
                    command_timeout: millis(config.command_timeout_ms),
                    // Always: an instance of a level with near caches may come at any time.
                    announce: true,
                    ..RedisCacheOptions::new(cache)
                };
                let cache = Arc::new(RedisCache::connect(options, self.runtime.clone()).await?);
                Ok(FarCache { cache: Arc::clone(&cache) as _, feed: cache })
            }
        }
    }

    pub(super) fn near_cache_options(&self) -> NearCacheOptions {
        let config = &self.config.cache;
        NearCacheOptions {
            max_bytes: config.near_max_bytes,
            max_entries: Some(config.near_max_records),
            ttl: seconds(config.near_ttl_seconds),
            heartbeat_bound: millis(config.near_heartbeat_ms),
            ..NearCacheOptions::default()
        }
    }
}

/// The exclusive right to serve a level's files.
fn lock(directory: &Path, level: u8) -> Result<File> {
    let path = directory.join(format!("l{level}.lock"));
    let file = File::create(&path).map_err(|error| no_directory(directory, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "{} is in use by another terrace that serves level {level}; stop it, or choose \
                 another directory with --data-dir",
                directory.display()
            ),
        )),
        Err(TryLockError::Error(error)) => Err(no_directory(directory, error)),
    }
}
