//! The store: checks, queues, and waits for the threads' answers.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Page, Position, Read, ReadOptions,
    Receipt, Result, Runtime, Scan, Sequence, Store, Write, WriteOptions,
};
use terrace_core::{Change, Precondition};
use tokio::sync::{oneshot, watch};

use super::health::{FileIdentity, Vitals};
use super::job::{Claim, ReadJob, WriteJob};
use super::options::{Connections, SqliteOptions};
use super::queue::{Queue, Refused};
use super::shared::{Role, Shared, start};
use super::{connect, failure, health, reader, schema, writer};

/// How long a client is asked to wait when a queue is full.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
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
    pub fn open(mut options: SqliteOptions, runtime: Runtime) -> Result<Self> {
        options.path = connect::prepare_path(&options.path)?;
        let turn = connect::turn(&options.path);
        let (mut connection, engine) = connect::first(&options)?;
        let history = schema::migrate(&mut connection, &runtime)?;
        drop(turn);
        let durability = engine.durability();
        let shared = Arc::new(Shared {
            history,
            durability,
            file: FileIdentity::of(&options.path),
            reads: Queue::new(options.max_queued_reads, options.max_queued_bytes),
            writes: Queue::new(options.max_queued_writes, options.max_queued_bytes),
            vitals: Vitals::new(runtime.now()),
            closing: AtomicBool::new(false),
            living: watch::Sender::new(0),
            engine,
            options,
            runtime,
        });
        let store = Self { shared, threads: Mutex::default() };
        store.start_threads(connection)?;
        tracing::debug!(
            path = %store.shared.options.path.display(),
            history = %store.shared.history,
            durability = %durability,
            "opened a SQLite database"
        );
        Ok(store)
    }

    /// The name of this database's history: kept in it, the same for whoever opens it.
    pub fn history(&self) -> Arc<str> {
        Arc::clone(&self.shared.history)
    }

    /// The furthest place in a journal that any record carries: one walk over the table on the calling
    /// thread, for the start of a journal that is new.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn furthest(&self) -> Result<Sequence> {
        let connection = connect::another(&self.shared.options)?;
        let furthest = "SELECT coalesce(max(seq), 0) FROM records";
        let furthest: i64 =
            connection.query_row(furthest, [], |row| row.get(0)).map_err(failure::of)?;
        Ok(Sequence::new(u64::try_from(furthest).unwrap_or(0)))
    }

    fn start_threads(&self, connection: rusqlite::Connection) -> Result<()> {
        let connections = self.shared.options.connections;
        let mut threads = Vec::new();
        for _ in 0..connections.readers() {
            threads.push(match connections {
                Connections::PerRequest => start(&self.shared, Role::Reader, |shared| {
                    reader::run_per_request(shared);
                }),
                Connections::Shared { .. } => {
                    let connection = connect::another(&self.shared.options)?;
                    start(&self.shared, Role::Reader, move |shared| {
                        reader::run_shared(shared, &connection);
                    })
                }
            });
        }
        threads.push(start(&self.shared, Role::Writer, move |shared| match connections {
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
    fn asked(&self, how: &ReadOptions) -> Option<Position> {
        how.token.as_ref().and_then(|token| token.position(&self.shared.history))
    }

    fn refused(&self, why: Refused) -> Error {
        match why {
            Refused::Full => Error::new(
                ErrorKind::Overloaded,
                "too many requests wait for the database; try again a little later",
            )
            .retry_after(RETRY_AFTER),
            Refused::Closed if self.shared.closing.load(Ordering::Acquire) => failure::closed(),
            Refused::Closed => failure::dead(),
        }
    }

    async fn answered<T>(
        &self,
        job: ReadJob,
        bytes: usize,
        answer: oneshot::Receiver<Result<T>>,
        deadline: Deadline,
    ) -> Result<T> {
        self.shared.reads.push(job, bytes).map_err(|why| self.refused(why))?;
        match self.shared.runtime.within(deadline, answer).await {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(failure::dead()),
            None => Err(Deadline::exceeded()),
        }
    }

    async fn read_keys(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>> {
        how.deadline.check(self.shared.runtime.now())?;
        let (reply, answer) = oneshot::channel();
        let bytes = keys.iter().map(|key| key.as_str().len()).sum();
        let job = ReadJob::Keys { keys: keys.to_vec(), asked: self.asked(how), reply };
        self.answered(job, bytes, answer, how.deadline).await
    }

    async fn read_page(&self, scan: &Scan, how: &ReadOptions) -> Result<Page> {
        how.deadline.check(self.shared.runtime.now())?;
        let (reply, answer) = oneshot::channel();
        let job = ReadJob::Scan { scan: scan.clone(), asked: self.asked(how), reply };
        self.answered(job, scan.prefix.len(), answer, how.deadline).await
    }

    async fn write_batch(&self, writes: Vec<Write>, how: &WriteOptions) -> Result<Vec<Receipt>> {
        how.deadline.check(self.shared.runtime.now())?;
        let (reply, mut answer) = oneshot::channel();
        let claim = Arc::new(Claim::default());
        let bytes = writes.iter().map(bytes_of).sum();
        let job = WriteJob {
            writes,
            idempotency: how.idempotency.clone(),
            claim: Arc::clone(&claim),
            reply,
        };
        self.shared.writes.push(job, bytes).map_err(|why| self.refused(why))?;
        match self.shared.runtime.within(how.deadline, &mut answer).await {
            Some(Ok(result)) => result,
            Some(Err(_)) if claim.give_up() => Err(failure::dead()),
            None if claim.give_up() => Err(Deadline::exceeded()),
            Some(Err(_)) | None => {
                answer.try_recv().unwrap_or_else(|_| Err(failure::outcome_unknown()))
            }
        }
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
        Box::pin(
            async move { self.read_keys(keys, how).await.map_err(|error| error.during("read")) },
        )
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            self.write_batch(batch, how).await.map_err(|error| error.during("write"))
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(
            async move { self.read_page(scan, how).await.map_err(|error| error.during("scan")) },
        )
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move { health::inspect(&self.shared) })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.close();
            // Fails only when the sender is gone, and the sender lives in `shared`.
            let _ = self.shared.living.subscribe().wait_for(|living| *living == 0).await;
            let threads =
                std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
            // They have done their work, so joining them takes no time worth mentioning.
            let panicked = threads.into_iter().map(JoinHandle::join).filter(|end| end.is_err());
            let panicked = panicked.count();
            // Two connections that close together leave the log behind, each for the other. The log
            // is empty by now; whoever closes alone removes it.
            drop(connect::another(&self.shared.options));
            match panicked {
                0 => Ok(()),
                _ => Err(failure::dead().during("close")),
            }
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
