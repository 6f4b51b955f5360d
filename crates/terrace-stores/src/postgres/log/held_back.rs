//! What is committed and lies above the horizon, and whose transaction keeps the horizon where it is.

use std::time::Duration;

use terrace_core::{HeldBack, LogPosition, Result};
use tokio_postgres::types::Type;

use super::super::connection::Connection;
use super::super::work::{Failure, Progress, Work, corrupt};

/// What follows this position and cannot be read yet.
pub(super) struct FindHeldBack(pub(super) LogPosition);

/// The oldest unfinished transaction is found by its lock, which every user may see. It may have begun
/// long after the time that somebody gave a record, and long before: what waits has waited for the
/// shorter of the two.
const HELD_BACK: &str = "SELECT w.changes, greatest(0, 1e6 * extract(epoch FROM \
         clock_timestamp() - greatest(w.oldest, b.begun)))::bigint, coalesce(b.who, '') \
     FROM (SELECT count(*) AS changes, min(time) AS oldest FROM ( \
       SELECT time FROM commands WHERE (transaction, version) > ($1::text::xid8, $2) \
       ORDER BY transaction, version LIMIT 10000) AS first) AS w \
     LEFT JOIN LATERAL ( \
       SELECT coalesce(p.prepared, a.xact_start) AS begun, CASE \
         WHEN p.gid IS NOT NULL THEN format('prepared transaction %L of %s (ROLLBACK PREPARED)', \
           p.gid, date_trunc('second', p.prepared)) \
         ELSE format('process %s (application_name %L, user %s, database %s), open since %s \
(pg_terminate_backend)', l.pid, a.application_name, a.usename, a.datname, \
           coalesce(date_trunc('second', a.xact_start)::text, 'a time that is not shown')) END AS who \
       FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
       LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid \
       WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted \
       ORDER BY age(l.transactionid) DESC LIMIT 1) AS b ON true \
     WHERE w.changes > 0";

impl Work for FindHeldBack {
    type Answer = Option<HeldBack>;

    const OPERATION: &'static str = "look what the change log holds back";

    async fn run(
        &self,
        connection: &Connection,
        _: &Progress,
    ) -> Result<Option<HeldBack>, Failure> {
        let epoch = self.0.epoch.to_string();
        let offset = i64::try_from(self.0.offset).unwrap_or(i64::MAX);
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&epoch, Type::TEXT), (&offset, Type::INT8)];
        let rows = connection.ask(HELD_BACK, &parameters).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let number = |column| {
            let number = row.try_get::<_, Option<i64>>(column).map_err(corrupt)?;
            Ok::<_, Failure>(u64::try_from(number.unwrap_or(0)).unwrap_or(0))
        };
        let (changes, waited) = (number(0)?, Duration::from_micros(number(1)?));
        Ok(Some(HeldBack { changes, waited, by: row.try_get(2).map_err(corrupt)? }))
    }
}
