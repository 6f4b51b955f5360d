//! Private servers, which this process runs and which end with it.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use terrace_core::{BoxFuture, Error, ErrorKind, Result};
use terrace_lab::{
    Distance, Persistence, PostgresOptions as LabOptions, PostgresServer, PrivateServer,
    RedisOptions, RedisServer,
};
use terrace_stores::PostgresOptions;

use super::regions::wrong;
use super::urls::{ByUrl, RegionPlace, RegionPlaces, Whereabouts};
use super::{Engines, from_lab, no_directory};
use crate::config::{Config, DistanceConfig, RegionSettings};

/// The directory of all private servers, and those that run.
#[derive(Debug)]
pub(super) struct Private {
    database: String,
    cache: String,
    directory: PathBuf,
    /// What keeps them away, and how far databases, caches and brokers are.
    distance: Option<Distance>,
    database_rtt: Duration,
    cache_rtt: Duration,
    /// Whether another process runs them.
    beside: bool,
    /// In the order of their starts.
    running: Mutex<Vec<PrivateServer>>,
}

/// Starts the servers that every level may use; `cached` tells whether any level wants a far cache.
///
/// # Errors
/// What is missing on this machine, and the next step.
pub(super) async fn start(config: &Config, cached: bool) -> Result<ByUrl<Private>> {
    let mut private = Private::of(config, false);
    if config.distance != DistanceConfig::default() {
        private.distance = Some(Distance::begin().map_err(from_lab)?);
    }
    let directory = private.directory.clone();
    fs::create_dir_all(&directory).map_err(|error| no_directory(&directory, error))?;
    let home = directory.join(SHARED);
    let postgres = private.postgres(LabOptions::new(&home)).await?;
    private.database = private.create(&postgres, &home).await?;
    if cached {
        private.cache = private.redis(RedisOptions::new(directory.join("redis"))).await?;
    }
    Ok(ByUrl(private))
}

/// For a command beside the process that runs the servers.
pub(super) fn beside(config: &Config) -> ByUrl<Private> {
    ByUrl(Private::of(config, true))
}

impl Private {
    fn of(config: &Config, beside: bool) -> Self {
        let micros = Duration::from_micros;
        Self {
            database: String::new(),
            cache: String::new(),
            directory: config.stores.data_dir.join("local"),
            distance: None,
            database_rtt: micros(config.distance.database_us),
            cache_rtt: micros(config.distance.cache_us),
            beside,
            running: Mutex::default(),
        }
    }

    /// The URL of a server as this process is to reach it.
    async fn reach(
        &self,
        server: &PrivateServer,
        url: String,
        round_trip: Duration,
    ) -> Result<String> {
        match &self.distance {
            Some(distance) => distance.to(server, &url, round_trip).await.map_err(from_lab),
            None => Ok(url),
        }
    }

    /// Makes the database of a server, and tells where it is; answers its URL.
    async fn create(&self, server: &PostgresServer, home: &Path) -> Result<String> {
        let url = server.create_database("terrace").await.map_err(from_lab)?;
        tell(home, &url)?;
        self.reach(server, url, self.database_rtt).await
    }

    async fn postgres(&self, options: LabOptions) -> Result<PostgresServer> {
        let server = PostgresServer::start(options).await.map_err(from_lab)?;
        self.keep(&server);
        Ok(server)
    }

    /// Starts a Redis server; answers its URL.
    async fn redis(&self, options: RedisOptions) -> Result<String> {
        let server = RedisServer::start(options).await.map_err(from_lab)?;
        self.keep(&server);
        self.reach(&server, server.url(), self.cache_rtt).await
    }

    #[cfg(feature = "nats")]
    async fn nats(&self, of: &Engines) -> Result<String> {
        let options = terrace_lab::NatsOptions::new(self.place(of, "-nats"));
        let server = terrace_lab::NatsServer::start(options).await.map_err(from_lab)?;
        self.keep(&server);
        self.reach(&server, server.url(), self.cache_rtt).await
    }

    /// Without it no journal in NATS is made that would need the URL.
    #[cfg(not(feature = "nats"))]
    async fn nats(&self, _: &Engines) -> Result<String> {
        Ok("nats:".to_owned())
    }

