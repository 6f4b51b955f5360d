//! The port of ledgers: transactions, which are added and never changed.
//!
//! A ledger keeps an [`Account`] for each user beside the transactions, made by the database in the
//! transaction that adds them. An account is a record: its key is the user, its value the text of the
//! account, its version drawn while the row is locked. So everything that stands on records stands on
//! accounts, too: cached lists of transactions are ordered by the account's version, and the change log
//! of the accounts is what other stores follow.

mod amount;
pub mod list;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ChangeLog, Durability, Error, ErrorKind, Generations, Histories, Inspection, Key, LeaderLease,
    Proof, ReadOptions, Record, Result, Token, Value, Version, WriteOptions,
};

pub use amount::Amount;

/// Keeps transactions and the accounts that they make.
pub trait Ledger: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Adds transactions, all or none, and answers one [`Posted`] for each in their order. A request
    /// with an idempotency key that was done before answers what it answered then.
    ///
    /// **Cancellation.** A dropped future has added all of them or none.
    ///
    /// # Errors
    /// As [`Store::write`](crate::Store::write).
    fn post<'a>(
        &'a self,
        batch: Vec<Posting>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Posted>>>;

    /// A user's transactions before a place, the newest first, at most `limit`.
    ///
    /// # Errors
    /// As [`Store::scan`](crate::Store::scan).
    fn page<'a>(
        &'a self,
        user: &'a Key,
        before: Option<Before>,
        limit: usize,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Statement>>;

    /// The number of all transactions, exactly.
    ///
    /// # Errors
    /// As [`Store::scan`](crate::Store::scan).
    fn count(&self) -> BoxFuture<'_, Result<u64>>;

    /// Accounts after a user, in byte order, at most `limit`, each as its record says and as its
    /// transactions add up, out of one snapshot.
    ///
    /// # Errors
    /// As [`Store::scan`](crate::Store::scan).
    fn audit<'a>(
        &'a self,
        after: Option<&'a Key>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Audited>>>;

    /// Makes the accounts of these users anew from their transactions, each under a new version. Who has
    /// no transactions is left with the trace of a deleted account, also where there was none.
    ///
    /// # Errors
    /// As [`Store::write`](crate::Store::write).
    fn recount<'a>(&'a self, users: &'a [Key]) -> BoxFuture<'a, Result<()>>;

    /// The committed changes of the accounts.
    fn log(&self) -> Arc<dyn ChangeLog>;

    /// What is heard of its history, for tokens.
    fn histories(&self) -> Arc<Histories>;

    /// What caches must know of it.
    fn generations(&self) -> Arc<dyn Generations>;

    /// Lets one of several instances follow the accounts, where several may.
    fn lease(&self) -> Option<Arc<dyn LeaderLease>>;

    /// See [`Store::inspect`](crate::Store::inspect).
    fn inspect(&self) -> BoxFuture<'_, Inspection>;

    /// See [`Store::close`](crate::Store::close).
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// The kind of a transaction: 1 to 50 characters, without NUL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind(Arc<str>);

impl Kind {
    /// The most characters.
    pub const MAX_CHARS: usize = 50;

    /// Checks a kind.
    ///
    /// # Errors
    /// `InvalidInput` when it is empty, too long, or holds a NUL character.
    pub fn new(text: &str) -> Result<Self> {
        let length = text.chars().take(Self::MAX_CHARS + 1).count();
        if length == 0 || length > Self::MAX_CHARS || text.contains('\0') {
            let message = "transaction_type must have 1 to 50 characters and no NUL character";
            return Err(Error::invalid(message));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A transaction to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    /// Whose; 1 to 255 characters, as keys have.
    pub user: Key,
    /// How much; may be negative.
    pub amount: Amount,
    /// What kind.
    pub kind: Kind,
}

/// A transaction that was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its number, drawn by the database.
    pub id: u64,
    /// What was added.
    pub posting: Posting,
    /// When, by the database's clock. Microseconds, UTC.
    pub created_at: Timestamp,
}

/// What adding a transaction answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posted {
    /// The transaction.
    pub transaction: Transaction,
    /// The version of the user's account with it, or a later one.
    pub version: Version,
    /// How safe it is now.
    pub durability: Durability,
    /// Proof of having added it.
    pub token: Token,
}

/// A place in a user's transactions: before this one, in the order of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// The time of the transaction.
    pub created_at: Timestamp,
    /// Its number.
    pub id: u64,
}

/// A page of a user's transactions.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// By time and number, the latest first.
    pub transactions: Vec<Transaction>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Before>,
    /// The version of the account in the same snapshot, or of its end, as far as that is remembered;
    /// else [`Version::NONE`].
    pub version: Version,
    /// What the client has seen with it.
    pub token: Token,
    /// What it proves to a cache.
    pub proof: Option<Proof>,
}

impl Statement {
    /// Cuts transactions in the order of pages to a page, and answers where the next one begins.
    pub fn cut(transactions: &mut Vec<Transaction>, limit: usize) -> Option<Before> {
        let more = transactions.len() > limit;
        transactions.truncate(limit);
        let last = transactions.last().filter(|_| more)?;
        Some(Before { created_at: last.created_at, id: last.id })
    }
}

/// What a user's transactions come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// How many they are.
    pub transactions: u64,
    /// Their sum.
    pub balance: Amount,
    /// The time of the latest.
    pub last_at: Timestamp,
}

impl Account {
    /// What these transactions come to; `None` where there are none.
    pub fn counted<'t>(transactions: impl IntoIterator<Item = &'t Transaction>) -> Option<Self> {
        transactions.into_iter().fold(None, |account: Option<Self>, transaction| {
            let Transaction { posting, created_at, .. } = transaction;
            Some(match account {
                None => Self { transactions: 1, balance: posting.amount, last_at: *created_at },
                Some(account) => Self {
                    transactions: account.transactions + 1,
                    balance: account.balance + posting.amount,
                    last_at: account.last_at.max(*created_at),
                },
            })
        })
    }

    /// The value of its record: `{"transactions":3,"balance":"12.50","last_at":"2026-11-30T12:00:00Z"}`.
    ///
    /// # Errors
    /// None that an account has.
    pub fn to_value(&self) -> Result<Value> {
        let text = serde_json::to_string(self).map_err(|error| {
            Error::new(ErrorKind::Internal, "an account has no text").caused_by(error)
        })?;
        Value::new(text)
    }

    /// The account in the value of a record.
    ///
    /// # Errors
    /// `Corrupt` for a value that a person has changed.
    pub fn of(value: &Value) -> Result<Self> {
        serde_json::from_str(value.as_str()).map_err(|error| {
            let message = "a stored account cannot be read; run `terrace reconcile --level 8`";
            Error::new(ErrorKind::Corrupt, message).caused_by(error)
        })
    }
}

/// One account as its record says, and as its transactions add up.
#[derive(Clone, Debug, PartialEq)]
pub struct Audited {
    /// Whose.
    pub user: Key,
    /// The record, as the account in it, if it can be read, with its version.
    pub kept: Option<Record>,
    /// What the transactions come to; `None` where there are none.
    pub counted: Option<Account>,
}
