//! The change log of a file: the table `commands`, filled by triggers in the writing transaction.

mod trim;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction};
use terrace_core::shard::RequestResult;
use terrace_core::{
    Ancestry, BoxFuture, ChangeLog, Changes, Deadline, Error, Key, LogPosition, Logged, Position,
    PositionLost, Record, RegionOptions, Result, Runtime, Task, Timestamp, Value, Version, history,
};

use super::failure;
use super::lane::Lane;
use super::options::SqliteOptions;
use super::schema;
use super::shared::Shared;
use crate::row::in_row;
use crate::walks;
use trim::TrimLog;

/// The committed changes of one SQLite file, in the order of their commits. Leaves out superseded changes
/// that are older than a week and that no follower has yet to see.
///
/// A file has one writer at a time, so the order of numbers is that of commits: `epoch` is 0 and
/// `offset` the version that was written. Woken by the store of this process; what other programs
/// change in the file is seen within half a second.
pub struct SqliteLog {
    lane: Arc<Lane>,
    name: Arc<str>,
    shared: Arc<Shared>,
    _trim: Task,
}

/// The highest number that was drawn, by the counter or by a row that came with its own.
pub(super) const LATEST: &str = "SELECT max(value, (SELECT ifnull(max(position), 0) FROM commands))
     FROM meta WHERE name = 'version'";

/// The most bytes of values in one answer, which holds at least one change.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// How often what other programs change is looked for.
const LOOK: Duration = Duration::from_millis(500);

/// Makes the table, with the records that there are, unless it is there; answers the log's name.
pub(super) fn install(
    connection: &mut Connection,
    options: &SqliteOptions,
    runtime: &Runtime,
) -> Result<Arc<str>> {
    let failed = |error| failure::of(error).during("migrate");
    let transaction = connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(failed)?;
    let lost = schema::lost(&transaction, &["commands"])?.is_some();
    transaction.execute_batch(include_str!("log.sql")).map_err(failed)?;
    let name = "SELECT value FROM meta WHERE name = 'log'";
    let known = transaction.query_row(name, [], |row| row.get::<_, String>(0)).optional();
    let known = match known.map_err(failed)? {
        Some(name) if !lost => Some(name),
        Some(_) => {
            let forget = "DELETE FROM meta WHERE name = 'log' OR name LIKE 'log %'";
            transaction.execute_batch(forget).map_err(failed)?;
            None
        }
        None => None,
    };
    let name = match known {
        Some(name) => name,
        None => begin(&transaction, runtime, !options.shard)?,
    };
    if options.shard {
        super::rollup::install(&transaction)?;
    }
    if let Some(region) = &options.region {
        super::region::install(&transaction, region, runtime)?;
    }
    transaction.commit().map_err(failed)?;
    Ok(Arc::from(name))
}

/// Begins the log, with the records that there are or with none of them; answers its name.
fn begin(transaction: &Transaction<'_>, runtime: &Runtime, records: bool) -> Result<String> {
    const RECORDS: &str =
        "INSERT INTO commands (position, type, key, value, version, created_at, time)
             SELECT row_number() OVER (ORDER BY version)
                 + (SELECT value FROM meta WHERE name = 'version'),
                 'RecordCreated', key, value, version, created_at, updated_at
             FROM records WHERE deleted = 0 AND version BETWEEN 1 AND 9007199254740991;";
    let failed = |error| failure::of(error).during("migrate");
    if records {
        transaction.execute_batch(RECORDS).map_err(failed)?;
    }
    let name = format!("log-{:012x}", runtime.random() >> 16);
    transaction
        .execute("INSERT INTO meta (name, value) VALUES ('log', ?1)", [&name])
        .map_err(failed)?;
    Ok(name)
}

impl SqliteLog {
    pub(super) fn open(name: Arc<str>, shared: Arc<Shared>) -> Result<Self> {
        let lane = Arc::new(Lane::start(&shared.options, "sqlite-log", shared.runtime.clone())?);
        let trim = TrimLog::new(Arc::clone(&lane), Arc::clone(&shared));
        let trim = walks::start(&shared.runtime, trim);
        Ok(Self { lane, name, shared, _trim: trim })
    }

    pub(super) fn close(&self) {
        self.lane.close();
    }

    /// The time of the clock.
    pub(super) fn wall(&self) -> Timestamp {
        self.shared.runtime.wall()
    }

    /// Does something on the connection of the log.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.lane.run(work).await
    }

    async fn last(&self) -> Result<u64> {
        self.lane
            .run(|connection| {
                let text = "SELECT ifnull(max(position), 0) FROM commands";
                let last = connection
                    .prepare_cached(text)
                    .and_then(|mut statement| statement.query_row([], |row| row.get::<_, i64>(0)));
                unsigned(last.map_err(failure::of)?)
            })
            .await
    }
}

impl ChangeLog for SqliteLog {
    fn name(&self) -> Arc<str> {
        history::log_in(&self.name, &self.shared.histories.name())
    }

    fn place_of(&self, position: Position) -> LogPosition {
        LogPosition { epoch: 0, offset: position.get() }
    }

