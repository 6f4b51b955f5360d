//! Commands to one database, queries from another that follows it.

mod reads;
mod rebuild;
mod shared_log;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use terrace_core::read_model::{Activity, Counted, Projection, Row, Rows};
use terrace_core::{
    BoxFuture, ChangeLog, Consistency, Deadline, Error, ErrorKind, Follower, Histories, Inspection,
    Key, LogPosition, Origin, Page, Read, ReadModel, ReadOptions, Receipt, Result, Runtime, Scan,
    Store, Task, Token, Write, WriteOptions,
};

pub use rebuild::rebuild;

use crate::follow::{Follow, FollowOptions, Following};
use crate::heads::Heads;
use crate::{ConcurrencyLimitOptions, Turns};

use reads::ReadCounts;
use shared_log::SharedLog;

/// How to separate commands and queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CqrsOptions {
    /// How long a read with a token waits for the projection before it goes to the command side.
    /// Default 500 ms.
    pub wait: Duration,
    /// How often counts of reads are stored. Default 1 s.
    pub flush: Duration,
    /// How to project. Default 2000 changes at least 10 ms apart.
    pub projection: FollowOptions,
}

impl Default for CqrsOptions {
    fn default() -> Self {
        Self {
            wait: Duration::from_millis(500),
            flush: Duration::from_secs(1),
            projection: FollowOptions { batch: 2000, pace: Duration::from_millis(10) },
        }
    }
}

/// Where commands go, and the log that they leave.
#[derive(Clone, Debug)]
pub struct CommandSide {
    /// Takes the commands.
    pub store: Arc<dyn Store>,
    /// What is heard of its history, for tokens.
    pub histories: Arc<Histories>,
    /// Its committed changes.
    pub log: Arc<dyn ChangeLog>,
}

/// Separates commands from queries.
///
/// **What it is.** Writes go to the command side, whose change log is [followed](Follow) into a read
/// model that answers reads, and what the command side cannot: search, counts, activity.
///
/// **On read.** The read model answers. With a token, or a bound on age, a read waits until the
/// projection has come as far, for at most [`CqrsOptions::wait`]; then the command side answers, and
/// at once for strong reads and for keys that are parked. While the read model cannot be reached, the
/// command side answers. Reads take turns at the read model as those of a
/// [`ConcurrencyLimit`](crate::ConcurrencyLimit) do, before scans, searches and counts.
///
/// **On write, on delete.** The command side; the receipt has the place in the log, which is the
/// event's name.
///
/// **On failure.** What dies between commit and projection is projected later: the log has it. A
/// change that the read model refuses stops its key, visibly, not the others.
///
/// **Defaults.** See [`CqrsOptions`].
///
/// **Where it belongs.** Over `Coalesce` on the command side, with nothing that caches between; below
/// `Timeout`.
///
/// **What it gives up.** A read after a write may not see it yet, unless it sends the token. Pages of
/// a scan with a token come from the command side; searches and counts are as new as the projection
/// is. Reads counted since the last flush are lost when the process is killed.
#[derive(Debug)]
pub struct Cqrs {
    command: CommandSide,
    model: Arc<dyn ReadModel>,
    projector: Following,
    /// The search index and the stream of events, where there are such.
    others: Vec<Following>,
    reads: Arc<ReadCounts>,
    /// Of the read model; the projection, the index and the counts take none.
    turns: Arc<Turns>,
    heads: Heads,
    accepted: AtomicU64,
    fallbacks: AtomicU64,
    options: CqrsOptions,
    runtime: Runtime,
    flushes: Mutex<Option<Task>>,
}

impl Cqrs {
    /// How events are published: what comes within the pace is published together.
    const RELAY: FollowOptions = FollowOptions { batch: 1000, pace: Duration::from_millis(20) };
    /// How words are indexed: of a key that changes again and again, only once in a while.
    const SEARCH: FollowOptions = FollowOptions { batch: 2000, pace: Duration::from_secs(1) };

