//! The change log of a database: every committed change, also what people change by hand.
//!
//! The table `commands` is filled in the transaction that changes `records`, by statement-level
//! triggers over transition tables: one `INSERT ... SELECT` a statement, whatever its size. An upsert
//! fires both the insert and the update trigger; each sees its own rows, so each row is logged once.
//!
//! **LogPosition.** `epoch` is the transaction's number, `offset` the version that it wrote: one number
//! serves as both. Transactions overlap, so of two changes of one key the later may stand before the
//! earlier; the higher version is the newer. Rows that came with equal versions of their own, above
//! all that were drawn, share a position, and always come in one answer.
//!
//! Positions are those of changes alone. A horizon would be no position to go on from: numbers of
//! transactions that left nothing on disk are given out again after a crash of the server.
//!
//! **Without a gap.** One statement, so one snapshot, reads what lies below its `xmin`: transactions
//! that have ended, and that none can precede any more. A transaction that is slow to end, in any
//! database of the server, therefore holds back what comes after it.
//!
//! **Waking.** A notification takes a lock that commits wait for in turn, so writers notify only
//! when somebody waits: who waits holds an advisory lock, and a writer looks whether it can have it,
//! after it has inserted. A writer that looked before was unfinished when the waiting one looked at
//! the log, and held the lock of its transaction; only then does a timer look again, after 2 ms
//! and up to 100 ms.
//!
//! **Not for ever.** A change that a later one of its key has superseded is removed after a week, once
//! every follower has gone past it; see `log/trim.rs`.
//!
//! **Not covered.** Commits that the server forgets: under `synchronous_commit = off`, or when a standby
//! that lagged is promoted, followers have seen what is no more, and may skip what gets the same
//! numbers; they begin anew then.
//!
//! **Not logged**: what sessions do with `session_replication_role = replica`, until the log is compared
//! with the records; see `log/compare.rs`. Where a trigger is disabled or gone, the end of the log is
//! refused to followers, and the next start makes the log anew.
//!
//! The log does not outlive its server: where transactions are counted anew, as after a restore of a
//! dump, it is begun anew under another name at the next start.

mod compare;
mod held_back;
mod install;
mod listener;
pub(super) mod of_region;
mod trim;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use terrace_core::read_model::Difference;
use terrace_core::{
    BoxFuture, ChangeLog, Changes, Deadline, Error, ErrorKind, HeldBack, Key, LogPosition, Logged,
    Position, PositionLost, Record, RegionOptions, Result, Value, history,
};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use compare::CompareWithRecords;
pub(super) use compare::difference;
use held_back::FindHeldBack;
pub use install::LogBegin;
use install::is_filled;
pub(super) use install::{change, current, end_of_triggers};
use listener::Listener;
use trim::KeepFor;
pub(super) use trim::TrimLog;

use super::connection::{Connection, Repeated};
use super::read::version;
use super::snapshot::{self, Transaction};
use super::statements::Moment;
use super::work::{Failure, Progress, Work, corrupt, not_allowed};
use super::worker::Worker;

/// The committed changes of one PostgreSQL database; see the [module](self). Leaves out superseded
/// changes that are older than a week and that no follower has yet to see.
pub struct PostgresLog {
    worker: Worker,
    name: OnceLock<Arc<str>>,
    listener: Listener,
    /// Whether the last page had a long value, as the next one then has.
    long_values: AtomicBool,
    /// How what comes after a position is asked for.
    text: &'static str,
    /// Of a region, its log has the changes of this one alone.
    region: Option<RegionOptions>,
}

impl PostgresLog {
    /// The most changes of one answer.
    pub const MAX_CHANGES: usize = 10_000;

    /// The first look at the log for a transaction that is slow to end; doubles up to
    /// [`Self::LAST_LOOK`].
    const FIRST_LOOK: Duration = Duration::from_millis(2);
    const LAST_LOOK: Duration = Duration::from_millis(100);

    pub(super) fn new(worker: Worker, name: Arc<str>, region: Option<RegionOptions>) -> Self {
        let log = Self {
            listener: Listener::new(worker.clone()),
            worker,
            name: OnceLock::new(),
            long_values: AtomicBool::new(false),
            text: if region.is_some() { of_region::AFTER } else { AFTER },
            region,
        };
        log.is_named(name);
        log
    }

