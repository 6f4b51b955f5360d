//! The store: checks, queues, and waits for the threads' answers.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Generation, Generations, Histories, Inspection, Key,
    Line, Load, Node, NodeState, Page, Position, Proof, Read, ReadOptions, Receipt, Result,
    Runtime, Scan, Sequence, Standing, Store, Token, Unit, Write, WriteOptions,
};
use terrace_core::{Change, Precondition, node};
use tokio::sync::watch;

use super::change_log::SqliteChangeLog;
use super::file_identity::FileIdentity;
use super::follow::SqliteFollower;
use super::job::{ReadJob, Task};
use super::lane::Lane;
use super::log::SqliteLog;
use super::options::{Connections, SqliteOptions};
use super::region::RegionParts;
use super::shared::{Shared, start};
use super::vitals::{ThreadRole, Vitals};
use super::{connect, failure, health, reader, schema, words, writer};
use crate::held::Held;

/// Records in one SQLite file; see the [module](super) for the file and its promises.
///
/// Its threads end when it is closed or dropped, after they have finished what was accepted. A
/// dropped `read` or `scan` is skipped when it still waits; a dropped `write` is skipped when it
/// still waits and applied whole once the writer has taken it up.
///
/// ```
/// # use terrace_core::{Key, Result, Runtime, Store, StoreExt, Value};
/// # use terrace_stores::sqlite::{SqliteOptions, SqliteStore};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("records.sqlite");
/// let store = SqliteStore::open(SqliteOptions::new(path), Runtime::system())?;
/// let key = Key::new("greeting")?;
/// store.put(key.clone(), Value::new("hello")?).await?;
/// assert_eq!(store.get(&key).await?.unwrap().value.as_str(), "hello");
/// store.close().await
/// # }
/// ```
#[derive(Debug)]
pub struct SqliteStore {
    pub(super) shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// For the number of records, where the level tells it.
    counting: Option<Lane>,
    /// What it needs as one of several regions.
    pub(super) region: Option<RegionParts>,
}

impl SqliteStore {
    /// Opens the file, makes it or brings its schema up to date, and starts the threads.
    ///
    /// Does its file work on the calling thread: a few milliseconds for a file that exists, up to
    /// `busy_timeout` more while another program holds its lock. Call it at start, or on a thread
    /// that may wait.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a file of another program, of a newer Terrace, or that is no
    /// database; [`ErrorKind::Unavailable`] when it cannot be opened for writing or is locked;
    /// [`ErrorKind::Corrupt`] when it is damaged.
    pub fn open(options: SqliteOptions, runtime: Runtime) -> Result<Self> {
        Self::open_for(options, runtime, false)
    }

    /// The same, with an index of words where the records are documents.
    pub(super) fn open_for(
        mut options: SqliteOptions,
        runtime: Runtime,
        documents: bool,
    ) -> Result<Self> {
        options.path = connect::prepare_path(&options.path)?;
        options.change_log |= options.region.is_some();
        if options.region.is_some() && options.replica_of.is_some() {
            return Err(Error::invalid("a replica is no region; open it as one of the two"));
        }
        let turn = connect::turn(&options.path);
        let (mut connection, engine) = connect::first(&options)?;
        let standing = schema::migrate(&mut connection, &options, &runtime)?;
        let log = match options.change_log {
            true => Some(super::log::install(&mut connection, &options, &runtime)?),
            false => None,
        };
        if documents {
            words::install(&mut connection)?;
        }
        drop(turn);
        let bytes = options.max_queued_bytes;
        let limit = |parts| Load { parts, bytes };
        let durability = engine.durability();
        let shared = Arc::new(Shared {
            histories: Arc::new(Histories::new(standing)),
            log,
            documents,
            held: Held::default(),
            committed: watch::Sender::new(0),
            durability,
            file: FileIdentity::of(&options.path),
            reads: Line::new(limit(options.max_queued_reads), 0),
            writes: Line::new(limit(options.max_queued_writes), 0),
            vitals: Vitals::new(runtime.now()),
            closing: AtomicBool::new(false),
            living: watch::Sender::new(0),
            commits: watch::Sender::new(()),
            engine,
            options,
            runtime,
        });
        // Shards count their records themselves.
        let counting = match shared.log {
            Some(_) if !shared.options.shard => {
                Some(Lane::start(&shared.options, "sqlite-count", shared.runtime.clone())?)
            }
            _ => None,
        };
        let region = RegionParts::open(&shared)?;
        let store = Self { shared, threads: Mutex::default(), counting, region };
        store.start_threads(connection)?;
        tracing::debug!(
            path = %store.shared.options.path.display(),
            history = %store.history(),
            durability = %durability,
            "opened a SQLite database"
        );
        Ok(store)
    }