    /// Starts to project, and to publish where there is a stream of events.
    pub fn new(
        command: CommandSide,
        model: Arc<dyn ReadModel>,
        events: Option<Arc<dyn Follower>>,
        options: CqrsOptions,
        runtime: Runtime,
    ) -> Self {
        let log = Arc::new(SharedLog::new(Arc::clone(&command.log)));
        let follow = |name, follower, how| {
            Follow::new(name, Arc::clone(&log) as _, follower, how, runtime.clone())
        };
        let live = model.follower(Projection::Live);
        let projector = follow("projector", live, options.projection.clone());
        let lease = model.lease();
        let projector = projector.mending().led_by(lease.clone()).start();
        let search = model
            .search_index()
            .map(|index| follow("search index", index, Self::SEARCH).led_by(lease).start());
        let relay = events.map(|events| follow("relay", events, Self::RELAY).start());
        let others = search.into_iter().chain(relay).collect();
        let reads = Arc::new(ReadCounts::default());
        let flushes = {
            let (reads, model) = (Arc::clone(&reads), Arc::clone(&model));
            let (clock, period) = (runtime.clone(), options.flush);
            runtime.keep("read counts", move || {
                let (reads, model, clock) = (Arc::clone(&reads), Arc::clone(&model), clock.clone());
                async move {
                    loop {
                        clock.sleep(period).await;
                        reads.flush(&*model).await;
                    }
                }
            })
        };
        Self {
            command,
            model,
            projector,
            others,
            reads,
            turns: Arc::new(Turns::new(&ConcurrencyLimitOptions::default(), runtime.clone())),
            heads: Heads::default(),
            accepted: AtomicU64::new(0),
            fallbacks: AtomicU64::new(0),
            options,
            runtime,
            flushes: Mutex::new(Some(flushes)),
        }
    }

    /// How often a key was read, with what this instance has not stored yet.
    pub fn read_count(&self, key: &Key) -> u64 {
        self.reads.total(key)
    }

    /// See [`ReadModel::search`].
    ///
    /// # Errors
    /// Of the read model.
    pub async fn search(&self, words: &str, limit: usize) -> Result<Vec<Row>> {
        self.list(self.model.search(words, limit)).await.map(|rows| self.with_pending(rows))
    }

    /// See [`ReadModel::top`]. Of the reads, those that were not stored yet are added to the counts
    /// and do not change the order.
    ///
    /// # Errors
    /// Of the read model.
    pub async fn top(&self, by: Counted, limit: usize) -> Result<Vec<Row>> {
        self.list(self.model.top(by, limit)).await.map(|rows| self.with_pending(rows))
    }

    /// See [`ReadModel::activity`].
    ///
    /// # Errors
    /// Of the read model.
    pub async fn activity(&self, bucket: Duration, limit: usize) -> Result<Vec<Activity>> {
        self.list(self.model.activity(bucket, limit)).await
    }

    /// What looks through many records waits behind reads of keys, whoever waits for it.
    async fn list<T>(&self, question: BoxFuture<'_, Result<T>>) -> Result<T> {
        self.turns.list(Deadline::NEVER, question).await
    }

    fn with_pending(&self, mut rows: Vec<Row>) -> Vec<Row> {
        for row in &mut rows {
            let record = row.record.as_ref();
            row.reads += record.map_or(0, |record| self.reads.pending(&record.key));
        }
        rows
    }

    /// The place that an answer must have reached for its token; `Err` where only the command side
    /// knows: for a token of an earlier or a later life of its database.
    fn asked(&self, how: &ReadOptions) -> Result<Option<LogPosition>, OnlyTheCommandSide> {
        let Some(token) = &how.token else { return Ok(None) };
        let standing = self.command.histories.standing();
        if standing.is_behind(token) || standing.has_lost(token) {
            return Err(OnlyTheCommandSide);
        }
        Ok(token.position(&standing.history).map(|position| self.command.log.place_of(position)))
    }

    /// Where the log ends now, for a bound on age.
    async fn head(&self) -> Result<LogPosition> {
        let asked = self.runtime.now();
        let head = self.command.log.head().await?;
        self.heads.note(head, asked);
        Ok(head)
    }

    /// The read model's answer, when it is as new as asked in time and fit to be one.
    async fn query(&self, keys: &[Key], how: &ReadOptions) -> Result<Option<Vec<Read>>> {
        let Ok(mut asked) = self.asked(how) else { return Ok(None) };
        let budget = self.budget(how);
        for round in 0.. {
            let read =
                self.turns.read(keys.len(), Deadline::NEVER, self.model.read(keys, how.budget));
            let Some(rows) = self.runtime.within(budget, read).await else { return Ok(None) };
            let rows = rows?;
            let place = rows.reached.place_in(&self.command.log.name());
            if place.is_none() && asked.is_none() {
                return Ok(None);
            }
            let age = place.and_then(|place| self.heads.age(place, self.runtime.now()));
            let young = match how.consistency {
                Consistency::MaxStale(limit) => age.is_some_and(|age| age <= limit),
                _ => true,
            };
            // Of the answer's own snapshot: a read database that crashed may have gone back.
            if young && asked.is_none_or(|asked| place >= Some(asked)) {
                return Ok(self.answer(keys, rows, age));
            }
            if budget.passed(self.runtime.now()) {
                return Ok(None);
            }
            if !young {
                asked = asked.max(Some(self.head().await?));
            }
            // Where another instance projects, looks that begin at 2 ms and double.
            let look = Duration::from_millis(2 << round.min(5));
            let follow = self.projector.follow();
            follow.progressed(asked.unwrap_or_default(), look, budget).await;
        }
        Ok(None)
    }

