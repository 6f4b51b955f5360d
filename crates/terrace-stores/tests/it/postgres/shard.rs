//! Databases that are shards.

use std::sync::Arc;

use terrace_core::testkit::{StoreFixture, shard_contract};
use terrace_core::{
    Deadline, ErrorKind, ReadOptions, Runtime, Shard, ShardState, StoreExt as _, Version,
};
use terrace_lab::testing;
use terrace_stores::{PostgresOptions, PostgresShard};

use super::{key, session, value};

async fn shard() -> Arc<dyn Shard> {
    let options = PostgresOptions::new(testing::fresh_database());
    Arc::new(PostgresShard::connect(options, Runtime::system()).await.expect("a database"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_as_a_shard_keeps_its_promises() {
    shard_contract::keeps_its_promises(shard().await, shard().await).await;
}

async fn under_an_epoch() -> StoreFixture {
    let shard = shard().await;
    shard.found(ShardState { epoch: 4, ..ShardState::default() }).await.expect("a shard");
    StoreFixture::new(shard.at(4))
}

terrace_core::store_contract!(under_an_epoch);

async fn over(url: String) -> Arc<PostgresShard> {
    let options = PostgresOptions::new(url);
    let shard = PostgresShard::connect(options, Runtime::system()).await.expect("a database");
    shard.found(ShardState { epoch: 1, ..ShardState::default() }).await.expect("a shard");
    Arc::new(shard)
}

/// A setting of the database, by hand.
async fn set(hand: &tokio_postgres::Client, setting: &str) {
    let name: String = hand.query_one("SELECT current_database()", &[]).await.expect("it").get(0);
    hand.batch_execute(&format!("ALTER DATABASE \"{name}\" SET {setting}")).await.expect("set");
}

async fn count(hand: &tokio_postgres::Client, of: &str) -> i64 {
    hand.query_one(&format!("SELECT count(*) FROM {of}"), &[]).await.expect("a count").get(0)
}

/// Returns when so many ask for advisory locks of this database in vain.
async fn until_queued(hand: &tokio_postgres::Client, queued: i64) {
    let waiting = "pg_locks WHERE locktype = 'advisory' AND NOT granted \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while count(hand, waiting).await < queued {}
}

/// One of them makes what a shard needs, between any two looks of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_start_together_on_an_empty_database_all_start() {
    for _ in 0..10 {
        let url = testing::fresh_database();
        let start = || PostgresShard::connect(PostgresOptions::new(&url), Runtime::system());
        let started = futures_util::future::join_all((0..6).map(|_| start())).await;
        started.into_iter().for_each(|one| drop(one.expect("a shard")));
    }
}

/// Whoever waits behind a fence must see it, whatever the database's own isolation is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_behind_a_fence_sees_it_under_any_isolation() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    set(&hand, "default_transaction_isolation = 'repeatable read'").await;
    let shard = over(url.clone()).await;
    let (release, held) = tokio::sync::oneshot::channel::<()>();
    let (begun, ready) = tokio::sync::oneshot::channel::<()>();
    let quiet = Box::pin(async {
        begun.send(()).expect("somebody waits");
        held.await.expect("it is released");
        Ok(())
    });
    let fence = async {
        ready.await.expect("the lock is held");
        let next = ShardState { epoch: 2, ..ShardState::default() };
        shard.change(1, next, Version::NONE).await
    };
    let write = async {
        until_queued(&hand, 1).await;
        shard.at(1).put(key("a"), value("late")).await
    };
    let order = async {
        until_queued(&session(&url).await, 2).await;
        release.send(()).expect("it waits");
    };
    let (_rows, fenced, written, ()) =
        tokio::join!(shard.rows(None, Some(quiet)), fence, write, order);
    fenced.expect("a fence");
    assert_eq!(written.expect_err("refused").kind(), ErrorKind::Moved);
}

/// A fence that a crash forgets would leave two owners.
#[tokio::test]
async fn a_fence_is_on_disk_although_writes_need_not_be() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    set(&hand, "synchronous_commit = off").await;
    let shard = over(url).await;
    for epoch in 1..20 {
        let before = "SELECT pg_current_wal_insert_lsn()::text";
        let before = hand.query_one(before, &[]).await.expect("a place").get::<_, String>(0);
        let next = ShardState { epoch: epoch + 1, ..ShardState::default() };
        shard.change(epoch, next, Version::NONE).await.expect("a fence");
        let flushed = format!("SELECT pg_current_wal_flush_lsn() > '{before}'");
        let flushed = hand.query_one(&flushed, &[]).await.expect("a place");
        assert!(flushed.get::<_, bool>(0), "the fence is flushed before it is answered");
    }
}

/// Behind a lock of the table that waits for a backup, everybody would wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_log_does_not_hang_the_shard_behind_a_backup() {
    let url = testing::fresh_database();
    let (backup, hand) = (session(&url).await, session(&url).await);
    let shard = over(url).await;
    shard.at(1).put(key("a"), value("1")).await.expect("a write");
    shard.keep_log().await.expect("a log");
    backup.batch_execute("BEGIN; SELECT 1 FROM records LIMIT 1").await.expect("a transaction");
    let read = async {
        let waiting = "pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' \
             AND relation = 'records'::regclass";
        while count(&hand, waiting).await == 0 {}
        let deadline = Deadline::at(Runtime::system().now() + std::time::Duration::from_secs(2));
        let how = ReadOptions { deadline, ..ReadOptions::default() };
        let read = shard.at(1).read(&[key("a")], &how).await.expect("it is answered");
        assert!(read[0].record.is_some());
        backup.batch_execute("ROLLBACK").await.expect("the end of the backup");
    };
    let (ended, ()) = tokio::join!(shard.end_log(), read);
    ended.expect("it ends when the backup has");
}
