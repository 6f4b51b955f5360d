//! Rows of deleted records, removed when they keep nothing out any more.
//!
//! A deleted record leaves a row with its version. After a week nobody has a cache entry, a load or a
//! cursor from before it, and the row goes. It stays where
//! - it was ever written from a journal: however late, a flusher that was taken for dead may come back
//!   with an older put, which only the row keeps out;
//! - its version is beyond what the sequence has drawn, as one that a person set: the key would come
//!   back with an earlier one;
//! - the database is a shard whose slots are moving, which shows in its log.
//!
//! The walk goes over all rows by key, a page a second, and rests for an hour after the last one. It
//! needs no index: one by time would end the heap-only updates of all rows, and one more costs writers
//! something. Nothing here waits for a lock or lets anybody wait for long: what a writer holds is left
//! for the next walk. Rows of other tables that refer to a row `ON DELETE CASCADE` go with it.

use std::time::Duration;

use terrace_core::Result;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::work::{Failure, Progress, Work, Worker, corrupt};
use crate::walks::Walk;

/// A walk over the rows of deleted records.
pub(super) struct Tombstones {
    worker: Worker,
    kept_for: Duration,
    /// The last key of the page before; nothing before the first one.
    after: String,
}

impl Tombstones {
    pub(super) fn new(worker: Worker, kept_for: Duration) -> Self {
        Self { worker, kept_for, after: String::new() }
    }
}

impl Walk for Tombstones {
    const NAME: &'static str = "postgres tombstones";

    async fn page(&mut self) -> Result<bool> {
        if !self.worker.takes_writes() {
            return Ok(true);
        }
        let after = std::mem::take(&mut self.after);
        let last = self.worker.tend(&Collect { kept_for: self.kept_for, after: &after }).await?;
        self.after = last.unwrap_or_default();
        Ok(self.after.is_empty())
    }
}

/// One page; answers its last key, if it was full.
struct Collect<'a> {
    kept_for: Duration,
    after: &'a str,
}

