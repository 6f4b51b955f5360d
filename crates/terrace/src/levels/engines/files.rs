//! The embedded mode: SQLite files in one directory, and caches in this process.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use terrace_core::{
    BoxFuture, Error, ErrorKind, Follower, Journal, Ledger, MemoryCache, MemoryCacheOptions,
    ReadModel, Result, Shard,
};
use terrace_layers::{CommandSide, Follow, FollowOptions, SummaryStore};
use terrace_stores::sqlite::{self, Synchronous};
use terrace_stores::{
    SqliteDocuments, SqliteJournal, SqliteJournalOptions, SqliteLedger, SqliteOptions,
    SqliteReadModel, SqliteShard, SqliteStore,
};

use super::regions::{RegionEngine, in_one_place};
use super::{
    Connections, Database, DatabasePlace, DocumentEngine, EngineMode, Engines, FarCache,
    RegionEngines, Replicated, no_directory, no_log,
};
use crate::config::{Config, seconds};

/// A directory with the files of all levels.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    /// Held as long as the files are served.
    locks: Mutex<Vec<File>>,
}

impl Files {
    /// Makes the directory.
    pub(super) fn open(config: &Config) -> Result<Self> {
        let directory = config.stores.data_dir.join("embedded");
        fs::create_dir_all(&directory).map_err(|error| no_directory(&directory, error))?;
        Ok(Self { directory, locks: Mutex::default() })
    }

    /// A file of the level; the first has no name of its own.
    fn path(&self, of: &Engines, name: &str) -> PathBuf {
        self.directory.join(format!("l{}{name}.sqlite", of.level))
    }

    /// Whether the journal is a file, too; else a broker has it.
    fn keeps_the_journal(&self, of: &Engines) -> bool {
        let config = &of.config.journal;
        config.engine == "sqlite" || (config.engine == "auto" && config.url.is_empty())
    }

    /// One file that is written, and files that follow its change log.
    async fn replicate(&self, of: &Engines) -> Result<Replicated> {
        let primary = SqliteOptions::new(self.path(of, ""));
        let primary = Arc::new(SqliteStore::open(primary, of.runtime.clone())?);
        let history = primary.history();
        let mut members = vec![of.member(Arc::clone(&primary))];
        let mut replicators = Vec::new();
        for number in 1..=of.config.replicas.count {
            let options = SqliteOptions {
                replica_of: Some(Arc::clone(&history)),
                // What is lost is copied again.
                synchronous: Synchronous::Normal,
                ..SqliteOptions::new(self.path(of, &format!("-replica-{number}")))
            };
            let replica = Arc::new(SqliteStore::open(options, of.runtime.clone())?);
            let (log, follower) = (primary.change_log(), replica.follower("primary"));
            let (log, follower, runtime) = (Arc::new(log), Arc::new(follower), of.runtime.clone());
            let replicator =
                Follow::new("replicator", log, follower, FollowOptions::default(), runtime);
            replicators.push(replicator.start());
            members.push(of.member(replica));
        }
        let router = of.router(&history, members).await.fed_by(replicators);
        Ok(Replicated { router, history })
    }

    /// A file and a cache for each region.
    fn open_regions(&self, of: &Engines) -> Result<Vec<RegionEngines>> {
        let each = of.region_settings()?.into_iter().map(|(settings, options)| {
            let path = self.path(of, &format!("-{}", settings.name));
            let sqlite =
                SqliteOptions { region: Some(options.clone()), ..SqliteOptions::new(path) };
            let store = SqliteStore::open(sqlite, of.runtime.clone())?;
            Ok((options, RegionEngine::sqlite(store, memory_cache(of))))
        });
        Ok(in_one_place(each.collect::<Result<Vec<_>>>()?))
    }

    fn open_commands(&self, of: &Engines) -> Result<CommandSide> {
        let options = SqliteOptions { change_log: true, ..SqliteOptions::new(self.path(of, "")) };
        let store = SqliteStore::open(options, of.runtime.clone())?;
        let log = store.log()?.ok_or_else(no_log)?;
        let histories = store.histories();
        Ok(CommandSide { store: Arc::new(store), histories, log: Arc::new(log) })
    }
}

/// The journal in a file of this directory.
pub(super) fn journal(directory: &Path, of: &Engines) -> Result<Arc<dyn Journal>> {
    let path = directory.join(format!("l{}-journal.sqlite", of.level));
    let options = SqliteJournalOptions {
        limits: of.journal_limits(),
        takeover: seconds(of.config.journal.takeover_seconds),
        ..SqliteJournalOptions::new(path)
    };
    Ok(Arc::new(SqliteJournal::open(options, of.runtime.clone())?))
}

/// What the file of summaries follows.
const LEDGER: &str = "ledger";

/// Documents in a file of this directory, and the summaries in another.
pub(super) fn documents(directory: &Path, of: &Engines) -> Result<DocumentEngine> {
    let path = |name| directory.join(format!("l{}-{name}.sqlite", of.level));
    let open = SqliteOptions::new(path("documents"));
    let documents = Arc::new(SqliteDocuments::open(open, of.runtime.clone())?);
    // A copy and nothing else: where the ledger's log is begun anew, nothing of an older one stays.
    let copy =
        SqliteOptions { replica_of: Some(LEDGER.into()), ..SqliteOptions::new(path("accounts")) };
    let summaries = SqliteStore::open(copy, of.runtime.clone())?;
    let follower = Arc::new(summaries.follower(LEDGER));
    Ok(DocumentEngine {
        generations: documents.generations(),
        documents,
        summaries: SummaryStore { store: Arc::new(summaries), follower },
    })
}

