//! A ledger in a PostgreSQL database, beside the records of its accounts.
//!
//! `transactions` is made for people, too: triggers keep the accounts whatever is inserted, changed,
//! deleted or truncated by hand, in the same transaction; see [`install`]. A table of that name and
//! these columns that was there is taken over as it is, with its ids and times.
//!
//! **Posts** that come while others are under way share a transaction, and one fsync. A post without an
//! idempotency key is one round trip.

mod audit;
mod install;
mod page;
mod post;
mod posts;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use terrace_core::ledger::{Audited, Before, Posted, Posting, Statement};
use terrace_core::{
    BatchLimits, Batcher, BoxFuture, ChangeLog, Error, ErrorKind, Generations, Histories,
    Inspection, Key, LeaderLease, Ledger, Load, LockedKeys, Merge as _, ReadOptions, Result, Store,
    Unit, WriteOptions,
};

use self::audit::{Audit, Count, Recount};
use self::page::ReadStatement;
use self::post::{PostBatch, PostNothing};
use self::posts::Posts;
use super::inspect::{self, Health};
use super::lease::Lease;
use super::read::ReadNothing;
use super::{LogBegin, PostgresLog, PostgresStore};

/// Transactions in PostgreSQL 15 or later, whose accounts are the records of a [`PostgresStore`].
pub struct PostgresLedger {
    store: Arc<PostgresStore>,
    log: Arc<PostgresLog>,
    posts: Arc<Batcher<Posts>>,
    /// Of users whose accounts another session holds.
    locked_posts: Arc<Batcher<Posts>>,
    locked: Arc<LockedKeys>,
    health: Health,
}

impl PostgresLedger {
    /// The most transactions that are added together; a batch of more is added alone.
    const MOST: usize = 512;

    /// One batch is worked on while the other waits for its fsync.
    const LIMITS: BatchLimits = BatchLimits {
        lanes: 2,
        batch: Load { parts: Self::MOST, bytes: 4 * 1024 * 1024 },
        waiting: Load { parts: 16_384, bytes: 64 * 1024 * 1024 },
    };

    /// Makes the table, or takes over the one that is there, and counts what has no account yet. The
    /// store must have been opened with its change log.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`].
    pub async fn open(store: Arc<PostgresStore>) -> Result<Self> {
        if !store.logged {
            let message = "a ledger needs a store that was opened with its change log";
            return Err(Error::new(ErrorKind::Internal, message).during("migrate"));
        }
        let log = Arc::new(store.install_log(LogBegin::WithRecords).await?);
        let mut session = store.worker.pool.connector().open().await?;
        install::install(session.client(), &store.schema).await?;
        let locked = Arc::<LockedKeys>::default();
        let posts = |lanes| {
            let merge = Posts { worker: store.worker.clone(), locked: Arc::clone(&locked) };
            let limits = BatchLimits { lanes, ..Self::LIMITS };
            Batcher::new(merge, limits, store.worker.runtime.clone())
        };
        let (posts, locked_posts) = (posts(Self::LIMITS.lanes), posts(1));
        Ok(Self { store, log, posts, locked_posts, locked, health: Health::default() })
    }

    /// The records of the accounts. Who writes them changes them by hand.
    pub fn accounts(&self) -> &Arc<PostgresStore> {
        &self.store
    }

    async fn add(&self, batch: Vec<Posting>, how: &WriteOptions) -> Result<Vec<Posted>> {
        batch.iter().try_for_each(|posting| posting.amount.check())?;
        let request = how.idempotency.as_deref();
        if batch.is_empty() && request.is_none() {
            return self.store.nothing(how.deadline).map(|()| Vec::new());
        }
        let fits = batch.len() <= Self::MOST && Posts::bytes(&batch) <= Self::LIMITS.batch.bytes;
        if fits && request.is_none() && how.durability.is_none() {
            let free = self.locked.among(batch.iter().map(|it| &it.user)).is_empty();
            let queue = if free { &self.posts } else { &self.locked_posts };
            return queue.call(batch, how.deadline).await;
        }
        let work = PostBatch { batch: &batch, request, again: AtomicBool::new(false) };
        self.store.worker.perform(&work, how.deadline).await
    }

    async fn read(
        &self,
        user: &Key,
        before: Option<Before>,
        limit: usize,
        how: &ReadOptions,
    ) -> Result<Statement> {
        let work = ReadStatement { user, before, limit, asked: how.token.as_ref() };
        let statement = self.store.worker.perform(&work, how.deadline).await?;
        self.store.check(how).await.map(|()| statement)
    }
}

impl Ledger for PostgresLedger {
    fn post<'a>(
        &'a self,
        batch: Vec<Posting>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Posted>>> {
        Box::pin(self.add(batch, how))
    }

    fn page<'a>(
        &'a self,
        user: &'a Key,
        before: Option<Before>,
        limit: usize,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Statement>> {
        Box::pin(self.read(user, before, limit, how))
    }

    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.store.worker.tend(&Count))
    }

    fn audit<'a>(
        &'a self,
        after: Option<&'a Key>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Audited>>> {
        Box::pin(async move { self.store.worker.tend(&Audit { after, limit }).await })
    }

    fn recount<'a>(&'a self, users: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.store.worker.tend(&Recount { users }).await })
    }

    fn log(&self) -> Arc<dyn ChangeLog> {
        Arc::<PostgresLog>::clone(&self.log)
    }

    fn histories(&self) -> Arc<Histories> {
        self.store.histories()
    }

    fn generations(&self) -> Arc<dyn Generations> {
        Arc::<PostgresStore>::clone(&self.store)
    }

    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        Some(Arc::new(Lease::new(self.store.worker.clone(), install::LEASED)))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let worker = &self.store.worker;
            let post = async |deadline| worker.perform(&PostNothing, deadline).await;
            let health = self.health.ask(worker, &ReadNothing, post).await;
            let durability = worker.pool.connector().durability();
            let tree = inspect::tree(worker, &self.store.schema, durability, health);
            let (posts, locked) = (self.posts.counts(), self.locked_posts.counts());
            let waiting = posts.line.waiting.parts + locked.line.waiting.parts;
            let tree = tree
                .counter("posts", posts.line.accepted + locked.line.accepted)
                .counter("post_batches", posts.batches + locked.batches)
                .gauge("waiting_posts", waiting as u64, Unit::Count);
            self.store.held.told(tree)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.posts.close().await;
            self.locked_posts.close().await;
            self.store.close().await
        })
    }
}

impl fmt::Display for PostgresLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres")
    }
}

impl fmt::Debug for PostgresLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLedger").field("store", &self.store).finish_non_exhaustive()
    }
}
