//! Counts that a shard keeps of its own changes.
//!
//! The table `terrace_rollup` has a row for each minute and prefix, `terrace_rollup_place` one row: how far the
//! change log was counted, the prefixes that have rows of their own, and who of several instances counts. A
//! batch is one statement that moves the place and adds to the rows, so it commits both or neither.
//!
//! **Of which log.** The place names the log without the life of its database: place, counts and log are in one
//! database and so of one age in each of its lives. Only the log that the database itself names is counted;
//! one that is begun anew is counted from its beginning, which has none of the earlier one's changes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::history::log_of;
use terrace_core::rollup::{Count, KEPT_MINUTES, Prefixes, minute_of};
use terrace_core::{
    Batch, BoxFuture, ChangeLog, Checkpoint, Error, ErrorKind, Follower, LeaderLease, LogPosition,
    Result, RolledUp, Rollup, RollupQuery, Timestamp,
};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Transaction};

use super::PostgresLog;
use super::altering::{failed, run};
use super::connection::Connection;
use super::lease::{Lease, Leased};
use super::log::end_of;
use super::tables::{self, Table};
use super::work::{Failure, Progress, Work, corrupt};
use super::worker::Worker;

const TABLES: [Table; 2] = [
    Table::new("terrace_rollup", &["minute", "prefix", "writes", "bytes"]),
    Table::new(
        "terrace_rollup_place",
        &["name", "log", "epoch", "place", "prefixes", "owner", "pid", "session_begun"],
    ),
];

const LEASED: Leased = Leased {
    table: "terrace_rollup_place",
    name: "rollup",
    make: "INSERT INTO terrace_rollup_place (name) VALUES ('rollup') ON CONFLICT DO NOTHING",
};

const MAKE: &str = "CREATE TABLE IF NOT EXISTS terrace_rollup (
        minute bigint NOT NULL,
        prefix text COLLATE \"C\" NOT NULL,
        writes bigint NOT NULL,
        bytes bigint NOT NULL,
        PRIMARY KEY (minute, prefix)
    );
    CREATE TABLE IF NOT EXISTS terrace_rollup_place (
        name text PRIMARY KEY,
        log text NOT NULL DEFAULT '',
        epoch bigint NOT NULL DEFAULT 0,
        place bigint NOT NULL DEFAULT 0,
        prefixes text NOT NULL DEFAULT '{}',
        owner text,
        pid integer,
        session_begun timestamptz,
        leased_until timestamptz
    );
    INSERT INTO terrace_rollup_place (name) VALUES ('rollup') ON CONFLICT DO NOTHING";

/// Whether the changes of the log are counted, so that it stays.
pub(super) async fn is_kept(client: &Client) -> Result<bool> {
    Ok(tables::complete(client, &TABLES).await? == [true, true])
}

/// Makes the tables.
pub(super) async fn install(transaction: &Transaction<'_>) -> Result<()> {
    tables::complete(transaction.client(), &TABLES).await?;
    run(transaction, MAKE).await
}

/// Lets go what held the log for slots that moved.
pub(super) async fn forget_resharding(transaction: &Transaction<'_>) -> Result<()> {
    const FORGET: &str =
        "DELETE FROM terrace_meta WHERE name ~ '^log (follower|left) resharding( |$)'";
    transaction.execute(FORGET, &[]).await.map(drop).map_err(failed)
}

/// See the [module](self).
#[derive(Clone)]
pub(super) struct PostgresRollup {
    worker: Worker,
    log: Arc<PostgresLog>,
    #[cfg(feature = "mutants")]
    apart: bool,
}

impl PostgresRollup {
    pub(super) fn new(worker: Worker, log: PostgresLog) -> Self {
        Self {
            worker,
            log: Arc::new(log),
            #[cfg(feature = "mutants")]
            apart: false,
        }
    }

    /// The wrong way, which a test must catch: counts and place are committed apart.
    #[cfg(feature = "mutants")]
    pub(super) fn apart(self) -> Self {
        Self { apart: true, ..self }
    }
}

impl Rollup for PostgresRollup {
    fn log(&self) -> Arc<dyn ChangeLog> {
        Arc::<PostgresLog>::clone(&self.log)
    }

    fn follower(&self) -> Arc<dyn Follower> {
        Arc::new(Counter(self.clone()))
    }

    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        Some(Arc::new(Lease::new(self.worker.clone(), LEASED)))
    }

    fn counts<'a>(&'a self, query: &'a RollupQuery) -> BoxFuture<'a, Result<RolledUp>> {
        Box::pin(async move { self.worker.tend(&ReadCounts(query)).await })
    }
}

impl fmt::Debug for PostgresRollup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresRollup").field("log", &self.log).finish_non_exhaustive()
    }
}

/// What counts.
#[derive(Debug)]
struct Counter(PostgresRollup);

