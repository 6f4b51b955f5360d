//! Counts that shards keep of their own changes, on each engine.
#![allow(clippy::expect_used, reason = "everything here is a test")]

mod postgres;
mod sqlite;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{
    Batch, Checkpoint, Deadline, Idempotency, LogPosition, Logged, Precondition, Rollup,
    RollupQuery, Runtime, Shard, ShardState, Slot, StoreExt as _, Version, Write, WriteOptions,
};

const ALL: RollupQuery = RollupQuery { since: 0, bucket: 1, by_prefix: true };

/// A database that is a shard, opened so that its changes are counted.
async fn founded(shard: Arc<dyn Shard>) -> (Arc<dyn Shard>, Arc<dyn Rollup>) {
    shard.found(ShardState { epoch: 1, ..ShardState::default() }).await.expect("a shard");
    let rollup = shard.rollup().await.expect("an answer").expect("counts");
    (shard, rollup)
}

/// The checkpoint, once it is one of the log as it is.
async fn place(rollup: &dyn Rollup) -> Checkpoint {
    let (log, follower) = (rollup.log(), rollup.follower());
    let found = follower.checkpoint().await.expect("a checkpoint");
    if found.is_in(&log.name()) {
        return found;
    }
    follower.begin_anew(&log.name()).await.expect("it begins");
    follower.checkpoint().await.expect("a checkpoint")
}

/// What the log holds after the checkpoint, once that is anything.
async fn next(rollup: &dyn Rollup) -> Batch {
    let (log, from) = (rollup.log(), place(rollup).await);
    loop {
        let page = log.after(from.position, 1000).await.expect("a page");
        if page.position > from.position {
            let to = from.at(page.position);
            return Batch { from, to, changes: page.changes, more: page.more, refused: None };
        }
        let soon = Runtime::system().now() + Duration::from_millis(20);
        log.wait(from.position, Deadline::at(soon)).await.expect("a wait");
    }
}

/// Writes and bytes of each prefix over all minutes, once everything is counted.
async fn counted(rollup: &dyn Rollup) -> BTreeMap<String, (u64, u64)> {
    let head = rollup.log().head().await.expect("a head");
    while place(rollup).await.position < head {
        let batch = next(rollup).await;
        rollup.follower().apply(&batch).await.expect("an answer");
    }
    told(rollup).await
}

/// The same as it is.
async fn told(rollup: &dyn Rollup) -> BTreeMap<String, (u64, u64)> {
    let mut all = BTreeMap::<_, (u64, u64)>::new();
    for count in rollup.counts(&ALL).await.expect("counts").counts {
        let (writes, bytes) = all.entry(count.prefix).or_default();
        (*writes, *bytes) = (*writes + count.writes, *bytes + count.bytes);
    }
    all
}

fn wanted(counts: &[(&str, u64, u64)]) -> BTreeMap<String, (u64, u64)> {
    counts.iter().map(|(name, writes, bytes)| (name.to_string(), (*writes, *bytes))).collect()
}

/// Each change counts, and what changes nothing does not.
async fn counts_each_change_once(shard: Arc<dyn Shard>) {
    let (shard, rollup) = founded(shard).await;
    let store = shard.at(1);
    assert_eq!(counted(&*rollup).await, wanted(&[]));
    store.put(key("shop/1"), value("12")).await.expect("a write");
    store.put(key("shop/1"), value("345")).await.expect("a write");
    store.put(key("plain"), value("é")).await.expect("a write");
    store.delete(key("shop/1")).await.expect("a write");
    store.delete(key("missing/1")).await.expect("a write");
    let absent =
        Write { precondition: Precondition::Absent, ..Write::put(key("plain"), value("no")) };
    let refused = store.write(vec![absent], &WriteOptions::default()).await.expect("a receipt");
    assert!(!refused[0].outcome.is_applied());
    // What the batch itself supersedes is a change, too.
    let twice = vec![Write::put(key("user:1"), value("1")), Write::put(key("user:1"), value("22"))];
    store.write(twice, &WriteOptions::default()).await.expect("receipts");
    let request = Idempotency::new("request", [7; 32]).expect("a key");
    let how = WriteOptions { idempotency: Some(Arc::new(request)), ..WriteOptions::default() };
    for _ in 0..3 {
        store.write(vec![Write::put(key("user:2"), value("4444"))], &how).await.expect("a receipt");
    }
    let all = wanted(&[("", 1, 2), ("shop/", 3, 5), ("user:", 3, 7)]);
    assert_eq!(counted(&*rollup).await, all);
    let found = rollup.counts(&ALL).await.expect("counts");
    assert!(found.lag.is_zero() && found.position > Checkpoint::default().position, "{found:?}");
    let together = RollupQuery { by_prefix: false, bucket: 60, ..ALL };
    let together = rollup.counts(&together).await.expect("counts").counts;
    assert!(together.iter().all(|it| it.prefix.is_empty() && it.minute % 60 == 0), "{together:?}");
    assert_eq!(together.iter().map(|it| it.writes).sum::<u64>(), 7);
    store.put(key("shop/2"), value("1")).await.expect("a write");
    assert_eq!(told(&*rollup).await, all, "it waits to be counted");
    assert!(!rollup.counts(&ALL).await.expect("counts").lag.is_zero());
    let later = RollupQuery { since: i64::MAX / 2, ..ALL };
    assert_eq!(rollup.counts(&later).await.expect("counts").counts, []);
}