    fn position_of(&self, place: LogPosition) -> Position {
        Position::new(place.offset)
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            let region = self.shared.options.region.clone();
            let page = move |it: &mut Connection| page(it, position, limit, region.as_ref());
            let page = self.lane.run(page).await;
            page.map_err(|error| error.during("read the change log"))
        })
    }

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            loop {
                let mut committed = self.shared.committed.subscribe();
                let now = self.shared.runtime.now();
                if self.last().await? > position.offset || deadline.passed(now) {
                    return Ok(());
                }
                let look = deadline.min(Deadline::at(now + LOOK));
                let _looked_at_again = self.shared.runtime.within(look, committed.changed()).await;
            }
        })
    }

    fn keep_for<'a>(
        &'a self,
        follower: &'a str,
        position: LogPosition,
    ) -> BoxFuture<'a, Result<()>> {
        let (follower, now) = (follower.to_owned(), self.shared.runtime.wall().as_microsecond());
        let noted = move |it: &mut Connection| trim::keep_for(it, &follower, position, now);
        Box::pin(self.lane.run(noted))
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async move { Ok(LogPosition { epoch: 0, offset: self.last().await? }) })
    }
}

/// What follows a position.
const AFTER: &str = "SELECT position, type = 'RecordDeleted', key, version, created_at, time, value
    FROM commands WHERE position > ?1 ORDER BY position";

/// The same with what other regions must know: what each change replaced, and the result of the request
/// that it was the first of.
const AFTER_IN_REGION: &str = "SELECT c.position, c.type = 'RecordDeleted', c.key, c.version,
    c.created_at, c.time, c.value, c.replaced, i.key, i.fingerprint, i.result, i.created_at
    FROM commands c LEFT JOIN idempotency i ON i.version = c.version
    WHERE c.position > ?1 ORDER BY c.position";

fn page(
    connection: &mut Connection,
    position: LogPosition,
    limit: usize,
    region: Option<&RegionOptions>,
) -> Result<Changes> {
    let text = if region.is_some() { AFTER_IN_REGION } else { AFTER };
    let after = i64::try_from(position.offset).unwrap_or(i64::MAX);
    if region.is_some() && !has(connection, after)? {
        return Err(restored());
    }
    let mut statement = connection.prepare_cached(text).map_err(failure::of)?;
    let mut rows = statement.query([after]).map_err(failure::of)?;
    let mut answer = Changes { changes: Vec::new(), position, more: false };
    let mut bytes = 0;
    while let Some(row) = rows.next().map_err(failure::of)? {
        answer.more = answer.changes.len() >= limit.max(1) || bytes >= MAX_BYTES;
        if answer.more {
            break;
        }
        let mut change = logged(row)?;
        answer.position = change.position;
        if region.is_some_and(|region| region.stays(change.key.as_str())) {
            continue;
        }
        change.ancestry = region.map(|_| ancestry(row)).transpose()?;
        bytes += change.record.as_ref().map_or(0, |record| record.value.as_str().len());
        answer.changes.push(change);
    }
    if answer.changes.is_empty() {
        let latest: i64 =
            connection.query_row(LATEST, [], |row| row.get(0)).map_err(failure::of)?;
        if position.offset > unsigned(latest)? {
            return Err(restored());
        }
    }
    Ok(answer)
}

/// Whether the log has the change at a place. The clock draws versions beyond a place that was lost, so
/// that its end proves nothing; and a backup that overwrites the file in place is the same file. What a
/// follower has come to is kept for it.
fn has(connection: &Connection, position: i64) -> Result<bool> {
    const HAS: &str = "SELECT ?1 = 0 OR EXISTS (SELECT 1 FROM commands WHERE position = ?1)";
    let asked = connection.prepare_cached(HAS);
    asked.and_then(|mut asked| asked.query_row([position], |row| row.get(0))).map_err(failure::of)
}

fn restored() -> Error {
    PositionLost::error("the database was restored to a time before what was read of its log")
}

fn logged(row: &Row<'_>) -> Result<Logged> {
    let get = |column| row.get::<_, i64>(column).map_err(failure::of);
    let name = row.get::<_, String>(2).map_err(failure::of)?;
    let bad = |column| in_row(failure::corrupt(column), &name);
    let key = Key::new(&name).map_err(|_| bad("key"))?;
    let version = Version::new(unsigned(get(3)?)?);
    let record = match get(1)? {
        0 => Some(Record {
            key: key.clone(),
            value: Value::new(row.get::<_, String>(6).map_err(failure::of)?)
                .map_err(|_| bad("value"))?,
            version,
            created_at: moment(get(4)?),
            updated_at: moment(get(5)?),
        }),
        _ => None,
    };
    let position = LogPosition { epoch: 0, offset: unsigned(get(0)?)? };
    Ok(Logged { position, key, version, record, ancestry: None })
}

/// What a change says for other regions.
fn ancestry(row: &Row<'_>) -> Result<Arc<Ancestry>> {
    let replaced = Version::new(unsigned(row.get(7).map_err(failure::of)?)?);
    let request = match row.get::<_, Option<String>>(8).map_err(failure::of)? {
        None => None,
        Some(key) => Some(RequestResult {
            key,
            fingerprint: row.get(9).map_err(failure::of)?,
            result: row.get(10).map_err(failure::of)?,
            at_micros: row.get(11).map_err(failure::of)?,
        }),
    };
    Ok(Arc::new(Ancestry::Change { replaced, request }))
}

pub(super) fn unsigned(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| failure::corrupt("position"))
}

pub(super) fn moment(micros: i64) -> Timestamp {
    let edge = if micros < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_microsecond(micros).unwrap_or(edge)
}

impl fmt::Display for SqliteLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlite log")
    }
}

impl fmt::Debug for SqliteLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteLog").field("name", &self.name).finish_non_exhaustive()
    }
}
