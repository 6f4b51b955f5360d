//! What the log no longer keeps.
//!
//! A change goes once it is superseded by a later change of its key, is a week old, and every follower
//! has gone past both. The latest change of each key stays, and so does the change that a follower has
//! come to: the end of an event stream names it.
//!
//! A log that is only counted, as a shard's, keeps neither: nobody begins anew from what it holds. What every
//! follower has gone past goes after an hour, and nothing before there is one.
//!
//! Each follower tells the log once a minute how far it is ([`terrace_core::ChangeLog::keep_for`]).
//! That is noted in `meta`: `log follower <name>` has the position and since when the follower has been
//! there. One that stands still holds the log back, after a week with a warning and a degraded health.
//! After 30 days its note becomes `log left <name>`, it is told that its position is lost, and walks go
//! past it when the note is an hour old. `log trimmed` has the last position that was removed: who comes
//! without any note from before it is told the same.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use terrace_core::{LogPosition, PositionLost, Result};

use super::super::failure;
use super::super::lane::Lane;
use super::super::shared::Shared;
use crate::walks::Walk;

const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// How long a superseded change stays at least.
const KEPT_MICROS: i64 = 7 * DAY_MICROS;

/// How long a follower may stand still before the log goes on without it.
const WAITED_FOR_MICROS: i64 = 30 * DAY_MICROS;

/// So long after it was told that all is there a follower may read.
const READING_MICROS: i64 = DAY_MICROS / 24;

/// How many changes are looked at in one transaction, for which writers wait.
const PAGE: i64 = 1000;

/// A walk over the log in its order.
pub(super) struct TrimLog {
    lane: Arc<Lane>,
    shared: Arc<Shared>,
    /// The last position of the page before.
    after: i64,
}

impl TrimLog {
    pub(super) fn new(lane: Arc<Lane>, shared: Arc<Shared>) -> Self {
        Self { lane, shared, after: 0 }
    }
}

impl Walk for TrimLog {
    const NAME: &'static str = "sqlite log trim";

    async fn page(&mut self) -> Result<bool> {
        let (after, now) = (std::mem::take(&mut self.after), self.shared.runtime.wall());
        let (now, held) = (now.as_microsecond(), self.shared.held.clone());
        let is_counted = self.shared.options.shard;
        let page = self.lane.run(move |connection| {
            let last = page(connection, after, now, is_counted)?;
            if last.is_none() {
                held.found(standing(connection, now)?);
            }
            Ok(last)
        });
        let last = page.await?;
        self.after = last.unwrap_or(0);
        Ok(last.is_none())
    }
}

/// A follower, where it is, and since when it has been there.
struct Noted {
    name: String,
    position: i64,
    since: i64,
}

fn begin(connection: &mut Connection) -> Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failure::of)
}

/// What the names of the notes of followers begin with, and of those that were left behind.
const FOLLOWER: &str = "log follower ";
const LEFT: &str = "log left ";

fn noted(connection: &Connection, prefix: &str) -> Result<Vec<Noted>> {
    let text = "SELECT substr(name, length(?1) + 1), value FROM meta WHERE name LIKE ?1 || '%'";
    let mut statement = connection.prepare_cached(text).map_err(failure::of)?;
    let rows = statement.query_map([prefix], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)));
    let rows = rows.and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failure::of)?;
    let noted = |(name, value): (String, String)| {
        let (position, since) = value.split_once(' ').unwrap_or_default();
        let (position, since) = (position.parse().unwrap_or(0), since.parse().unwrap_or(0));
        Noted { name, position, since }
    };
    Ok(rows.into_iter().map(noted).collect())
}

/// The last position that was removed.
fn trimmed(connection: &Connection) -> Result<i64> {
    let text = "SELECT value FROM meta WHERE name = 'log trimmed'";
    let known = connection.query_row(text, [], |row| row.get(0)).optional();
    Ok(known.map_err(failure::of)?.unwrap_or(0))
}

