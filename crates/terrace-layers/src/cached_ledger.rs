//! A ledger whose latest transactions of each user are answered from a shared cache.

mod lists;

use std::fmt;
use std::sync::Arc;

use terrace_core::ledger::{Audited, Before, Posted, Posting, Statement, Transaction, list};
use terrace_core::{
    BoxFuture, Cache, ChangeLog, Generations, Histories, Inspection, Key, LeaderLease, Ledger,
    Origin, ReadOptions, Result, Runtime, Store, Token, WriteOptions, one,
};

use crate::{
    CacheAside, CacheAsideOptions, ConcurrencyLimit, ConcurrencyLimitOptions, SingleFlight, Turns,
};

use lists::Lists;

/// A [`Ledger`] over another one, and the cached list of each user's latest transactions.
///
/// **What it is.** The list of a user is a value that is ordered by the version of the user's account, so
/// it is cached by [`CacheAside`] under the same rules as records.
///
/// **On read.** [`CachedLedger::latest`] answers from the cache, or loads and fills it. Pages go to the ledger,
/// behind loads of lists where there is more than it can bear ([`ConcurrencyLimit`]); counts go there at once.
///
/// **On write.** The transactions are posted, then the lists of their users are emptied in the cache at
/// the versions of the accounts, and only then the answer goes out.
///
/// **On failure.** As [`CacheAside`].
///
/// **Defaults.** Lists of [`CachedLedger::LATEST`] transactions; the lifetime is that of the cache.
///
/// **Where it belongs.** Over the engine; nothing may post to the engine past it.
///
/// **What it gives up.** A transaction that somebody adds by hand shows when the list expires.
#[derive(Debug)]
pub struct CachedLedger {
    ledger: Arc<dyn Ledger>,
    cached: Arc<CacheAside>,
    lists: Arc<dyn Store>,
    turns: Arc<Turns>,
}

/// A user's latest transactions.
#[derive(Clone, Debug, PartialEq)]
pub struct Latest {
    /// The latest first.
    pub transactions: Vec<Transaction>,
    /// Where the list came from.
    pub origin: Origin,
    /// What the client has seen with it.
    pub token: Token,
}

impl CachedLedger {
    /// The most transactions of a list.
    pub const LATEST: usize = 1000;

    /// Keeps lists of this ledger in this cache.
    pub fn new(ledger: Arc<dyn Ledger>, cache: Arc<dyn Cache>, runtime: Runtime) -> Self {
        let lists = Arc::new(Lists::new(Arc::clone(&ledger)));
        // A dead cache sends every read here: the cap keeps the database alive.
        let limit = ConcurrencyLimitOptions::default();
        let lists = Arc::new(ConcurrencyLimit::new(lists, &limit, runtime.clone()));
        let turns = Arc::clone(lists.turns());
        let (generations, options) = (ledger.generations(), CacheAsideOptions::default());
        let cached = CacheAside::new(lists, cache, generations, options, runtime.clone());
        let cached = Arc::new(cached);
        let lists = Arc::new(SingleFlight::new(Arc::clone(&cached) as _, runtime));
        Self { ledger, cached, lists, turns }
    }

    /// A user's latest transactions, at most [`CachedLedger::LATEST`].
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn latest(&self, user: &Key, how: &ReadOptions) -> Result<Latest> {
        let read = one(self.lists.read(std::slice::from_ref(user), how).await?)?;
        let transactions = match &read.record {
            Some(record) => list::of_value(user, &record.value)?,
            None => Vec::new(),
        };
        Ok(Latest { transactions, origin: read.origin, token: read.token })
    }
}

impl fmt::Display for CachedLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lists.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Ledger for CachedLedger {
    fn post<'a>(
        &'a self,
        batch: Vec<Posting>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Posted>>> {
        let users = batch.iter().map(|posting| posting.user.clone()).collect();
        let (ledger, how) = (Arc::clone(&self.ledger), how.clone());
        let work = Box::pin(async move { ledger.post(batch, &how).await });
        let accounts = |posted: &Vec<Posted>| {
            let account = |it: &Posted| (it.transaction.posting.user.clone(), it.version);
            posted.iter().map(account).collect()
        };
        Box::pin(self.cached.tell_of(users, work, accounts))
    }

    fn page<'a>(
        &'a self,
        user: &'a Key,
        before: Option<Before>,
        limit: usize,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Statement>> {
        Box::pin(self.turns.list(how.deadline, self.ledger.page(user, before, limit, how)))
    }

    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        self.ledger.count()
    }

    fn audit<'a>(
        &'a self,
        after: Option<&'a Key>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Audited>>> {
        self.ledger.audit(after, limit)
    }

    fn recount<'a>(&'a self, users: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        self.ledger.recount(users)
    }

    fn log(&self) -> Arc<dyn ChangeLog> {
        self.ledger.log()
    }

    fn histories(&self) -> Arc<Histories> {
        self.ledger.histories()
    }

    fn generations(&self) -> Arc<dyn Generations> {
        self.ledger.generations()
    }

    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        self.ledger.lease()
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.lists.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.lists.close()
    }
}
