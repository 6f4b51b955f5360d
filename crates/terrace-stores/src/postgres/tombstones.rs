//! Rows of deleted records, removed when they keep nothing out any more.
//!
//! A deleted record leaves a row with its version. After a week nobody has a cache entry, a load or a
//! cursor from before it. A write of a journal that is older than the deletion could still come, and
//! would bring the record back: such a row stays until everything up to its place is settled.
//!
//! Nothing here waits for a lock or lets anybody wait: what is held by a writer is left for the next
//! walk. The index of these rows is by key, whose changes are none; one by time would end the
//! heap-only updates of all rows.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use terrace_core::{Deadline, Precondition, Result, Sequence, Write};
use tokio_postgres::types::Type;

use super::connect::Connection;
use super::work::{Failure, Progress, Work, Worker, corrupt};

/// Walks over the rows of deleted records, some at a time.
#[derive(Debug)]
pub(super) struct Tombstones {
    kept_for: Duration,
    /// A shard's rows are left alone while its log is kept, that is, while slots move.
    shard: bool,
    /// What the journal before this database is known to have settled.
    settled: AtomicU64,
}

impl Tombstones {
    pub(super) fn new(kept_for: Duration, shard: bool) -> Self {
        Self { kept_for, shard, settled: AtomicU64::new(0) }
    }

    /// Takes in what writes of a journal say.
    pub(super) fn note(&self, batch: &[Write]) {
        // All of a batch say the same.
        if let Some(Write { precondition: Precondition::After(place), .. }) = batch.first() {
            self.settled.fetch_max(place.settled.get(), Relaxed);
        }
    }

    /// Looks at some more after this key, for half a second at most, and answers where to go on;
    /// nothing when all were looked at.
    pub(super) async fn collect(&self, worker: &Worker, after: &str) -> Result<String> {
        let end = worker.runtime.now() + Duration::from_millis(500);
        let mut after = after.to_owned();
        loop {
            let settled = Sequence::new(self.settled.load(Relaxed));
            let work = Collect { of: self, after: &after, settled };
            let deadline = Deadline::at(worker.runtime.now() + worker.patience);
            after = worker.perform(&work, deadline).await?.unwrap_or_default();
            if after.is_empty() || worker.runtime.now() >= end {
                return Ok(after);
            }
        }
    }
}

/// One page; answers its last key, if it was full.
struct Collect<'a> {
    of: &'a Tombstones,
    after: &'a str,
    settled: Sequence,
}

impl Collect<'_> {
    const AT_ONCE: i64 = 1000;
}

impl Work for Collect<'_> {
    type Answer = Option<String>;

    const OPERATION: &'static str = "collect rows of deleted records";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Self::Answer, Failure> {
        const TEXT: &str = "WITH page AS MATERIALIZED ( \
               SELECT key, updated_at, seq FROM records WHERE deleted AND key > $1 \
               ORDER BY key LIMIT $2), \
             old AS MATERIALIZED (SELECT r.key FROM records r JOIN page p ON p.key = r.key \
               WHERE r.deleted AND r.updated_at < now() - $3 * interval '1 millisecond' \
                 AND r.seq <= $4 AND NOT ($5 AND EXISTS (SELECT 1 FROM meta WHERE name = 'log')) \
               ORDER BY r.key FOR UPDATE OF r SKIP LOCKED), \
             gone AS (DELETE FROM records r USING old WHERE r.key = old.key) \
             SELECT CASE WHEN count(*) = $2 THEN max(key) END FROM page";
        progress.commits();
        let kept = i64::try_from(self.of.kept_for.as_millis()).unwrap_or(i64::MAX);
        let settled = i64::try_from(self.settled.get()).unwrap_or(0);
        let rows = connection
            .ask(
                TEXT,
                &[
                    (&self.after, Type::TEXT),
                    (&Self::AT_ONCE, Type::INT8),
                    (&kept, Type::INT8),
                    (&settled, Type::INT8),
                    (&self.of.shard, Type::BOOL),
                ],
            )
            .await?;
        rows.first().map_or(Ok(None), |row| row.try_get(0)).map_err(corrupt)
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::testkit::{key, value};
    use terrace_core::{Place, Runtime, Store as _, StoreExt as _};
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
            let mut after = String::new();
            loop {
                after = self.store.tombstones.collect(&self.store.worker, &after).await.unwrap();
                if after.is_empty() {
                    return;
                }
            }
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
        assert_eq!(fresh.left().await, 3, "nothing is known of the journal");
        let put = |name: &str, sequence: u64, settled: u64| {
            let place =
                Place { sequence: Sequence::new(sequence), settled: Sequence::new(settled) };
            vec![Write::put(key(name), value("late")).when(Precondition::After(place))]
        };
        // A put from before the deletion, from a flusher that was slow.
        let how = terrace_core::WriteOptions::default();
        fresh.store.write(put("k1", 499, 498), &how).await.unwrap();
        assert!(fresh.store.get(&key("k1")).await.unwrap().is_none(), "it came too late");
        fresh.walk().await;
        assert_eq!(fresh.left().await, 3);
        fresh.store.write(put("other", 600, 500), &how).await.unwrap();
        fresh.walk().await;
        assert_eq!(fresh.left().await, 0);
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