/// When the first change from a position on was made.
fn time_from(connection: &Connection, position: i64) -> Result<Option<i64>> {
    let text = "SELECT time FROM commands WHERE position >= ?1 ORDER BY position LIMIT 1";
    connection.query_row(text, [position], |row| row.get(0)).optional().map_err(failure::of)
}

/// Removes what is not kept of the next page; answers the last position of a full one.
fn page(
    connection: &mut Connection,
    after: i64,
    now: i64,
    is_counted: bool,
) -> Result<Option<i64>> {
    /// Of a row that is gone, the deletion came a week before that.
    const REMOVE: &str = "DELETE FROM commands WHERE position IN (
         SELECT p.position FROM (
             SELECT *, max(version) OVER (PARTITION BY key) > version AS superseded FROM (
                 SELECT position, key, version, type, time FROM commands
                 WHERE position > ?1 AND position < ?2 ORDER BY position LIMIT ?3)) AS p
         LEFT JOIN records r ON r.key = p.key
         WHERE p.time < ?4 AND (?6 OR p.superseded
             OR r.key IS NULL AND p.type <> 'RecordDeleted' AND ?5
             OR EXISTS (SELECT 1 FROM commands n WHERE n.position = r.version
                 AND n.position < ?2 AND n.key = p.key AND n.version > p.version)))
         RETURNING position";
    const LAST: &str = "SELECT position FROM commands WHERE position > ?1 AND position < ?2
         ORDER BY position LIMIT 1 OFFSET ?3";
    let transaction = begin(connection)?;
    let mut followers = noted(&transaction, FOLLOWER)?;
    // One that was left behind a moment ago may still read what it was told is there.
    let fresh = |it: &Noted| it.since > now.saturating_sub(READING_MICROS);
    followers.extend(noted(&transaction, LEFT)?.into_iter().filter(fresh));
    let nobody = if is_counted { 0 } else { i64::MAX };
    let below = followers.into_iter().map(|it| it.position).min().unwrap_or(nobody);
    let old = now.saturating_sub(KEPT_MICROS);
    let goes_on = time_from(&transaction, below)?.is_none_or(|time| time >= old);
    let last = transaction.query_row(LAST, params![after, below, PAGE - 1], |row| row.get(0));
    let last = last.optional().map_err(failure::of)?;
    let removed = {
        let mut statement = transaction.prepare_cached(REMOVE).map_err(failure::of)?;
        let before = if is_counted { now.saturating_sub(READING_MICROS) } else { old };
        let bounds = params![after, below, PAGE, before, goes_on, is_counted];
        let rows = statement.query_map(bounds, |row| row.get(0));
        rows.and_then(Iterator::collect::<Result<Vec<i64>, _>>).map_err(failure::of)?
    };
    if let Some(removed) = removed.into_iter().max() {
        keep(&transaction, "log trimmed", removed.max(trimmed(&transaction)?))?;
    }
    transaction.commit().map_err(failure::of_commit)?;
    Ok(last)
}

/// Followers that have not moved for a week though the log went on, and whether each is left behind.
fn standing(connection: &mut Connection, now: i64) -> Result<Vec<(String, bool)>> {
    let transaction = begin(connection)?;
    let old = now.saturating_sub(KEPT_MICROS);
    let mut standing = Vec::new();
    for Noted { name, position, since } in noted(&transaction, FOLLOWER)? {
        let Some(next) = time_from(&transaction, position.saturating_add(1))? else { continue };
        let stands_since = since.max(next);
        if stands_since < old {
            let lost = stands_since < now.saturating_sub(WAITED_FOR_MICROS);
            if lost {
                forget(&transaction, FOLLOWER, &name)?;
                keep(&transaction, &format!("{LEFT}{name}"), format!("{position} {now}"))?;
            }
            standing.push((name, lost));
        }
    }
    transaction.commit().map_err(failure::of_commit)?;
    Ok(standing)
}

