//! What a shard takes over from another, and what it lets go.

use std::fmt;
use std::sync::Arc;

use rusqlite::{Connection, params};
use terrace_core::shard::RequestResult;
use terrace_core::{Batch, BoxFuture, Checkpoint, Follower, Key, PositionLost, Result, SlotSet};

use super::super::schema::check_epoch;
use super::super::{failure, follow};
use super::Inner;

/// Takes another shard's rows over.
pub(super) struct Taker {
    pub(super) inner: Arc<Inner>,
    pub(super) epoch: u64,
    pub(super) source: String,
}

impl Taker {
    fn transact(&self, work: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
        self.inner.transact_as_is(|connection| {
            check_epoch(connection, self.epoch)?;
            work(connection)
        })
    }
}

impl Follower for Taker {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async { follow::checkpoint(&self.inner.own(), &self.source) })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let now = self.inner.runtime.wall().as_microsecond();
            let applied = self.transact(|connection| {
                follow::apply(connection, &self.source, batch, now).map(drop)
            });
            match applied {
                Err(error) if PositionLost::caused(&error) => Ok(false),
                applied => applied.map(|()| true),
            }
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        let start = Checkpoint { log: log.to_owned(), ..Checkpoint::default() };
        Box::pin(async move {
            self.transact(|connection| follow::keep(connection, &self.source, &start))
        })
    }
}

impl fmt::Display for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlite")
    }
}

impl fmt::Debug for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taker").field("source", &self.source).finish_non_exhaustive()
    }
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
    pub(super) fn keep_results(&self, epoch: u64, results: &[RequestResult]) -> Result<()> {
        const KEEP: &str = "INSERT INTO idempotency (key, fingerprint, result, created_at)
            VALUES (?1, ?2, ?3, ?4) ON CONFLICT (key) DO UPDATE SET
            fingerprint = excluded.fingerprint, result = excluded.result,
            created_at = excluded.created_at WHERE created_at < excluded.created_at";
        if results.is_empty() {
            return Ok(());
        }
        self.transact(|connection| {
            check_epoch(connection, epoch)?;
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
            check_epoch(connection, epoch)?;
            let forget = "DELETE FROM records WHERE key = ?1";
            let mut forget = connection.prepare_cached(forget).map_err(failure::of)?;
            for key in keys {
                forget.execute([key.as_str()]).map_err(failure::of)?;
            }
            Ok(())
        })
    }
}
