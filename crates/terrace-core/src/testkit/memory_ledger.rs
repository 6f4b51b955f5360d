//! A ledger in memory.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;

use crate::ledger::{Account, Audited, Before, Posted, Posting, Statement, Transaction};
use crate::{
    BoxFuture, ChangeLog, Changes, Deadline, Error, ErrorKind, Generations, Histories, Idempotency,
    Inspection, Key, LeaderLease, Ledger, LogPosition, MemoryStore, Position, ReadOptions, Receipt,
    Result, Runtime, Store, Timestamp, Token, Value, Version, Write, WriteOptions, history, one,
};

/// Transactions in this process's memory, beside a [`MemoryStore`] of the accounts: what the port
/// means, in its simplest form. Every account is counted anew with each transaction.
#[derive(Debug)]
pub struct MemoryLedger {
    accounts: Arc<MemoryStore>,
    runtime: Runtime,
    entries: Mutex<Entries>,
    posted: watch::Sender<u64>,
}

/// Held while the accounts are changed, and while both are read.
#[derive(Debug, Default)]
struct Entries {
    /// By number, from 1.
    transactions: Vec<Transaction>,
    results: HashMap<String, ([u8; 32], Vec<Posted>)>,
}

impl MemoryLedger {
    /// An empty ledger on this runtime's clock.
    pub fn new(runtime: Runtime) -> Self {
        let accounts = Arc::new(MemoryStore::new(runtime.clone()));
        let (entries, posted) = (Mutex::default(), watch::Sender::new(0));
        Self { accounts, runtime, entries, posted }
    }

    /// The records of the accounts. Who writes them changes them by hand.
    pub fn accounts(&self) -> &Arc<MemoryStore> {
        &self.accounts
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Every change is complete when a panic could happen, so poison means nothing.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post_now(&self, batch: Vec<Posting>, how: &WriteOptions) -> Result<Vec<Posted>> {
        let mut entries = self.entries();
        if let Some(request) = &how.idempotency
            && let Some((fingerprint, done)) = entries.results.get(request.key())
        {
            let same = fingerprint == request.fingerprint();
            return if same { Ok(done.clone()) } else { Err(Idempotency::reused()) };
        }
        batch.iter().try_for_each(|posting| posting.amount.check())?;
        let created_at = Timestamp::from_microsecond(self.runtime.wall().as_microsecond());
        let created_at = created_at.unwrap_or_default();
        let first = entries.transactions.len();
        for (id, posting) in (first as u64 + 1..).zip(batch) {
            entries.transactions.push(Transaction { id, posting, created_at });
        }
        let added = &entries.transactions[first..];
        let users = added.iter().map(|transaction| transaction.posting.user.clone()).collect();
        let receipts = match self.write_accounts(&entries, users, how.deadline) {
            Ok(receipts) => receipts,
            Err(error) => {
                entries.transactions.truncate(first);
                return Err(error);
            }
        };
        let mut token = Token::default();
        receipts.values().for_each(|receipt| token.merge(&receipt.token));
        let posted = entries.transactions[first..].iter().map(|transaction| {
            let Receipt { version, durability, .. } = receipts[&transaction.posting.user];
            Posted { transaction: transaction.clone(), version, durability, token: token.clone() }
        });
        let posted = posted.collect::<Vec<_>>();
        if let Some(request) = &how.idempotency {
            let result = (*request.fingerprint(), posted.clone());
            entries.results.insert(request.key().to_owned(), result);
        }
        Ok(posted)
    }

    fn write_accounts(
        &self,
        entries: &Entries,
        users: BTreeSet<Key>,
        deadline: Deadline,
    ) -> Result<HashMap<Key, Receipt>> {
        let mut writes = Vec::with_capacity(users.len());
        for user in &users {
            let account = entries.account(user);
            let value = account.as_ref().map_or_else(|| Value::new(""), Account::to_value)?;
            writes.push(Write::put(user.clone(), value));
            if account.is_none() {
                writes.push(Write::delete(user.clone()));
            }
        }
        let how = WriteOptions { deadline, ..WriteOptions::default() };
        let receipts = now(self.accounts.write(writes, &how))?;
        self.posted.send_modify(|number| *number += 1);
        Ok(users.into_iter().zip(receipts).collect())
    }

    fn page_now(
        &self,
        user: &Key,
        before: Option<Before>,
        limit: usize,
        how: &ReadOptions,
    ) -> Result<Statement> {
        let entries = self.entries();
        let account = one(now(self.accounts.read(std::slice::from_ref(user), how))?)?;
        let place = |it: &Transaction| (it.created_at, it.id);
        let found = entries.of(user).filter(|transaction| {
            before.is_none_or(|before| place(transaction) < (before.created_at, before.id))
        });
        let mut transactions = found.cloned().collect::<Vec<_>>();
        transactions.sort_by_key(|transaction| std::cmp::Reverse(place(transaction)));
        let next = Statement::cut(&mut transactions, limit);
        let (version, token, proof) = (account.version, account.token, account.proof);
        Ok(Statement { transactions, next, version, token, proof })
    }

    fn audit_now(&self, after: Option<&Key>, limit: usize) -> Result<Vec<Audited>> {
        let entries = self.entries();
        let kept = self.accounts.rows().into_iter().filter_map(|row| row.record);
        let kept = kept.map(|record| (record.key.clone(), record)).collect::<HashMap<_, _>>();
        let posted = entries.transactions.iter().map(|it| &it.posting.user);
        let users = kept.keys().chain(posted).collect::<BTreeSet<_>>();
        let users = users.into_iter().filter(|user| after.is_none_or(|after| *user > after));
        let audited = users.take(limit).map(|user| Audited {
            user: user.clone(),
            kept: kept.get(user).cloned(),
            counted: entries.account(user),
        });
        Ok(audited.collect())
    }

    /// Fails when it is closed, as every call does.
    async fn open(&self) -> Result<()> {
        Generations::look(&*self.accounts).await
    }
}

impl Entries {
    fn of<'a>(&'a self, user: &'a Key) -> impl Iterator<Item = &'a Transaction> {
        self.transactions.iter().filter(move |transaction| transaction.posting.user == *user)
    }