/// Notes how far a follower is. A note keeps all that comes after it, and so after any later place; the
/// beginning needs only what there is.
pub(super) fn keep_for(
    connection: &mut Connection,
    follower: &str,
    position: LogPosition,
    now: i64,
) -> Result<()> {
    let position = i64::try_from(position.offset).unwrap_or(i64::MAX);
    let transaction = begin(connection)?;
    let is_left = noted(&transaction, LEFT)?.iter().any(|it| it.name == follower);
    let known = noted(&transaction, FOLLOWER)?.into_iter().find(|it| it.name == follower);
    if known.as_ref().is_some_and(|known| known.position == position) {
        return Ok(());
    }
    let kept = known.is_some_and(|known| known.position <= position);
    if position > 0 && (is_left || !kept && position < trimmed(&transaction)?) {
        return Err(PositionLost::error(
            "the change log no longer keeps what comes after this position: its follower had not \
             moved for 30 days",
        ));
    }
    forget(&transaction, LEFT, follower)?;
    keep(&transaction, &format!("{FOLLOWER}{follower}"), format!("{position} {now}"))?;
    transaction.commit().map_err(failure::of_commit)
}

fn forget(connection: &Connection, prefix: &str, name: &str) -> Result<()> {
    let text = "DELETE FROM meta WHERE name = ?1 || ?2";
    connection.execute(text, [prefix, name]).map(drop).map_err(failure::of)
}

