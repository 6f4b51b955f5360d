//! PostgreSQL, Redis and NATS by URL, whoever runs them.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use terrace_core::history::{lineage, log_of};
use terrace_core::{
    BoxFuture, Error, Follower, Journal, Ledger, ReadModel, RegionName, RegionOptions, Result,
    Shard,
};
use terrace_lab::PrivateServer;
use terrace_layers::CommandSide;
use terrace_stores::redis::{RedisStream, RedisStreamOptions};
use terrace_stores::{
    PostgresLedger, PostgresOptions, PostgresReadModel, PostgresShard, PostgresStore, RedisCache,
    RedisCacheOptions,
};

use super::broker::broker_name;
use super::regions::RegionEngine;
use super::{
    Connections, Database, DatabasePlace, DocumentEngine, EngineMode, Engines, FarCache,
    RegionEngines, Replicated, files, mongodb, no_database, no_log,
};
use crate::config::{RegionSettings, millis, seconds};

/// Where the servers are, and who runs them.
pub(super) trait Whereabouts: Debug + Send + Sync + 'static {
    /// The PostgreSQL that every level may use; empty when none is named.
    fn database(&self) -> &str;

    /// The URL of the level's one database, or of its primary, also for a process beside the one that serves.
    fn primary<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<String>>;

    /// The Redis that every level may use; empty when there is none.
    fn cache(&self) -> &str;

    /// A primary and its replicas, whichever is which.
    fn members<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Vec<String>>>;

    /// The addresses of shards when the settings name none.
    fn shard_addresses(&self, of: &Engines) -> Vec<String>;

    /// Where a shard is that has no URL for its address; `None` when there is no such address here.
    fn shard<'a>(
        &'a self,
        of: &'a Engines,
        address: &'a str,
    ) -> BoxFuture<'a, Result<Option<PostgresOptions>>>;

    /// See [`terrace_layers::ShardOpener::tend`].
    fn tend_shards<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<()>>;

    /// Where a region is, for itself and for the others.
    fn region<'a>(
        &'a self,
        of: &'a Engines,
        region: &'a RegionSettings,
    ) -> BoxFuture<'a, Result<RegionPlaces>>;

    /// The server of a journal when the settings name none; empty when there is none.
    fn journal<'a>(&'a self, of: &'a Engines, nats: bool) -> BoxFuture<'a, Result<String>>;

    /// The document store; `None` where there is none, and a file of this machine does it.
    fn documents<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Option<String>>>;

    /// Where files of this machine may be kept that other machines need not see.
    fn directory(&self) -> Option<&Path>;

    /// The servers that this process runs.
    fn private(&self) -> Vec<PrivateServer> {
        Vec::new()
    }

    /// Ends what this process runs.
    fn stop(&self) -> BoxFuture<'_, ()>;
}

/// Where a region is: its database, and the URL of its cache.
#[derive(Clone, Debug)]
pub(super) struct RegionPlace {
    pub(super) database: PostgresOptions,
    pub(super) cache: String,
    /// The round trip to there.
    pub(super) away: Duration,
}

/// Where a region is for each of them.
#[derive(Debug)]
pub(super) struct RegionPlaces {
    /// For itself, and whoever is in the same place.
    pub(super) near: RegionPlace,
    /// For others, by their names.
    pub(super) far: Vec<(RegionName, RegionPlace)>,
}

/// The engines of a mode whose servers have URLs.
#[derive(Debug)]
pub(super) struct ByUrl<W>(pub(super) W);

impl<W: Whereabouts> ByUrl<W> {
    async fn open_database(&self, of: &Engines, by: Connections) -> Result<Database> {
        if self.0.database().is_empty() {
            return Err(no_database());
        }
        let options = of.postgres_options(self.0.database(), by);
        Ok(Database::postgres(PostgresStore::connect(options, of.runtime.clone()).await?))
    }

    async fn open_far_cache(&self, of: &Engines, history: &str) -> Result<FarCache> {
        let cache = Arc::new(redis_cache(of, history, self.0.cache(), Duration::ZERO).await?);
        Ok(FarCache { cache: Arc::clone(&cache) as _, feed: cache })
    }

    async fn open_region(
        &self,
        of: &Engines,
        options: &RegionOptions,
        at: RegionPlace,
    ) -> Result<Arc<RegionEngine>> {
        let RegionPlace { database, cache, away } = at;
        let database = PostgresOptions { region: Some(options.clone()), ..database };
        let database = PostgresStore::connect(database, of.runtime.clone()).await?;
        let cache = redis_cache(of, &database.history(), &cache, away).await?;
        Ok(Arc::new(RegionEngine { database: Arc::new(database), cache: Arc::new(cache), away }))
    }

