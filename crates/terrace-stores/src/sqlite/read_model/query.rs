//! What a read model answers, each within one snapshot.

use std::time::Duration;

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, params};
use terrace_core::read_model::{Activity, Counted, Parked, Projection, Reached, Row, Rows};
use terrace_core::{
    Budget, Key, LogPosition, Origin, Page, Record, Result, Scan, Timestamp, Value, Version,
};

use super::super::failure;
use super::super::log::{moment, unsigned};
use super::change::checkpoint;
use crate::row::{in_row, successor};

const COLUMNS: &str = "r.key, r.value, r.version, r.created_at, r.updated_at, r.deleted, \
     r.read_count, r.write_count";

fn row(found: &rusqlite::Row<'_>) -> Result<Row> {
    let get = |column| found.get::<_, i64>(column).map_err(failure::of);
    let text = |column| found.get::<_, String>(column).map_err(failure::of);
    let name = text(0)?;
    let bad = |column| in_row(failure::corrupt(column), &name);
    let version = Version::new(u64::try_from(get(2)?).map_err(|_| bad("version"))?);
    let record = match get(5)? {
        0 => Some(Record {
            key: Key::new(&name).map_err(|_| bad("key"))?,
            value: Value::new(text(1)?).map_err(|_| bad("value"))?,
            version,
            created_at: moment(get(3)?),
            updated_at: moment(get(4)?),
        }),
        _ => None,
    };
    Ok(Row {
        record,
        version,
        reads: unsigned(get(6)?)?,
        writes: unsigned(get(7)?)?,
        parked: false,
    })
}

fn all(it: &Connection, text: &str, parameters: impl rusqlite::Params) -> Result<Vec<Row>> {
    let mut statement = it.prepare_cached(text).map_err(failure::of)?;
    let mut found = statement.query(parameters).map_err(failure::of)?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while bytes < Page::MAX_BYTES
        && let Some(next) = found.next().map_err(failure::of)?
    {
        let row = row(next)?;
        bytes += row.record.as_ref().map_or(0, |record| record.value.as_str().len());
        rows.push(row);
    }
    Ok(rows)
}

fn signed(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn reached(it: &Connection) -> Result<Reached> {
    let whole = "SELECT whole FROM projection WHERE name = 'live'";
    let whole = it.query_row(whole, [], |row| row.get(0)).map_err(failure::of)?;
    Ok(Reached { checkpoint: checkpoint(it, Projection::Live)?, whole })
}

pub(super) fn rows(it: &Connection, keys: &[Key], mut budget: Budget) -> Result<Rows> {
    let reached = reached(it)?;
    let text = format!("SELECT {COLUMNS} FROM records r WHERE r.key = ?1");
    let mut lookup = it.prepare_cached(&text).map_err(failure::of)?;
    let mut stopped =
        it.prepare_cached("SELECT 1 FROM parked WHERE key = ?1").map_err(failure::of)?;
    let mut rows = Vec::with_capacity(keys.len());
    for key in keys {
        let found = lookup.query_row([key.as_str()], |found| Ok(row(found))).optional();
        let mut row = found.map_err(failure::of)?.transpose()?.unwrap_or_default();
        budget.spend(row.record.as_ref().map_or(0, |record| record.value.as_str().len()))?;
        row.parked = stopped.exists([key.as_str()]).map_err(failure::of)?;
        rows.push(row);
    }
    Ok(Rows { rows, reached })
}

pub(super) fn page(it: &Connection, scan: &Scan) -> Result<(Page, Reached)> {
    let text = format!(
        "SELECT {COLUMNS} FROM records r WHERE r.key > ?1 AND r.key >= ?2 AND r.key < ?4
         AND r.deleted = 0 ORDER BY r.key LIMIT ?3"
    );
    // Every key sorts before the empty blob.
    let end = successor(&scan.prefix).map_or(Sql::Blob(Vec::new()), Sql::Text);
    let after = scan.after.as_ref().map_or("", Key::as_str);
    let limit = signed(scan.limit.saturating_add(1));
    let rows = all(it, &text, params![after, scan.prefix, limit, end])?;
    let bytes = |row: &Row| row.record.as_ref().map_or(0, |record| record.value.as_str().len());
    // A page that the bytes have ended may have others after it.
    let cut = rows.iter().map(bytes).sum::<usize>() >= Page::MAX_BYTES;
    let limit = if cut { rows.len().saturating_sub(1).clamp(1, scan.limit) } else { scan.limit };
    let records = rows.into_iter().filter_map(|row| row.record).collect();
    // The record of a key that is parked may be old, or missing.
    let parked = "SELECT EXISTS (SELECT 1 FROM parked)";
    let parked: bool = it.query_row(parked, [], |row| row.get(0)).map_err(failure::of)?;
    let Reached { checkpoint, whole } = reached(it)?;
    let reached = Reached { checkpoint, whole: whole && !parked };
    Ok((Page::cut(records, limit, Origin::READ_MODEL), reached))
}

/// Each word is quoted, so that none is taken for syntax.
pub(super) fn search(it: &Connection, words: &str, limit: usize) -> Result<Vec<Row>> {
    let quoted = words
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| format!("\"{word}\""))
        .collect::<Vec<_>>()
        .join(" ");
    if quoted.is_empty() {
        return Ok(Vec::new());
    }
    let text = format!(
        "SELECT {COLUMNS} FROM words JOIN records r ON r.id = words.rowid
         WHERE words MATCH ?1 AND r.deleted = 0 ORDER BY rank, r.key LIMIT ?2"
    );
    all(it, &text, params![quoted, signed(limit)])
}

