//! On servers.

use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresShard};

use super::*;
use crate::postgres::session;

async fn open(url: &str, change_log: bool) -> PostgresShard {
    let options = PostgresOptions {
        source: ConnectionSource::pooled(1, 4),
        change_log,
        connect_timeout: Duration::from_secs(30),
        ..PostgresOptions::new(url)
    };
    PostgresShard::connect(options, Runtime::system()).await.expect("a database")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_counts_each_change_once() {
    counts_each_change_once(Arc::new(open(&testing::fresh_database(), true).await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_count_a_database_one_does() {
    one_of_two_counts(Arc::new(open(&testing::fresh_database(), true).await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_database_takes_from_another_is_no_change() {
    let (a, b) = (testing::fresh_database(), testing::fresh_database());
    let (a, b) = (open(&a, true).await, open(&b, false).await);
    moves_are_no_changes(Arc::new(a), Arc::new(b)).await;
}

/// What was there before anything was counted is no change, and what was counted stays so. Slots were being
/// moved when it began, so there was a log already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_records_counts_from_now_on() {
    let url = testing::fresh_database();
    let before = Arc::new(open(&url, false).await) as Arc<dyn Shard>;
    assert!(before.rollup().await.expect("an answer").is_none());
    before.found(ShardState { epoch: 1, ..ShardState::default() }).await.expect("a shard");
    before.at(1).put(key("a/1"), value("1")).await.expect("a write");
    before.keep_log().await.expect("a log");
    for round in 1..4 {
        let (shard, rollup) = founded(Arc::new(open(&url, true).await)).await;
        shard.at(1).put(key("a/1"), value("2")).await.expect("a write");
        assert_eq!(counted(&*rollup).await, wanted(&[("a/", round, round)]));
        before.end_log().await.expect("it stays");
        shard.close().await.expect("it closes");
    }
}

/// A log that is begun anew is counted from its beginning, and only by who knows of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_log_is_counted_from_its_beginning() {
    let url = testing::fresh_database();
    let (shard, old) = founded(Arc::new(open(&url, true).await)).await;
    shard.at(1).put(key("a/1"), value("1")).await.expect("a write");
    assert_eq!(counted(&*old).await, wanted(&[("a/", 1, 1)]));
    let hand = session(&url).await;
    hand.batch_execute("DROP TRIGGER commands_1_inserted ON records").await.expect("dropped");
    let (shard, new) = founded(Arc::new(open(&url, true).await)).await;
    shard.at(1).put(key("a/1"), value("2")).await.expect("a write");
    let refused = old.follower().begin_anew(&old.log().name()).await;
    assert!(refused.expect_err("it is another log").is_retryable());
    assert_eq!(counted(&*new).await, wanted(&[("a/", 2, 2)]));
    shard.at(1).put(key("a/1"), value("3")).await.expect("a write");
    let checkpoint = old.follower().checkpoint().await.expect("an answer");
    assert!(!checkpoint.is_in(&old.log().name()), "whoever does not know it stands still");
    assert_eq!(counted(&*new).await, wanted(&[("a/", 3, 3)]));
}

/// Whoever counts is killed while it waits for the place, which comes last.
async fn killed_between(rollup: &dyn Rollup, shard: &dyn Shard, url: &str) {
    const WAITS: &str = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock'";
    const KILL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock'";
    shard.at(1).put(key("a/1"), value("1")).await.expect("a write");
    let batch = next(rollup).await;
    let (holds, hand) = (session(url).await, session(url).await);
    let hold = "BEGIN; SELECT 1 FROM terrace_rollup_place FOR UPDATE";
    holds.batch_execute(hold).await.expect("it is held");
    let follower = rollup.follower();
    let killed = async {
        while hand.query_one(WAITS, &[]).await.expect("a count").get::<_, i64>(0) == 0 {}
        hand.query(KILL, &[]).await.expect("it is killed");
    };
    tokio::select! {
        applied = follower.apply(&batch) => { applied.expect_err("it is killed"); },
        () = killed => {}
    }
    while hand.query_one(WAITS, &[]).await.expect("a count").get::<_, i64>(0) > 0 {}
    holds.batch_execute("ROLLBACK").await.expect("it is released");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_of_a_database_are_kept_with_their_place() {
    let url = testing::fresh_database();
    let (shard, rollup) = founded(Arc::new(open(&url, true).await)).await;
    killed_between(&*rollup, &*shard, &url).await;
    assert_eq!(told(&*rollup).await, wanted(&[]));
    assert_eq!(counted(&*rollup).await, wanted(&[("a/", 1, 1)]));
}

/// The test above, of counts that are kept apart from their place.
#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_of_a_database_apart_from_their_place_are_noticed() {
    let url = testing::fresh_database();
    let shard = open(&url, true).await;
    let rollup = shard.rollup_apart().await.expect("counts");
    let (shard, _) = founded(Arc::new(shard)).await;
    killed_between(&*rollup, &*shard, &url).await;
    assert_eq!(counted(&*rollup).await, wanted(&[("a/", 2, 2)]), "it is counted twice");
}
