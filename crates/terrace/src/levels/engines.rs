//! The databases, caches and brokers of the mode in force.
//!
//! A level asks [`Engines`], and each mode answers in a file of its own:
//!
//! | file | mode |
//! |---|---|
//! | [`files`] | embedded: SQLite files, and caches in this process |
//! | [`servers`] | your own servers, by URL |
//! | [`local`] | private servers, which this process runs |
//!
//! What is behind a URL is used in the same way whoever runs it: that is [`urls`].

mod broker;
mod files;
mod local;
mod members;
mod mongodb;
#[cfg(feature = "nats")]
mod nats;
mod options;
mod originals;
mod permits;
mod regions;
mod servers;
mod shards;
mod urls;

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use terrace_core::{
    BoxFuture, Cache, ChangeLog, Documents, Error, ErrorKind, Follower, Generations, Invalidations,
    Journal, Ledger, ReadModel, Result, Runtime, Sequence, Shard, Store,
};
use terrace_lab::{LabError, PrivateServer};
use terrace_layers::{
    CommandSide, FollowOptions, Partitioner, ReplicaRouter, SummaryStore, partitioner,
};
use terrace_stores::{PostgresStore, SqliteStore};

pub(crate) use broker::broker_name;
pub use originals::{DatabasePlace, Original};
pub use regions::{RegionEngine, RegionEngines};
pub use shards::ShardEngines;

use super::Level;
use crate::config::{Config, Mode};

/// What all levels of a process share: a directory of files, private servers, or your URLs.
#[derive(Clone, Debug)]
pub struct Servers(Arc<dyn EngineMode>);

impl Servers {
    /// Makes the directory, starts the private servers, or takes the URLs, as the mode says.
    /// `cached` tells whether any level wants a far cache.
    ///
    /// # Errors
    /// What is missing, and the next step.
    pub async fn start(config: &Config, mode: Mode, cached: bool) -> Result<Self> {
        Ok(Self(match mode {
            Mode::Embedded => Arc::new(files::Files::open(config)?),
            Mode::Local => Arc::new(local::start(config, cached).await?),
            Mode::Servers => Arc::new(servers::named(config, cached)?),
        }))
    }

    /// For a command beside the processes that serve: private servers are used and not started.
    ///
    /// # Errors
    /// As [`Servers::start`]; in the local mode also when nobody serves.
    pub async fn beside(config: &Config, mode: Mode) -> Result<Self> {
        match mode {
            Mode::Local => Ok(Self(Arc::new(local::beside(config)))),
            Mode::Embedded | Mode::Servers => Self::start(config, mode, false).await,
        }
    }

    /// The servers that this process runs, in the order of their starts.
    pub(crate) fn private(&self) -> Vec<PrivateServer> {
        self.0.private()
    }

    /// Stops the private servers, if there are any.
    pub async fn stop(&self) {
        self.0.stop().await;
    }
}

/// Gives one level its databases and caches.
#[derive(Clone, Debug)]
pub struct Engines {
    level: u8,
    /// Whether other levels of this process use the same database.
    shared: bool,
    config: Arc<Config>,
    mode: Arc<dyn EngineMode>,
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
    rows: RecordsEngine,
}

/// The engine of a [`Database`].
#[derive(Debug)]
enum RecordsEngine {
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>),
}

impl Database {
    fn sqlite(store: SqliteStore) -> Self {
        let store = Arc::new(store);
        let history = store.history();
        Self { store: Arc::clone(&store) as _, history, rows: RecordsEngine::Sqlite(store) }
    }

    fn postgres(store: PostgresStore) -> Self {
        let store = Arc::new(store);
        let history = store.history();
        Self { store: Arc::clone(&store) as _, history, rows: RecordsEngine::Postgres(store) }
    }

    /// What caches must know of it.
    pub(super) fn generations(&self) -> Arc<dyn Generations> {
        match &self.rows {
            RecordsEngine::Sqlite(store) => Arc::clone(store) as _,
            RecordsEngine::Postgres(store) => Arc::clone(store) as _,
        }
    }

    /// The highest place of a journal that a row carries.
    async fn furthest(&self) -> Result<Sequence> {
        match &self.rows {
            RecordsEngine::Sqlite(store) => store.furthest(),
            RecordsEngine::Postgres(store) => store.furthest().await,
        }
    }
}

/// A far cache, and the channel on which it announces what was written.
#[derive(Debug)]
pub(super) struct FarCache {
    pub(super) cache: Arc<dyn Cache>,
    pub(super) feed: Arc<dyn Invalidations>,
}

