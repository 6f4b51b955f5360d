//! The store: checks, asks by the link, and makes answers of rows.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Deadline, Documents, Follower, Generations, Histories, Inspection, Key, Origin,
    Page, PartKind, Position, Proof, Read, ReadOptions, Receipt, Result, Runtime, Scan, Selection,
    Standing, Status, Store, Task, Token, Version, Write, WriteOptions, history,
};

use super::follow::{self, MongoFollower};
use super::generations::{MongoGenerations, keep_looking};
use super::history::History;
use super::link::{Link, ServerSession};
use super::query::{self, CollectionRows};
use super::server::Server;
use super::upkeep::Upkeep;
use super::write::Writers;
use super::{MongoOptions, check, failure};
use crate::walks::{self, Walk};

/// Documents in MongoDB; see the [module](super) for what is there and its promises.
///
/// A read or a write that is dropped goes on in a task of its own: a write is applied whole or not at
/// all. A batch is not atomic, and receipts say what came of each write.
///
/// ```no_run
/// # use terrace_core::{Key, Result, Runtime, StoreExt, json};
/// # use terrace_stores::mongodb::{MongoDocuments, MongoOptions};
/// # async fn example() -> Result<()> {
/// let options = MongoOptions::new("mongodb://127.0.0.1:27017/polyglot_db");
/// let documents = MongoDocuments::connect(options, Runtime::system()).await?;
/// documents.put(Key::new("user:1")?, json::document(r#"{"name": "Ada"}"#)?).await?;
/// # Ok(()) }
/// ```
pub struct MongoDocuments {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<Task>>,
}

/// What the store and its background work have in common.
pub(super) struct Shared {
    pub(super) options: MongoOptions,
    pub(super) link: Arc<Link>,
    pub(super) histories: Histories,
    pub(super) writers: Arc<Writers>,
    server: OnceLock<Server>,
    preparing: tokio::sync::Mutex<()>,
    /// How often a row was left out of a list, as no document can be made of it.
    unreadable: Arc<AtomicU64>,
    /// Whether only a follower writes it, over a link that is another store's.
    pub(super) follows: bool,
    is_closed: AtomicBool,
}

/// The collection of summaries.
const SUMMARIES: &str = "summaries";

impl MongoDocuments {
    /// How long the start waits for the server.
    const START_WITHIN: Duration = Duration::from_secs(10);

    /// Connects, and makes the indexes and the history. Where the server is down the store is there all
    /// the same; it does so at the first call that reaches it.
    ///
    /// # Errors
    /// `InvalidInput` for a URL that cannot be used, and for a collection that has several rows of one key.
    pub async fn connect(options: MongoOptions, runtime: Runtime) -> Result<Self> {
        let link = Arc::new(Link::open(&options, runtime.clone()).await?);
        let shared = Arc::new(Shared::new(options, link, false));
        let until = Deadline::at(runtime.now() + Self::START_WITHIN);
        match shared.prepared(until).await {
            Ok(_) => {}
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "the document server is not there yet");
            }
            Err(error) => return Err(error.during("connect")),
        }
        Ok(Self::start(shared))
    }

    /// The histories and generations of the collection, for caches.
    pub fn generations(&self) -> Arc<dyn Generations> {
        Arc::new(MongoGenerations::new(Arc::clone(&self.shared)))
    }

    /// Does now what else happens once an hour, up to a page: removes what is kept no longer, and indexes
    /// what other programs have written. Answers whether nothing is left.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub async fn tidy(&self) -> Result<bool> {
        Upkeep::new(Arc::clone(&self.shared)).page().await
    }

    /// The collection `summaries` of the same database, and what follows a change log into it; nothing
    /// else writes it. It answers until either store is closed.
    pub fn summaries(&self) -> (Arc<dyn Store>, Arc<dyn Follower>) {
        let options = MongoOptions { collection: SUMMARIES.into(), ..self.shared.options.clone() };
        let shared = Arc::new(Shared::new(options, Arc::clone(&self.shared.link), true));
        let follower = MongoFollower::new(Arc::clone(&shared));
        (Arc::new(Self::start(shared)), Arc::new(follower))
    }

    fn start(shared: Arc<Shared>) -> Self {
        let runtime = shared.link.runtime.clone();
        let looking = keep_looking(&runtime, Arc::clone(&shared));
        let walking = walks::start(&runtime, Upkeep::new(Arc::clone(&shared)));
        Self { shared, tasks: Mutex::new(vec![looking, walking]) }
    }
}