    /// A page of the read model, unless that lacks something.
    async fn page(&self, scan: &Scan) -> Result<Option<Page>> {
        let (page, reached) = self.list(self.model.scan(scan)).await?;
        let token = self.token_at(reached.checkpoint.position);
        Ok(reached.place_in(&self.command.log.name()).map(|_| page.proving(token)))
    }

    /// The token of an answer that has all changes up to a place of the log.
    fn token_at(&self, place: LogPosition) -> Token {
        Token::of(self.command.histories.name(), self.command.log.position_of(place))
    }

    /// `None` when a key is parked: its record may be older than the checkpoint says.
    fn answer(&self, keys: &[Key], rows: Rows, age: Option<Duration>) -> Option<Vec<Read>> {
        if rows.rows.iter().any(|row| row.parked) {
            return None;
        }
        let token = self.token_at(rows.reached.checkpoint.position);
        let reads = keys.iter().zip(rows.rows).map(|(key, row)| {
            if row.record.is_some() {
                self.reads.add(key, row.reads);
            }
            Read {
                record: row.record,
                version: row.version,
                origin: Origin::READ_MODEL,
                age: age.unwrap_or_default(),
                token: token.clone(),
                proof: None,
            }
        });
        Some(reads.collect())
    }

    /// How long the query side may take.
    fn budget(&self, how: &ReadOptions) -> Deadline {
        Deadline::at(self.runtime.now() + self.options.wait).min(how.deadline)
    }

    /// The command side's answer. Its token is of the last command that was logged: the projection
    /// never comes to what a database does beside them.
    async fn command_side_reads(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>> {
        let mut reads = self.command.store.read(keys, how).await?;
        let head = self.runtime.within(how.deadline, self.head()).await;
        let head = head.unwrap_or_else(|| Err(Deadline::exceeded()))?;
        for read in &mut reads {
            read.token = self.token_at(head);
        }
        Ok(reads)
    }

    fn falls_back(&self) {
        self.fallbacks.fetch_add(1, Relaxed);
    }
}

/// What a token asks for cannot be told from the log.
struct OnlyTheCommandSide;

/// Whether the command side may answer in the place of the read model.
fn may_fall_back(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Overloaded)
}

#[deny(clippy::missing_trait_methods)]
impl Store for Cqrs {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            how.deadline.check(self.runtime.now())?;
            if how.consistency != Consistency::Strong {
                match self.query(keys, how).await {
                    Ok(Some(reads)) => return Ok(reads),
                    Ok(None) => {}
                    Err(error) if may_fall_back(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            self.falls_back();
            self.command_side_reads(keys, how).await
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            let receipts = self.command.store.write(batch, how).await?;
            let applied = receipts.iter().filter(|receipt| receipt.outcome.is_applied()).count();
            self.accepted.fetch_add(applied as u64, Relaxed);
            Ok(receipts)
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            how.deadline.check(self.runtime.now())?;
            if how.consistency == Consistency::Default && how.token.is_none() {
                let budget = self.budget(how);
                match self.runtime.within(budget, self.page(scan)).await {
                    None | Some(Ok(None)) => {}
                    // A list that the read database has no time for is none for the other one.
                    Some(Err(error)) if error.kind() == ErrorKind::Unavailable => {}
                    Some(Ok(Some(page))) => return Ok(page),
                    Some(Err(error)) => return Err(error),
                }
            }
            self.falls_back();
            self.command.store.scan(scan, how).await
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let tree = Inspection::new("cqrs")
                .fact("wait", self.options.wait)
                .counter("events_published", self.accepted.load(Relaxed))
                .counter("command_side_reads", self.fallbacks.load(Relaxed))
                .counter("uncounted_reads", self.reads.uncounted());
            let (command, model, answers) = futures_util::future::join3(
                self.command.store.inspect(),
                self.model.inspect(),
                self.query(&[], &ReadOptions::default()),
            )
            .await;
            // Without the one nothing is written, without the other nothing is asked beyond records by
            // key; only where both fail a read, too, there is nothing left to do.
            let tree = match answers {
                Ok(Some(_)) => tree.helped_by(command),
                _ => tree.needs(command),
            };
            let turns = self.turns.show(Inspection::new("concurrency-limit"));
            let tree = tree.helped_by(turns.instance("queries")).helped_by(model);
            let tree = tree.helped_by(self.projector.follow().inspect());
            self.others.iter().fold(tree, |tree, one| tree.helped_by(one.follow().inspect()))
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let flushes = self.flushes.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(flushes) = flushes {
                flushes.stop().await;
            }
            self.projector.stop().await;
            for other in &self.others {
                other.stop().await;
            }
            self.reads.flush(&*self.model).await;
            let model = self.model.close().await;
            self.command.store.close().await.and(model)
        })
    }
}

impl fmt::Display for Cqrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cqrs({}, {})", self.command.store, self.model)
    }
}