    fn account(&self, user: &Key) -> Option<Account> {
        Account::counted(self.of(user))
    }
}

/// What a store in memory answers, which never waits.
fn now<T>(call: BoxFuture<'_, Result<T>>) -> Result<T> {
    let waits = || Err(Error::new(ErrorKind::Internal, "a store in memory waits"));
    call.now_or_never().unwrap_or_else(waits)
}

impl fmt::Display for MemoryLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl Ledger for MemoryLedger {
    fn post<'a>(
        &'a self,
        batch: Vec<Posting>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Posted>>> {
        Box::pin(async move {
            how.deadline.check(self.runtime.now())?;
            self.open().await?;
            self.post_now(batch, how)
        })
    }

    fn page<'a>(
        &'a self,
        user: &'a Key,
        before: Option<Before>,
        limit: usize,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Statement>> {
        Box::pin(async move { self.page_now(user, before, limit, how) })
    }

    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            self.open().await?;
            Ok(self.entries().transactions.len() as u64)
        })
    }

    fn audit<'a>(
        &'a self,
        after: Option<&'a Key>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Audited>>> {
        Box::pin(async move {
            self.open().await?;
            self.audit_now(after, limit)
        })
    }

    fn recount<'a>(&'a self, users: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let entries = self.entries();
            let users = users.iter().cloned().collect();
            self.write_accounts(&entries, users, Deadline::NEVER).map(drop)
        })
    }

    fn log(&self) -> Arc<dyn ChangeLog> {
        let accounts = Arc::clone(&self.accounts);
        Arc::new(Log { accounts, runtime: self.runtime.clone(), posted: self.posted.subscribe() })
    }

    fn histories(&self) -> Arc<Histories> {
        self.accounts.histories()
    }

    fn generations(&self) -> Arc<dyn Generations> {
        Arc::<MemoryStore>::clone(&self.accounts)
    }

    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        None
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.accounts.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.accounts.close()
    }
}

/// The rows of the accounts by version: compacted.
#[derive(Debug)]
struct Log {
    accounts: Arc<MemoryStore>,
    runtime: Runtime,
    posted: watch::Receiver<u64>,
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl ChangeLog for Log {
    fn name(&self) -> Arc<str> {
        history::log_in("ledger", &self.accounts.histories().name())
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            Generations::look(&*self.accounts).await?;
            let mut changes = self.accounts.rows();
            changes.retain(|change| change.position > position);
            changes.sort_by_key(|change| change.position);
            let more = changes.len() > limit;
            changes.truncate(limit);
            let position = changes.last().map_or(position, |change| change.position);
            Ok(Changes { changes, position, more })
        })
    }

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        /// Who changes an account by hand wakes nobody.
        const LOOK: Duration = Duration::from_millis(20);
        Box::pin(async move {
            let mut posted = self.posted.clone();
            posted.mark_unchanged();
            if self.head().await? > position {
                return Ok(());
            }
            let soon = deadline.min(Deadline::at(self.runtime.now() + LOOK));
            let _ = self.runtime.within(soon, posted.changed()).await;
            Ok(())
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async move {
            Generations::look(&*self.accounts).await?;
            Ok(LogPosition { epoch: 0, offset: self.accounts.raise(Version::NONE).get() })
        })
    }

    fn place_of(&self, position: Position) -> LogPosition {
        LogPosition { epoch: 0, offset: position.get() }
    }

    fn position_of(&self, place: LogPosition) -> Position {
        Position::new(place.offset)
    }
}