impl Shared {
    fn new(options: MongoOptions, link: Arc<Link>, follows: bool) -> Self {
        Self {
            options,
            link,
            histories: Histories::new(Standing::of("")),
            writers: Arc::default(),
            server: OnceLock::new(),
            preparing: tokio::sync::Mutex::default(),
            unreadable: Arc::default(),
            follows,
            is_closed: AtomicBool::new(false),
        }
    }

    /// The server, for a call: what is wrong with it is no fault of the caller, and nothing was applied.
    pub(super) async fn ready(&self, deadline: Deadline) -> Result<&Server> {
        self.prepared(deadline).await.map_err(failure::of_preparing)
    }

    /// The server, once it was asked and everything is made.
    async fn prepared(&self, deadline: Deadline) -> Result<&Server> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(failure::closed());
        }
        if let Some(server) = self.server.get() {
            return Ok(server);
        }
        let runtime = &self.link.runtime;
        let prepared = async {
            let _turn = self.preparing.lock().await;
            if self.server.get().is_some() {
                return Ok(());
            }
            let (collection, asked) = (self.options.collection.clone(), runtime.now());
            let work = |session| check::prepare(session, collection);
            let (server, standing) = self.link.run(false, deadline, work).await?;
            self.histories.heard(standing, asked);
            let _only_here = self.server.set(server);
            Ok(())
        };
        let prepared = runtime.within(deadline, prepared).await;
        prepared.unwrap_or_else(|| Err(Deadline::exceeded()))?;
        self.server.get().ok_or_else(failure::closed)
    }

    /// The same for what may look through many documents: few at a time, so that others have turns.
    async fn question<T, F>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(CollectionRows) -> F + Send,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let turn = self.link.question(deadline).await?;
        let work = |rows: CollectionRows| {
            let work = work(rows);
            async move {
                let _turn = turn;
                work.await
            }
        };
        self.run(deadline, work).await
    }

    /// What the work answers, on a server that is ready.
    pub(super) async fn run<T, F>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(CollectionRows) -> F + Send,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let has_majority = self.ready(deadline).await?.has_majority();
        let collection = &self.options.collection;
        let work = |session: ServerSession| work(CollectionRows::of(session, collection));
        self.link.run(has_majority, deadline, work).await
    }

    /// The history of the collection.
    pub(super) fn history(&self) -> History {
        History { of: self.options.collection.clone() }
    }

    /// Asks for the history and the generation.
    pub(super) async fn look(&self, deadline: Deadline) -> Result<()> {
        self.ready(deadline).await?;
        let (history, asked) = (self.history(), self.link.runtime.now());
        let known = self.histories.name();
        let work = |rows: CollectionRows| async move {
            let standing = history.look(&rows.session).await?;
            if standing.history != known {
                // The collection is another one, and may lack its indexes.
                check::make_indexes(&rows).await.map_err(failure::of_preparing)?;
            }
            Ok(standing)
        };
        let standing = self.run(deadline, work).await?;
        self.histories.heard(standing, asked);
        Ok(())
    }

    /// Refuses a token that cannot be satisfied here. Any other one of this history is: what was
    /// acknowledged, a read of the primary sees.
    fn check(&self, how: &ReadOptions) -> Result<()> {
        let Some(token) = &how.token else { return Ok(()) };
        self.histories.check(token)?;
        if self.histories.is_behind(token) { Err(history::behind()) } else { Ok(()) }
    }

    /// What was known before the read, as the proof of a row.
    fn proof(standing: &Standing, shown: Version) -> Proof {
        Proof {
            history: Arc::clone(&standing.history),
            generation: standing.generation,
            // Positions of other keys are not proved by any answer.
            through: Position::NONE,
            shown: Position::new(shown.get()),
        }
    }

    /// What a client has seen that gets this answer: never less than it has seen before.
    fn token(proof: &Proof, how: &ReadOptions) -> Token {
        let mut token = proof.token();
        if let Some(asked) = how.token.as_ref().and_then(|asked| asked.position(&proof.history)) {
            token.merge(&Token::of(Arc::clone(&proof.history), asked));
        }
        token
    }

    async fn read(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>> {
        self.ready(how.deadline).await?;
        self.check(how)?;
        let standing = self.histories.standing();
        let (wanted, budget) = (keys.to_vec(), how.budget);
        let rows = match keys {
            [] => Vec::new(),
            _ => {
                let follows = self.follows;
                let work = |rows: CollectionRows| async move {
                    let rows = if follows { follow::counted(rows).await? } else { rows };
                    rows.of_keys(&wanted, budget).await
                };
                self.run(how.deadline, work).await?
            }
        };
        let rows = rows.iter().map(|row| (&row.key, row)).collect::<HashMap<_, _>>();
        let mut budget = how.budget;
        let read = |key: &Key| {
            let row = rows.get(key);
            let record = row.map(|row| row.record()).transpose()?.flatten();
            // A key may be asked for twice.
            budget.spend(record.as_ref().map_or(0, |record| record.value.as_str().len()))?;
            let version = row.map_or(Version::NONE, |row| row.version());
            let proof = Self::proof(&standing, version);
            let (origin, age) = (Origin::PRIMARY, Duration::ZERO);
            let token = Self::token(&proof, how);
            Ok(Read { record, version, origin, age, token, proof: Some(proof) })
        };
        keys.iter().map(read).collect()
    }

    async fn page(&self, what: Option<&Selection>, scan: &Scan, how: &ReadOptions) -> Result<Page> {
        let server = self.ready(how.deadline).await?;
        self.check(how)?;
        let asks = what.is_some_and(|what| query::is_understood(what, server));
        let proof = Self::proof(&self.histories.standing(), Version::NONE);
        let (what, scan, follows) = (what.cloned(), scan.clone(), self.follows);
        let unreadable = Arc::clone(&self.unreadable);
        let work = |rows: CollectionRows| async move {
            let rows = if follows { follow::counted(rows).await? } else { rows };
            rows.page(what.as_ref(), asks, &scan, &unreadable).await
        };
        let page = self.question(how.deadline, work).await?;
        let shown = page.records.iter().map(|record| record.version).max().unwrap_or(Version::NONE);
        let proof = Proof { shown: Position::new(shown.get()), ..proof };
        Ok(page.proving(Self::token(&proof, how)))
    }
}