    fn keep(&self, server: &PrivateServer) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(server.clone());
    }

    /// The directory of a server of one level alone.
    fn place(&self, of: &Engines, name: &str) -> PathBuf {
        self.directory.join(format!("l{}{name}", of.level))
    }

    /// A primary and its streaming standbys.
    async fn replicate(&self, of: &Engines) -> Result<Vec<String>> {
        let settings: Vec<(String, String)> = [
            // A standby that stays away must not fill the disk; it is made anew then.
            ("max_slot_wal_keep_size", "4GB"),
            ("wal_keep_size", "64MB"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let options = |name: &str| LabOptions {
            settings: settings.clone(),
            ..LabOptions::new(self.place(of, name))
        };
        let primary = self.postgres(options(PRIMARY)).await?;
        let mut urls = vec![self.create(&primary, &self.place(of, PRIMARY)).await?];
        for number in 1..=of.config.replicas.count {
            let name = format!("replica_{number}");
            let started = primary
                .start_standby(&name, options(&format!("-{name}")))
                .await
                .map_err(from_lab)?;
            self.keep(&started);
            let url = started.database_url("terrace");
            urls.push(self.reach(&started, url, self.database_rtt).await?);
        }
        Ok(urls)
    }

    /// The URL of a document server of this level's own.
    #[cfg(feature = "mongodb")]
    async fn document_store(&self, of: &Engines) -> Result<Option<String>> {
        let options = terrace_lab::MongoOptions::new(self.place(of, "-documents"));
        let server = match terrace_lab::MongoServer::start(options).await {
            Err(error) if error.kind() == terrace_lab::LabErrorKind::ProgramMissing => {
                tracing::warn!(%error, "level 8 keeps its documents in a SQLite file");
                return Ok(None);
            }
            started => started.map_err(from_lab)?,
        };
        self.keep(&server);
        self.reach(&server, server.url(), self.database_rtt).await.map(Some)
    }

    /// Without it no driver is there that would need the URL.
    #[cfg(not(feature = "mongodb"))]
    async fn document_store(&self, _: &Engines) -> Result<Option<String>> {
        tracing::warn!(
            "level 8 keeps its documents in a SQLite file: Terrace was built without mongodb"
        );
        Ok(None)
    }

    /// The URL of a shard's server, started here or told by the process that runs it.
    async fn shard_url(&self, of: &Engines, number: &str) -> Result<String> {
        let home = self.place(of, &format!("_shard_{number}"));
        if self.beside {
            return told(of, &home).await;
        }
        let server = self.postgres(LabOptions::new(&home)).await?;
        self.create(&server, &home).await
    }

    /// A server of its own for the database and for the cache of a region, and a way to them from each
    /// other region that is as long as the settings say.
    async fn region_places(&self, of: &Engines, region: &RegionSettings) -> Result<RegionPlaces> {
        let home = self.place(of, &format!("_{}", region.name));
        let cache_home = self.place(of, &format!("_{}-redis", region.name));
        let place = |database: &str, cache: String, away: Duration| RegionPlace {
            database: of.in_default_schema(database),
            cache,
            away,
        };
        if self.beside {
            let (database, cache) = (told(of, &home).await?, told(of, &cache_home).await?);
            return Ok(RegionPlaces {
                near: place(&database, cache, Duration::ZERO),
                far: Vec::new(),
            });
        }
        let postgres = self.postgres(LabOptions::new(&home)).await?;
        let database = postgres.create_database("terrace").await.map_err(from_lab)?;
        let redis = RedisServer::start(RedisOptions::new(&cache_home)).await.map_err(from_lab)?;
        self.keep(&redis);
        tell(&home, &database)?;
        tell(&cache_home, &redis.url())?;
        let mut far = Vec::new();
        for (other, _) in of.region_settings()? {
            let apart = of.config.distance.between(region.name, other.name).map_err(wrong)?;
            if !apart.is_zero() {
                let database = self.reach(&postgres, database.clone(), apart).await?;
                let cache = self.reach(&redis, redis.url(), apart).await?;
                far.push((other.name, place(&database, cache, apart)));
            }
        }
        let near = self.reach(&postgres, database, self.database_rtt).await?;
        let cache = self.reach(&redis, redis.url(), self.cache_rtt).await?;
        Ok(RegionPlaces { near: place(&near, cache, self.cache_rtt), far })
    }

    /// Starts the servers that a command beside this process waits for.
    async fn start_wanted(&self, of: &Engines) -> Result<()> {
        let prefix = format!("l{}_shard_", of.level);
        let files = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let wanted = files.filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let number = name.strip_prefix(&prefix)?.strip_suffix(&format!(".{WANTED}"))?;
            Some((file.path(), number.parse::<u16>().ok()?))
        });
        for (path, number) in wanted.collect::<Vec<_>>() {
            self.shard_url(of, &number.to_string()).await?;
            let _somebody_else_may_have = fs::remove_file(path);
        }
        Ok(())
    }
}

