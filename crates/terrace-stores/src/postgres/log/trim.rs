//! What the log no longer keeps.
//!
//! A change goes once it is superseded by a later change of its key, is a week old, and every follower
//! has gone past both. The latest change of each key stays, and so does the whole transaction that a
//! follower has come to: the end of an event stream names one of its changes.
//!
//! A log that is only counted, as a shard's, keeps neither: nobody begins anew from what it holds. What every
//! follower has gone past goes after an hour, and nothing before there is one.
//!
//! **Followers** keep their checkpoints elsewhere, so each tells the log once a minute how far it is
//! ([`terrace_core::ChangeLog::keep_for`]). The log notes that in `terrace_meta`, beside its name:
//! `log follower <name>` has the transaction and since when the follower has been there.
//!
//! **A follower that stands still** holds the log back: after a week with a warning and a degraded
//! health, after 30 days no longer: its note becomes `log left <name>`, and it is told that its position
//! is lost, until it begins anew. Whoever was told a moment before that all is there may still read, so
//! walks go past such a note when it is an hour old. `log trimmed` has the last transaction that lost a
//! change: who comes without any note from at or before it is told the same.
//!
//! **What supersedes.** There is no index by key, for that would cost each writer. A later change is
//! found in the same page of the walk, or in `records`: a row with a higher version, written below the
//! horizon of the walk; or no row, for what was deleted long ago. Of a key that changes all the time
//! some are left for a later walk.

use terrace_core::{LogPosition, PositionLost, Result};
use tokio_postgres::types::Type;

use super::super::connection::Connection;
use super::super::snapshot::Transaction;
use super::super::work::{Failure, Progress, Work, corrupt};
use super::super::worker::Worker;
use crate::held::Held;
use crate::walks::Walk;

/// How long a superseded change stays at least.
macro_rules! kept {
    () => {
        "interval '7 days'"
    };
}

/// A walk over the log in its order.
pub(in super::super) struct TrimLog {
    worker: Worker,
    held: Held,
    /// Whether what followers have gone past is for nobody.
    is_counted: bool,
    /// The last change of the page before.
    after: LogPosition,
}

impl TrimLog {
    pub(in super::super) fn new(worker: Worker, held: Held, is_counted: bool) -> Self {
        Self { worker, held, is_counted, after: LogPosition::default() }
    }
}

impl Walk for TrimLog {
    const NAME: &'static str = "postgres log trim";

    async fn page(&mut self) -> Result<bool> {
        let after = std::mem::take(&mut self.after);
        if let Some(last) =
            self.worker.tend(&TrimPage { after, is_counted: self.is_counted }).await?
        {
            self.after = last;
            return Ok(false);
        }
        self.held.found(self.worker.tend(&StandingFollowers).await?);
        Ok(true)
    }
}

/// One page; answers its last change, if it was full.
struct TrimPage {
    after: LogPosition,
    is_counted: bool,
}

/// `below`: no follower needs anything before this transaction, and none that is unfinished can come
/// before it. `goes_on`: what was deleted a week ago was deleted before that.
const TRIM: &str = concat!(
    "WITH below AS MATERIALIZED ( \
       SELECT CASE WHEN $3 AND count(*) = 0 THEN '0'::xid8 \
         ELSE least(min(split_part(value, ' ', 1)::xid8), \
           pg_snapshot_xmin(pg_current_snapshot())) END AS transaction \
       FROM terrace_meta WHERE CASE \
         WHEN name LIKE 'log left %' THEN \
           to_timestamp(split_part(value, ' ', 2)::bigint) > now() - interval '1 hour' \
         ELSE name LIKE 'log follower %' END), \
     goes_on AS MATERIALIZED (SELECT coalesce(( \
       SELECT time FROM commands WHERE transaction >= (SELECT transaction FROM below) \
       ORDER BY transaction, version LIMIT 1) > now() - ",
    kept!(),
    ", true) AS it), \
     page AS MATERIALIZED ( \
       SELECT *, max(version) OVER (PARTITION BY key) > version AS superseded FROM ( \
         SELECT ctid AS place, transaction, version, key, type, time FROM commands \
         WHERE (transaction, version) > ($1::text::xid8, $2) \
           AND transaction < (SELECT transaction FROM below) \
         ORDER BY transaction, version LIMIT 10000) AS page), \
     gone AS (DELETE FROM commands WHERE ctid = ANY (ARRAY( \
       SELECT p.place FROM page p LEFT JOIN records r ON r.key = p.key \
       WHERE p.time < now() - CASE WHEN $3 THEN interval '1 hour' ELSE ",
    kept!(),
    " END AND ($3 OR p.superseded OR CASE \
         WHEN r.key IS NULL THEN p.type <> 'RecordDeleted' AND (SELECT it FROM goes_on) \
         ELSE r.version > p.version \
           AND age(r.xmin) > age((SELECT transaction FROM below)::xid) END))) \
       RETURNING transaction), \
     trimmed AS (INSERT INTO terrace_meta AS m (name, value) \
       SELECT 'log trimmed', max(transaction)::text FROM gone HAVING count(*) > 0 \
       ON CONFLICT (name) DO UPDATE \
       SET value = greatest(m.value::xid8, excluded.value::xid8)::text) \
     SELECT transaction, version FROM page WHERE (SELECT count(*) FROM page) = 10000 \
     ORDER BY transaction DESC, version DESC LIMIT 1"
);