impl Documents for MongoDocuments {
    fn select<'a>(
        &'a self,
        what: &'a Selection,
        scan: &'a Scan,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let page = self.shared.page(Some(what), scan, how).await;
            page.map_err(|error| error.during("select"))
        })
    }

    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let work = |rows: CollectionRows| async move { rows.count().await };
            let count = self.shared.question(Deadline::NEVER, work).await;
            count.map_err(|error| error.during("count"))
        })
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for MongoDocuments {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(
            async move { self.shared.read(keys, how).await.map_err(|error| error.during("read")) },
        )
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            self.shared.write(batch, how).await.map_err(|error| error.during("write"))
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            self.shared.page(None, scan, how).await.map_err(|error| error.during("scan"))
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            const WITHIN: Duration = Duration::from_millis(900);
            let shared = &self.shared;
            let tree = Inspection::of(PartKind::Database, "mongodb")
                .text("collection", &shared.options.collection)
                .counter("unreadable_documents", shared.unreadable.load(Ordering::Relaxed));
            let mut tree = shared.link.show(tree);
            let until = Deadline::at(shared.link.runtime.now() + WITHIN);
            let asked = shared.look(until).await;
            if let Some(server) = shared.server.get() {
                tree = tree.text("server", server).text("durability", server.durability());
            }
            match asked {
                Ok(()) => tree,
                Err(error) => tree.status(Status::Down, error.message().to_owned()),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let tasks =
                std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            drop(tasks);
            self.shared.is_closed.store(true, Ordering::Release);
            if !self.shared.follows {
                self.shared.link.close().await;
            }
            Ok(())
        })
    }
}

impl fmt::Display for MongoDocuments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mongodb")
    }
}

impl fmt::Debug for MongoDocuments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoDocuments")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}