/// The servers of one history behind their router.
#[derive(Debug)]
pub(super) struct Replicated {
    pub(super) router: ReplicaRouter,
    /// The name of the records' history.
    pub(super) history: Arc<str>,
}

/// The owner of documents.
#[derive(Debug)]
pub(super) struct DocumentEngine {
    pub(super) documents: Arc<dyn Documents>,
    /// What caches must know of it.
    pub(super) generations: Arc<dyn Generations>,
    /// What a ledger's accounts are brought to, beside the documents.
    pub(super) summaries: SummaryStore,
}

/// What looks after a projection beside the process that serves.
#[derive(Debug)]
pub struct QuerySide {
    /// The command side's log.
    pub log: Arc<dyn ChangeLog>,
    /// What is made of it.
    pub model: Arc<dyn ReadModel>,
    /// How to project.
    pub options: FollowOptions,
}

/// What a mode gives the level that asks, `of`.
trait EngineMode: Debug + Send + Sync {
    /// Makes sure that no other process serves the level's files; nothing where there are none.
    fn claim(&self, of: &Engines) -> Result<()>;

    /// One database.
    fn database<'a>(&'a self, of: &'a Engines, by: Connections) -> BoxFuture<'a, Result<Database>>;

    /// The far cache for what belongs to a history.
    fn far_cache<'a>(
        &'a self,
        of: &'a Engines,
        history: &'a str,
    ) -> BoxFuture<'a, Result<FarCache>>;

    /// A primary with replicas.
    fn replicated<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Replicated>>;

    /// The addresses of the shards that the settings name.
    fn shard_addresses(&self, of: &Engines) -> Vec<String>;

    /// The shard at an address, which counts its changes where they are `counted`.
    fn shard<'a>(
        &'a self,
        of: &'a Engines,
        address: &'a str,
        counted: bool,
    ) -> BoxFuture<'a, Result<Arc<dyn Shard>>>;

    /// Where the level's one database is, or the shard at an address.
    fn place<'a>(
        &'a self,
        of: &'a Engines,
        shard: Option<&'a str>,
    ) -> BoxFuture<'a, Result<DatabasePlace>>;

    /// See [`terrace_layers::ShardOpener::tend`].
    fn tend_shards<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<()>>;

    /// Every region, as each of them reaches it, in the order of the settings.
    fn regions<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Vec<RegionEngines>>>;

    /// The journal before the database with this history.
    fn journal<'a>(
        &'a self,
        of: &'a Engines,
        history: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Journal>>>;

    /// The history of the level's database, for somebody who does not serve it. Empty where the journal
    /// needs no name.
    fn history<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Arc<str>>>;

    /// The database that takes commands, with its log.
    fn commands<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<CommandSide>>;

    /// The database that answers queries.
    fn read_model<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Arc<dyn ReadModel>>>;

    /// Where events are published for others, when there is a broker.
    fn event_stream(&self, of: &Engines, side: &CommandSide) -> Result<Option<Arc<dyn Follower>>>;

    /// The owner of transactions.
    fn ledger<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Arc<dyn Ledger>>>;

    /// The owner of documents.
    fn documents<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<DocumentEngine>>;

    /// Where the grants of the installation's keys are kept, the same for all levels.
    fn grants<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Database>>;

    /// The Redis that counts what clients ask for; `None` where there is one instance.
    fn permits_url(&self) -> Result<Option<String>>;

    /// The servers that this process runs for it.
    fn private(&self) -> Vec<PrivateServer> {
        Vec::new()
    }

    /// Ends what this process runs for it.
    fn stop(&self) -> BoxFuture<'_, ()>;
}