    /// Notes the name, unless it has one. Before its database was reached it has none.
    pub(super) fn is_named(&self, name: Arc<str>) {
        if !name.is_empty() {
            let _it_had_one = self.name.set(name);
        }
    }

    /// The wrong way, which a test must catch: what is visible with a higher version than the last.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn by_last_number(mut self) -> Self {
        self.text = AFTER_LAST_NUMBER;
        self
    }

    /// No caller of a log waits for more than the server's own limits.
    fn patience(&self) -> Deadline {
        Deadline::at(self.worker.runtime.now() + self.worker.patience * 2)
    }

    async fn wait_for(&self, position: LogPosition, deadline: Deadline) -> Result<()> {
        let runtime = &self.worker.runtime;
        let mut waiting = self.listener.wait().await?;
        let mut look = Self::FIRST_LOOK;
        loop {
            let (found, unfinished) = waiting.look(position).await?;
            if found || deadline.passed(runtime.now()) {
                break;
            }
            let until = match unfinished {
                true => deadline.min(Deadline::at(runtime.now() + look)),
                false => deadline,
            };
            look = (look * 2).min(Self::LAST_LOOK);
            runtime.within(until, waiting.heard()).await;
        }
        waiting.done().await;
        Ok(())
    }
}

impl ChangeLog for PostgresLog {
    fn name(&self) -> Arc<str> {
        match self.name.get() {
            Some(name) => history::log_in(name, &self.worker.pool.connector().histories().name()),
            None => "".into(),
        }
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            let limit = limit.clamp(1, Self::MAX_CHANGES);
            let long_values = &self.long_values;
            let region = self.region.as_ref();
            let work = ReadLog { text: self.text, position, limit, long_values, region };
            self.worker.perform(&work, self.patience()).await
        })
    }

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let waited = self.worker.runtime.within(deadline, self.wait_for(position, deadline));
            waited.await.unwrap_or(Ok(()))
        })
    }

    fn keep_for<'a>(
        &'a self,
        follower: &'a str,
        position: LogPosition,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.worker.perform(&KeepFor { follower, position }, self.patience()).await
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async move { self.worker.perform(&Head, self.patience()).await })
    }

    fn held_back(&self, position: LogPosition) -> BoxFuture<'_, Result<Option<HeldBack>>> {
        Box::pin(async move { self.worker.perform(&FindHeldBack(position), self.patience()).await })
    }

    fn compare_with_records(&self, mend: bool) -> BoxFuture<'_, Result<Difference>> {
        /// Two tables are compared row by row.
        const PATIENCE: Duration = Duration::from_secs(10 * 60);
        Box::pin(async move {
            // Of a region the log has no changes of the others.
            if self.region.is_some() {
                return Ok(Difference::default());
            }
            let worker = Worker { patience: PATIENCE, ..self.worker.clone() };
            let deadline = Deadline::at(worker.runtime.now() + PATIENCE);
            worker.perform(&CompareWithRecords { mend }, deadline).await
        })
    }

    fn place_of(&self, position: Position) -> LogPosition {
        end_of(snapshot::transaction(position))
    }

    fn position_of(&self, place: LogPosition) -> Position {
        let histories = self.worker.pool.connector().histories();
        snapshot::position(place.epoch, histories.standing().generation)
    }
}

impl fmt::Display for PostgresLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres log")
    }
}

impl fmt::Debug for PostgresLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLog").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The most bytes of values in one answer, which holds at least one change.
const MAX_BYTES: i64 = 16 * 1024 * 1024;

/// One snapshot: its horizon, and what follows the position below it. A longer value is left out, so
/// the answer is bounded without a sum of sizes, which costs nine tenths of the time. Changes at one
/// position are never parted.
const AFTER: &str = "SELECT transaction, version, type = 'RecordDeleted', created_at, time, \
       CASE WHEN octet_length(value) <= $4 THEN value END, key FROM commands \
     WHERE (transaction, version) > ($1::text::xid8, $2) \
       AND transaction < pg_snapshot_xmin(pg_current_snapshot()) \
     ORDER BY transaction, version FETCH FIRST $3 ROWS WITH TIES";