impl Follower for Counter {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async {
            let name = self.0.log.name();
            let Some(place) = self.0.worker.tend(&ReadPlace).await? else {
                return Ok(Checkpoint::default());
            };
            let beginning = Checkpoint::beginning(&*name);
            Ok(if place.log == log_of(&name) {
                beginning.at(place.position)
            } else {
                Checkpoint::default()
            })
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let now = self.0.worker.runtime.wall();
            #[cfg(feature = "mutants")]
            if self.0.apart {
                return self.0.worker.tend(&AddCounts { batch, now, texts: &ADD_APART }).await;
            }
            self.0.worker.tend(&AddCounts { batch, now, texts: &[ADD] }).await
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.0.worker.tend(&BeginAnew(log_of(log))).await })
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres")
    }
}

type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

/// How far the log was counted.
struct RollupPlace {
    log: String,
    position: LogPosition,
    prefixes: Prefixes,
}

impl RollupPlace {
    fn of(row: &Row) -> Result<Self, Failure> {
        let prefixes = row.try_get::<_, &str>(3).map_err(corrupt)?;
        Ok(Self {
            log: row.try_get(0).map_err(corrupt)?,
            position: LogPosition { epoch: unsigned(row, 1)?, offset: unsigned(row, 2)? },
            // What cannot be read is none: then others have rows of their own.
            prefixes: serde_json::from_str(prefixes).unwrap_or_default(),
        })
    }
}

fn unsigned(row: &Row, column: usize) -> Result<u64, Failure> {
    Ok(u64::try_from(row.try_get::<_, i64>(column).map_err(corrupt)?).unwrap_or(0))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

struct ReadPlace;

impl Work for ReadPlace {
    type Answer = Option<RollupPlace>;

    const OPERATION: &'static str = "find how far changes are counted";

    async fn run(
        &self,
        connection: &Connection,
        _: &Progress,
    ) -> Result<Option<RollupPlace>, Failure> {
        const PLACE: &str = "SELECT log, epoch, place, prefixes FROM terrace_rollup_place \
             WHERE name = 'rollup'";
        connection.ask(PLACE, &[]).await?.first().map(RollupPlace::of).transpose()
    }
}

/// All of it hangs on `moved`. What the database calls its log is looked at, too: an instance that was
/// started before the log was begun anew has its own idea of it.
const ADD: &str = "WITH moved AS ( \
       UPDATE terrace_rollup_place SET epoch = $1, place = $2, prefixes = $3 \
       WHERE name = 'rollup' AND log = $4 AND epoch = $5 AND place = $6 \
         AND EXISTS (SELECT FROM terrace_meta WHERE name = 'log' AND value = $4) RETURNING 1), \
     gone AS (DELETE FROM terrace_rollup WHERE minute < $7 AND EXISTS (SELECT FROM moved)), \
     added AS (INSERT INTO terrace_rollup AS r (minute, prefix, writes, bytes) \
       SELECT u.m, u.p, u.w, u.b \
       FROM moved, unnest($8::bigint[], $9::text[], $10::bigint[], $11::bigint[]) AS u(m, p, w, b) \
       ON CONFLICT (minute, prefix) DO UPDATE \
       SET writes = r.writes + excluded.writes, bytes = r.bytes + excluded.bytes) \
     SELECT count(*) FROM moved";

/// The wrong way, for the test that must catch it.
#[cfg(feature = "mutants")]
const ADD_APART: [&str; 2] = [
    "INSERT INTO terrace_rollup AS r (minute, prefix, writes, bytes) \
     SELECT u.m, u.p, u.w, u.b \
     FROM unnest($8::bigint[], $9::text[], $10::bigint[], $11::bigint[]) AS u(m, p, w, b) \
     ON CONFLICT (minute, prefix) DO UPDATE \
     SET writes = r.writes + excluded.writes, bytes = r.bytes + excluded.bytes",
    "WITH moved AS (UPDATE terrace_rollup_place SET epoch = $1, place = $2, prefixes = $3 \
       WHERE name = 'rollup' AND log = $4 AND epoch = $5 AND place = $6 RETURNING 1) \
     SELECT count(*) FROM moved",
];

/// Counts a batch.
struct AddCounts<'a> {
    batch: &'a Batch,
    now: Timestamp,
    /// What does it; the last one answers.
    texts: &'a [&'a str],
}

impl Work for AddCounts<'_> {
    type Answer = bool;

    const OPERATION: &'static str = "count changes";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<bool, Failure> {
        let Batch { from, to, changes, .. } = self.batch;
        let log = log_of(&from.log);
        // Nobody changes the prefixes without moving the place, so what is read here is of `from`, or the
        // statement below does nothing.
        let Some(place) = ReadPlace.run(connection, progress).await? else { return Ok(false) };
        let (mut prefixes, now) = (place.prefixes, self.now);
        let counts = prefixes.tally(changes, now);
        let prefixes = serde_json::to_string(&prefixes).unwrap_or_default();
        let [epoch, offset, from_epoch, from_offset] =
            [to.position.epoch, to.position.offset, from.position.epoch, from.position.offset]
                .map(signed);
        let oldest = minute_of(now) - KEPT_MINUTES;
        let minutes = counts.iter().map(|count| count.minute).collect::<Vec<_>>();
        let names = counts.iter().map(|count| count.prefix.as_str()).collect::<Vec<_>>();
        let writes = counts.iter().map(|count| signed(count.writes)).collect::<Vec<_>>();
        let bytes = counts.iter().map(|count| signed(count.bytes)).collect::<Vec<_>>();
        let parameters: [Typed<'_>; 11] = [
            (&epoch, Type::INT8),
            (&offset, Type::INT8),
            (&prefixes, Type::TEXT),
            (&log, Type::TEXT),
            (&from_epoch, Type::INT8),
            (&from_offset, Type::INT8),
            (&oldest, Type::INT8),
            (&minutes, Type::INT8_ARRAY),
            (&names, Type::TEXT_ARRAY),
            (&writes, Type::INT8_ARRAY),
            (&bytes, Type::INT8_ARRAY),
        ];
        progress.commits();
        let mut rows = Vec::new();
        for text in self.texts {
            rows = connection.ask(text, &parameters).await?;
        }
        Ok(rows.first().is_some_and(|row| row.get::<_, i64>(0) > 0))
    }
}

