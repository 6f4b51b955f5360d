//! First results of repeatable requests, kept in the transaction of their write.

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use terrace_core::shard::RequestResult;
use terrace_core::{Error, ErrorKind, Idempotency, Outcome, Result, Version};

use super::failure;

/// What a write came to, as it is stored; the rest of a receipt follows from the database.
pub(super) type Results = Vec<(Outcome, Version)>;

/// The stored results of this request, if it was made within the time that they are kept.
pub(super) fn find<D: DeserializeOwned>(
    connection: &Connection,
    request: &Idempotency,
    now_micros: i64,
) -> Result<Option<Vec<D>>> {
    let mut statement = connection
        .prepare_cached("SELECT fingerprint, result, created_at FROM idempotency WHERE key = ?1")
        .map_err(failure::of)?;
    let found = statement
        .query_row([request.key()], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
        })
        .optional()
        .map_err(failure::of)?;
    let Some((fingerprint, result, created_at)) = found else { return Ok(None) };
    if created_at <= horizon(now_micros) {
        return Ok(None);
    }
    if fingerprint != request.fingerprint() {
        return Err(Idempotency::reused());
    }
    let results = serde_json::from_str(&result);
    results.map(Some).map_err(|error| failure::corrupt("result").caused_by(error))
}

/// Stores the results of a request.
pub(super) fn keep<D: Serialize>(
    connection: &Connection,
    request: &Idempotency,
    results: &[D],
    now_micros: i64,
) -> Result<()> {
    let result = serde_json::to_string(results).map_err(|error| {
        Error::new(ErrorKind::Internal, "a result cannot be stored; report this defect")
            .caused_by(error)
    })?;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO idempotency (key, fingerprint, result, created_at)
             VALUES (?1, ?2, ?3, ?4)",
        )
        .and_then(|mut insert| {
            insert.execute(params![request.key(), request.fingerprint(), result, now_micros])
        })
        .map(drop)
        .map_err(failure::of)
}

/// Notes with which change the results of a request travel to other regions: the first.
pub(super) fn travels(
    connection: &Connection,
    request: &Idempotency,
    results: &Results,
) -> Result<()> {
    let applied = results.iter().filter(|(outcome, _)| outcome.is_applied());
    let Some(first) = applied.map(|(_, version)| version.get()).min() else { return Ok(()) };
    connection
        .prepare_cached("UPDATE idempotency SET version = ?2 WHERE key = ?1")
        .and_then(|mut note| note.execute(params![request.key(), first as i64]))
        .map(drop)
        .map_err(failure::of)
}

/// Keeps the results of a request that was made in another region, unless it was made here, too.
pub(super) fn take(connection: &Connection, done: &RequestResult, now_micros: i64) -> Result<()> {
    const TAKE: &str = "INSERT INTO idempotency (key, fingerprint, result, created_at)
        VALUES (?1, ?2, ?3, ?4) ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint,
        result = excluded.result, created_at = excluded.created_at, version = NULL
        WHERE idempotency.created_at <= ?5";
    let horizon = horizon(now_micros);
    connection
        .prepare_cached(TAKE)
        .and_then(|mut take| {
            take.execute(params![done.key, done.fingerprint, done.result, done.at_micros, horizon])
        })
        .map(drop)
        .map_err(failure::of)
}

/// Removes up to `most` results that are kept no longer.
pub(super) fn collect(
    connection: &Connection,
    most: usize,
    now_micros: i64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM idempotency WHERE key IN
             (SELECT key FROM idempotency WHERE created_at <= ?1 ORDER BY created_at LIMIT ?2)",
        )?
        .execute(params![horizon(now_micros), i64::try_from(most).unwrap_or(i64::MAX)])
        .map(drop)
}

fn horizon(now_micros: i64) -> i64 {
    let kept = i64::try_from(Idempotency::KEPT_FOR.as_micros()).unwrap_or(i64::MAX);
    now_micros.saturating_sub(kept)
}