impl Engines {
    /// For one level; `shared` when other levels of the process use the same servers, so that each
    /// gets a schema of its own.
    pub fn new(
        level: u8,
        shared: bool,
        config: Arc<Config>,
        servers: &Servers,
        runtime: Runtime,
    ) -> Self {
        Self { level, shared, config, mode: Arc::clone(&servers.0), runtime }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Time, randomness and background work.
    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Whether the level has its far cache.
    pub(super) fn has_cache(&self, level: &Level) -> bool {
        level.uses_cache(&self.config)
    }

    pub(super) async fn database(&self, by: Connections) -> Result<Database> {
        self.mode.claim(self)?;
        self.mode.database(self, by).await
    }

    /// The far cache for what belongs to this history.
    pub(super) async fn far_cache(&self, history: &str) -> Result<FarCache> {
        self.mode.far_cache(self, history).await
    }

    pub(super) async fn replicated(&self) -> Result<Replicated> {
        self.mode.claim(self)?;
        self.mode.replicated(self).await
    }

    /// What the level is used for, as the settings say.
    pub(super) fn environment(&self) -> &str {
        &self.config.enterprise.environment
    }

    /// The URLs of the level's shards, and how many a new set has without them.
    fn named_shards(&self) -> (&[String], u16) {
        let named = super::level(self.level).and_then(|level| level.shards);
        named.map_or((&[], 0), |named| named(&self.config))
    }

    /// The addresses of the shards to serve.
    pub(super) fn shards(&self) -> Result<Vec<String>> {
        self.mode.claim(self)?;
        Ok(self.shard_addresses())
    }

    /// The same for a process beside the one that serves.
    pub fn shard_addresses(&self) -> Vec<String> {
        self.mode.shard_addresses(self)
    }

    /// What opens them.
    pub fn shard_opener(&self) -> Arc<ShardEngines> {
        Arc::new(ShardEngines { engines: self.clone(), counted: false })
    }

    /// What opens them, with counts of what is changed in each.
    pub(super) fn counting_opener(&self) -> Arc<ShardEngines> {
        Arc::new(ShardEngines { engines: self.clone(), counted: true })
    }

    /// How the keys of a level are shared out.
    pub(super) fn partitioner(&self) -> Result<Arc<dyn Partitioner>> {
        partitioner(&self.config.shards.partitioner)
    }

    /// The journal before this database. One that is new goes on above what the rows carry.
    pub(super) async fn journal(&self, database: &Database) -> Result<Arc<dyn Journal>> {
        let journal = self.mode.journal(self, &database.history).await?;
        let progress = journal.progress().await;
        if progress.as_ref().is_ok_and(|progress| progress.last > Sequence::NONE) {
            return Ok(journal);
        }
        match journal.raise(database.furthest().await?).await {
            // It heeds the floor when it can be reached.
            Err(error) if progress.is_err() && error.kind() == ErrorKind::Unavailable => {}
            raised => raised?,
        }
        Ok(journal)
    }

    /// The journal, for somebody who does not need the database.
    pub(super) async fn journal_alone(&self) -> Result<Arc<dyn Journal>> {
        let history = self.mode.history(self).await?;
        self.mode.journal(self, &history).await
    }

    /// The database that takes commands, with its log. Its files are this process's own.
    pub(super) async fn command_side(&self) -> Result<CommandSide> {
        self.mode.claim(self)?;
        self.mode.commands(self).await
    }

    pub(super) async fn read_model(&self) -> Result<Arc<dyn ReadModel>> {
        self.mode.read_model(self).await
    }

    pub(super) fn event_stream(&self, side: &CommandSide) -> Result<Option<Arc<dyn Follower>>> {
        self.mode.event_stream(self, side)
    }

    /// Makes sure that no other process serves the level's files.
    pub(super) fn claim(&self) -> Result<()> {
        self.mode.claim(self)
    }

    pub(super) async fn ledger(&self) -> Result<Arc<dyn Ledger>> {
        self.mode.ledger(self).await
    }

    pub(super) async fn documents(&self) -> Result<DocumentEngine> {
        self.mode.documents(self).await
    }

    /// The grants of the installation's keys, also while other processes serve.
    ///
    /// # Errors
    /// What cannot be reached, and the next step.
    pub async fn grants(&self) -> Result<Arc<dyn Store>> {
        Ok(self.mode.grants(self).await?.store)
    }

    /// The owners of transactions and of summaries, also while another process serves them.
    ///
    /// # Errors
    /// What cannot be reached, and the next step.
    pub async fn both_sides(&self) -> Result<(Arc<dyn Ledger>, SummaryStore)> {
        Ok((self.ledger().await?, self.documents().await?.summaries))
    }

    /// The log and the read model, also while another process serves them.
    ///
    /// # Errors
    /// What cannot be reached, and the next step.
    pub async fn query_side(&self) -> Result<QuerySide> {
        let side = self.mode.commands(self).await?;
        let model = self.read_model().await?;
        Ok(QuerySide { log: side.log, model, options: FollowOptions::default() })
    }
}

/// What a program without the command side's own log would be told.
fn no_log() -> Error {
    let message = "the change log is missing from the write database; restart Terrace";
    Error::new(ErrorKind::Unavailable, message)
}

fn no_database() -> Error {
    Error::invalid(
        "no database is named; set DATABASE_URL=postgres://user:password@host/name, or use --stores \
         embedded",
    )
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
