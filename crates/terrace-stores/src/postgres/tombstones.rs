//! Rows of deleted records, removed when they keep nothing out any more.
//!
//! A deleted record leaves a row with its version. After a week nobody has a cache entry, a load or a
//! cursor from before it, and the row goes. It stays where
//! - a write of a journal that is not settled may be older than the deletion, and only the row keeps it
//!   out;
//! - its version is beyond what the sequence has drawn, as one that a person set: the key would come
//!   back with an earlier one;
//! - the database is a shard whose slots are moving, which shows in its log.
//!
//! **Writes that come too late.** However late, a flusher that was taken for dead may come back with a
//! put from before the deletion. The put is settled by then, since others applied it. So before a row
//! goes that a journal has deleted, `settled` in `terrace_meta` is raised to its sequence: no write up to there
//! is applied any more, whatever its row has. The row goes with the next walk, an hour later, since a
//! statement looks into the snapshot with which it began. It goes only from a database that has this in
//! its own `terrace_meta`: a server that was promoted, or restored, may not, and then is told again.
//!
//! The walk goes over all rows by key, a page a second, and rests for an hour after the last one. It
//! needs no index: one by time would end the heap-only updates of all rows, and one more costs writers
//! something. Nothing here waits for a lock or lets anybody wait for long: what a writer holds is left
//! for the next walk. Rows of other tables that refer to a row `ON DELETE CASCADE` go with it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use terrace_core::Result;
use tokio_postgres::types::{ToSql, Type};

use super::connection::Connection;
use super::statements::settled;
use super::work::{Failure, Progress, Work, corrupt};
use super::worker::Worker;
use crate::walks::Walk;

/// A walk over the rows of deleted records.
pub(super) struct Tombstones {
    worker: Worker,
    kept_for: Duration,
    /// The last key of the page before; nothing before the first one.
    after: String,
    /// Up to here this walk has made sure, when it ended last, that no write is applied.
    refused: i64,
    /// The furthest sequence of a row that waits for that.
    waiting: i64,
}

impl Tombstones {
    pub(super) fn new(worker: Worker, kept_for: Duration) -> Self {
        Self { worker, kept_for, after: String::new(), refused: 0, waiting: 0 }
    }
}

impl Walk for Tombstones {
    const NAME: &'static str = "postgres tombstones";

    async fn page(&mut self) -> Result<bool> {
        if !self.worker.takes_writes() {
            return Ok(true);
        }
        let after = std::mem::take(&mut self.after);
        let settled = self.worker.settled.load(Ordering::Relaxed).cast_signed();
        let refused = self.refused;
        let collect = Collect { kept_for: self.kept_for, after: &after, refused, settled };
        let (last, waiting) = self.worker.tend(&collect).await?;
        self.waiting = self.waiting.max(waiting);
        if let Some(last) = last {
            self.after = last;
            return Ok(false);
        }
        if self.waiting > 0 {
            self.worker.tend(&Refuse(self.waiting)).await?;
            self.refused = self.waiting;
        }
        Ok(true)
    }
}

/// One page; answers its last key, if it was full, and the furthest sequence of a row that would go if
/// writes up to there were refused.
struct Collect<'a> {
    kept_for: Duration,
    after: &'a str,
    /// Up to here writes of a journal are refused.
    refused: i64,
    /// Up to here they are settled.
    settled: i64,
}

impl Work for Collect<'_> {
    type Answer = (Option<String>, i64);

    const OPERATION: &'static str = "collect rows of deleted records";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Self::Answer, Failure> {
        // The rows are locked in the order of their keys, and looked at again behind the lock.
        const TEXT: &str = concat!(
            "WITH page AS MATERIALIZED ( \
               SELECT key, seq, deleted AND updated_at < now() - $2 * interval '1 second' AS old \
               FROM records WHERE key > $1 ORDER BY key LIMIT 1000), \
             old AS MATERIALIZED (SELECT r.key FROM records r \
               WHERE r.key = ANY (ARRAY(SELECT key FROM page WHERE old AND seq <= $3)) \
                 AND r.deleted AND r.seq <= $3 AND r.seq <= ",
            settled!(),
            " \
                 AND r.updated_at < now() - $2 * interval '1 second' \
                 AND r.version <= (SELECT last_value FROM records_version) \
                 AND NOT (to_regclass('terrace_shard') IS NOT NULL \
                   AND EXISTS (SELECT 1 FROM terrace_meta WHERE name = 'log')) \
               ORDER BY r.key FOR UPDATE OF r SKIP LOCKED), \
             gone AS (DELETE FROM records WHERE key = ANY (ARRAY(SELECT key FROM old))) \
             SELECT CASE WHEN count(*) = 1000 THEN max(key) END, \
               coalesce(max(seq) FILTER (WHERE old AND seq <= $4), 0) FROM page"
        );
        /// No time is further back than what a `timestamptz` holds.
        const LONGEST: i64 = 1000 * 366 * 24 * 60 * 60;
        progress.commits();
        let kept = i64::try_from(self.kept_for.as_secs()).unwrap_or(LONGEST).min(LONGEST);
        let Self { after, refused, settled, .. } = self;
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (after, Type::TEXT),
            (&kept, Type::INT8),
            (refused, Type::INT8),
            (settled, Type::INT8),
        ];
        let rows = connection.ask(TEXT, &parameters).await?;
        // An aggregate has one row.
        let row = &rows[0];
        Ok((row.try_get(0).map_err(corrupt)?, row.try_get(1).map_err(corrupt)?))
    }
}