/// Two instances come with the same page.
async fn one_of_two_counts(shard: Arc<dyn Shard>) {
    let (shard, rollup) = founded(shard).await;
    shard.at(1).put(key("a/1"), value("1")).await.expect("a write");
    let batch = next(&*rollup).await;
    let (one, other) = (rollup.follower(), rollup.follower());
    let (one, other) = tokio::join!(one.apply(&batch), other.apply(&batch));
    assert!(one.expect("an answer") ^ other.expect("an answer"), "one of them alone");
    assert!(!rollup.follower().apply(&batch).await.expect("an answer"), "and no third");
    assert_eq!(counted(&*rollup).await, wanted(&[("a/", 1, 1)]));
}

/// What a shard takes from another, and what it lets go, is no change of its own.
async fn moves_are_no_changes(shard: Arc<dyn Shard>, giver: Arc<dyn Shard>) {
    let (shard, rollup) = founded(shard).await;
    giver.found(ShardState { epoch: 1, ..ShardState::default() }).await.expect("a shard");
    giver.at(1).put(key("a/1"), value("1")).await.expect("a write");
    giver.at(1).put(key("a/2"), value("2")).await.expect("a write");
    shard.keep_log().await.expect("a log");
    let mut rows = giver.rows(None, None).await.expect("rows");
    let rows = rows.next().await.expect("rows");
    assert_eq!(rows.len(), 2);
    let taker = shard.follower(1, "giver");
    let from = taker.checkpoint().await.expect("a checkpoint");
    let to = Checkpoint { log: "giver".into(), complete: true, ..Checkpoint::default() };
    let newer =
        |row: &Logged| Logged { version: Version::new(row.version.get() + 1), ..row.clone() };
    let again = rows.iter().map(newer).collect::<Vec<_>>();
    let copy = Batch { from, to: to.clone(), changes: rows, ..Batch::default() };
    assert!(taker.apply(&copy).await.expect("applied"));
    let tail = Batch {
        from: to.clone(),
        to: to.at(LogPosition { epoch: 9, offset: 9 }),
        changes: again,
        ..Batch::default()
    };
    assert!(taker.apply(&tail).await.expect("applied"));
    let state = shard.state().await.expect("a state").expect("a shard");
    let owned = [Slot::new(1)].into_iter().collect();
    let next = ShardState { epoch: 2, owned, ..state };
    shard.change(1, next, Version::new(1_000_000)).await.expect("it takes");
    shard.at(2).put(key("a/1"), value("mine")).await.expect("a write");
    assert_eq!(counted(&*rollup).await, wanted(&[("a/", 1, 4)]), "the write alone");
    shard.forget(2, vec![key("a/1"), key("a/2")]).await.expect("forgotten");
    shard.end_log().await.expect("it ends");
    // The counts go on behind the end of the move.
    shard.at(2).put(key("b/1"), value("1")).await.expect("a write");
    assert_eq!(counted(&*rollup).await, wanted(&[("a/", 1, 4), ("b/", 1, 1)]));
}
