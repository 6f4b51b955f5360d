//! Accounts compared with their transactions, and made anew; the number of all transactions.

use futures_util::future::join;
use terrace_core::ledger::{Account, Amount, Audited};
use terrace_core::{Key, Record};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::connection::Connection;
use super::super::read::{Seen, record};
use super::super::statements::{Moment, Parameter, Sql, generation};
use super::super::work::{Failure, Progress, Work, corrupt, not_allowed};

/// Rows of a statement, if it was asked under the history in force.
async fn ask(
    connection: &Connection,
    text: &str,
    parameters: &[(Parameter<'_>, Type)],
) -> Result<Vec<Row>, Failure> {
    let of_history: [Parameter<'_>; 1] = [&&*connection.history];
    let (rows, seen) =
        join(connection.ask(text, parameters), connection.run(Sql::Seen, &of_history)).await;
    Seen::of(seen?.first().ok_or(Failure::AnotherHistory)?, 0, connection)?;
    Ok(rows?)
}

/// The number of all transactions.
pub(super) struct Count;

impl Work for Count {
    type Answer = u64;

    const OPERATION: &'static str = "count";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<u64, Failure> {
        let rows = ask(connection, "SELECT count(*) FROM transactions", &[]).await?;
        let count = rows.first().map_or(Ok(0_i64), |row| row.try_get(0)).map_err(corrupt)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}

/// Accounts after a user, as they are kept and as they are counted.
pub(super) struct Audit<'a> {
    pub(super) after: Option<&'a Key>,
    pub(super) limit: usize,
}

/// Of records and of users as many as are asked for, so that of both together the first are there.
const AUDIT: &str = "WITH users AS MATERIALIZED ( \
       (SELECT key FROM records WHERE NOT deleted AND key > $1 ORDER BY key LIMIT $2) \
       UNION (SELECT DISTINCT user_id FROM transactions WHERE user_id > $1 ORDER BY user_id LIMIT $2) \
       ORDER BY 1 LIMIT $2) \
     SELECT u.key, r.version, r.created_at, r.updated_at, r.value, c.transactions, c.cents, c.last_at \
     FROM users u LEFT JOIN records r ON r.key = u.key AND NOT r.deleted \
     CROSS JOIN LATERAL (SELECT count(*) AS transactions, (sum(amount) * 100)::bigint AS cents, \
       max(created_at) AS last_at FROM transactions WHERE user_id = u.key) AS c ORDER BY u.key";

impl Work for Audit<'_> {
    type Answer = Vec<Audited>;

    const OPERATION: &'static str = "audit";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Vec<Audited>, Failure> {
        let after = self.after.map_or("", Key::as_str);
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let rows = ask(connection, AUDIT, &[(&after, Type::TEXT), (&limit, Type::INT8)]).await?;
        rows.iter().map(audited).collect()
    }
}

fn audited(row: &Row) -> Result<Audited, Failure> {
    let user = Key::new(row.try_get::<_, &str>(0).map_err(corrupt)?).map_err(not_allowed)?;
    Ok(Audited { kept: kept(&user, row)?, counted: counted(row)?, user })
}

fn kept(user: &Key, row: &Row) -> Result<Option<Record>, Failure> {
    if row.try_get::<_, Option<&str>>(4).map_err(corrupt)?.is_none() {
        return Ok(None);
    }
    let version = row.try_get(1).map_err(corrupt)?;
    let record = record(user.clone(), version, row, 2);
    record.map(Some).map_err(|failure| failure.in_row(user.as_str()))
}

fn counted(row: &Row) -> Result<Option<Account>, Failure> {
    let transactions = row.try_get::<_, i64>(5).map_err(corrupt)?;
    if transactions == 0 {
        return Ok(None);
    }
    let balance = Amount::of_cents(row.try_get(6).map_err(corrupt)?);
    let Moment(last_at) = row.try_get(7).map_err(corrupt)?;
    Ok(Some(Account { transactions: transactions.unsigned_abs(), balance, last_at }))
}

/// Makes accounts anew.
pub(super) struct Recount<'a> {
    pub(super) users: &'a [Key],
}

impl Work for Recount<'_> {
    type Answer = ();

    const OPERATION: &'static str = "recount";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        const RECOUNT: &str = concat!(
            "SELECT terrace_ledger_recount($1::text[], '') WHERE ",
            generation!("$2"),
            " IS NOT NULL"
        );
        let users = self.users.iter().map(Key::as_str).collect::<Vec<_>>();
        let history = &*connection.history;
        progress.commits();
        let parameters: [(Parameter<'_>, Type); 2] =
            [(&users, Type::TEXT_ARRAY), (&history, Type::TEXT)];
        let rows = connection.ask(RECOUNT, &parameters).await?;
        rows.first().map(drop).ok_or(Failure::AnotherHistory)
    }
}
