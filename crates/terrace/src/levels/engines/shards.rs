//! The databases of a sharded level: files, a private server each, or yours.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use terrace_core::{BoxFuture, Error, ErrorKind, Result, Runtime, Shard};
use terrace_lab::PostgresOptions as PrivatePostgres;
use terrace_layers::{Partitioner, ShardOpener, partitioner};
use terrace_stores::{PostgresOptions, PostgresShard, SqliteOptions, SqliteShard};

use super::servers::from_lab;
use super::{Connections, Engines, Servers, lock};

/// Opens the shards of one level by their addresses, which all instances share:
///
/// - `postgres://...`: that database, its default schema: it is this shard's alone;
/// - `schema:2`: a schema of the database that all levels share, where it is the only one;
/// - `private:2`: a server that this process runs;
/// - else: a file, in the data directory unless its path is absolute.
#[derive(Debug)]
pub struct ShardEngines {
    options: PostgresOptions,
    servers: Arc<Servers>,
    level: u8,
    /// Whether another process runs the private servers.
    beside: bool,
    runtime: Runtime,
}

impl Engines {
    /// How the keys of a level are shared out.
    pub(in super::super) fn partitioner(&self) -> Result<Arc<dyn Partitioner>> {
        partitioner(&self.config.shards.partitioner)
    }

    /// The addresses of the shards that the settings name.
    ///
    /// # Errors
    /// When another process serves the files.
    pub(in super::super) fn shards(&self) -> Result<Vec<String>> {
        if let Servers::Embedded { directory, locks } = &*self.servers {
            let lock = lock(directory, self.level)?;
            locks.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
        }
        Ok(self.shard_addresses())
    }

    /// The same for a process beside the one that serves.
    pub fn shard_addresses(&self) -> Vec<String> {
        let config = &self.config.shards;
        let numbered = |kind: &str| (0..config.count).map(|n| format!("{kind}{n}")).collect();
        match &*self.servers {
            Servers::Embedded { .. } => {
                let file = |number| format!("l{}_shard_{number}.sqlite", self.level);
                (0..config.count).map(file).collect()
            }
            Servers::Urls { .. } if config.urls.is_empty() => numbered("schema:"),
            Servers::Urls { .. } => config.urls.clone(),
            Servers::Local { .. } => numbered("private:"),
        }
    }

    /// What opens them.
    pub fn shard_opener(&self) -> Arc<ShardEngines> {
        let database = match &*self.servers {
            Servers::Embedded { .. } => "",
            Servers::Urls { database, .. } | Servers::Local { database, .. } => database,
        };
        Arc::new(ShardEngines {
            options: self.postgres_options(database, Connections::Pooled),
            servers: Arc::clone(&self.servers),
            level: self.level,
            beside: matches!(&*self.servers, Servers::Local { database, .. } if database.is_empty()),
            runtime: self.runtime.clone(),
        })
    }
}

impl ShardEngines {
    async fn url(&self, address: &str) -> Result<PostgresOptions> {
        let mut options = self.options.clone();
        match (&*self.servers, address.split_once(':')) {
            (Servers::Local { directory, private, .. }, Some(("private", number))) => {
                let home = directory.join(format!("l{}_shard_{number}", self.level));
                options.url = match self.beside {
                    true => self.told(&home).await?,
                    false => {
                        let server = private.postgres(PrivatePostgres::new(&home)).await?;
                        let url = server.create_database("terrace").await.map_err(from_lab)?;
                        tell(&home, &url)?;
                        url
                    }
                };
                options.schema = PostgresOptions::new("").schema;
            }
            (Servers::Urls { .. }, Some(("schema", number))) => {
                options.schema = format!("terrace_l{}_shard_{number}", self.level);
            }
            (_, Some(("postgres" | "postgresql", _))) => {
                address.clone_into(&mut options.url);
                options.schema = PostgresOptions::new("").schema;
            }
            _ => {
                return Err(Error::invalid(
                    "a shard has an address that this mode has no engine for; name it by its URL",
                )
                .with("kind", address.split(':').next().unwrap_or_default().to_owned()));
            }
        }
        Ok(options)
    }

    /// Where a private server is that another process runs, or starts when it is asked to.
    async fn told(&self, home: &Path) -> Result<String> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let end = self.runtime.now() + PATIENCE;
        loop {
            match std::fs::read_to_string(home.with_extension(URL)) {
                Ok(url) => return Ok(url),
                Err(error) if self.runtime.now() > end => return Err(not_served(error)),
                Err(_) => write(&home.with_extension(WANTED), "")?,
            }
            self.runtime.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts the private servers that a command beside this process waits for.
    async fn start_wanted(&self) -> Result<()> {
        let Servers::Local { directory, .. } = &*self.servers else { return Ok(()) };
        let prefix = format!("l{}_shard_", self.level);
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let wanted = files.filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let number = name.strip_prefix(&prefix)?.strip_suffix(&format!(".{WANTED}"))?;
            Some((file.path(), number.parse::<u16>().ok()?))
        });
        for (path, number) in wanted.collect::<Vec<_>>() {
            self.url(&format!("private:{number}")).await?;
            let _somebody_else_may_have = std::fs::remove_file(path);
        }
        Ok(())
    }

    async fn shard(&self, address: &str) -> Result<Arc<dyn Shard>> {
        if let Servers::Embedded { directory, .. } = &*self.servers {
            let path: PathBuf = directory.join(address);
            let shard = SqliteShard::open(SqliteOptions::new(path), self.runtime.clone())?;
            return Ok(Arc::new(shard));
        }
        let options = self.url(address).await?;
        Ok(Arc::new(PostgresShard::connect(options, self.runtime.clone()).await?))
    }
}

/// What the files beside a private server's directory end with.
const URL: &str = "url";
const WANTED: &str = "wanted";

/// Writes where a private server is.
fn tell(home: &Path, url: &str) -> Result<()> {
    // Renamed into its place, so that nobody reads a part of it.
    let new = home.with_extension("url.new");
    write(&new, url)?;
    std::fs::rename(new, home.with_extension(URL)).map_err(not_served)
}

/// Writes a file for this user's eyes.
fn write(path: &Path, text: &str) -> Result<()> {
    let failed = |error| {
        let message = "the address of a private server cannot be written; check the data directory";
        Error::new(ErrorKind::Unavailable, message).caused_by(error)
    };
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

fn not_served(error: std::io::Error) -> Error {
    let message =
        "the shard's private server is not known; serve the level with --stores local first";
    Error::new(ErrorKind::Unavailable, message).caused_by(error)
}

impl ShardOpener for ShardEngines {
    fn open<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Arc<dyn Shard>>> {
        Box::pin(self.shard(address))
    }

    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.start_wanted().await {
                tracing::warn!(%error, "a private server that is waited for cannot be started");
            }
        })
    }
}
