//! Counts that a shard keeps of its own changes.
//!
//! The table `rollup` has a row for each minute and prefix; `meta` has, as JSON, how far the change log was
//! counted and the prefixes that have rows of their own. Both are changed in one transaction.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use terrace_core::history::log_of;
use terrace_core::rollup::{Count, KEPT_MINUTES, Prefixes, minute_of};
use terrace_core::{
    Batch, BoxFuture, ChangeLog, Checkpoint, Error, ErrorKind, Follower, LeaderLease, LogPosition,
    Result, RolledUp, Rollup, RollupQuery, Timestamp,
};

use super::SqliteLog;
use super::failure;
use super::log::unsigned;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct SqliteRollup {
    log: Arc<SqliteLog>,
    /// The wrong way, which a test must catch: counts and place are committed apart.
    apart: bool,
}

impl SqliteRollup {
    pub(super) fn new(log: SqliteLog) -> Self {
        Self { log: Arc::new(log), apart: false }
    }

    #[cfg(feature = "mutants")]
    pub(super) fn apart(self) -> Self {
        Self { apart: true, ..self }
    }
}

/// How far the log was counted.
#[derive(Default, Serialize, Deserialize)]
struct RollupPlace {
    /// Without the life of the file, as log and counts are of one age in each.
    log: String,
    position: LogPosition,
    prefixes: Prefixes,
}

/// Makes the table.
pub(super) fn install(connection: &Connection) -> Result<()> {
    const MAKE: &str = "CREATE TABLE IF NOT EXISTS rollup (
        minute INTEGER NOT NULL,
        prefix TEXT NOT NULL,
        writes INTEGER NOT NULL,
        bytes  INTEGER NOT NULL,
        PRIMARY KEY (minute, prefix)
    ) STRICT, WITHOUT ROWID";
    connection.execute_batch(MAKE).map_err(|error| failure::of(error).during("migrate"))
}

impl Rollup for SqliteRollup {
    fn log(&self) -> Arc<dyn ChangeLog> {
        Arc::<SqliteLog>::clone(&self.log)
    }

    fn follower(&self) -> Arc<dyn Follower> {
        Arc::new(self.clone())
    }

    /// A file is served by one process.
    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        None
    }

    fn counts<'a>(&'a self, query: &'a RollupQuery) -> BoxFuture<'a, Result<RolledUp>> {
        let (query, now) = (*query, self.log.wall());
        Box::pin(self.log.run(move |connection| counts(connection, query, now)))
    }
}

impl Follower for SqliteRollup {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async {
            let place = self.log.run(|connection| place(connection)).await?;
            let name = self.log.name();
            match place.log == log_of(&name) {
                true => Ok(Checkpoint::beginning(&*name).at(place.position)),
                false => Ok(Checkpoint::default()),
            }
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        let (batch, now, apart) = (batch.clone(), self.log.wall(), self.apart);
        Box::pin(async move {
            let apply = move |it: &mut Connection| apply(it, &batch, now, apart);
            let applied = self.log.run(apply).await;
            applied.map_err(|error| error.during("count changes"))
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        let log = log_of(log).to_owned();
        Box::pin(self.log.run(move |connection| begin_anew(connection, &log)))
    }
}

impl fmt::Display for SqliteRollup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlite")
    }
}

fn place(connection: &Connection) -> Result<RollupPlace> {
    let text = "SELECT value FROM meta WHERE name = 'rollup'";
    let text: Option<String> =
        connection.query_row(text, [], |row| row.get(0)).optional().map_err(failure::of)?;
    let place = text.map(|text| serde_json::from_str(&text)).transpose();
    Ok(place.map_err(|error| failure::corrupt("rollup").caused_by(error))?.unwrap_or_default())
}

fn keep(connection: &Connection, place: &RollupPlace) -> Result<()> {
    let text = serde_json::to_string(place).map_err(|error| {
        Error::new(ErrorKind::Internal, "a place cannot be written").caused_by(error)
    })?;
    let keep = "INSERT OR REPLACE INTO meta (name, value) VALUES ('rollup', ?1)";
    connection.execute(keep, [text]).map(drop).map_err(failure::of)
}