impl EngineMode for Files {
    /// A second process would not hear what this one's caches forget.
    fn claim(&self, of: &Engines) -> Result<()> {
        let lock = lock(&self.directory, of.level)?;
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
        Ok(())
    }

    fn database<'a>(&'a self, of: &'a Engines, by: Connections) -> BoxFuture<'a, Result<Database>> {
        Box::pin(async move {
            let connections = match by {
                Connections::PerRequest => sqlite::Connections::PerRequest,
                Connections::Pooled => sqlite::Connections::default(),
            };
            let options = SqliteOptions { connections, ..SqliteOptions::new(self.path(of, "")) };
            Ok(Database::sqlite(SqliteStore::open(options, of.runtime.clone())?))
        })
    }

    fn far_cache<'a>(&'a self, of: &'a Engines, _: &'a str) -> BoxFuture<'a, Result<FarCache>> {
        Box::pin(async move {
            let cache = memory_cache(of);
            Ok(FarCache { cache: Arc::clone(&cache) as _, feed: cache })
        })
    }

    fn replicated<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Replicated>> {
        Box::pin(self.replicate(of))
    }

    fn shard_addresses(&self, of: &Engines) -> Vec<String> {
        let file = |number| format!("l{}_shard_{number}.sqlite", of.level);
        (0..of.named_shards().1).map(file).collect()
    }

    /// An address is a file, in the data directory unless its path is absolute.
    fn shard<'a>(
        &'a self,
        of: &'a Engines,
        address: &'a str,
        counted: bool,
    ) -> BoxFuture<'a, Result<Arc<dyn Shard>>> {
        Box::pin(async move {
            let options = SqliteOptions::new(self.directory.join(address));
            let options = SqliteOptions { change_log: counted, ..options };
            Ok(Arc::new(SqliteShard::open(options, of.runtime.clone())?) as _)
        })
    }

    fn place<'a>(
        &'a self,
        of: &'a Engines,
        shard: Option<&'a str>,
    ) -> BoxFuture<'a, Result<DatabasePlace>> {
        Box::pin(async move {
            Ok(DatabasePlace::File(match shard {
                Some(address) => self.directory.join(address),
                None => self.path(of, ""),
            }))
        })
    }

    fn tend_shards<'a>(&'a self, _: &'a Engines) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn regions<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Vec<RegionEngines>>> {
        Box::pin(async { self.open_regions(of) })
    }

    fn journal<'a>(
        &'a self,
        of: &'a Engines,
        history: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Journal>>> {
        Box::pin(async move {
            match self.keeps_the_journal(of) {
                true => journal(&self.directory, of),
                false => of.broker_journal(history, &of.config.journal.url).await,
            }
        })
    }

    /// A journal in a file needs no name, and who serves the database may go on.
    fn history<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Arc<str>>> {
        Box::pin(async {
            if self.keeps_the_journal(of) {
                return Ok("".into());
            }
            let database = self.database(of, Connections::PerRequest).await?;
            database.store.close().await?;
            Ok(database.history)
        })
    }

    fn commands<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<CommandSide>> {
        Box::pin(async { self.open_commands(of) })
    }

    fn read_model<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Arc<dyn ReadModel>>> {
        Box::pin(async {
            let options = SqliteOptions::new(self.path(of, "-read"));
            Ok(Arc::new(SqliteReadModel::open(options, of.runtime.clone())?) as _)
        })
    }

    fn event_stream(&self, _: &Engines, _: &CommandSide) -> Result<Option<Arc<dyn Follower>>> {
        Ok(None)
    }

    fn ledger<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Arc<dyn Ledger>>> {
        Box::pin(async {
            let options = SqliteOptions::new(self.path(of, "-ledger"));
            let options = SqliteOptions { change_log: true, ..options };
            let accounts = SqliteStore::open(options, of.runtime.clone())?;
            Ok(Arc::new(SqliteLedger::open(Arc::new(accounts)).await?) as _)
        })
    }

    fn documents<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<DocumentEngine>> {
        Box::pin(async { documents(&self.directory, of) })
    }

    fn grants<'a>(&'a self, of: &'a Engines) -> BoxFuture<'a, Result<Database>> {
        let open = SqliteOptions::new(self.directory.join("grants.sqlite"));
        let store = SqliteStore::open(open, of.runtime.clone());
        Box::pin(async move { Ok(Database::sqlite(store?)) })
    }

    fn permits_url(&self) -> Result<Option<String>> {
        Ok(None)
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn memory_cache(of: &Engines) -> Arc<MemoryCache> {
    let ttl = seconds(of.config.cache.ttl_seconds);
    let options = MemoryCacheOptions { ttl, ..MemoryCacheOptions::default() };
    Arc::new(MemoryCache::new(options, of.runtime.clone()))
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
