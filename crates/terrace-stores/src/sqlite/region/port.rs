//! What others ask a file that is a region.

use std::sync::Arc;

use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};
use terrace_core::region::ValueDigest;
use terrace_core::{
    Ancestry, BoxFuture, ChangeLog, Checkpoint, Checkpoints, Conflict, Deadline, Error, ErrorKind,
    Follower, Key, KeyRange, LeaderLease, LogPosition, Logged, Page, Position, RangeDigest, Record,
    RegionId, RegionOptions, RegionStore, Result, Version,
};

use super::super::job::{Follow, Step, Task};
use super::super::log::moment;
use super::super::reader::decode;
use super::super::{SqliteStore, failure, follow, schema};
use super::RegionParts;
use super::merge::{horizon, parse};

/// The name under which an origin's checkpoint is kept.
fn source(origin: RegionId) -> String {
    format!("region {origin}")
}

fn no_region() -> Error {
    Error::new(ErrorKind::Internal, "the file was not opened as a region; report this defect")
}

impl SqliteStore {
    fn parts(&self) -> Result<&RegionParts> {
        self.region.as_ref().ok_or_else(no_region)
    }

    fn options(&self) -> &RegionOptions {
        // PROOF: only a store that was opened as a region is used as one.
        #[expect(clippy::expect_used, reason = "see the line above")]
        self.shared.options.region.as_ref().expect("a file that was opened as a region")
    }

    async fn walk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let one_snapshot = |it: &mut Connection| work(&it.transaction().map_err(failure::of)?);
        self.parts()?.slow.run(one_snapshot).await
    }

    fn residents(&self) -> Result<String> {
        serde_json::to_string(&self.options().resident).map_err(|error| {
            Error::new(ErrorKind::Internal, "prefixes cannot be written").caused_by(error)
        })
    }
}

impl RegionStore for SqliteStore {
    fn region(&self) -> &RegionOptions {
        self.options()
    }

    fn own_log(&self) -> Arc<dyn ChangeLog> {
        match &self.region {
            Some(parts) => Arc::clone(&parts.log) as _,
            None => Arc::new(self.change_log()),
        }
    }

    fn follower_of(&self, origin: RegionId) -> Arc<dyn Follower> {
        Arc::new(self.follower(source(origin)))
    }

    fn lease(&self, _: RegionId) -> Option<Arc<dyn LeaderLease>> {
        None
    }

