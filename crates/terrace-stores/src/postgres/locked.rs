//! What holds up a write that has waited long enough for a lock.

use std::time::Duration;

use terrace_core::{Error, ErrorKind, Key};
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::shard::LOCK;
use super::sqlstate::because;
use super::work::Failure;

/// Looks which rows of a batch another session holds. That is found in the rows, which name the
/// transaction that locked them; a row that is being inserted shows itself to nobody.
///
/// Where a table is locked, or what a shard has is being changed, everybody waits: the failure stays
/// what it is, and the write is tried again. So is one that other writers of Terrace are before, and one
/// that `waits`, of one key that nothing is seen to hold.
pub(super) async fn look(
    connection: &Connection,
    keys: impl Iterator<Item = &str>,
    waits: bool,
    error: tokio_postgres::Error,
) -> Failure {
    let table = connection.ask(&table_is_locked(), &[]).await;
    if table.is_ok_and(|rows| rows.first().is_some_and(|row| row.try_get(0).unwrap_or(false))) {
        return Failure::Driver(error);
    }
    let mut keys = keys.collect::<Vec<_>>();
    keys.sort_unstable();
    keys.dedup();
    let found = connection.ask(HELD, &[(&keys, Type::TEXT_ARRAY)]).await.unwrap_or_default();
    let column = |row: &tokio_postgres::Row, column| row.try_get::<_, String>(column).ok();
    let (own, others): (Vec<_>, Vec<_>) =
        found.iter().partition(|row| row.try_get(2).unwrap_or(false));
    let mut locked: Vec<_> =
        others.iter().filter_map(|row| Key::new(column(row, 0)?).ok()).collect();
    // Writers of one key stand in a line.
    if locked.is_empty() && !own.is_empty() {
        return Failure::Driver(error);
    }
    // What is one key's can only be that key's, unless it is free by now.
    if let (true, [only]) = (locked.is_empty(), &*keys) {
        if waits {
            return Failure::Driver(error);
        }
        locked.extend(Key::new(*only));
    }
    let holder = others.first().and_then(|row| column(row, 1));
    let explained = Error::new(ErrorKind::Unavailable, LOCKED)
        .retry_after(Duration::from_secs(1))
        .locked(locked)
        .with("holder", holder.unwrap_or_else(|| "a transaction that inserts a row".to_owned()));
    Failure::Refused(because(explained, error))
}

const LOCKED: &str = "another session holds the row of a key in an open transaction, and nothing was \
                      changed; try again when that transaction has ended";

/// Whether another session has, or is about to get, a lock of all records, or of all transactions of a
/// ledger, that keeps writers out.
fn table_is_locked() -> String {
    format!(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE pid IS DISTINCT FROM pg_backend_pid() \
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
           AND (locktype = 'relation' AND relation IN ('records'::regclass, to_regclass('transactions')) AND mode IN \
               ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
             OR locktype = 'advisory' AND classid = {LOCK} AND mode = 'ExclusiveLock'))"
    )
}

/// Rows, what holds them, and whether that is a session of Terrace. Of others those whose transaction is
/// older than a statement waits, and waits for nobody itself: who does has waited as long as this write.
const HELD: &str = "WITH held AS MATERIALIZED (SELECT * FROM pg_locks) \
     SELECT r.key, concat_ws(', ', 'pid ' || l.pid, 'prepared transaction ' || p.gid, \
         'application ' || nullif(a.application_name, ''), 'user ' || a.usename, \
         'since ' || to_char(coalesce(a.xact_start, p.prepared) AT TIME ZONE 'UTC', \
           'YYYY-MM-DD HH24:MI:SS') || ' UTC'), \
       coalesce(a.application_name = current_setting('application_name'), false) \
     FROM records r JOIN held l ON l.locktype = 'transactionid' AND l.granted \
         AND l.mode = 'ExclusiveLock' AND l.transactionid = r.xmax \
       LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
       LEFT JOIN pg_prepared_xacts p ON p.transaction = r.xmax \
     WHERE r.key = ANY ($1) AND l.pid IS DISTINCT FROM pg_backend_pid() \
       AND (a.application_name = current_setting('application_name') \
         OR coalesce(a.xact_start, p.prepared, '-infinity') \
             <= clock_timestamp() - current_setting('lock_timeout')::interval \
           AND NOT EXISTS (SELECT FROM held w WHERE w.pid = l.pid AND NOT w.granted))";
