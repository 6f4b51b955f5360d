//! Changes of a read model, each within a transaction that is open.

use std::time::Duration;

use rusqlite::{Connection, params};
use terrace_core::read_model::{Difference, Folded, Projection, fold};
use terrace_core::{Batch, Checkpoint, Key, LogPosition, Result};

use super::super::failure;
use super::super::log::unsigned;

fn names(of: Projection) -> (&'static str, &'static str) {
    match of {
        Projection::Live => ("live", ""),
        Projection::Next => ("next", "_next"),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn run(connection: &Connection, text: &str, parameters: impl rusqlite::Params) -> Result<usize> {
    let done =
        connection.prepare_cached(text).and_then(|mut statement| statement.execute(parameters));
    done.map_err(failure::of)
}

/// How far a projection has come.
pub(super) fn checkpoint(it: &Connection, of: Projection) -> Result<Checkpoint> {
    let (name, _) = names(of);
    let text = "SELECT source, epoch, place FROM projection WHERE name = ?1";
    let mut ask = it.prepare_cached(text).map_err(failure::of)?;
    let row = ask.query_row([name], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    });
    let (log, epoch, place) = row.map_err(failure::of)?;
    let position = LogPosition { epoch: unsigned(epoch)?, offset: unsigned(place)? };
    Ok(Checkpoint::beginning(log).at(position))
}

/// Empties a projection.
pub(super) fn begin(it: &Connection, of: Projection, log: &str) -> Result<()> {
    let (name, end) = names(of);
    for table in ["records", "parked", "activity"] {
        run(it, &format!("DELETE FROM {table}{end}"), [])?;
    }
    let start =
        "UPDATE projection SET source = ?2, epoch = 0, place = 0, whole = 0, paused_until = 0
         WHERE name = ?1";
    run(it, start, params![name, log]).map(drop)
}

pub(super) fn pause(it: &Connection, now: i64, time: Duration) -> Result<()> {
    let text = "UPDATE projection SET paused_until = ?1 WHERE name = 'live'";
    run(it, text, [now.saturating_add(micros(time))]).map(drop)
}

/// Moves the checkpoint from where the batch begins, and only then applies it.
pub(super) fn apply(it: &Connection, of: Projection, batch: &Batch, now: i64) -> Result<bool> {
    let (name, end) = names(of);
    let moved = run(
        it,
        "UPDATE projection SET epoch = ?1, place = ?2, whole = whole OR ?8
         WHERE name = ?3 AND source = ?4 AND epoch = ?5 AND place = ?6 AND paused_until < ?7",
        params![
            signed(batch.to.position.epoch),
            signed(batch.to.position.offset),
            name,
            batch.from.log,
            signed(batch.from.position.epoch),
            signed(batch.from.position.offset),
            now,
            !batch.more,
        ],
    )?;
    if moved == 0 {
        return Ok(false);
    }
    let stopped: i64 = it
        .query_row(&format!("SELECT count(*) FROM parked{end}"), [], |row| row.get(0))
        .map_err(failure::of)?;
    let folded = fold(&batch.changes);
    for folded in &folded {
        if let Some(reason) = &batch.refused {
            park(it, end, folded, reason)?;
        } else if stopped > 0 && is_parked(it, end, &folded.newest.key)? {
            park(it, end, folded, "")?;
        } else {
            put(it, end, folded)?;
        }
    }
    let add = format!(
        "INSERT INTO activity{end} (minute, writes) VALUES (?1, 1)
         ON CONFLICT (minute) DO UPDATE SET writes = writes + 1"
    );
    for at in folded.iter().flat_map(|folded| &folded.written) {
        run(it, &add, [at.as_second().div_euclid(60)])?;
    }
    Ok(true)
}

fn is_parked(it: &Connection, end: &str, key: &Key) -> Result<bool> {
    let text = format!("SELECT 1 FROM parked{end} WHERE key = ?1");
    let mut statement = it.prepare_cached(&text).map_err(failure::of)?;
    statement.exists([key.as_str()]).map_err(failure::of)
}

/// Of a key's changes the highest version counts, wherever it stands; each is counted.
const NEWER: &str = "value = iif(excluded.version > version, excluded.value, value),
     created_at = iif(excluded.version > version, excluded.created_at, created_at),
     updated_at = iif(excluded.version > version, excluded.updated_at, updated_at),
     deleted = iif(excluded.version > version, excluded.deleted, deleted),
     version = max(excluded.version, version)";

fn put(it: &Connection, end: &str, folded: &Folded) -> Result<()> {
    let change = &folded.newest;
    let record = change.record.as_ref();
    let text = format!(
        "INSERT INTO records{end} (key, value, version, created_at, updated_at, deleted, write_count)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (key) DO UPDATE SET
         write_count = write_count + excluded.write_count, {NEWER}"
    );
    let parameters = params![
        change.key.as_str(),
        record.map_or("", |record| record.value.as_str()),
        signed(change.version.get()),
        record.map_or(0, |record| record.created_at.as_microsecond()),
        record.map_or(0, |record| record.updated_at.as_microsecond()),
        record.is_none(),
        signed(folded.commands),
    ];
    run(it, &text, parameters).map(drop)
}

fn park(it: &Connection, end: &str, folded: &Folded, reason: &str) -> Result<()> {
    let change = &folded.newest;
    let record = change.record.as_ref();
    let text = format!(
        "INSERT INTO parked{end}
           (key, value, version, created_at, updated_at, deleted, commands, epoch, place, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (key) DO UPDATE SET
         commands = commands + excluded.commands, {NEWER}"
    );
    let parameters = params![
        change.key.as_str(),
        record.map_or("", |record| record.value.as_str()),
        signed(change.version.get()),
        record.map_or(0, |record| record.created_at.as_microsecond()),
        record.map_or(0, |record| record.updated_at.as_microsecond()),
        record.is_none(),
        signed(folded.commands),
        signed(change.position.epoch),
        signed(change.position.offset),
        reason,
    ];
    run(it, &text, parameters).map(drop)
}

pub(super) fn retry(it: &Connection, key: &Key) -> Result<bool> {
    let text = format!(
        "INSERT INTO records (key, value, version, created_at, updated_at, deleted, write_count)
         SELECT key, value, version, created_at, updated_at, deleted, commands FROM parked
         WHERE key = ?1 ON CONFLICT (key) DO UPDATE SET
         write_count = write_count + excluded.write_count, {NEWER}"
    );
    run(it, &text, [key.as_str()])?;
    Ok(run(it, "DELETE FROM parked WHERE key = ?1", [key.as_str()])? > 0)
}

pub(super) fn add_reads(it: &Connection, reads: &[(Key, u64)]) -> Result<()> {
    let text = "UPDATE records SET read_count = read_count + ?2 WHERE key = ?1";
    for (key, count) in reads {
        run(it, text, params![key.as_str(), signed(*count)])?;
    }
    Ok(())
}

/// Commands that the log no longer has are counted by the live side alone; it forgets none before a week.
const DIFFERING: &str = "SELECT ifnull(a.key, b.key) AS name
     FROM records a FULL JOIN records_next b ON a.key = b.key
     WHERE (a.value, a.version, a.created_at, a.updated_at, a.deleted)
             IS NOT (b.value, b.version, b.created_at, b.updated_at, b.deleted)
         OR a.write_count < b.write_count
         OR a.write_count > b.write_count AND NOT EXISTS (SELECT 1 FROM activity
             WHERE minute < CAST(strftime('%s', 'now') AS INTEGER) / 60 - 7 * 24 * 60)
     ORDER BY name";

/// Compares everything but reads, which are no changes of the log.
pub(super) fn finish(it: &Connection, swap: bool) -> Result<Option<Difference>> {
    const SAME: &str = "SELECT a.source = b.source AND a.epoch = b.epoch AND a.place = b.place
         FROM projection a, projection b WHERE a.name = 'live' AND b.name = 'next'";
    let same: bool = it.query_row(SAME, [], |row| row.get(0)).map_err(failure::of)?;
    if !same {
        return Ok(None);
    }
    let mut statement = it.prepare(DIFFERING).map_err(failure::of)?;
    let keys = statement.query_map([], |row| row.get::<_, String>(0)).map_err(failure::of)?;
    let differing = keys.collect::<Result<Vec<_>, _>>().map_err(failure::of)?;
    let count = "SELECT count(*) FROM (SELECT key FROM records UNION SELECT key FROM records_next)";
    let keys: i64 = it.query_row(count, [], |row| row.get(0)).map_err(failure::of)?;
    if swap {
        it.execute_batch(
            "UPDATE records_next SET read_count = ifnull(
                 (SELECT read_count FROM records r WHERE r.key = records_next.key), 0);
             DELETE FROM records; INSERT INTO records SELECT * FROM records_next;
             DELETE FROM parked; INSERT INTO parked SELECT * FROM parked_next;
             DELETE FROM activity; INSERT INTO activity SELECT * FROM activity_next;",
        )
        .map_err(failure::of)?;
    }
    it.execute_batch(
        "DELETE FROM records_next; DELETE FROM parked_next; DELETE FROM activity_next;
         UPDATE projection SET paused_until = 0 WHERE name = 'live';
         UPDATE projection SET source = '', epoch = 0, place = 0 WHERE name = 'next';",
    )
    .map_err(failure::of)?;
    let examples = differing.iter().take(10).cloned().collect();
    Ok(Some(Difference { keys: unsigned(keys)?, differing: differing.len() as u64, examples }))
}