impl Work for TrimPage {
    type Answer = Option<LogPosition>;

    const OPERATION: &'static str = "trim the change log";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Self::Answer, Failure> {
        let epoch = self.after.epoch.to_string();
        let offset = i64::try_from(self.after.offset).unwrap_or(i64::MAX);
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
            [(&epoch, Type::TEXT), (&offset, Type::INT8), (&self.is_counted, Type::BOOL)];
        progress.commits();
        progress.in_transaction(true);
        // A follower notes its position before the page is looked at, or looks itself after it.
        let (begun, page, committed) = futures_util::future::join3(
            connection.command("BEGIN; LOCK TABLE terrace_meta IN EXCLUSIVE MODE"),
            connection.ask(TRIM, &parameters),
            connection.command("COMMIT"),
        )
        .await;
        if committed.is_ok() {
            progress.in_transaction(false);
        }
        begun?;
        let page = page?;
        committed?;
        let Some(row) = page.first() else { return Ok(None) };
        let Transaction(epoch) = row.try_get(0).map_err(corrupt)?;
        let offset = row.try_get::<_, i64>(1).map_err(corrupt)?;
        Ok(Some(LogPosition { epoch, offset: u64::try_from(offset).unwrap_or(0) }))
    }
}

/// Followers that have not moved for a week though the log went on, and whether each is left behind.
struct StandingFollowers;

const STANDING: &str = concat!(
    "WITH standing AS MATERIALIZED ( \
       SELECT name, at, greatest(since, next) < now() - interval '30 days' AS lost FROM ( \
         SELECT substr(name, 14) AS name, split_part(value, ' ', 1) AS at, \
           to_timestamp(split_part(value, ' ', 2)::bigint) AS since, \
           (SELECT c.time FROM commands c WHERE c.transaction > split_part(value, ' ', 1)::xid8 \
             ORDER BY c.transaction, c.version LIMIT 1) AS next \
         FROM terrace_meta WHERE name LIKE 'log follower %') AS follower \
       WHERE next IS NOT NULL AND greatest(since, next) < now() - ",
    kept!(),
    "), \
     gone AS (DELETE FROM terrace_meta \
       WHERE name IN (SELECT 'log follower ' || name FROM standing WHERE lost)), \
     left_behind AS (INSERT INTO terrace_meta (name, value) \
       SELECT 'log left ' || name, at || ' ' || extract(epoch FROM now())::bigint \
       FROM standing WHERE lost ON CONFLICT (name) DO UPDATE SET value = excluded.value) \
     SELECT name, lost FROM standing ORDER BY name"
);

impl Work for StandingFollowers {
    type Answer = Vec<(String, bool)>;

    const OPERATION: &'static str = "look after the change log's followers";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Self::Answer, Failure> {
        progress.commits();
        let rows = connection.ask(STANDING, &[]).await?;
        let standing = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
        rows.iter().map(standing).collect::<Result<_, _>>().map_err(corrupt)
    }
}

/// Notes how far a follower is.
pub(super) struct KeepFor<'a> {
    pub(super) follower: &'a str,
    pub(super) position: LogPosition,
}

/// A note keeps all that comes after it, and so after any later place; the beginning needs only what
/// there is.
const KEEP_FOR: &str = "WITH begins AS (DELETE FROM terrace_meta \
       WHERE name = 'log left ' || $1 AND $2 = '0') \
     INSERT INTO terrace_meta AS m (name, value) \
     SELECT 'log follower ' || $1, $2 || ' ' || extract(epoch FROM now())::bigint \
     WHERE $2 = '0' \
       OR NOT EXISTS (SELECT 1 FROM terrace_meta WHERE name = 'log left ' || $1) AND ( \
         $2::xid8 > coalesce((SELECT value::xid8 FROM terrace_meta WHERE name = 'log trimmed'), '0') \
         OR EXISTS (SELECT 1 FROM terrace_meta WHERE name = 'log follower ' || $1 \
           AND split_part(value, ' ', 1)::xid8 <= $2::xid8)) \
     ON CONFLICT (name) DO UPDATE SET value = CASE \
       WHEN split_part(m.value, ' ', 1) = $2 THEN m.value ELSE excluded.value END \
     RETURNING 1";