fn keep(connection: &Connection, name: &str, value: impl rusqlite::ToSql) -> Result<()> {
    let text = "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)";
    connection.execute(text, params![name, value]).map(drop).map_err(failure::of)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use terrace_core::testkit::{key, value};
    use terrace_core::{ChangeLog, Logged, Runtime, Status, Store as _, StoreExt as _};

    use super::super::super::{SqliteLog, SqliteOptions, SqliteStore};
    use super::*;

    struct Fresh {
        store: SqliteStore,
        log: SqliteLog,
        _directory: tempfile::TempDir,
    }

    impl Fresh {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("records.sqlite");
            let options = SqliteOptions { change_log: true, ..SqliteOptions::new(path) };
            let store = SqliteStore::open(options, Runtime::system()).unwrap();
            let log = store.log().unwrap().unwrap();
            Self { store, log, _directory: directory }
        }

        async fn put(&self, keys: &[&str]) {
            for name in keys {
                self.store.put(key(name), value("1")).await.unwrap();
            }
        }

        async fn by_hand(&self, text: String) {
            let change = move |it: &mut Connection| it.execute_batch(&text).map_err(failure::of);
            self.log.lane.run(change).await.unwrap();
        }

        /// Everything in the log was written so many days ago.
        async fn age(&self, days: i64) {
            let then = Runtime::system().wall().as_microsecond() - days * DAY_MICROS;
            self.by_hand(format!("UPDATE commands SET time = {then}")).await;
        }

        async fn all(&self) -> Vec<Logged> {
            self.log.after(LogPosition::default(), 10_000).await.unwrap().changes
        }

        async fn left(&self) -> String {
            self.all().await.iter().map(|change| change.key.as_str()).collect()
        }

        async fn walk(&self) {
            let mut walk = TrimLog::new(Arc::clone(&self.log.lane), Arc::clone(&self.store.shared));
            while !walk.page().await.unwrap() {}
        }
    }

    #[tokio::test]
    async fn superseded_changes_of_a_week_ago_go() {
        let fresh = Fresh::new();
        fresh.put(&["a", "b", "a", "c"]).await;
        fresh.store.delete(key("c")).await.unwrap();
        fresh.age(6).await;
        let all = fresh.all().await;
        fresh.walk().await;
        assert_eq!(fresh.left().await, "abacc", "it is young");
        fresh.age(8).await;
        fresh.put(&["a", "b", "d", "d", "b"]).await;
        fresh.walk().await;
        assert_eq!(fresh.left().await, "cabddb", "the latest of each key, and what is young");
        let midst = fresh.log.keep_for("late", all[0].position).await.unwrap_err();
        assert!(PositionLost::caused(&midst));
        fresh.log.keep_for("anew", LogPosition::default()).await.unwrap();
        fresh.log.keep_for("anew", all[0].position).await.unwrap();
    }

    /// Nobody begins anew from a log that is only counted.
    #[tokio::test]
    async fn what_is_counted_goes_after_an_hour() {
        let fresh = Fresh::new();
        fresh.put(&["a", "b", "a", "c"]).await;
        let all = fresh.all().await;
        let walk = async |minutes: i64| {
            let then = Runtime::system().wall().as_microsecond() - minutes * 60_000_000;
            fresh.by_hand(format!("UPDATE commands SET time = {then}")).await;
            let now = Runtime::system().wall().as_microsecond();
            fresh.log.lane.run(move |it| page(it, 0, now, true)).await.unwrap();
            fresh.left().await
        };
        assert_eq!(walk(61).await, "abac", "nobody has counted it");
        fresh.log.keep_for("rollup", all[2].position).await.unwrap();
        assert_eq!(walk(59).await, "abac", "it is young");
        assert_eq!(walk(61).await, "ac", "what is counted, but for where the counting stands");
    }

    #[tokio::test]
    async fn the_log_trims_itself() {
        let fresh = Fresh::new();
        fresh.put(&["a", "a", "b"]).await;
        fresh.age(8).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(61)).await;
        tokio::time::resume();
        for _ in 0..5000 {
            if fresh.left().await == "ab" {
                return;
            }
        }
        panic!("nobody trims the log");
    }

    #[tokio::test]
    async fn what_a_follower_needs_stays_with_the_change_that_it_has_come_to() {
        let fresh = Fresh::new();
        fresh.put(&["a", "a", "a", "a", "b"]).await;
        fresh.age(8).await;
        let all = fresh.all().await;
        fresh.log.keep_for("stream", all[1].position).await.unwrap();
        fresh.log.keep_for("other", all[4].position).await.unwrap();
        fresh.walk().await;
        assert_eq!(fresh.all().await, all[..]);
        fresh.log.keep_for("stream", all[3].position).await.unwrap();
        fresh.walk().await;
        assert_eq!(fresh.all().await, all[2..]);
    }

    #[tokio::test]
    async fn a_follower_that_stands_still_is_told_of_and_after_30_days_left_behind() {
        let fresh = Fresh::new();
        fresh.put(&["a", "a", "a", "b"]).await;
        let all = fresh.all().await;
        let stood = async |days: i64| {
            fresh.age(days).await;
            let since = Runtime::system().wall().as_microsecond() - days * DAY_MICROS;
            let parked = all[0].position.offset;
            fresh
                .by_hand(format!(
                    "INSERT OR REPLACE INTO meta VALUES ('log follower parked', '{parked} {since}')"
                ))
                .await;
            fresh.walk().await;
            fresh.store.inspect().await
        };
        assert_eq!(stood(6).await.status, Status::Healthy);
        let held = stood(8).await;
        assert_eq!(held.status, Status::Degraded);
        assert!(held.note.contains("parked"), "{}", held.note);
        assert_eq!(fresh.left().await, "aaab");
        assert_eq!(stood(31).await.status, Status::Healthy, "it is left behind");
        let late = fresh.log.keep_for("parked", all[0].position).await.unwrap_err();
        assert!(PositionLost::caused(&late));
        fresh.walk().await;
        assert_eq!(fresh.left().await, "aaab", "it was told a moment ago that all is there");
        let parked = all[0].position.offset;
        fresh
            .by_hand(format!("UPDATE meta SET value = '{parked} 0' WHERE name = 'log left parked'"))
            .await;
        fresh.walk().await;
        assert_eq!(fresh.left().await, "ab");
        fresh.log.keep_for("parked", LogPosition::default()).await.expect("it begins anew");
    }
}