fn apply(connection: &mut Connection, batch: &Batch, now: Timestamp, apart: bool) -> Result<bool> {
    const ADD: &str = "INSERT INTO rollup (minute, prefix, writes, bytes) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (minute, prefix) DO UPDATE
        SET writes = writes + excluded.writes, bytes = bytes + excluded.bytes";
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failure::of)?;
    let mut place = place(&transaction)?;
    if place.log != log_of(&batch.from.log) || place.position != batch.from.position {
        return Ok(false);
    }
    let oldest = minute_of(now) - KEPT_MINUTES;
    transaction.execute("DELETE FROM rollup WHERE minute < ?1", [oldest]).map_err(failure::of)?;
    for Count { minute, prefix, writes, bytes } in place.prefixes.tally(&batch.changes, now) {
        let row = params![minute, prefix, signed(writes), signed(bytes)];
        transaction.execute(ADD, row).map_err(failure::of)?;
    }
    place.position = batch.to.position;
    if apart {
        transaction.commit().map_err(failure::of_commit)?;
        return keep(connection, &place).map(|()| true);
    }
    keep(&transaction, &place)?;
    transaction.commit().map_err(failure::of_commit)?;
    Ok(true)
}

/// Another log is counted from its beginning. Of the same one, what was removed while nobody counted is
/// lost, and the rest goes on: it is never counted again.
fn begin_anew(connection: &mut Connection, log: &str) -> Result<()> {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failure::of)?;
    let mut place = place(&transaction)?;
    let forget = "DELETE FROM meta WHERE name LIKE 'log left rollup %'";
    let was_left = transaction.execute(forget, []).map_err(failure::of)? > 0;
    if place.log != log {
        place = RollupPlace { log: log.to_owned(), position: LogPosition::default(), ..place };
    } else if was_left {
        let trimmed = "SELECT value FROM meta WHERE name = 'log trimmed'";
        let trimmed: Option<i64> =
            transaction.query_row(trimmed, [], |row| row.get(0)).optional().map_err(failure::of)?;
        place.position.offset = place.position.offset.max(unsigned(trimmed.unwrap_or(0))?);
    } else {
        let message = "the file was restored to a time before what was counted; restart Terrace";
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    keep(&transaction, &place)?;
    transaction.commit().map_err(failure::of_commit)
}

fn counts(connection: &mut Connection, query: RollupQuery, now: Timestamp) -> Result<RolledUp> {
    const COUNTS: &str = "SELECT minute / ?2 * ?2, CASE WHEN ?3 THEN prefix ELSE '' END AS name,
        sum(writes), sum(bytes) FROM rollup WHERE minute >= ?1 GROUP BY 1, 2";
    const WAITS: &str = "SELECT time FROM commands WHERE position > ?1 ORDER BY position LIMIT 1";
    // One snapshot.
    let transaction = connection.transaction().map_err(failure::of)?;
    let position = place(&transaction)?.position;
    let since: Option<i64> = transaction
        .query_row(WAITS, [signed(position.offset)], |row| row.get(0))
        .optional()
        .map_err(failure::of)?;
    let waits = since.map_or(0, |since| now.as_microsecond().saturating_sub(since));
    let lag = Duration::from_micros(u64::try_from(waits).unwrap_or(0));
    let mut ask = transaction.prepare_cached(COUNTS).map_err(failure::of)?;
    let rows = ask.query_map(params![query.since, query.bucket.max(1), query.by_prefix], |row| {
        let count = |column| row.get::<_, i64>(column).map(|it| u64::try_from(it).unwrap_or(0));
        let (writes, bytes) = (count(2)?, count(3)?);
        Ok(Count { minute: row.get(0)?, prefix: row.get(1)?, writes, bytes })
    });
    let counts = rows.and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failure::of)?;
    Ok(RolledUp { counts, position, lag })
}

/// SQLite's integers are signed.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
