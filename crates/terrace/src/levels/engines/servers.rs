//! What all levels of a process share: a directory of files, private servers, or your URLs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use terrace_core::{Error, ErrorKind, Result};
use terrace_lab::{
    LabError, PostgresOptions, PostgresServer, PrivateServer, RedisOptions, RedisServer,
};

use crate::config::{Config, Mode};

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
    /// Your own, by URL.
    Urls {
        /// PostgreSQL.
        database: String,
        /// Redis; empty when there is none.
        cache: String,
    },
    /// Private ones, which this process runs.
    Local {
        /// The PostgreSQL that every level may use.
        database: String,
        /// The Redis that every level may use; empty when no level wants one.
        cache: String,
        /// Where a level's further servers have their directories.
        directory: PathBuf,
        /// All that run, in the order of their starts.
        private: PrivateServers,
    },
}

/// Servers that end with this process.
#[derive(Debug, Default)]
pub struct PrivateServers(Mutex<Vec<PrivateServer>>);

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
                let named = [&config.database.url, &config.replicas.primary_url];
                let database = named.into_iter().find(|url| !url.is_empty());
                let (mut database, cache) =
                    (database.cloned().unwrap_or_default(), config.cache.url.clone());
                if database.is_empty() {
                    // Enough for level 7 alone.
                    database.clone_from(&config.cqrs.write_url);
                }
                if database.is_empty() && config.shards.urls.is_empty() {
                    return Err(no_database());
                }
                if cached && cache.is_empty() {
                    return Err(Error::invalid(
                        "a level with a cache needs one; set REDIS_URL=redis://host:6379, or serve \
                         levels 0 and 1 only",
                    ));
                }
                Ok(Self::Urls { database, cache })
            }
        }
    }

    /// For a command beside the processes that serve: private servers are used and not started.
    ///
    /// # Errors
    /// As [`Servers::start`]; in the local mode also when nobody serves.
    pub async fn beside(config: &Config, mode: Mode) -> Result<Self> {
        if mode != Mode::Local {
            return Self::start(config, mode, false).await;
        }
        let directory = config.stores.data_dir.join("local");
        let (database, cache) = (String::new(), String::new());
        Ok(Self::Local { database, cache, directory, private: PrivateServers::default() })
    }

    async fn start_local(config: &Config, cached: bool) -> Result<Self> {
        let directory = config.stores.data_dir.join("local");
        fs::create_dir_all(&directory).map_err(|error| no_directory(&directory, error))?;
        let private = PrivateServers::default();
        let postgres = private.postgres(PostgresOptions::new(directory.join("postgres"))).await?;
        let database = postgres.create_database("terrace").await.map_err(from_lab)?;
        let cache = match cached {
            true => private.redis(RedisOptions::new(directory.join("redis"))).await?.url(),
            false => String::new(),
        };
        Ok(Self::Local { database, cache, directory, private })
    }

    /// Stops the private servers, if there are any.
    pub async fn stop(&self) {
        if let Self::Local { private, .. } = self {
            private.stop().await;
        }
    }
}

impl PrivateServers {
    /// Starts a PostgreSQL server and keeps it.
    pub(super) async fn postgres(&self, options: PostgresOptions) -> Result<PostgresServer> {
        let server = PostgresServer::start(options).await.map_err(from_lab)?;
        self.keep(&server);
        Ok(server)
    }

    /// Starts a Redis server and keeps it.
    pub(super) async fn redis(&self, options: RedisOptions) -> Result<RedisServer> {
        let server = RedisServer::start(options).await.map_err(from_lab)?;
        self.keep(&server);
        Ok(server)
    }

    /// Starts a NATS server and keeps it.
    #[cfg(feature = "nats")]
    pub(super) async fn nats(
        &self,
        options: terrace_lab::NatsOptions,
    ) -> Result<terrace_lab::NatsServer> {
        let server = terrace_lab::NatsServer::start(options).await.map_err(from_lab)?;
        self.keep(&server);
        Ok(server)
    }

    pub(super) fn keep(&self, server: &PrivateServer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(server.clone());
    }

    /// Stops all, the latest first.
    async fn stop(&self) {
        let servers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for server in servers.iter().rev() {
            if let Err(error) = server.stop().await {
                let server = server.program();
                tracing::warn!(server, %error, "a private server did not stop in order");
            }
        }
    }
}

pub(super) fn no_database() -> Error {
    Error::invalid(
        "no database is named; set DATABASE_URL=postgres://user:password@host/name, or use --stores \
         embedded",
    )
}

pub(super) fn no_directory(directory: &Path, error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "the directory {} cannot be made; choose another with --data-dir",
            directory.display()
        ),
    )
    .caused_by(error)
}

pub(super) fn from_lab(error: LabError) -> Error {
    Error::new(ErrorKind::Unavailable, error.to_string())
}