impl Work for KeepFor<'_> {
    type Answer = ();

    const OPERATION: &'static str = "note a follower of the change log";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        let transaction = self.position.epoch.to_string();
        progress.commits();
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&self.follower, Type::TEXT), (&transaction, Type::TEXT)];
        match connection.ask(KEEP_FOR, &parameters).await?.is_empty() {
            false => Ok(()),
            true => Err(Failure::Refused(PositionLost::error(
                "the change log no longer keeps what comes after this position: its follower had \
                 not moved for 30 days",
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use terrace_core::testkit::{key, value};
    use terrace_core::{ChangeLog, Deadline, Logged, Runtime, Status, Store as _, StoreExt as _};
    use terrace_lab::testing;

    use super::super::super::{ConnectionSource, PostgresLog, PostgresOptions, PostgresStore};
    use super::*;

    struct Fresh {
        store: PostgresStore,
        log: PostgresLog,
        hand: Connection,
    }

    impl Fresh {
        async fn new() -> Self {
            let options = PostgresOptions {
                source: ConnectionSource::pooled(1, 4),
                change_log: true,
                ..PostgresOptions::new(testing::fresh_database())
            };
            let store = PostgresStore::connect(options, Runtime::system()).await.unwrap();
            let log = store.log().await.unwrap().unwrap();
            let hand = store.worker.pool.connector().open().await.unwrap();
            Self { store, log, hand }
        }

        async fn put(&self, keys: &[&str]) {
            for name in keys {
                self.store.put(key(name), value("1")).await.unwrap();
            }
        }

        /// Everything in the log was written so many days ago.
        async fn age(&self, days: u32) {
            let text = format!("UPDATE commands SET time = now() - interval '{days} days'");
            self.hand.command(&text).await.unwrap();
        }

        /// All that can be read, once that is all: other tests of the server hold the horizon back.
        async fn all(&self) -> Vec<Logged> {
            let head = self.log.head().await.unwrap();
            loop {
                let page = self.log.after(LogPosition::default(), 10_000).await.unwrap();
                if page.position >= head {
                    return page.changes;
                }
                let soon = Runtime::system().now() + Duration::from_millis(20);
                self.log.wait(page.position, Deadline::at(soon)).await.unwrap();
            }
        }

        async fn left(&self) -> String {
            self.all().await.iter().map(|change| change.key.as_str()).collect()
        }

        async fn walk(&self) {
            let mut walk = TrimLog::new(self.store.worker.clone(), self.store.held.clone(), false);
            while !walk.page().await.unwrap() {}
        }
    }

    #[tokio::test]
    async fn superseded_changes_of_a_week_ago_go() {
        let fresh = Fresh::new().await;
        fresh.put(&["a", "b", "a", "c"]).await;
        fresh.store.delete(key("c")).await.unwrap();
        fresh.age(6).await;
        let all = fresh.all().await;
        fresh.walk().await;
        assert_eq!(fresh.left().await, "abacc", "it is young");
        fresh.age(8).await;
        fresh.put(&["a", "b", "d", "d", "b"]).await;
        fresh.left().await;
        fresh.walk().await;
        assert_eq!(fresh.left().await, "cabddb", "the latest of each key, and what is young");
        // Who was in the midst of it and comes back would miss the last change of `b` before the young.
        let midst = fresh.log.keep_for("late", all[0].position).await.unwrap_err();
        assert!(PositionLost::caused(&midst));
        // Who begins anew needs only what is there, also when it is half way through.
        fresh.log.keep_for("anew", LogPosition::default()).await.unwrap();
        fresh.log.keep_for("anew", all[0].position).await.unwrap();
    }

    /// Nobody begins anew from a log that is only counted.
    #[tokio::test]
    async fn what_is_counted_goes_after_an_hour() {
        let fresh = Fresh::new().await;
        fresh.put(&["a", "b", "a", "c"]).await;
        let all = fresh.all().await;
        fresh.log.keep_for("rollup", all[2].position).await.unwrap();
        let walk = async || {
            let store = &fresh.store;
            let mut walk = TrimLog::new(store.worker.clone(), store.held.clone(), true);
            while !walk.page().await.unwrap() {}
        };
        walk().await;
        assert_eq!(fresh.left().await, "abac", "it is young");
        let text = "UPDATE commands SET time = now() - interval '61 minutes'";
        fresh.hand.command(text).await.unwrap();
        fresh.left().await;
        walk().await;
        assert_eq!(fresh.left().await, "ac", "what is counted, but for where the counting stands");
    }

    #[tokio::test]
    async fn the_store_itself_trims_its_log() {
        let fresh = Fresh::new().await;
        fresh.put(&["a", "a", "b"]).await;
        fresh.age(8).await;
        fresh.left().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(61)).await;
        tokio::time::resume();
        let many = 5000;
        for _ in 0..many {
            if fresh.left().await == "ab" {
                return;
            }
        }
        panic!("nobody trims the log");
    }

    #[tokio::test]
    async fn rows_that_are_gone_leave_only_their_deletion() {
        let fresh = Fresh::new().await;
        fresh.put(&["a", "b"]).await;
        fresh.store.delete(key("a")).await.unwrap();
        fresh.hand.command("DELETE FROM records WHERE key = 'a'").await.unwrap();
        fresh.age(8).await;
        fresh.put(&["b"]).await;
        fresh.left().await;
        fresh.walk().await;
        let left = fresh.all().await;
        assert!(left[0].key.as_str() == "a" && left[0].record.is_none(), "{left:?}");
        assert_eq!(fresh.left().await, "ab");
    }

    #[tokio::test]
    async fn what_a_follower_needs_stays_with_the_transaction_that_it_has_come_to() {
        let fresh = Fresh::new().await;
        fresh.put(&["a", "a", "a", "a", "b"]).await;
        fresh.age(8).await;
        let all = fresh.all().await;
        let end = all[1].position;
        fresh.log.keep_for("stream", end).await.unwrap();
        fresh.log.keep_for("other", all[4].position).await.unwrap();
        fresh.walk().await;
        // The first is superseded by the second, which the end of the stream names.
        assert_eq!(fresh.all().await, all[..], "nothing before the end has its successor there");
        fresh.log.keep_for("stream", all[3].position).await.unwrap();
        fresh.walk().await;
        assert_eq!(fresh.all().await, all[2..], "the last but one stays for the same reason");
    }

    #[tokio::test]
    async fn a_follower_that_stands_still_is_told_of_and_after_30_days_left_behind() {
        let fresh = Fresh::new().await;
        fresh.put(&["a", "a", "a", "b"]).await;
        let all = fresh.all().await;
        fresh.log.keep_for("parked", all[0].position).await.unwrap();
        let stood = async |days: i64| {
            fresh.age(u32::try_from(days).unwrap()).await;
            let text = format!(
                "UPDATE terrace_meta SET value = split_part(value, ' ', 1) || ' ' || \
                 extract(epoch FROM now())::bigint - {days} * 86400 \
                 WHERE name = 'log follower parked'"
            );
            fresh.hand.command(&text).await.unwrap();
            fresh.all().await;
            fresh.walk().await;
            fresh.store.inspect().await
        };
        assert_eq!(stood(6).await.status, Status::Healthy);
        let held = stood(8).await;
        assert_eq!(held.status, Status::Degraded);
        assert!(held.note.contains("parked"), "{}", held.note);
        assert_eq!(fresh.left().await, "aaab");
        // To be there still, at the same place, is not to move.
        fresh.log.keep_for("parked", all[0].position).await.unwrap();
        assert_eq!(stood(31).await.status, Status::Healthy, "it is left behind");
        let late = fresh.log.keep_for("parked", all[0].position).await.unwrap_err();
        assert!(PositionLost::caused(&late));
        // Walks of several instances follow each other at any time.
        fresh.walk().await;
        assert_eq!(fresh.left().await, "aaab", "it was told a moment ago that all is there");
        let later = "UPDATE terrace_meta SET value = split_part(value, ' ', 1) || ' ' || \
             extract(epoch FROM now())::bigint - 3601 WHERE name = 'log left parked'";
        fresh.hand.command(later).await.unwrap();
        fresh.walk().await;
        assert_eq!(fresh.left().await, "ab");
        fresh.log.keep_for("parked", LogPosition::default()).await.expect("it begins anew");
    }

    /// The log was quiet: it has waited for the follower since the next change only.
    #[tokio::test]
    async fn a_quiet_time_is_no_standing_still() {
        let fresh = Fresh::new().await;
        fresh.put(&["a", "a"]).await;
        let end = fresh.all().await[1].position;
        fresh.log.keep_for("idle", end).await.unwrap();
        fresh.put(&["a", "a"]).await;
        fresh.age(8).await;
        let long_ago = "UPDATE terrace_meta SET value = split_part(value, ' ', 1) || ' 0' \
             WHERE name = 'log follower idle'";
        fresh.hand.command(long_ago).await.unwrap();
        fresh.walk().await;
        let tree = fresh.store.inspect().await;
        assert_eq!(tree.status, Status::Degraded, "it is told of first");
        fresh.log.keep_for("idle", end).await.expect("the log waits for it");
    }
}
