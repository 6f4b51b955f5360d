//! On files.

use std::path::Path;

use rusqlite::Connection;
use terrace_stores::{SqliteOptions, SqliteShard};

use super::*;

fn open(directory: &Path, name: &str, change_log: bool) -> SqliteShard {
    let options = SqliteOptions { change_log, ..SqliteOptions::new(directory.join(name)) };
    SqliteShard::open(options, Runtime::system()).expect("a file")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_counts_each_change_once() {
    let directory = tempfile::tempdir().expect("a directory");
    counts_each_change_once(Arc::new(open(directory.path(), "a", true))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_count_a_file_one_does() {
    let directory = tempfile::tempdir().expect("a directory");
    one_of_two_counts(Arc::new(open(directory.path(), "a", true))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_file_takes_from_another_is_no_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let (a, b) = (open(directory.path(), "a", true), open(directory.path(), "b", false));
    moves_are_no_changes(Arc::new(a), Arc::new(b)).await;
}

/// What was there before anything was counted is no change, and what was counted stays so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_records_counts_from_now_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let before = Arc::new(open(directory.path(), "a", false)) as Arc<dyn Shard>;
    assert!(before.rollup().await.expect("an answer").is_none());
    before.found(ShardState { epoch: 1, ..ShardState::default() }).await.expect("a shard");
    before.at(1).put(key("a/1"), value("1")).await.expect("a write");
    before.close().await.expect("it closes");
    for round in 1..4 {
        let (shard, rollup) = founded(Arc::new(open(directory.path(), "a", true))).await;
        shard.at(1).put(key("a/1"), value("2")).await.expect("a write");
        assert_eq!(counted(&*rollup).await, wanted(&[("a/", round, round)]));
        drop(rollup);
        shard.close().await.expect("it closes");
    }
}

/// The place cannot be kept, as when the process dies between the counts and it.
async fn fails_between(rollup: &dyn Rollup, shard: &dyn Shard, path: &Path) {
    const STOP: &str = "CREATE TRIGGER stop BEFORE INSERT ON meta WHEN NEW.name = 'rollup' \
         BEGIN SELECT RAISE(ABORT, 'stop'); END";
    shard.at(1).put(key("a/1"), value("1")).await.expect("a write");
    let batch = next(rollup).await;
    let hand = Connection::open(path).expect("the file");
    hand.execute_batch(STOP).expect("a trigger");
    rollup.follower().apply(&batch).await.expect_err("the place is not kept");
    hand.execute_batch("DROP TRIGGER stop").expect("no trigger");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_of_a_file_are_kept_with_their_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let (shard, rollup) = founded(Arc::new(open(directory.path(), "a", true))).await;
    fails_between(&*rollup, &*shard, &directory.path().join("a")).await;
    assert_eq!(told(&*rollup).await, wanted(&[]));
    assert_eq!(counted(&*rollup).await, wanted(&[("a/", 1, 1)]));
}

/// The test above, of counts that are kept apart from their place.
#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_of_a_file_apart_from_their_place_are_noticed() {
    let directory = tempfile::tempdir().expect("a directory");
    let shard = open(directory.path(), "a", true);
    let rollup = shard.rollup_apart().expect("counts");
    let (shard, _) = founded(Arc::new(shard)).await;
    fails_between(&*rollup, &*shard, &directory.path().join("a")).await;
    assert_eq!(counted(&*rollup).await, wanted(&[("a/", 2, 2)]), "it is counted twice");
}