/// The same with all values, as many as there is room for. (A frame that leaves out the group would be
/// worked out anew for each row: 210 ms for 2000 changes in place of 2.)
const AFTER_LARGE: &str = "WITH now AS MATERIALIZED ( \
       SELECT pg_snapshot_xmin(pg_current_snapshot()) AS horizon) \
     SELECT c.transaction, c.version, c.type = 'RecordDeleted', c.created_at, c.time, c.value, c.key \
     FROM now CROSS JOIN LATERAL ( \
       SELECT *, sum(octet_length(value)) OVER ( \
         ORDER BY transaction, version GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before \
       FROM (SELECT * FROM commands \
         WHERE (transaction, version) > ($1::text::xid8, $2) AND transaction < now.horizon \
         ORDER BY transaction, version FETCH FIRST $3 ROWS WITH TIES) AS page \
     ) AS c WHERE coalesce(c.before, 0) < $4 \
     ORDER BY c.transaction, c.version";

/// The wrong way, for the test that must catch it: what is visible after the highest number.
#[cfg(feature = "mutants")]
const AFTER_LAST_NUMBER: &str = "SELECT transaction, version, type = 'RecordDeleted', created_at, \
       time, value, key \
     FROM commands WHERE $1::text IS NOT NULL AND version > $2 AND $4::bigint > 0 \
     ORDER BY version LIMIT $3";

struct ReadLog<'a> {
    text: &'static str,
    position: LogPosition,
    limit: usize,
    long_values: &'a AtomicBool,
    region: Option<&'a RegionOptions>,
}

/// What follows a position.
#[derive(Default)]
struct Part {
    changes: Vec<Logged>,
    /// How many changes were looked at; some may stay in the region.
    count: usize,
    /// The place of the last of them.
    last: Option<LogPosition>,
}

impl Work for ReadLog<'_> {
    type Answer = Changes;

    const OPERATION: &'static str = "read the change log";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Changes, Failure> {
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let most = MAX_BYTES / limit.max(1);
        let mut page = None;
        if !self.long_values.load(Relaxed) {
            page = self.read(connection, self.text, most).await?;
        }
        if page.is_none() {
            let large = if self.region.is_some() { of_region::AFTER_LARGE } else { AFTER_LARGE };
            page = self.read(connection, large, MAX_BYTES).await?;
            if page.is_none() {
                let message = "a change in the table `commands` has no value; put it back, or begin \
                               the log anew";
                return Err(Failure::Refused(Error::new(ErrorKind::Corrupt, message)));
            }
            let all = page.iter().flat_map(|page| &page.changes);
            let longest = all.map(size).max().unwrap_or(0);
            self.long_values.store(longest > most, Relaxed);
        }
        let Part { changes, count, last } = page.unwrap_or_default();
        if last.is_none() {
            self.check_end(connection).await?;
        }
        // A page that the bytes have cut has fewer rows.
        let more = count >= self.limit || bytes(&changes) >= MAX_BYTES;
        let position = match last {
            // All changes of a transaction are visible at once, so there is no more of the last one.
            Some(last) if !more => end_of(last.epoch),
            Some(last) => last,
            // A follower's place is of a transaction that has ended.
            None if self.position.epoch > 0 => self.position.max(end_of(self.position.epoch)),
            None => self.position,
        };
        Ok(Changes { changes, position, more })
    }
}