    /// The name of this database's history, the same for whoever opens it.
    pub fn history(&self) -> Arc<str> {
        self.shared.histories.name()
    }

    /// What is heard of its histories and generations.
    pub fn histories(&self) -> Arc<Histories> {
        Arc::clone(&self.shared.histories)
    }

    /// The change log of this file, for one follower.
    pub fn change_log(&self) -> SqliteChangeLog {
        SqliteChangeLog::new(Arc::clone(&self.shared))
    }

    /// What follows a change log into this file, and keeps its place under the log's name.
    pub fn follower(&self, origin: impl Into<Arc<str>>) -> SqliteFollower {
        SqliteFollower::new(Arc::clone(&self.shared), origin.into())
    }

    /// The change log of this file, if the options ask for one.
    ///
    /// # Errors
    /// `Unavailable` when the file cannot be opened once more.
    pub fn log(&self) -> Result<Option<SqliteLog>> {
        let name = self.shared.log.clone();
        name.map(|name| SqliteLog::open(name, Arc::clone(&self.shared))).transpose()
    }

    /// The furthest place in a journal that any record carries or carried: one walk over the table on the calling
    /// thread, for the start of a journal that is new.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn furthest(&self) -> Result<Sequence> {
        let connection = connect::another(&self.shared.options)?;
        let furthest = "SELECT max((SELECT ifnull(max(seq), 0) FROM records),
             (SELECT ifnull(max(value), 0) FROM meta WHERE name = 'settled'))";
        let furthest: i64 =
            connection.query_row(furthest, [], |row| row.get(0)).map_err(failure::of)?;
        Ok(Sequence::new(u64::try_from(furthest).unwrap_or(0)))
    }

    fn raise_generation(&self) -> Standing {
        let histories = &self.shared.histories;
        let known = histories.standing();
        let generation = Generation::new(known.generation.get() + 1);
        let standing = Standing { generation, ..(*known).clone() };
        histories.heard(standing.clone(), self.shared.runtime.now());
        standing
    }

    fn start_threads(&self, connection: rusqlite::Connection) -> Result<()> {
        let connections = self.shared.options.connections;
        let mut threads = Vec::new();
        for _ in 0..connections.readers() {
            threads.push(match connections {
                Connections::PerRequest => {
                    start(&self.shared, ThreadRole::Reader, reader::run_per_request)
                }
                Connections::Shared { .. } => {
                    let connection = connect::another(&self.shared.options)?;
                    start(&self.shared, ThreadRole::Reader, move |shared| {
                        reader::run_shared(shared, &connection)
                    })
                }
            });
        }
        threads.push(start(&self.shared, ThreadRole::Writer, move |shared| match connections {
            Connections::PerRequest => writer::run_per_request(shared, &connection),
            Connections::Shared { .. } => writer::run_shared(shared, &connection),
        }));
        for thread in threads {
            let thread = thread.map_err(|error| {
                Error::new(
                    ErrorKind::Unavailable,
                    "a thread could not be started; raise the limit on processes",
                )
                .caused_by(error)
            })?;
            self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(())
    }

    /// What the caller's token asks of this database.
    pub(super) fn asked(&self, how: &ReadOptions) -> Result<Option<Position>> {
        let Some(token) = &how.token else { return Ok(None) };
        self.shared.histories.check(token)?;
        if self.shared.histories.is_behind(token) {
            return Err(terrace_core::history::behind());
        }
        Ok(token.position(&self.history()))
    }

    pub(super) async fn read_keys(
        &self,
        keys: &[Key],
        how: &ReadOptions,
        epoch: Option<u64>,
    ) -> Result<Vec<Read>> {
        let bytes = keys.iter().map(|key| key.as_str().len()).sum();
        let (keys, asked, budget) = (keys.to_vec(), self.asked(how)?, how.budget);
        self.shared
            .ask(|reply| ReadJob::Keys { keys, epoch, asked, budget, reply }, bytes, how.deadline)
            .await
    }

    pub(super) async fn read_page(
        &self,
        scan: &Scan,
        how: &ReadOptions,
        epoch: Option<u64>,
    ) -> Result<Page> {
        let (scan, asked) = (scan.clone(), self.asked(how)?);
        let bytes = scan.prefix.len();
        self.shared
            .ask(|reply| ReadJob::Scan { scan, epoch, asked, reply }, bytes, how.deadline)
            .await
    }

    pub(super) async fn write_batch(
        &self,
        writes: Vec<Write>,
        how: &WriteOptions,
        epoch: Option<u64>,
    ) -> Result<Vec<Receipt>> {
        if self.shared.is_replica() {
            return Err(failure::replica());
        }
        let bytes = writes.iter().map(bytes_of).sum();
        let task = Task::Write { writes, idempotency: how.idempotency.clone(), epoch };
        self.shared.submit(task, bytes, how.deadline).await
    }
}

