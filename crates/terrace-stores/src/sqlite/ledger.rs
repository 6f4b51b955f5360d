//! A ledger in a SQLite file, beside the records of its accounts.
//!
//! `transactions(id, user_id, amount_cents, transaction_type, created_at)` is filled by the writer's
//! thread, which keeps each account in the same transaction: a post is a job of its group commit. What
//! people change in the table shows in an audit, and in the account once that is made anew; a user
//! without an account is counted when the ledger is opened.

mod posts;
pub(super) mod reads;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use terrace_core::ledger::{Audited, Before, Posted, Posting, Statement, Transaction};
use terrace_core::{
    BoxFuture, ChangeLog, Deadline, Error, ErrorKind, Generations, Histories, Inspection, Key,
    LeaderLease, Ledger, ReadOptions, Receipt, Result, Store, Token, WriteOptions,
};

pub(super) use self::posts::{Accounts, DonePosting};
pub(super) use self::reads::Question;
use super::job::{ReadJob, Task};
use super::log::SqliteLog;
use super::store::SqliteStore;
use super::{connect, failure};

/// Transactions in one SQLite file, whose accounts are the records of a [`SqliteStore`].
#[derive(Debug)]
pub struct SqliteLedger {
    store: Arc<SqliteStore>,
    log: Arc<SqliteLog>,
}

impl SqliteLedger {
    /// Makes the table, and counts what has no account yet. The store must have been opened with its
    /// change log. Does file work on the calling thread, as [`SqliteStore::open`].
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub async fn open(store: Arc<SqliteStore>) -> Result<Self> {
        let log = store.log()?.ok_or_else(|| {
            let message = "a ledger needs a store that was opened with its change log";
            Error::new(ErrorKind::Internal, message).during("open")
        })?;
        let users = {
            let connection = connect::another(&store.shared.options)?;
            let made = connection.execute_batch(include_str!("ledger.sql"));
            made.map_err(|error| failure::of(error).during("migrate"))?;
            reads::without_accounts(&connection)?
        };
        let ledger = Self { store, log: Arc::new(log) };
        ledger.recount(&users).await?;
        Ok(ledger)
    }

    /// The records of the accounts. Who writes them changes them by hand.
    pub fn accounts(&self) -> &Arc<SqliteStore> {
        &self.store
    }

    async fn add(&self, batch: Vec<Posting>, how: &WriteOptions) -> Result<Vec<Posted>> {
        let shared = &self.store.shared;
        batch.iter().try_for_each(|posting| posting.amount.check())?;
        if shared.is_replica() {
            return Err(failure::replica());
        }
        let of = |it: &Posting| it.user.as_str().len() + it.kind.as_str().len() + size_of::<i64>();
        let bytes = batch.iter().map(of).sum();
        let (batch, posted) = (Arc::<[Posting]>::from(batch), Arc::default());
        let idempotency = how.idempotency.clone();
        let of =
            Accounts::Post { batch: Arc::clone(&batch), idempotency, posted: Arc::clone(&posted) };
        let receipts = shared.submit(Task::Ledger(of), bytes, how.deadline).await?;
        let done = std::mem::take(&mut *posted.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(answers(&batch, done, receipts))
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(super::job::Reply<T>) -> Question,
        deadline: Deadline,
    ) -> Result<T> {
        self.store.shared.ask(|reply| ReadJob::Ledger(question(reply)), 0, deadline).await
    }
}

/// What the writer did, with what its commit is worth: all of a batch is one transaction.
fn answers(batch: &[Posting], done: Vec<DonePosting>, receipts: Vec<Receipt>) -> Vec<Posted> {
    let mut token = Token::default();
    receipts.iter().for_each(|receipt| token.merge(&receipt.token));
    let answer = |((posting, done), receipt): ((&Posting, DonePosting), Receipt)| {
        let DonePosting { id, created_at, version } = done;
        let transaction = Transaction { id, posting: posting.clone(), created_at };
        Posted { transaction, version, durability: receipt.durability, token: token.clone() }
    };
    batch.iter().zip(done).zip(receipts).map(answer).collect()
}

/// The writer's part of a batch, for the one who waits for it.
type Done = Arc<Mutex<Vec<DonePosting>>>;

impl Ledger for SqliteLedger {
    fn post<'a>(
        &'a self,
        batch: Vec<Posting>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Posted>>> {
        Box::pin(async move { self.add(batch, how).await.map_err(|error| error.during("post")) })
    }

    fn page<'a>(
        &'a self,
        user: &'a Key,
        before: Option<Before>,
        limit: usize,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Statement>> {
        Box::pin(async move {
            let (user, asked) = (user.clone(), self.store.asked(how)?);
            let page = |reply| Question::Page { user, before, limit, asked, reply };
            self.ask(page, how.deadline).await.map_err(|error| error.during("read"))
        })
    }

    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.ask(Question::Count, Deadline::NEVER))
    }

    fn audit<'a>(
        &'a self,
        after: Option<&'a Key>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Audited>>> {
        let after = after.cloned();
        let audit = move |reply| Question::Audit { after, limit, reply };
        Box::pin(self.ask(audit, Deadline::NEVER))
    }

    fn recount<'a>(&'a self, users: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        /// Others post in between.
        const AT_ONCE: usize = 100;
        Box::pin(async move {
            for some in users.chunks(AT_ONCE) {
                let task = Task::Ledger(Accounts::Recount(some.to_vec()));
                self.store.shared.submit(task, 0, Deadline::NEVER).await?;
            }
            Ok(())
        })
    }

    fn log(&self) -> Arc<dyn ChangeLog> {
        Arc::<SqliteLog>::clone(&self.log)
    }

    fn histories(&self) -> Arc<Histories> {
        self.store.histories()
    }

    fn generations(&self) -> Arc<dyn Generations> {
        Arc::<SqliteStore>::clone(&self.store)
    }

    /// A file has one process.
    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        None
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Store::inspect(&*self.store)
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Store::close(&*self.store)
    }
}

impl fmt::Display for SqliteLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlite")
    }
}
