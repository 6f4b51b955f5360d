//! The databases and caches of the mode in force: SQLite files, private servers, or yours.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use terrace_core::{
    Cache, Error, ErrorKind, Invalidations, MemoryCache, MemoryCacheOptions, Result, Runtime, Store,
};
use terrace_lab::{
    LabError, PostgresOptions as LabPostgres, PostgresServer, RedisOptions, RedisServer,
};
use terrace_layers::NearCacheOptions;
use terrace_stores::postgres::{ConnectionSource, PoolOptions};
use terrace_stores::{
    PostgresOptions, PostgresStore, RedisCache, RedisCacheOptions, SqliteOptions, SqliteStore,
    sqlite,
};

use crate::config::{Config, Mode, millis, seconds};

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

/// Servers that this process reaches, or runs, for all its levels.
#[derive(Debug)]
pub enum Servers {
    /// None: files and memory.
    Embedded {
        /// Where the files are.
        directory: PathBuf,
        /// Held as long as the files are served.
        locks: Mutex<Vec<File>>,
    },
    /// Servers by URL; the process runs those it holds.
    Urls {
        /// PostgreSQL.
        database: String,
        /// Redis; empty when there is none.
        cache: String,
        /// The private servers behind the URLs, in the local mode.
        local: Option<(PostgresServer, Option<RedisServer>)>,
    },
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
}

/// A far cache, and the channel on which it announces what was written.
#[derive(Debug)]
pub(super) struct FarCache {
    pub(super) cache: Arc<dyn Cache>,
    pub(super) feed: Arc<dyn Invalidations>,
}

impl Servers {
    /// Makes the directory, starts the private servers, or takes the URLs, as the mode says.
    /// `cached` tells whether any level wants a far cache.
    ///
    /// # Errors
    /// What is missing, and the next step.
    pub async fn start(config: &Config, mode: Mode, cached: bool) -> Result<Self> {
        match mode {
            Mode::Embedded => {
                let directory = config.stores.data_dir.join("embedded");
                fs::create_dir_all(&directory).map_err(|error| no_directory(&directory, error))?;
                Ok(Self::Embedded { directory, locks: Mutex::default() })
            }
            Mode::Local => Self::start_local(config, cached).await,
            Mode::Servers => {
                let (database, cache) = (config.database.url.clone(), config.cache.url.clone());
                if database.is_empty() {
                    return Err(Error::invalid(
                        "no database is named; set DATABASE_URL=postgres://user:password@host/name, \
                         or use --stores embedded",
                    ));
                }
                if cached && cache.is_empty() {
                    return Err(Error::invalid(
                        "a level with a cache needs one; set REDIS_URL=redis://host:6379, or serve \
                         levels 0 and 1 only",
                    ));
                }
                Ok(Self::Urls { database, cache, local: None })
            }
        }
    }

    async fn start_local(config: &Config, cached: bool) -> Result<Self> {
        let directory = config.stores.data_dir.join("local");
        fs::create_dir_all(&directory).map_err(|error| no_directory(&directory, error))?;
        let postgres = PostgresServer::start(LabPostgres::new(directory.join("postgres")));
        let postgres = postgres.await.map_err(from_lab)?;
        let redis = match cached {
            true => {
                let server = RedisServer::start(RedisOptions::new(directory.join("redis")));
                Some(server.await.map_err(from_lab)?)
            }
            false => None,
        };
        let database = postgres.create_database("terrace").await.map_err(from_lab)?;
        let cache = redis.as_ref().map(RedisServer::url).unwrap_or_default();
        Ok(Self::Urls { database, cache, local: Some((postgres, redis)) })
    }

    /// Stops the private servers, if there are any.
    pub async fn stop(&self) {
        if let Self::Urls { local: Some((postgres, redis)), .. } = self {
            if let Some(redis) = redis {
                log_failure("redis", redis.stop().await);
            }
            log_failure("postgres", postgres.stop().await);
        }
    }
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
                let store = SqliteStore::open(options, self.runtime.clone())?;
                let history = store.history();
                Ok(Database { store: Arc::new(store), history })
            }
            Servers::Urls { database, .. } => {
                let options = self.postgres_options(database, connections);
                let store = PostgresStore::connect(options, self.runtime.clone()).await?;
                let history = store.history();
                Ok(Database { store: Arc::new(store), history })
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

    pub(super) async fn far_cache(&self, database: &Database) -> Result<FarCache> {
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
            Servers::Urls { cache, .. } => {
                // Whoever shares the database shares its cached records, and nobody else does.
                let namespace = match config.namespace.as_str() {
                    "" => format!("terrace:{}", database.history),
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

fn no_directory(directory: &Path, error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "the directory {} cannot be made; choose another with --data-dir",
            directory.display()
        ),
    )
    .caused_by(error)
}

fn from_lab(error: LabError) -> Error {
    Error::new(ErrorKind::Unavailable, error.to_string())
}

fn log_failure(server: &str, outcome: Result<(), LabError>) {
    if let Err(error) = outcome {
        tracing::warn!(server, %error, "a private server did not stop in order");
    }
}
