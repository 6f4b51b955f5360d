//! What the writer does for a ledger, in the transaction of its group.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use terrace_core::ledger::{Account, Amount, Posting};
use terrace_core::{Idempotency, Key, Outcome, Result, Timestamp, Value, Version, Write};

use super::super::apply::{Moment, Statements};
use super::super::idempotency::{self, Results};
use super::super::{failure, reader};
use super::Done;

/// A task of the writer.
#[derive(Debug)]
pub(in super::super) enum Accounts {
    /// Adds transactions. What was done is left in `posted`: the results are those of the accounts.
    Post { batch: Arc<[Posting]>, idempotency: Option<Arc<Idempotency>>, posted: Done },
    /// Makes accounts anew.
    Recount(Vec<Key>),
}

/// A transaction that was added, as it is stored under an idempotency key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct DonePosting {
    pub(in super::super) id: u64,
    pub(in super::super) created_at: Timestamp,
    pub(in super::super) version: Version,
}

impl Accounts {
    /// Whether a result is stored.
    pub(in super::super) fn is_repeatable(&self) -> bool {
        matches!(self, Self::Post { idempotency: Some(_), .. })
    }

    pub(in super::super) fn perform(
        &self,
        connection: &Connection,
        statements: &mut Statements<'_>,
        moment: &mut Moment,
    ) -> Result<Results> {
        match self {
            Self::Post { batch, idempotency, posted } => {
                let done = request(connection, idempotency.as_deref(), moment, |moment| {
                    post(connection, statements, batch, moment)
                })?;
                let results = done.iter().map(|it| (Outcome::Created, it.version)).collect();
                *posted.lock().unwrap_or_else(PoisonError::into_inner) = done;
                Ok(results)
            }
            Self::Recount(users) => {
                for user in users {
                    keep(connection, statements, user, None, moment)?;
                }
                Ok(Vec::new())
            }
        }
    }
}

/// Does what a request asks for, unless it was done before.
fn request(
    connection: &Connection,
    request: Option<&Idempotency>,
    moment: &mut Moment,
    work: impl FnOnce(&mut Moment) -> Result<Vec<DonePosting>>,
) -> Result<Vec<DonePosting>> {
    let Some(request) = request else { return work(moment) };
    if let Some(done) = idempotency::find(connection, request, moment.micros)? {
        return Ok(done);
    }
    let done = work(moment)?;
    idempotency::keep(connection, request, &done, moment.micros)?;
    Ok(done)
}

fn post(
    connection: &Connection,
    statements: &mut Statements<'_>,
    batch: &[Posting],
    moment: &mut Moment,
) -> Result<Vec<DonePosting>> {
    const INSERT: &str =
        "INSERT INTO transactions (user_id, amount_cents, transaction_type, created_at)
         VALUES (?1, ?2, ?3, ?4)";
    let created_at = Timestamp::from_microsecond(moment.micros);
    let created_at = created_at.map_err(|_| failure::corrupt("created_at"))?;
    let (mut added, mut ids) = (BTreeMap::<&Key, Account>::new(), Vec::with_capacity(batch.len()));
    let mut insert = connection.prepare_cached(INSERT).map_err(failure::of)?;
    for Posting { user, amount, kind } in batch {
        let row = params![user.as_str(), amount.cents(), kind.as_str(), moment.micros];
        let id = insert.insert(row).map_err(failure::of)?;
        ids.push(u64::try_from(id).unwrap_or(0));
        let one = Account { transactions: 1, balance: *amount, last_at: created_at };
        added.entry(user).and_modify(|sum| *sum = merged(*sum, one)).or_insert(one);
    }
    let mut versions = BTreeMap::new();
    for (user, account) in added {
        versions.insert(user, keep(connection, statements, user, Some(account), moment)?);
    }
    let done = batch.iter().zip(ids).map(|(posting, id)| {
        let version = versions.get(&posting.user).copied().unwrap_or_default();
        DonePosting { id, created_at, version }
    });
    Ok(done.collect())
}

fn merged(one: Account, other: Account) -> Account {
    Account {
        transactions: one.transactions + other.transactions,
        balance: one.balance + other.balance,
        last_at: one.last_at.max(other.last_at),
    }
}

/// Keeps the account of a user with what was added; where there is none that can be read, or nothing was
/// added, it is counted. Without transactions the trace of a deleted one is left.
fn keep(
    connection: &Connection,
    statements: &mut Statements<'_>,
    user: &Key,
    added: Option<Account>,
    moment: &mut Moment,
) -> Result<Version> {
    let account = match added {
        Some(added) => kept(connection, user)?.map(|account| merged(account, added)),
        None => None,
    };
    let account = match account {
        Some(account) => Some(account),
        None => counted(connection, user)?,
    };
    let value = account.map_or_else(|| Value::new(""), |account| account.to_value())?;
    let put = statements.apply_one(&Write::put(user.clone(), value), moment)?;
    match account {
        Some(_) => Ok(put.1),
        None => Ok(statements.apply_one(&Write::delete(user.clone()), moment)?.1),
    }
}

/// The account in the record of a user, if it can be read.
fn kept(connection: &Connection, user: &Key) -> Result<Option<Account>> {
    let mut lookup = connection.prepare_cached(reader::LOOKUP).map_err(failure::of)?;
    let mut rows = lookup.query([user.as_str()]).map_err(failure::of)?;
    let Some(row) = rows.next().map_err(failure::of)? else { return Ok(None) };
    // What cannot be read is written anew.
    let record = reader::decode(row, || Ok(user.clone())).ok().and_then(|(record, _)| record);
    Ok(record.and_then(|record| Account::of(&record.value).ok()))
}

/// What the transactions of a user come to.
pub(super) fn counted(connection: &Connection, user: &Key) -> Result<Option<Account>> {
    const COUNT: &str = "SELECT count(*), sum(amount_cents), max(created_at) FROM transactions
         WHERE user_id = ?1";
    let mut count = connection.prepare_cached(COUNT).map_err(failure::of)?;
    let found = count.query_row([user.as_str()], |row| {
        let transactions: i64 = row.get(0)?;
        match transactions {
            0 => Ok(None),
            some => Ok(Some((some.unsigned_abs(), row.get(1)?, row.get(2)?))),
        }
    });
    let Some((transactions, cents, micros)) = found.optional().map_err(failure::of)?.flatten()
    else {
        return Ok(None);
    };
    let last_at = Timestamp::from_microsecond(micros);
    let last_at = last_at.map_err(|_| failure::corrupt("created_at"))?;
    Ok(Some(Account { transactions, balance: Amount::of_cents(cents), last_at }))
}