pub(super) fn top(it: &Connection, by: Counted, limit: usize) -> Result<Vec<Row>> {
    let column = match by {
        Counted::Reads => "read_count",
        Counted::Writes => "write_count",
    };
    let text = format!(
        "SELECT {COLUMNS} FROM records r WHERE r.deleted = 0 ORDER BY r.{column} DESC, r.key LIMIT ?1"
    );
    all(it, &text, [signed(limit)])
}

pub(super) fn activity(it: &Connection, bucket: Duration, limit: usize) -> Result<Vec<Activity>> {
    let minutes = i64::try_from((bucket.as_secs() / 60).max(1)).unwrap_or(1);
    let mut statement = it
        .prepare_cached(
            "SELECT minute / ?1 * ?1, sum(writes) FROM activity GROUP BY 1 ORDER BY 1 DESC LIMIT ?2",
        )
        .map_err(failure::of)?;
    let found = statement
        .query_map([minutes, signed(limit)], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })
        .map_err(failure::of)?;
    found
        .map(|bucket| {
            let (minute, writes) = bucket.map_err(failure::of)?;
            let from = Timestamp::from_second(minute.saturating_mul(60)).unwrap_or_default();
            Ok(Activity { from, writes: unsigned(writes)? })
        })
        .collect()
}

pub(super) fn parked(it: &Connection, limit: usize) -> Result<Vec<Parked>> {
    let mut statement = it
        .prepare_cached(
            "SELECT key, epoch, place, commands, reason FROM parked ORDER BY epoch, place LIMIT ?1",
        )
        .map_err(failure::of)?;
    let mut found = statement.query([signed(limit)]).map_err(failure::of)?;
    let mut keys = Vec::new();
    while let Some(row) = found.next().map_err(failure::of)? {
        let get = |column| unsigned(row.get::<_, i64>(column).map_err(failure::of)?);
        keys.push(Parked {
            key: Key::new(row.get::<_, String>(0).map_err(failure::of)?)?,
            position: LogPosition { epoch: get(1)?, offset: get(2)? },
            commands: get(3)?,
            reason: row.get(4).map_err(failure::of)?,
        });
    }
    Ok(keys)
}

/// Live records and parked keys.
pub(super) fn counts(it: &Connection) -> Result<(u64, u64)> {
    let count = |text| {
        let number = it.query_row(text, [], |row| row.get::<_, i64>(0)).map_err(failure::of)?;
        unsigned(number)
    };
    let records = count("SELECT count(*) FROM records WHERE deleted = 0")?;
    Ok((records, count("SELECT count(*) FROM parked")?))
}
