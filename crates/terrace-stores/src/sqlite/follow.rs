//! A file that follows the change log of another database: rows with the versions they have there.

use std::fmt;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use terrace_core::{
    BoxFuture, Changes, Deadline, Follower, LogPosition, Logged, PositionLost, Result, Timestamp,
    Version,
};

use super::failure;
use super::job::{ReadJob, Task};
use super::shared::Shared;

/// Follows a change log into a [`SqliteStore`](super::SqliteStore); from
/// [`SqliteStore::follower`](super::SqliteStore::follower).
///
/// Its place is kept under the name of the log, so a file may follow several. A row keeps the version
/// that it has at its origin, and is written only over an older one.
#[derive(Clone, Debug)]
pub struct SqliteFollower {
    shared: Arc<Shared>,
    origin: Arc<str>,
}

impl SqliteFollower {
    pub(super) fn new(shared: Arc<Shared>, origin: Arc<str>) -> Self {
        Self { shared, origin }
    }

    async fn step(&self, step: Step) -> Result<()> {
        let bytes = match &step {
            Step::Apply { changes, .. } => changes.changes.iter().map(bytes_of).sum(),
            Step::BeginAnew => 0,
        };
        let follow = Follow { origin: Arc::clone(&self.origin), step };
        self.shared.submit(Task::Follow(follow), bytes, Deadline::NEVER).await?;
        Ok(())
    }
}

impl Follower for SqliteFollower {
    fn followed(&self) -> BoxFuture<'_, Result<LogPosition>> {
        let ask = |reply| ReadJob::Followed { origin: Arc::clone(&self.origin), reply };
        Box::pin(self.shared.ask(ask, 0, Deadline::NEVER))
    }

    fn apply(&self, from: LogPosition, changes: Changes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let applied = self.step(Step::Apply { from, changes }).await;
            applied.map_err(|error| error.during("follow"))
        })
    }

    fn begin_anew(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.step(Step::BeginAnew).await.map_err(|error| error.during("begin anew"))
        })
    }
}

impl fmt::Display for SqliteFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite({})", self.shared.options.path.display())
    }
}

fn bytes_of(change: &Logged) -> usize {
    let value = change.record.as_ref().map_or(0, |record| record.value.as_str().len());
    change.key.as_str().len() + value
}

/// What a follower hands to the writer.
#[derive(Debug)]
pub(super) struct Follow {
    origin: Arc<str>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Apply { from: LogPosition, changes: Changes },
    BeginAnew,
}

impl Follow {
    /// How many tombstones it brings.
    pub(super) fn deletions(&self) -> usize {
        match &self.step {
            Step::Apply { changes, .. } => {
                changes.changes.iter().filter(|change| change.record.is_none()).count()
            }
            Step::BeginAnew => 0,
        }
    }

    /// Does it within the transaction that is open; answers the highest version that it wrote.
    pub(super) fn perform(&self, connection: &Connection, to: &Target) -> Result<Version> {
        let counter = counter(connection)?;
        // Until it is set back, rows keep the versions that they bring: see the triggers.
        keep_counter(connection, -1)?;
        let (highest, counter) = match &self.step {
            Step::Apply { from, changes } => {
                let highest = self.apply(connection, *from, changes, to.now_micros)?;
                let reached = signed(changes.position.offset)?;
                let mirrors = to.is_replica && !changes.more;
                (highest, if mirrors { counter.max(reached) } else { counter })
            }
            Step::BeginAnew => {
                self.keep_place(connection, LogPosition::default())?;
                if to.is_replica {
                    run(connection, "DELETE FROM records")?;
                }
                (Version::NONE, if to.is_replica { 0 } else { counter })
            }
        };
        keep_counter(connection, counter)?;
        Ok(highest)
    }

    fn apply(
        &self,
        connection: &Connection,
        from: LogPosition,
        changes: &Changes,
        now_micros: i64,
    ) -> Result<Version> {
        let place = place(connection, &self.origin)?;
        if place < from {
            return Err(PositionLost::error(
                "the file has not come to where these changes begin; ask where it stands",
            ));
        }
        let mut upsert = connection.prepare_cached(UPSERT).map_err(failure::of)?;
        let mut highest = Version::NONE;
        for change in &changes.changes {
            let version = signed(change.version.get())?;
            let row = change.record.as_ref().map(|record| {
                let micros = |time: Timestamp| time.as_microsecond();
                (record.value.as_str(), micros(record.created_at), micros(record.updated_at))
            });
            let (value, created_at, updated_at) = row.unwrap_or(("", now_micros, now_micros));
            let (key, deleted) = (change.key.as_str(), change.record.is_none());
            upsert
                .execute(params![key, value, version, created_at, updated_at, deleted])
                .map_err(failure::of)?;
            highest = highest.max(change.version);
        }
        self.keep_place(connection, place.max(changes.position))?;
        Ok(highest)
    }

    fn keep_place(&self, connection: &Connection, place: LogPosition) -> Result<()> {
        let text = format!("{}:{}", place.epoch, place.offset);
        connection
            .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")
            .and_then(|mut keep| keep.execute(params![name(&self.origin), text]))
            .map(drop)
            .map_err(failure::of)
    }
}

/// What the writer knows of the file that follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Whether the file is a copy of its origin and nothing else.
    pub(super) is_replica: bool,
    pub(super) now_micros: i64,
}

pub(super) const UPSERT: &str =
    "INSERT INTO records (key, value, version, created_at, updated_at, deleted)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version,
    created_at = excluded.created_at, updated_at = excluded.updated_at, deleted = excluded.deleted
    WHERE records.version < excluded.version";

/// How far this file has followed that log.
pub(super) fn place(connection: &Connection, origin: &str) -> Result<LogPosition> {
    let mut ask =
        connection.prepare_cached("SELECT value FROM meta WHERE name = ?1").map_err(failure::of)?;
    let text: Option<String> =
        ask.query_row([name(origin)], |row| row.get(0)).optional().map_err(failure::of)?;
    let Some(text) = text else { return Ok(LogPosition::default()) };
    let parts = text.split_once(':').and_then(|(epoch, offset)| {
        Some(LogPosition { epoch: epoch.parse().ok()?, offset: offset.parse().ok()? })
    });
    parts.ok_or_else(|| failure::corrupt("followed"))
}

fn name(origin: &str) -> String {
    format!("followed:{origin}")
}

pub(super) fn counter(connection: &Connection) -> Result<i64> {
    let mut ask = connection.prepare_cached(super::reader::COUNTER).map_err(failure::of)?;
    ask.query_row([], |row| row.get(0)).map_err(failure::of)
}

pub(super) fn keep_counter(connection: &Connection, counter: i64) -> Result<()> {
    connection
        .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'version'")
        .and_then(|mut keep| keep.execute([counter]))
        .map(drop)
        .map_err(failure::of)
}

fn run(connection: &Connection, statement: &str) -> Result<()> {
    connection.execute(statement, []).map(drop).map_err(failure::of)
}

fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| failure::corrupt("version"))
}
