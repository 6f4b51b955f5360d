//! What a shard takes over from another, and what it lets go.

use rusqlite::{Connection, OptionalExtension, params};
use terrace_core::shard::RequestResult;
use terrace_core::{Error, ErrorKind, Follow, Key, Logged, Result, SlotSet, Timestamp};

use super::super::failure;
use super::super::follow::UPSERT;
use super::{Inner, check, signed};

pub(super) fn followed(connection: &Connection, source: &str) -> Result<Option<Follow>> {
    let ask = "SELECT value FROM meta WHERE name = ?1";
    let mut ask = connection.prepare_cached(ask).map_err(failure::of)?;
    let text: Option<String> =
        ask.query_row([name(source)], |row| row.get(0)).optional().map_err(failure::of)?;
    let parsed = text.map(|text| serde_json::from_str(&text)).transpose();
    parsed.map_err(|error| failure::corrupt("shard_followed").caused_by(error))
}

fn name(source: &str) -> String {
    format!("shard_followed:{source}")
}

/// The names of results begin with their slots, so those of a range lie together.
pub(super) fn results(connection: &Connection, slots: &SlotSet) -> Result<Vec<RequestResult>> {
    const RESULTS: &str = "SELECT key, fingerprint, result, created_at FROM idempotency
        WHERE key >= ?1 AND key < ?2";
    let mut ask = connection.prepare_cached(RESULTS).map_err(failure::of)?;
    let mut results = Vec::new();
    for range in slots.to_string().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        // `;` follows `:`.
        let bounds = params![format!("{first:0>5}:"), format!("{last:0>5};")];
        let rows = ask.query_map(bounds, |row| {
            Ok(RequestResult {
                key: row.get(0)?,
                fingerprint: row.get(1)?,
                result: row.get(2)?,
                at_micros: row.get(3)?,
            })
        });
        for result in rows.map_err(failure::of)? {
            results.push(result.map_err(failure::of)?);
        }
    }
    Ok(results)
}

impl Inner {
    pub(super) fn apply(
        &self,
        epoch: u64,
        source: &str,
        rows: &[Logged],
        follow: &Follow,
    ) -> Result<()> {
        let follow = serde_json::to_string(follow).map_err(|error| {
            Error::new(ErrorKind::Internal, "a position cannot be written").caused_by(error)
        })?;
        let now = self.runtime.wall().as_microsecond();
        self.transact_as_is(|connection| {
            check(connection, epoch)?;
            let mut upsert = connection.prepare_cached(UPSERT).map_err(failure::of)?;
            for row in rows {
                let micros = |time: Timestamp| time.as_microsecond();
                let record = row.record.as_ref();
                let times = record.map(|it| (micros(it.created_at), micros(it.updated_at)));
                let (created, updated) = times.unwrap_or((now, now));
                let value = record.map_or("", |record| record.value.as_str());
                let version = signed(row.version.get());
                let (key, deleted) = (row.key.as_str(), record.is_none());
                upsert
                    .execute(params![key, value, version, created, updated, deleted])
                    .map_err(failure::of)?;
            }
            let keep = "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)";
            connection.execute(keep, params![name(source), follow]).map(drop).map_err(failure::of)
        })
    }

    pub(super) fn keep_results(&self, epoch: u64, results: &[RequestResult]) -> Result<()> {
        const KEEP: &str = "INSERT INTO idempotency (key, fingerprint, result, created_at)
            VALUES (?1, ?2, ?3, ?4) ON CONFLICT (key) DO UPDATE SET
            fingerprint = excluded.fingerprint, result = excluded.result,
            created_at = excluded.created_at WHERE created_at < excluded.created_at";
        if results.is_empty() {
            return Ok(());
        }
        self.transact(|connection| {
            check(connection, epoch)?;
            let mut keep = connection.prepare_cached(KEEP).map_err(failure::of)?;
            for it in results {
                keep.execute(params![it.key, it.fingerprint, it.result, it.at_micros])
                    .map_err(failure::of)?;
            }
            Ok(())
        })
    }

    pub(super) fn forget(&self, epoch: u64, keys: &[Key]) -> Result<()> {
        self.transact_as_is(|connection| {
            check(connection, epoch)?;
            let forget = "DELETE FROM records WHERE key = ?1";
            let mut forget = connection.prepare_cached(forget).map_err(failure::of)?;
            for key in keys {
                forget.execute([key.as_str()]).map_err(failure::of)?;
            }
            Ok(())
        })
    }
}