    fn checkpoints(&self) -> BoxFuture<'_, Result<Checkpoints>> {
        Box::pin(async move {
            let found = self.parts()?.quick.run(|connection| {
                let snapshot = connection.transaction().map_err(failure::of)?;
                let latest: i64 = snapshot
                    .query_row(schema::LATEST, [], |row| row.get(0))
                    .map_err(failure::of)?;
                Ok((latest, origins(&snapshot)?))
            });
            let (latest, origins) = found.await?;
            let latest = Version::of_row(latest).unwrap_or(Version::NONE);
            // With one writer, all that was drawn before has ended.
            let through = Position::new(latest.get());
            Ok(Checkpoints { origins, token: self.shared.token(latest), through })
        })
    }

    fn has_news(&self, after: LogPosition, until: Position) -> BoxFuture<'_, Result<bool>> {
        const NEXT: &str = "SELECT EXISTS (SELECT 1 FROM commands
            WHERE position > ?1 AND position <= ?2 AND NOT EXISTS (SELECT 1 FROM json_each(?3) p
                WHERE substr(commands.key, 1, length(p.value)) = p.value))";
        Box::pin(async move {
            let residents = self.residents()?;
            let found = self.parts()?.quick.run(move |connection| {
                let within = params![signed(after.offset), signed(until.get()), residents];
                connection.query_row(NEXT, within, |row| row.get(0)).map_err(failure::of)
            });
            found.await
        })
    }

    fn forget_origin(&self, origin: RegionId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let forgotten = self.parts()?.quick.run(move |connection| {
                let name = format!("followed:{}", source(origin));
                let forget = "DELETE FROM meta WHERE name = ?1";
                connection.execute(forget, [name]).map(drop).map_err(failure::of)
            });
            forgotten.await
        })
    }

    fn conflicts<'a>(
        &'a self,
        after: Option<&'a (Key, Version)>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Conflict>>> {
        const LIST: &str = "SELECT key, version, winner, digest, noticed_at FROM conflicts
            WHERE (key, version) > (?1, ?2) AND awaited = 0 ORDER BY key, version LIMIT ?3";
        Box::pin(async move {
            let after = after.map(|(key, version)| (key.to_string(), version.get()));
            let (key, version) = after.unwrap_or_default();
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let listed = self.walk(move |it| list(it, LIST, &key, signed(version), limit));
            listed.await
        })
    }

    fn digest<'a>(&'a self, range: &'a KeyRange) -> BoxFuture<'a, Result<RangeDigest>> {
        Box::pin(async move {
            let (range, residents) = (range.clone(), self.residents()?);
            self.walk(move |snapshot| digest(snapshot, &range, &residents)).await
        })
    }

    fn rows<'a>(&'a self, range: &'a KeyRange, limit: usize) -> BoxFuture<'a, Result<Vec<Logged>>> {
        Box::pin(async move {
            let (range, residents) = (range.clone(), self.residents()?);
            self.walk(move |snapshot| rows(snapshot, &range, &residents, limit)).await
        })
    }

    fn merge_rows(&self, rows: Vec<Logged>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let bytes = rows.iter().map(follow::bytes_of).sum();
            let task = Task::Follow(Follow { source: "".into(), step: Step::Merge(rows) });
            self.shared.submit(task, bytes, Deadline::NEVER).await.map(drop)
        })
    }

    fn collect(&self, horizon: Version) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            horizon.check_horizon()?;
            let (mut all, slow) = (0, &self.parts()?.slow);
            loop {
                let some = slow.run(move |connection| collect(connection, horizon)).await?;
                all += some;
                if some < COLLECTED_AT_ONCE {
                    return Ok(all);
                }
            }
        })
    }
}

fn origins(connection: &Connection) -> Result<Vec<(RegionId, Checkpoint)>> {
    const NAMES: &str = "SELECT substr(name, 17) FROM meta WHERE name LIKE 'followed:region %'";
    let mut names = connection.prepare_cached(NAMES).map_err(failure::of)?;
    let names = names.query_map([], |row| row.get::<_, String>(0)).map_err(failure::of)?;
    let mut origins = Vec::new();
    for name in names {
        let number = name.map_err(failure::of)?.parse().map_err(|_| failure::corrupt("region"))?;
        let origin = RegionId::new(number)?;
        origins.push((origin, follow::checkpoint(connection, &source(origin))?));
    }
    Ok(origins)
}

fn list(
    connection: &Connection,
    text: &str,
    key: &str,
    version: i64,
    limit: i64,
) -> Result<Vec<Conflict>> {
    let mut statement = connection.prepare_cached(text).map_err(failure::of)?;
    let mut rows = statement.query(params![key, version, limit]).map_err(failure::of)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next().map_err(failure::of)? {
        all.push(conflict(row)?);
    }
    Ok(all)
}

fn conflict(row: &Row<'_>) -> Result<Conflict> {
    let number = |column| row.get::<_, i64>(column).map_err(failure::of);
    let version =
        |number| Version::of_row(number).ok_or_else(|| failure::corrupt("version of a conflict"));
    let digest = row.get::<_, Option<Vec<u8>>>(3).map_err(failure::of)?;
    let digest = digest.map(|it| ValueDigest::try_from(it).map_err(|_| failure::corrupt("digest")));
    let key = row.get::<_, String>(0).map_err(failure::of)?;
    Ok(Conflict {
        key: Key::new(key).map_err(|_| failure::corrupt("key"))?,
        winner: version(number(2)?)?,
        loser: version(number(1)?)?,
        digest: digest.transpose()?,
        noticed_at: moment(number(4)?),
    })
}

/// Rows of a range that may leave the region; a version that only a person can have set has none of them.
const ROWS: &str = "SELECT value, version, created_at, updated_at, deleted, key, seen FROM records
    WHERE key > ?1 AND (?2 IS NULL OR key <= ?2) AND version BETWEEN 1 AND 9007199254740991
    AND NOT EXISTS (SELECT 1 FROM json_each(?3) p
        WHERE substr(records.key, 1, length(p.value)) = p.value)
    ORDER BY key";

