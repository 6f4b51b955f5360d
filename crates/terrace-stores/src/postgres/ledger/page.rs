//! Pages of a user's transactions, and what they prove.

use std::time::{Duration, SystemTime};

use terrace_core::ledger::{Amount, Before, Kind, Posting, Statement, Transaction};
use terrace_core::{Error, ErrorKind, Key, Position, Timestamp, Token, Version};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::connection::{Connection, Repeated};
use super::super::read::{Seen, version};
use super::super::statements::{Moment, Parameter, generation};
use super::super::work::{Failure, Progress, Work, corrupt};

/// A page of a user's transactions.
pub(super) struct ReadStatement<'a> {
    pub(super) user: &'a Key,
    pub(super) before: Option<Before>,
    pub(super) limit: usize,
    pub(super) asked: Option<&'a Token>,
}

/// One statement, so one snapshot: what it proves, the account, and the page.
const PAGE: &str = concat!(
    "WITH seen AS MATERIALIZED ( \
       SELECT pg_current_snapshot(), ",
    generation!("$5"),
    ", pg_is_in_recovery(), r.version, r.xmin AS writer \
       FROM (VALUES (1)) AS one LEFT JOIN records r ON r.key = $1) \
     SELECT seen.*, t.id, t.cents, t.transaction_type, t.created_at \
     FROM seen LEFT JOIN LATERAL ( \
       SELECT id, (amount * 100)::bigint AS cents, transaction_type, created_at FROM transactions \
       WHERE user_id = $1 AND (created_at, id) < ($2, $3) \
       ORDER BY created_at DESC, id DESC LIMIT $4) AS t ON true \
     ORDER BY t.created_at DESC, t.id DESC"
);

/// Where the columns of a transaction begin.
const TRANSACTION: usize = 5;

impl Work for ReadStatement<'_> {
    type Answer = Statement;

    const OPERATION: &'static str = "read";
    const ELSEWHERE: bool = true;

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Statement, Failure> {
        let last = Before { created_at: Timestamp::MAX, id: u64::MAX };
        let Before { created_at, id } = self.before.unwrap_or(last);
        let (user, history) = (self.user.as_str(), &*connection.history);
        let (created_at, id) = (system_time(created_at), i64::try_from(id).unwrap_or(i64::MAX));
        let limit = i64::try_from(self.limit.saturating_add(1)).unwrap_or(i64::MAX);
        let parameters: [(Parameter<'_>, Type); 5] = [
            (&user, Type::TEXT),
            (&created_at, Type::TIMESTAMPTZ),
            (&id, Type::INT8),
            (&limit, Type::INT8),
            (&history, Type::TEXT),
        ];
        let rows = connection.repeat(Repeated::ReadStatement, PAGE, &parameters).await?;
        let first = rows.first().ok_or(Failure::AnotherHistory)?;
        let seen = Seen::of(first, 0, connection)?;
        seen.check(self.asked, history)?;
        let (mut account, mut shown) = (Version::NONE, Position::NONE);
        if let Some(number) = first.try_get::<_, Option<i64>>(3).map_err(corrupt)? {
            (account, shown) = (version(number), seen.written_by(first, 4)?);
        }
        let proof = seen.proof(&connection.history, shown);
        let transactions = rows.iter().filter_map(|row| self.transaction(row).transpose());
        let mut transactions = transactions.collect::<Result<Vec<_>, Failure>>()?;
        let next = Statement::cut(&mut transactions, self.limit);
        let token = proof.token();
        Ok(Statement { transactions, next, version: account, token, proof: Some(proof) })
    }
}

impl ReadStatement<'_> {
    /// The transaction in a row; there is none where the user has none.
    fn transaction(&self, row: &Row) -> Result<Option<Transaction>, Failure> {
        let id = row.try_get::<_, Option<i64>>(TRANSACTION).map_err(unreadable)?;
        let Some(id) = id else { return Ok(None) };
        let amount = Amount::of_cents(row.try_get(TRANSACTION + 1).map_err(unreadable)?);
        let kind = row.try_get::<_, &str>(TRANSACTION + 2).map_err(unreadable)?;
        let kind = Kind::new(kind).map_err(|error| error.into_kind(ErrorKind::Corrupt));
        let Moment(created_at) = row.try_get(TRANSACTION + 3).map_err(unreadable)?;
        let user = self.user.clone();
        let posting = Posting { user, amount, kind: kind.map_err(Failure::Refused)? };
        Ok(Some(Transaction { id: u64::try_from(id).unwrap_or(0), posting, created_at }))
    }
}

/// As the driver takes times.
fn system_time(at: Timestamp) -> SystemTime {
    let micros = at.as_microsecond();
    let far = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { SystemTime::UNIX_EPOCH - far } else { SystemTime::UNIX_EPOCH + far }
}

/// A row that no statement of the ledger can have written.
fn unreadable(error: tokio_postgres::Error) -> Failure {
    let message =
        "a stored transaction cannot be read; check the columns of the table `transactions`";
    Failure::Refused(Error::new(ErrorKind::Corrupt, message).caused_by(error))
}