    /// All at once: over long ways each takes many round trips.
    async fn open_regions(&self, of: &Engines) -> Result<Vec<RegionEngines>> {
        let all = of.region_settings()?;
        let regions = all.iter().map(|(settings, options)| {
            let reached_from = all.iter().map(|(from, _)| from.name);
            Box::pin(async move {
                let RegionPlaces { near, far } = self.0.region(of, settings).await?;
                let near = self.open_region(of, options, near).await?;
                let far = &far;
                let links = reached_from.map(|name| {
                    let near = Arc::clone(&near);
                    async move {
                        match far.iter().find(|(from, _)| *from == name) {
                            Some((_, place)) => self.open_region(of, options, place.clone()).await,
                            None => Ok(near),
                        }
                    }
                });
                let links = try_join_all(links).await?;
                Ok(RegionEngines { options: options.clone(), links })
            })
        });
        try_join_all(regions).await
    }

    async fn shard_options(&self, of: &Engines, address: &str) -> Result<PostgresOptions> {
        let by_url = || {
            let is_url = address.starts_with("postgres://") || address.starts_with("postgresql://");
            // Its default schema: the database is this shard's alone.
            is_url.then(|| of.in_default_schema(address))
        };
        let own = self.0.shard(of, address).await?;
        own.or_else(by_url).ok_or_else(|| {
            Error::invalid(
                "a shard has an address that this mode has no engine for; name it by its URL",
            )
            .with("kind", address.split(':').next().unwrap_or_default().to_owned())
        })
    }

    async fn open_shard(
        &self,
        of: &Engines,
        address: &str,
        counted: bool,
    ) -> Result<Arc<dyn Shard>> {
        let options = self.shard_options(of, address).await?;
        let options = PostgresOptions { change_log: counted, ..options };
        Ok(Arc::new(PostgresShard::connect(options, of.runtime.clone()).await?))
    }

    async fn find(&self, of: &Engines, shard: Option<&str>) -> Result<DatabasePlace> {
        Ok(DatabasePlace::Server(Box::new(match shard {
            Some(address) => self.shard_options(of, address).await?,
            None => of.postgres_options(&self.0.primary(of).await?, Connections::Pooled),
        })))
    }

    /// In a schema of their own in the database that all levels use, or else the first shard's.
    async fn open_grants(&self, of: &Engines) -> Result<Database> {
        let first = of.named_shards().0.first().map(String::as_str);
        let url = Some(self.0.database()).filter(|url| !url.is_empty()).or(first);
        let options = of.in_default_schema(url.ok_or_else(no_database)?);
        let options = PostgresOptions { schema: format!("{}_grants", of.schemas()), ..options };
        Ok(Database::postgres(PostgresStore::connect(options, of.runtime.clone()).await?))
    }

    async fn open_journal(&self, of: &Engines, history: &str) -> Result<Arc<dyn Journal>> {
        let config = &of.config.journal;
        if config.engine == "sqlite" {
            let directory = self.0.directory().ok_or_else(|| {
                Error::invalid(
                    "a journal in a file of one machine does not fit servers that other machines \
                     use; set journal.engine to redis or nats",
                )
            })?;
            return files::journal(directory, of);
        }
        let url = match config.url.as_str() {
            "" => self.0.journal(of, config.engine == "nats").await?,
            url => url.to_owned(),
        };
        of.broker_journal(history, &url).await
    }

    async fn open_commands(&self, of: &Engines) -> Result<CommandSide> {
        let url = match of.config.cqrs.write_url.as_str() {
            "" => self.0.database(),
            url => url,
        };
        let options = of.postgres_options(url, Connections::Pooled);
        let options = PostgresOptions { change_log: true, ..options };
        let store = PostgresStore::connect(options, of.runtime.clone()).await?;
        let log = store.log().await?.ok_or_else(no_log)?;
        let histories = store.histories();
        Ok(CommandSide { store: Arc::new(store), histories, log: Arc::new(log) })
    }

    async fn open_ledger(&self, of: &Engines) -> Result<Arc<dyn Ledger>> {
        let url = match of.config.polyglot.postgres_url.as_str() {
            "" => self.0.database(),
            url => url,
        };
        if url.is_empty() {
            return Err(no_database());
        }
        let options = of.postgres_options(url, Connections::Pooled);
        let options = PostgresOptions { change_log: true, ..options };
        let accounts = PostgresStore::connect(options, of.runtime.clone()).await?;
        Ok(Arc::new(PostgresLedger::open(Arc::new(accounts)).await?))
    }

    async fn open_documents(&self, of: &Engines) -> Result<DocumentEngine> {
        let url = match of.config.polyglot.mongodb_url.as_str() {
            "" => self.0.documents(of).await?,
            url => Some(url.to_owned()),
        };
        match (url, self.0.directory()) {
            (Some(url), _) => mongodb::documents(of, &url).await,
            (None, Some(directory)) => files::documents(directory, of),
            (None, None) => Err(Error::invalid(
                "no document store is named; set MONGODB_URL=mongodb://host:27017",
            )),
        }
    }

