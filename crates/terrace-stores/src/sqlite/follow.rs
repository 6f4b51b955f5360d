//! A file that follows the change log of another database: rows with the versions they have there.

use std::fmt;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use terrace_core::{
    Batch, BoxFuture, Checkpoint, Deadline, Error, ErrorKind, Follower, Logged, PositionLost,
    Result, Timestamp, Version,
};

use super::failure;
use super::job::{Follow, ReadJob, Step, Task};
use super::shared::Shared;

/// Follows a change log into a [`SqliteStore`](super::SqliteStore); from
/// [`SqliteStore::follower`](super::SqliteStore::follower).
///
/// Its checkpoint is kept under the name of the source, so a file may follow several. A row keeps the
/// version that it has at its origin, and is written only over an older one.
#[derive(Clone, Debug)]
pub struct SqliteFollower {
    shared: Arc<Shared>,
    source: Arc<str>,
}

impl SqliteFollower {
    pub(super) fn new(shared: Arc<Shared>, source: Arc<str>) -> Self {
        Self { shared, source }
    }

    async fn step(&self, step: Step, bytes: usize) -> Result<()> {
        let follow = Follow { source: Arc::clone(&self.source), step };
        self.shared.submit(Task::Follow(follow), bytes, Deadline::NEVER).await?;
        Ok(())
    }
}

impl Follower for SqliteFollower {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        let ask = |reply| ReadJob::Checkpoint { source: Arc::clone(&self.source), reply };
        Box::pin(self.shared.ask(ask, 0, Deadline::NEVER))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let bytes = batch.changes.iter().map(bytes_of).sum();
            match self.step(Step::Apply(batch.clone()), bytes).await {
                Err(error) if PositionLost::caused(&error) => Ok(false),
                applied => applied.map(|()| true).map_err(|error| error.during("follow")),
            }
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let begun = self.step(Step::BeginAnew(log.to_owned()), 0).await;
            begun.map_err(|error| error.during("begin anew"))
        })
    }
}

impl fmt::Display for SqliteFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite({})", self.shared.options.path.display())
    }
}

pub(super) fn bytes_of(change: &Logged) -> usize {
    let value = change.record.as_ref().map_or(0, |record| record.value.as_str().len());
    change.key.as_str().len() + value
}

/// Does it within the transaction that is open; answers the highest version that it wrote.
pub(super) fn perform(follow: &Follow, connection: &Connection, to: &Target) -> Result<Version> {
    as_is(connection, |connection, counter| match &follow.step {
        Step::Apply(batch) => {
            let highest = apply(connection, &follow.source, batch, to.now_micros)?;
            let reached = signed(batch.to.position.offset)?;
            let mirrors = to.is_replica && !batch.more;
            Ok((highest, if mirrors { counter.max(reached) } else { counter }))
        }
        // Only a region is asked to.
        Step::Merge(_) => Ok((Version::NONE, counter)),
        Step::BeginAnew(log) => {
            // The log of a file holds all of its records, so nothing is to be copied first.
            let beginning = checkpoint(connection, &follow.source)?.beginning + 1;
            let anew = Checkpoint { beginning, ..Checkpoint::beginning(log.as_str()) };
            keep(connection, &follow.source, &anew)?;
            if to.is_replica {
                run(connection, "DELETE FROM records")?;
            }
            Ok((Version::NONE, if to.is_replica { 0 } else { counter }))
        }
    })
}

/// Changes rows that keep the versions they bring. The work is given the counter of versions, and
/// answers what it is to be.
pub(super) fn as_is<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection, i64) -> Result<(T, i64)>,
) -> Result<T> {
    let counter = counter(connection)?;
    // Until it is set back, rows keep the versions that they bring: see the triggers.
    keep_counter(connection, -1)?;
    let (done, counter) = work(connection, counter)?;
    keep_counter(connection, counter)?;
    Ok(done)
}

/// Applies a batch and moves the checkpoint, in the transaction that is open and as rows are; answers the
/// highest version.
///
/// # Errors
/// [`PositionLost`] when the checkpoint is not where the batch begins.
pub(super) fn apply(
    connection: &Connection,
    source: &str,
    batch: &Batch,
    now_micros: i64,
) -> Result<Version> {
    if checkpoint(connection, source)? != batch.from {
        return Err(PositionLost::error("another process has followed from there"));
    }
    let mut upsert = connection.prepare_cached(UPSERT).map_err(failure::of)?;
    let mut highest = Version::NONE;
    for change in &batch.changes {
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
    keep(connection, source, &batch.to)?;
    Ok(highest)
}

/// What the writer knows of the file that follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Whether the file is a copy of its origin and nothing else.
    pub(super) is_replica: bool,
    pub(super) now_micros: i64,
}

const UPSERT: &str = "INSERT INTO records (key, value, version, created_at, updated_at, deleted)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version,
    created_at = excluded.created_at, updated_at = excluded.updated_at, deleted = excluded.deleted
    WHERE records.version < excluded.version";

/// How far this file has followed that source. What cannot be read is no place: to begin anew is always
/// right.
pub(super) fn checkpoint(connection: &Connection, source: &str) -> Result<Checkpoint> {
    let mut ask =
        connection.prepare_cached("SELECT value FROM meta WHERE name = ?1").map_err(failure::of)?;
    let text: Option<String> =
        ask.query_row([name(source)], |row| row.get(0)).optional().map_err(failure::of)?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

pub(super) fn keep(connection: &Connection, source: &str, checkpoint: &Checkpoint) -> Result<()> {
    let text = serde_json::to_string(checkpoint).map_err(|error| {
        Error::new(ErrorKind::Internal, "a checkpoint cannot be written").caused_by(error)
    })?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")
        .and_then(|mut keep| keep.execute(params![name(source), text]))
        .map(drop)
        .map_err(failure::of)
}

/// Forgets how far any source was followed.
pub(super) fn forget_all(connection: &Connection) -> Result<()> {
    run(connection, "DELETE FROM meta WHERE name LIKE 'followed:%'")
}

fn name(source: &str) -> String {
    format!("followed:{source}")
}

fn counter(connection: &Connection) -> Result<i64> {
    let mut ask = connection.prepare_cached(super::schema::COUNTER).map_err(failure::of)?;
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