fn each(
    snapshot: &Connection,
    range: &KeyRange,
    residents: &str,
    mut visit: impl FnMut(&Row<'_>, &Key, Version, Option<Record>) -> Result<bool>,
) -> Result<()> {
    let after = range.after.as_ref().map_or("", Key::as_str);
    let through = range.through.as_ref().map(Key::as_str);
    let mut statement = snapshot.prepare_cached(ROWS).map_err(failure::of)?;
    let mut rows = statement.query(params![after, through, residents]).map_err(failure::of)?;
    while let Some(row) = rows.next().map_err(failure::of)? {
        let name: String = row.get(5).map_err(failure::of)?;
        let key = Key::new(name).map_err(|_| failure::corrupt("key"))?;
        let (record, version) = decode(row, || Ok(key.clone()))?;
        if !visit(row, &key, version, record)? {
            break;
        }
    }
    Ok(())
}

fn digest(snapshot: &Connection, range: &KeyRange, residents: &str) -> Result<RangeDigest> {
    let mut digest = RangeDigest::default();
    each(snapshot, range, residents, |_, key, version, record| {
        digest.add(RangeDigest::of_row(key, version, record.as_ref()));
        Ok(true)
    })?;
    let mut before_middle = digest.rows.saturating_sub(1) / 2;
    each(snapshot, range, residents, |_, key, _, _| {
        digest.middle = Some(key.clone()).filter(|_| before_middle == 0);
        before_middle = before_middle.saturating_sub(1);
        Ok(digest.middle.is_none())
    })?;
    Ok(digest)
}

fn rows(
    snapshot: &Connection,
    range: &KeyRange,
    residents: &str,
    limit: usize,
) -> Result<Vec<Logged>> {
    const LOST: &str = "SELECT key, version, winner, digest, noticed_at FROM conflicts
        WHERE key = ?1 AND version > ?2 AND awaited = 0 ORDER BY version LIMIT ?3";
    const AWAITED: &str = "SELECT version FROM conflicts WHERE key = ?1 AND awaited = 1";
    let (mut all, mut bytes) = (Vec::new(), 0);
    let collected = horizon(snapshot)?;
    each(snapshot, range, residents, |row, key, version, record| {
        if all.len() >= limit || bytes >= Page::MAX_BYTES {
            return Ok(false);
        }
        let mut seen = parse(&row.get::<_, String>(6).map_err(failure::of)?)?;
        seen.add(version);
        seen.add(collected);
        let mut awaited = snapshot.prepare_cached(AWAITED).map_err(failure::of)?;
        let awaited = awaited.query_map([key.as_str()], |row| row.get::<_, i64>(0));
        let awaited = awaited.and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let awaited = awaited.map_err(failure::of)?.into_iter().filter_map(Version::of_row);
        let lost = list(snapshot, LOST, key.as_str(), 0, i64::MAX)?;
        let ancestry = Ancestry::Row { seen, lost, awaited: awaited.collect() };
        bytes += record.as_ref().map_or(0, |record| record.value.as_str().len());
        let (position, key) = (LogPosition::default(), key.clone());
        all.push(Logged { position, key, version, record, ancestry: Some(Arc::new(ancestry)) });
        Ok(true)
    })?;
    Ok(all)
}

/// How many deletions go in one transaction, for which writers wait.
const COLLECTED_AT_ONCE: u64 = 1000;

fn collect(connection: &mut Connection, horizon: Version) -> Result<u64> {
    const COLLECT: &str = "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records
        WHERE deleted = 1 AND version <= ?1 LIMIT ?2)";
    const HORIZON: &str = "UPDATE meta SET value = max(value, ?1)
        WHERE name IN ('collected', 'version')";
    let horizon = signed(horizon.get());
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failure::of)?;
    transaction.execute(HORIZON, [horizon]).map_err(failure::of)?;
    let most = i64::try_from(COLLECTED_AT_ONCE).unwrap_or(i64::MAX);
    let gone = transaction.execute(COLLECT, params![horizon, most]).map_err(failure::of)?;
    transaction.commit().map_err(failure::of_commit)?;
    Ok(gone as u64)
}

/// SQLite's integers are signed.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