    async fn open_read_model(&self, of: &Engines) -> Result<Arc<dyn ReadModel>> {
        let config = &of.config.cqrs;
        let write = match config.write_url.as_str() {
            "" => self.0.database(),
            url => url,
        };
        let (url, own) = match config.read_url.as_str() {
            "" => (write, false),
            url => (url, url != write),
        };
        let options = of.postgres_options(url, Connections::Pooled);
        let schema = match (own, of.shared) {
            // A database of its own has plain names.
            (true, false) => options.schema.clone(),
            (_, true) => format!("{}_read", options.schema),
            (false, false) => format!("{}_read", of.schemas()),
        };
        let options = PostgresOptions { schema, ..options };
        let connected = PostgresReadModel::connect(options, of.runtime.clone()).await;
        // By another host name it cannot be seen here that it is the same one.
        let hint = "leave READ_DB_URL out where it names the database for commands";
        let explained = connected.map_err(|error| match own && !error.is_retryable() {
            true => error.with("hint", hint),
            false => error,
        });
        Ok(Arc::new(explained?))
    }
}

/// The cache on a server that is so far away, for what belongs to a history.
async fn redis_cache(of: &Engines, history: &str, url: &str, away: Duration) -> Result<RedisCache> {
    let config = &of.config.cache;
    let options = RedisCacheOptions {
        // Whoever shares the database shares its cached records, and nobody else does.
        namespace: format!("{}:{}", of.namespace(), lineage(history)),
        ttl: seconds(config.ttl_seconds),
        command_timeout: millis(config.command_timeout_ms) + 2 * away,
        // Always: an instance of a level with near caches may come at any time.
        announce: true,
        ..RedisCacheOptions::new(url)
    };
    RedisCache::connect(options, of.runtime.clone()).await
}

impl<W: Whereabouts> EngineMode for ByUrl<W> {
    fn claim(&self, _: &Engines) -> Result<()> {
        Ok(())
    }

    fn database<'a>(&'a self, of: &'a Engines, by: Connections) -> BoxFuture<'a, Result<Database>> {
        Box::pin(self.open_database(of, by))
    }

    fn far_cache<'a>(
        &'a self,
        of: &'a Engines,
        history: &'a str,
    ) -> BoxFuture<'a, Result<FarCache>> {
        Box::pin(self.open_far_cache(of, history))
    }

    fn replicated<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Replicated>> {
        Box::pin(async move { of.replicated_by(&self.0.members(of).await?).await })
    }

    fn shard_addresses(&self, of: &Engines) -> Vec<String> {
        self.0.shard_addresses(of)
    }

    fn shard<'a>(
        &'a self,
        of: &'a Engines,
        address: &'a str,
        counted: bool,
    ) -> BoxFuture<'a, Result<Arc<dyn Shard>>> {
        Box::pin(self.open_shard(of, address, counted))
    }

    fn place<'a>(
        &'a self,
        of: &'a Engines,
        shard: Option<&'a str>,
    ) -> BoxFuture<'a, Result<DatabasePlace>> {
        Box::pin(self.find(of, shard))
    }

    fn tend_shards<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<()>> {
        self.0.tend_shards(of)
    }

    fn regions<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Vec<RegionEngines>>> {
        Box::pin(self.open_regions(of))
    }

    fn journal<'a>(
        &'a self,
        of: &'a Engines,
        history: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Journal>>> {
        Box::pin(self.open_journal(of, history))
    }

    fn history<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Arc<str>>> {
        Box::pin(async move {
            let database = self.open_database(of, Connections::PerRequest).await?;
            database.store.close().await?;
            Ok(database.history)
        })
    }

    fn commands<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<CommandSide>> {
        Box::pin(self.open_commands(of))
    }

    fn read_model<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Arc<dyn ReadModel>>> {
        Box::pin(self.open_read_model(of))
    }

    fn event_stream(&self, of: &Engines, side: &CommandSide) -> Result<Option<Arc<dyn Follower>>> {
        if self.0.cache().is_empty() {
            return Ok(None);
        }
        // Positions of a log that is begun anew begin anew.
        let events = format!("{}:events", of.namespace());
        let events = broker_name(&events, ':', &side.histories.name());
        let key = format!("{events}:{}", log_of(&side.log.name()));
        let max_events = of.config.cqrs.stream_max_events;
        let options =
            RedisStreamOptions { max_events, ..RedisStreamOptions::new(self.0.cache(), key) };
        Ok(Some(Arc::new(RedisStream::new(options, of.runtime.clone())?)))
    }

    fn ledger<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Arc<dyn Ledger>>> {
        Box::pin(self.open_ledger(of))
    }

    fn documents<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<DocumentEngine>> {
        Box::pin(self.open_documents(of))
    }

    fn grants<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Database>> {
        Box::pin(self.open_grants(of))
    }

    fn permits_url(&self) -> Result<Option<String>> {
        match (self.0.cache(), self.0.directory()) {
            // Private servers have one process.
            ("", Some(_)) => Ok(None),
            ("", None) => Err(Error::invalid(
                "limits over several instances need a Redis that counts; set \
                 RATE_LIMITER_URL=redis://host:6379, or limits.enabled to false",
            )),
            (url, _) => Ok(Some(url.to_owned())),
        }
    }

    fn private(&self) -> Vec<PrivateServer> {
        self.0.private()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.0.stop()
    }
}