impl ReadLog<'_> {
    /// What follows the position; `None` when a value was left out.
    async fn read(
        &self,
        connection: &Connection,
        text: &str,
        bytes: i64,
    ) -> Result<Option<Part>, Failure> {
        let epoch = self.position.epoch.to_string();
        let offset = i64::try_from(self.position.offset).unwrap_or(i64::MAX);
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&epoch, Type::TEXT),
            (&offset, Type::INT8),
            (&limit, Type::INT8),
            (&bytes, Type::INT8),
        ];
        if let Some(region) = self.region {
            parameters.push((&region.resident, Type::TEXT_ARRAY));
        }
        let rows = match [AFTER, of_region::AFTER].contains(&text) {
            true => connection.repeat(Repeated::ReadLog, text, &parameters).await?,
            false => connection.ask(text, &parameters).await?,
        };
        let mut part = Part { count: rows.len(), ..Part::default() };
        for row in &rows {
            part.last = Some(place(row)?);
            if self.region.is_some() && of_region::is_resident(row)? {
                continue;
            }
            let Some(mut change) = logged(row)? else { return Ok(None) };
            change.ancestry = self.region.map(|_| of_region::ancestry(row)).transpose()?;
            part.changes.push(change);
        }
        Ok(Some(part))
    }

    /// A position is of a transaction that has ended: one that was not begun yet is of a server that
    /// has lost its end since.
    /// Whether there is nothing after the position because nothing was changed.
    async fn check_end(&self, connection: &Connection) -> Result<(), Failure> {
        const IS_END: &str = concat!(
            "SELECT $1::text::xid8 >= pg_snapshot_xmax(pg_current_snapshot()), ",
            is_filled!()
        );
        let epoch = self.position.epoch.to_string();
        let rows = connection.ask(IS_END, &[(&epoch, Type::TEXT)]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        if row.try_get(0).map_err(corrupt)? {
            return Err(Failure::Refused(PositionLost::error(
                "the database was restored to a time before what was read of its log",
            )));
        }
        match row.try_get(1).map_err(corrupt)? {
            true => Ok(()),
            false => Err(Failure::Refused(Error::new(
                ErrorKind::Unavailable,
                "triggers of the table `records` that fill the change log are disabled or gone, so \
                 what is written is not followed; restart Terrace, which makes them again and begins \
                 the log anew",
            ))),
        }
    }
}

/// The place behind all changes of a transaction.
pub(super) fn end_of(transaction: u64) -> LogPosition {
    LogPosition { epoch: transaction, offset: 1 << 62 }
}

fn bytes(changes: &[Logged]) -> i64 {
    changes.iter().map(size).sum()
}

/// Bytes of a change's value.
fn size(change: &Logged) -> i64 {
    let value = change.record.as_ref().map_or(0, |record| record.value.as_str().len());
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn place(row: &Row) -> Result<LogPosition, Failure> {
    let version = version(row.try_get(1).map_err(corrupt)?);
    let Transaction(epoch) = row.try_get(0).map_err(corrupt)?;
    Ok(LogPosition { epoch, offset: version.get() })
}

/// One change; `None` when its value was left out.
fn logged(row: &Row) -> Result<Option<Logged>, Failure> {
    let (position, version) = (place(row)?, version(row.try_get(1).map_err(corrupt)?));
    let key = Key::new(row.try_get::<_, &str>(6).map_err(corrupt)?).map_err(not_allowed)?;
    let deleted = row.try_get::<_, bool>(2).map_err(corrupt)?;
    let Moment(created_at) = row.try_get(3).map_err(corrupt)?;
    let Moment(updated_at) = row.try_get(4).map_err(corrupt)?;
    let record = if deleted {
        None
    } else {
        let value = row.try_get::<_, Option<&str>>(5).map_err(corrupt)?;
        let Some(value) = value else { return Ok(None) };
        let value = Value::new(value).map_err(not_allowed)?;
        Some(Record { key: key.clone(), value, version, created_at, updated_at })
    };
    Ok(Some(Logged { position, key, version, record, ancestry: None }))
}

/// The last change that can be seen, also above the horizon: a follower comes to it when all before it
/// have ended.
struct Head;

impl Work for Head {
    type Answer = LogPosition;

    const OPERATION: &'static str = "find the head of the change log";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<LogPosition, Failure> {
        const LAST: &str = "SELECT c.transaction FROM commands c \
             ORDER BY c.transaction DESC, c.version DESC LIMIT 1";
        let rows = connection.ask(LAST, &[]).await?;
        let Some(row) = rows.first() else { return Ok(LogPosition::default()) };
        let Transaction(epoch) = row.try_get(0).map_err(corrupt)?;
        Ok(end_of(epoch))
    }
}