/// Another log is counted from its beginning. Of the same one, what was removed while nobody counted is
/// lost, and the rest goes on: it is never counted again.
const BEGIN_ANEW: &str = "WITH current AS ( \
       SELECT value AS log FROM terrace_meta WHERE name = 'log' AND value = $1), \
     lost AS (DELETE FROM terrace_meta WHERE name LIKE 'log left rollup %' \
       AND EXISTS (SELECT FROM current) RETURNING 1), \
     trimmed AS (SELECT coalesce(max(value::bigint), 0) AS epoch FROM terrace_meta \
       WHERE name = 'log trimmed') \
     UPDATE terrace_rollup_place p SET log = $1, \
       epoch = CASE WHEN p.log = $1 THEN greatest(p.epoch, t.epoch) ELSE 0 END, \
       place = CASE WHEN p.log = $1 THEN $2 ELSE 0 END \
     FROM current, trimmed t WHERE p.name = 'rollup' \
       AND (p.log <> $1 OR EXISTS (SELECT FROM lost)) RETURNING 1";

struct BeginAnew<'a>(&'a str);

impl Work for BeginAnew<'_> {
    type Answer = ();

    const OPERATION: &'static str = "count changes anew";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        let behind_all = signed(end_of(0).offset);
        progress.commits();
        let parameters: [Typed<'_>; 2] = [(&self.0, Type::TEXT), (&behind_all, Type::INT8)];
        match connection.ask(BEGIN_ANEW, &parameters).await?.is_empty() {
            false => Ok(()),
            true => Err(Failure::Refused(Error::new(
                ErrorKind::Unavailable,
                "the change log is another one than when this instance started; restart it",
            ))),
        }
    }
}

/// One snapshot: the counts, the place, and the time of the first change that is not counted.
const COUNTS: &str = "WITH place AS MATERIALIZED ( \
       SELECT p.epoch, p.place, coalesce((SELECT (extract(epoch FROM \
           greatest(clock_timestamp() - c.time, interval '0')) * 1000000)::bigint \
         FROM commands c WHERE (c.transaction, c.version) > (p.epoch::text::xid8, p.place) \
         ORDER BY c.transaction, c.version LIMIT 1), 0) AS lag \
       FROM terrace_rollup_place p WHERE p.name = 'rollup') \
     SELECT p.epoch, p.place, p.lag, r.minute, r.prefix, r.writes, r.bytes \
     FROM place p LEFT JOIN ( \
       SELECT minute / $2 * $2 AS minute, CASE WHEN $3 THEN prefix ELSE '' END AS prefix, \
         sum(writes)::bigint AS writes, sum(bytes)::bigint AS bytes \
       FROM terrace_rollup WHERE minute >= $1 GROUP BY 1, 2) r ON true";

struct ReadCounts<'a>(&'a RollupQuery);

impl Work for ReadCounts<'_> {
    type Answer = RolledUp;

    const OPERATION: &'static str = "read counts of changes";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<RolledUp, Failure> {
        let RollupQuery { since, bucket, by_prefix } = self.0;
        let bucket = bucket.max(&1);
        let parameters: [Typed<'_>; 3] =
            [(since, Type::INT8), (bucket, Type::INT8), (by_prefix, Type::BOOL)];
        let rows = connection.ask(COUNTS, &parameters).await?;
        let Some(first) = rows.first() else {
            let message = "the place of the counts is missing; restart Terrace";
            return Err(Failure::Refused(Error::new(ErrorKind::Unavailable, message)));
        };
        let position = LogPosition { epoch: unsigned(first, 0)?, offset: unsigned(first, 1)? };
        let lag = Duration::from_micros(unsigned(first, 2)?);
        let mut counts = Vec::with_capacity(rows.len());
        for row in &rows {
            let Some(minute) = row.try_get::<_, Option<i64>>(3).map_err(corrupt)? else { continue };
            counts.push(Count {
                minute,
                prefix: row.try_get(4).map_err(corrupt)?,
                writes: unsigned(row, 5)?,
                bytes: unsigned(row, 6)?,
            });
        }
        Ok(RolledUp { counts, position, lag })
    }
}