impl Node for SqliteStore {
    fn state(&self, deadline: Deadline) -> BoxFuture<'_, Result<NodeState>> {
        Box::pin(async move {
            let reached = self.shared.head(deadline).await?.offset;
            let role =
                if self.shared.is_replica() { node::Role::Replica } else { node::Role::Primary };
            Ok(NodeState {
                role,
                // The file is opened once in the life of this value, and no other value has its place.
                life: Arc::as_ptr(&self.shared).addr() as u64,
                standing: (*self.shared.histories.standing()).clone(),
                timeline: 1,
                position: Position::new(reached),
                log_end: reached,
                // The primary is a file of the same process.
                committed_ago: None,
            })
        })
    }

    fn admit(&self, _: &NodeState) {}

    fn raise(&self) -> BoxFuture<'_, Result<Standing>> {
        Box::pin(async { Ok(self.raise_generation()) })
    }
}

impl Generations for SqliteStore {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.shared.histories.admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        // Nobody else raises it.
        Some(self.shared.runtime.now())
    }

    fn history(&self) -> Option<Arc<str>> {
        Some(self.shared.histories.name())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.histories.changes()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn raise<'a>(&'a self, _: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async {
            self.raise_generation();
            Ok(())
        })
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Display for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlite")
    }
}

impl Store for SqliteStore {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            self.read_keys(keys, how, None).await.map_err(|error| error.during("read"))
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            self.write_batch(batch, how, None).await.map_err(|error| error.during("write"))
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            self.read_page(scan, how, None).await.map_err(|error| error.during("scan"))
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let mut tree = health::inspect(&self.shared).await;
            if let Some(region) = &self.region {
                tree = region.told(tree).await;
            }
            let Some(lane) = &self.counting else { return tree };
            let counted = lane.run(|connection| {
                let text = "SELECT count(*) FROM records WHERE deleted = 0";
                connection.query_row(text, [], |row| row.get::<_, i64>(0)).map_err(failure::of)
            });
            match counted.await.map(u64::try_from) {
                Ok(Ok(records)) => tree.gauge("records", records, Unit::Count),
                _ => tree,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.close();
            if let Some(lane) = &self.counting {
                lane.close();
            }
            if let Some(region) = &self.region {
                region.close();
            }
            // Fails only when the sender is gone, and the sender lives in `shared`.
            let _ = self.shared.living.subscribe().wait_for(|living| *living == 0).await;
            let threads =
                std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
            // They have done their work, so joining them takes no time worth mentioning.
            threads.into_iter().for_each(|thread| drop(thread.join()));
            // Two connections that close together leave the log behind, each for the other. The log
            // is empty by now; whoever closes alone removes it.
            drop(connect::another(&self.shared.options));
            Ok(())
        })
    }
}

fn bytes_of(write: &Write) -> usize {
    let value = match &write.change {
        Change::Put(value) => value.as_str().len(),
        Change::Delete => 0,
    };
    write.key.as_str().len() + value + size_of::<Precondition>()
}
