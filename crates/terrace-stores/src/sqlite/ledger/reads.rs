//! What the readers answer about a ledger, out of their snapshots.

use rusqlite::{Connection, Row, params};
use terrace_core::ledger::{Amount, Audited, Before, Kind, Posting, Statement, Transaction};
use terrace_core::{Error, Key, Position, Read, Result, Timestamp};

use super::super::job::Reply;
use super::super::{failure, reader};
use super::posts::counted;

/// A job of the readers.
#[derive(Debug)]
pub(in super::super) enum Question {
    Page {
        user: Key,
        before: Option<Before>,
        limit: usize,
        asked: Option<Position>,
        reply: Reply<Statement>,
    },
    Count(Reply<u64>),
    Audit {
        after: Option<Key>,
        limit: usize,
        reply: Reply<Vec<Audited>>,
    },
}

impl Question {
    /// Answers whoever waits with this error.
    pub(in super::super) fn refuse(self, error: Error) {
        match self {
            Self::Page { reply, .. } => drop(reply.send(Err(error))),
            Self::Count(reply) => drop(reply.send(Err(error))),
            Self::Audit { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// The page of a user whose account was read in the same snapshot.
pub(in super::super) fn page(
    connection: &Connection,
    user: &Key,
    before: Option<Before>,
    limit: usize,
    account: Read,
) -> Result<Statement> {
    const PAGE: &str = "SELECT id, amount_cents, transaction_type, created_at FROM transactions
         WHERE user_id = ?1 AND (created_at, id) < (?2, ?3)
         ORDER BY created_at DESC, id DESC LIMIT ?4";
    let (micros, id) = before.map_or((i64::MAX, i64::MAX), |before| {
        (before.created_at.as_microsecond(), i64::try_from(before.id).unwrap_or(i64::MAX))
    });
    let most = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(PAGE).map_err(failure::of)?;
    let mut rows =
        statement.query(params![user.as_str(), micros, id, most]).map_err(failure::of)?;
    let mut transactions = Vec::new();
    while let Some(row) = rows.next().map_err(failure::of)? {
        transactions.push(transaction(row, user)?);
    }
    let next = Statement::cut(&mut transactions, limit);
    let Read { version, token, proof, .. } = account;
    Ok(Statement { transactions, next, version, token, proof })
}

fn transaction(row: &Row<'_>, user: &Key) -> Result<Transaction> {
    let number = |index| row.get::<_, i64>(index).map_err(failure::of);
    let kind = row.get_ref(2).map_err(failure::of)?.as_str();
    let kind = kind.ok().and_then(|kind| Kind::new(kind).ok());
    let kind = kind.ok_or_else(|| failure::corrupt("transaction_type"))?;
    let created_at = Timestamp::from_microsecond(number(3)?);
    let created_at = created_at.map_err(|_| failure::corrupt("created_at"))?;
    let amount = Amount::of_cents(number(1)?);
    let posting = Posting { user: user.clone(), amount, kind };
    Ok(Transaction { id: u64::try_from(number(0)?).unwrap_or(0), posting, created_at })
}

pub(in super::super) fn count(connection: &Connection) -> Result<u64> {
    let mut count =
        connection.prepare_cached("SELECT count(*) FROM transactions").map_err(failure::of)?;
    let count: i64 = count.query_row([], |row| row.get(0)).map_err(failure::of)?;
    Ok(count.unsigned_abs())
}

/// Users after one, of records and of transactions, with both.
pub(in super::super) fn audit(
    connection: &Connection,
    after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Audited>> {
    const USERS: &str = "SELECT key FROM (
           SELECT * FROM (SELECT key FROM records WHERE deleted = 0 AND key > ?1 ORDER BY key LIMIT ?2)
           UNION SELECT * FROM (SELECT DISTINCT user_id FROM transactions WHERE user_id > ?1
             ORDER BY user_id LIMIT ?2))
         ORDER BY key LIMIT ?2";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut users = connection.prepare_cached(USERS).map_err(failure::of)?;
    let mut rows =
        users.query(params![after.map_or("", Key::as_str), limit]).map_err(failure::of)?;
    let mut lookup = connection.prepare_cached(reader::LOOKUP).map_err(failure::of)?;
    let mut audited = Vec::new();
    while let Some(row) = rows.next().map_err(failure::of)? {
        let user = key(row)?;
        let mut found = lookup.query([user.as_str()]).map_err(failure::of)?;
        let kept = match found.next().map_err(failure::of)? {
            Some(row) => reader::decode(row, || Ok(user.clone()))?.0,
            None => None,
        };
        audited.push(Audited { counted: counted(connection, &user)?, kept, user });
    }
    Ok(audited)
}

/// Users who have transactions and no account.
pub(super) fn without_accounts(connection: &Connection) -> Result<Vec<Key>> {
    const MISSING: &str = "SELECT DISTINCT t.user_id FROM transactions t WHERE NOT EXISTS
         (SELECT 1 FROM records r WHERE r.key = t.user_id AND r.deleted = 0)";
    let mut missing = connection.prepare(MISSING).map_err(failure::of)?;
    let mut rows = missing.query([]).map_err(failure::of)?;
    let mut users = Vec::new();
    while let Some(row) = rows.next().map_err(failure::of)? {
        users.push(key(row)?);
    }
    Ok(users)
}

fn key(row: &Row<'_>) -> Result<Key> {
    let name = row.get_ref(0).map_err(failure::of)?.as_str();
    let name = name.ok().and_then(|name| Key::new(name).ok());
    name.ok_or_else(|| failure::corrupt("user_id"))
}