impl Work for Collect<'_> {
    type Answer = Option<String>;

    const OPERATION: &'static str = "collect rows of deleted records";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Self::Answer, Failure> {
        // The rows are locked in the order of their keys, and looked at again behind the lock.
        const TEXT: &str = "WITH page AS MATERIALIZED ( \
               SELECT key, deleted AND seq = 0 \
                 AND updated_at < now() - $2 * interval '1 second' AS old \
               FROM records WHERE key > $1 ORDER BY key LIMIT 1000), \
             old AS MATERIALIZED (SELECT r.key FROM records r \
               WHERE r.key = ANY (ARRAY(SELECT key FROM page WHERE old)) \
                 AND r.deleted AND r.seq = 0 \
                 AND r.updated_at < now() - $2 * interval '1 second' \
                 AND r.version <= (SELECT last_value FROM records_version) \
                 AND NOT (to_regclass('shard') IS NOT NULL \
                   AND EXISTS (SELECT 1 FROM meta WHERE name = 'log')) \
               ORDER BY r.key FOR UPDATE OF r SKIP LOCKED), \
             gone AS (DELETE FROM records WHERE key = ANY (ARRAY(SELECT key FROM old))) \
             SELECT CASE WHEN count(*) = 1000 THEN max(key) END FROM page";
        /// No time is further back than what a `timestamptz` holds.
        const LONGEST: i64 = 1000 * 366 * 24 * 60 * 60;
        progress.commits();
        let kept = i64::try_from(self.kept_for.as_secs()).unwrap_or(LONGEST).min(LONGEST);
        let rows = connection.ask(TEXT, &[(&self.after, Type::TEXT), (&kept, Type::INT8)]).await?;
        rows.first().map_or(Ok(None), |row| row.try_get(0)).map_err(corrupt)
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::testkit::{key, value};
    use terrace_core::{Place, Precondition, Runtime, Sequence, Store as _, StoreExt as _, Write};
    use terrace_lab::testing;

    use super::super::{ConnectionSource, LogBegin, PostgresOptions, PostgresStore};
    use super::*;

    const WEEK: &str = "now() - interval '8 days'";

    struct Fresh {
        store: PostgresStore,
        hand: Connection,
    }

    impl Fresh {
        async fn new(shard: bool) -> Self {
            let options = PostgresOptions {
                source: ConnectionSource::pooled(1, 2),
                shard,
                ..PostgresOptions::new(testing::fresh_database())
            };
            let store = PostgresStore::connect(options, Runtime::system()).await.unwrap();
            let hand = store.worker.pool.connector().open().await.unwrap();
            Self { store, hand }
        }

        /// Rows `k1` to `k<count>` as they are left by deletions before a time.
        async fn tombstones(&self, count: u32, time: &str, seq: u64) {
            let text = format!(
                "INSERT INTO records (key, value, deleted, created_at, updated_at, seq) \
                 SELECT 'k' || i, '', true, {time}, {time}, {seq} FROM generate_series(1, {count}) i"
            );
            self.hand.command(&text).await.unwrap();
        }

        async fn walk(&self) {
            let week = Duration::from_secs(7 * 24 * 60 * 60);
            let mut walk = Tombstones::new(self.store.worker.clone(), week);
            while !walk.page().await.unwrap() {}
        }

        async fn left(&self) -> i64 {
            let count = "SELECT count(*) FROM records WHERE deleted";
            self.hand.ask(count, &[]).await.unwrap()[0].get(0)
        }
    }

    #[tokio::test]
    async fn old_ones_go_and_a_key_that_comes_back_has_a_later_version() {
        let fresh = Fresh::new(false).await;
        let old = fresh.store.put(key("k7"), value("1")).await.unwrap().version;
        fresh.hand.command("DELETE FROM records").await.unwrap();
        fresh.tombstones(5000, WEEK, 0).await;
        fresh.store.put(key("k3"), value("alive again")).await.unwrap();
        fresh.store.put(key("young"), value("1")).await.unwrap();
        fresh.store.delete(key("young")).await.unwrap();
        fresh.walk().await;
        assert_eq!(fresh.left().await, 1, "the young one");
        assert!(fresh.store.get(&key("k3")).await.unwrap().is_some());
        assert!(fresh.store.put(key("k7"), value("2")).await.unwrap().version > old);
    }

    #[tokio::test]
    async fn what_an_older_write_of_a_journal_may_still_meet_stays() {
        let fresh = Fresh::new(false).await;
        fresh.tombstones(3, WEEK, 500).await;
        fresh.walk().await;
        assert_eq!(fresh.left().await, 3);
        // A put from before the deletion, from a flusher that had been taken for dead, while all
        // is settled that it knew of.
        let place = Place { sequence: Sequence::new(499), settled: Sequence::new(498) };
        let late = Write::put(key("k1"), value("late")).when(Precondition::After(place));
        let how = terrace_core::WriteOptions::default();
        fresh.store.write(vec![late], &how).await.unwrap();
        assert!(fresh.store.get(&key("k1")).await.unwrap().is_none(), "it came too late");
    }

    #[tokio::test]
    async fn a_version_that_was_never_drawn_stays() {
        let fresh = Fresh::new(false).await;
        fresh.tombstones(2, WEEK, 0).await;
        fresh.hand.command("UPDATE records SET version = 1000000 WHERE key = 'k1'").await.unwrap();
        fresh.walk().await;
        assert_eq!(fresh.left().await, 1);
        let receipt = fresh.store.put(key("k1"), value("1")).await.unwrap();
        assert!(receipt.version.get() > 1_000_000);
    }

    #[tokio::test]
    async fn what_a_writer_holds_is_left_and_nobody_waits() {
        let fresh = Fresh::new(false).await;
        fresh.tombstones(10, WEEK, 0).await;
        fresh.hand.command("BEGIN; UPDATE records SET value = '' WHERE key = 'k5'").await.unwrap();
        fresh.walk().await;
        fresh.hand.command("COMMIT").await.unwrap();
        assert_eq!(fresh.left().await, 1);
        fresh.walk().await;
        assert_eq!(fresh.left().await, 0);
    }

    #[tokio::test]
    async fn a_shard_keeps_them_while_slots_move() {
        let fresh = Fresh::new(true).await;
        fresh.store.install_log(LogBegin::Empty).await.unwrap();
        fresh.tombstones(3, WEEK, 0).await;
        fresh.walk().await;
        assert_eq!(fresh.left().await, 3);
        fresh.store.remove_log().await.unwrap();
        fresh.walk().await;
        assert_eq!(fresh.left().await, 0);
    }
}