impl Whereabouts for Private {
    fn database(&self) -> &str {
        &self.database
    }

    fn primary<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<String>> {
        Box::pin(async {
            let home = match of.level {
                3 => self.place(of, PRIMARY),
                _ => self.directory.join(SHARED),
            };
            told(of, &home).await
        })
    }

    fn cache(&self) -> &str {
        &self.cache
    }

    fn members<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Vec<String>>> {
        Box::pin(self.replicate(of))
    }

    fn shard_addresses(&self, of: &Engines) -> Vec<String> {
        (0..of.named_shards().1).map(|number| format!("private:{number}")).collect()
    }

    /// `private:2`: a server of its own.
    fn shard<'a>(
        &'a self,
        of: &'a Engines,
        address: &'a str,
    ) -> BoxFuture<'a, Result<Option<PostgresOptions>>> {
        Box::pin(async move {
            let Some(number) = address.strip_prefix("private:") else { return Ok(None) };
            let url = self.shard_url(of, number).await?;
            Ok(Some(of.in_default_schema(&url)))
        })
    }

    fn tend_shards<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.start_wanted(of))
    }

    fn region<'a>(
        &'a self,
        of: &'a Engines,
        region: &'a RegionSettings,
    ) -> BoxFuture<'a, Result<RegionPlaces>> {
        Box::pin(self.region_places(of, region))
    }

    /// One of its own: a flush of each append would hold up the cache, and a cache may evict.
    fn journal<'a>(&'a self, of: &'a Engines, nats: bool) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            if nats {
                return self.nats(of).await;
            }
            let options = RedisOptions {
                persistence: Persistence::AofAlways,
                ..RedisOptions::new(self.place(of, "-journal"))
            };
            self.redis(options).await
        })
    }

    /// Where the machine has none, documents are kept in a file.
    fn documents<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Option<String>>> {
        Box::pin(self.document_store(of))
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.directory)
    }

    /// The latest first.
    fn private(&self) -> Vec<PrivateServer> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        let running =
            std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        Box::pin(async move {
            for server in running.iter().rev() {
                if let Err(error) = server.stop().await {
                    let server = server.program();
                    tracing::warn!(server, %error, "a private server did not stop in order");
                }
            }
        })
    }
}

/// The directories of the server that levels with one database share, and, after the level's, of a primary.
const SHARED: &str = "postgres";
const PRIMARY: &str = "-primary";

/// What the files beside a private server's directory end with.
const URL: &str = "url";
const WANTED: &str = "wanted";

/// Where a private server is that another process runs, or starts when it is asked to.
async fn told(of: &Engines, home: &Path) -> Result<String> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let end = of.runtime.now() + PATIENCE;
    loop {
        match fs::read_to_string(home.with_extension(URL)) {
            Ok(url) => return Ok(url),
            Err(error) if of.runtime.now() > end => return Err(not_served(error)),
            Err(_) => write(&home.with_extension(WANTED), "")?,
        }
        of.runtime.sleep(Duration::from_millis(50)).await;
    }
}

/// Writes where a private server is.
fn tell(home: &Path, url: &str) -> Result<()> {
    // Renamed into its place, so that nobody reads a part of it.
    let new = home.with_extension("url.new");
    write(&new, url)?;
    fs::rename(new, home.with_extension(URL)).map_err(not_served)
}

/// Writes a file for this user's eyes.
fn write(path: &Path, text: &str) -> Result<()> {
    let failed = |error| {
        let message = "the address of a private server cannot be written; check the data directory";
        Error::new(ErrorKind::Unavailable, message).caused_by(error)
    };
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

fn not_served(error: io::Error) -> Error {
    let message =
        "a private server of the level is not known; serve the level with --stores local first";
    Error::new(ErrorKind::Unavailable, message).caused_by(error)
}