/// From now on no write of a journal up to this sequence is applied.
struct Refuse(i64);

impl Work for Refuse {
    type Answer = ();

    const OPERATION: &'static str = "note what a journal has settled";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        // Durable whatever the settings are: rows go that nobody would miss otherwise.
        const TEXT: &str = "INSERT INTO terrace_meta AS m (name, value) SELECT 'settled', $1::text \
             WHERE set_config('synchronous_commit', 'local', true) IS NOT NULL \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value \
             WHERE m.value::bigint < excluded.value::bigint";
        progress.commits();
        connection.ask(TEXT, &[(&self.0.to_string(), Type::TEXT)]).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::testkit::{key, value};
    use terrace_core::{
        Outcome, Place, Precondition, Runtime, Sequence, Store as _, StoreExt as _, Write,
    };
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

        fn tombstones_walk(&self) -> Tombstones {
            let week = Duration::from_secs(7 * 24 * 60 * 60);
            Tombstones::new(self.store.worker.clone(), week)
        }

        async fn walk(&self) {
            let mut walk = self.tombstones_walk();
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

    /// A write that was accepted as this one of a journal, which had settled what comes before.
    fn placed(write: Write, sequence: u64, settled: u64) -> Write {
        let (sequence, settled) = (Sequence::new(sequence), Sequence::new(settled));
        write.when(Precondition::After(Place { sequence, settled }))
    }

    #[tokio::test]
    async fn what_a_journal_has_settled_goes_and_an_older_write_stays_without_effect() {
        let fresh = Fresh::new(false).await;
        fresh.tombstones(3, WEEK, 500).await;
        let mut tombstones = fresh.tombstones_walk();
        let walk = async |tombstones: &mut Tombstones| {
            while !tombstones.page().await.unwrap() {}
            fresh.left().await
        };
        let write = async |write: Write| {
            let how = terrace_core::WriteOptions::default();
            fresh.store.write(vec![write], &how).await.unwrap()[0].outcome
        };
        assert_eq!(walk(&mut tombstones).await, 3, "nobody says that they are settled");
        write(placed(Write::put(key("other"), value("1")), 501, 499)).await;
        assert_eq!((walk(&mut tombstones).await, walk(&mut tombstones).await), (3, 3), "nor now");
        write(placed(Write::put(key("other"), value("2")), 502, 500)).await;
        assert_eq!(walk(&mut tombstones).await, 3, "statements that have begun know nothing of it");
        assert_eq!(walk(&mut tombstones).await, 0);
        // A put from before the deletion, from a flusher that had been taken for dead, and one that
        // goes another way, as it is not alone.
        let late = || placed(Write::put(key("k1"), value("late")), 499, 498);
        assert_eq!(write(late()).await, Outcome::PreconditionFailed);
        let both = vec![late(), Write::put(key("k2"), value("direct"))];
        let how = terrace_core::WriteOptions::default();
        let answers = fresh.store.write(both, &how).await.unwrap();
        assert_eq!(answers[0].outcome, Outcome::PreconditionFailed);
        assert!(fresh.store.get(&key("k1")).await.unwrap().is_none(), "it came too late");
        // Nor over what was written since without a journal.
        write(placed(Write::put(key("k2"), value("late")), 499, 498)).await;
        let kept = fresh.store.get(&key("k2")).await.unwrap().unwrap();
        assert_eq!(kept.value.as_str(), "direct");
        assert_eq!(fresh.store.furthest().await.unwrap(), Sequence::new(502));
        assert_eq!(
            write(placed(Write::put(key("k1"), value("new")), 503, 500)).await,
            Outcome::Created
        );
    }

    /// As on a server that was promoted without it.
    #[tokio::test]
    async fn a_database_that_was_not_told_keeps_its_rows_and_is_told_again() {
        let fresh = Fresh::new(false).await;
        fresh.tombstones(3, WEEK, 500).await;
        fresh.store.worker.settled.store(500, Ordering::Relaxed);
        let mut tombstones = fresh.tombstones_walk();
        let walk = async |tombstones: &mut Tombstones| {
            while !tombstones.page().await.unwrap() {}
            fresh.left().await
        };
        assert_eq!(walk(&mut tombstones).await, 3);
        fresh.hand.command("DELETE FROM terrace_meta WHERE name = 'settled'").await.unwrap();
        assert_eq!(walk(&mut tombstones).await, 3, "nothing else would keep a late put out");
        assert_eq!(walk(&mut tombstones).await, 0);
    }

    /// A journal that is lost as a whole goes on above what the rows that are gone had.
    #[tokio::test]
    async fn a_new_journal_begins_after_what_was_collected() {
        let fresh = Fresh::new(false).await;
        fresh.tombstones(1, WEEK, 500).await;
        fresh.store.worker.settled.store(500, Ordering::Relaxed);
        let mut tombstones = fresh.tombstones_walk();
        while fresh.left().await > 0 {
            tombstones.page().await.unwrap();
        }
        assert_eq!(fresh.store.furthest().await.unwrap(), Sequence::new(500));
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
