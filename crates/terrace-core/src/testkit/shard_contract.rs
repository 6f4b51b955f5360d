//! What every shard keeps, on any engine.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;

use crate::testkit::{key, value};
use crate::{
    Batch, Changes, Checkpoint, ErrorKind, Idempotency, LogPosition, Outcome, ReadOptions, Scan,
    Shard, ShardState, Slot, SlotSet, StoreExt as _, Version, Write, WriteOptions,
};

/// Checks a database that is no shard yet, and `other`, another one.
pub async fn keeps_its_promises(shard: Arc<dyn Shard>, other: Arc<dyn Shard>) {
    assert_eq!(shard.state().await.expect("a state"), None);
    let first = ShardState { cluster: "c".into(), epoch: 1, ..ShardState::default() };
    assert_eq!(shard.found(first.clone()).await.expect("a shard"), first);
    let later = ShardState { epoch: 9, ..first.clone() };
    assert_eq!(shard.found(later).await.expect("a shard"), first, "the first comes first");
    assert_eq!(shard.state().await.expect("a state"), Some(first.clone()));
    other.found(ShardState { number: 1, ..first.clone() }).await.expect("a shard");

    lets_in_who_knows_the_epoch(&*shard).await;
    a_snapshot_and_the_log_after_it_are_all(&*shard).await;
    waits_for_writers(&shard, first).await;
    takes_over(&*shard, &*other).await;
    let reserved = shard.reserve().await.expect("nobody else moves slots");
    assert!(shard.reserve().await.is_err(), "two may not");
    drop(reserved);
    while shard.reserve().await.is_err() {
        tokio::task::yield_now().await;
    }
}

async fn lets_in_who_knows_the_epoch(shard: &dyn Shard) {
    let (here, elsewhere) = (shard.at(1), shard.at(2));
    here.put(key("a"), value("1")).await.expect("a write");
    let refused = [
        elsewhere.put(key("a"), value("2")).await.map(drop),
        elsewhere.put(key("new"), value("2")).await.map(drop),
        elsewhere.delete(key("a")).await.map(drop),
        elsewhere.get(&key("a")).await.map(drop),
        elsewhere.get(&key("none")).await.map(drop),
        elsewhere.scan(&Scan::prefix(""), &ReadOptions::default()).await.map(drop),
        elsewhere.scan(&Scan::prefix("z"), &ReadOptions::default()).await.map(drop),
    ];
    for answer in refused {
        assert_eq!(answer.expect_err("another epoch").kind(), ErrorKind::Moved);
    }
    let twice = vec![Write::put(key("a"), value("2")), Write::put(key("a"), value("3"))];
    let refused = elsewhere.write(twice, &WriteOptions::default()).await;
    assert_eq!(refused.expect_err("another epoch").kind(), ErrorKind::Moved);
    let found = here.get(&key("a")).await.expect("a read").expect("a record");
    assert_eq!(found.value.as_str(), "1");
}

/// What is copied at a quiet moment, and what the log says after the head of that moment, is all
/// there is.
async fn a_snapshot_and_the_log_after_it_are_all(shard: &dyn Shard) {
    let log = shard.keep_log().await.expect("a log");
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let writer = async |lane: usize| {
        while !over.load(Ordering::Acquire) {
            let round = count.fetch_add(1, Ordering::AcqRel);
            let it = key(format!("s{lane}-{}", round % 50));
            shard.at(1).put(it, value(round.to_string())).await.expect("a write");
            tokio::task::yield_now().await;
        }
    };
    let copy = async {
        while count.load(Ordering::Acquire) < 100 {
            tokio::task::yield_now().await;
        }
        let head = Mutex::new(LogPosition::default());
        let note = async {
            let now = log.head().await?;
            *head.lock().unwrap_or_else(PoisonError::into_inner) = now;
            Ok(())
        };
        let mut rows = shard.rows(None, Some(Box::pin(note))).await.expect("rows");
        let mut copied = HashMap::new();
        loop {
            let some = rows.next().await.expect("rows");
            if some.is_empty() {
                break;
            }
            copied.extend(some.into_iter().map(|row| (row.key, row.version)));
        }
        let goal = count.load(Ordering::Acquire) + 50;
        while count.load(Ordering::Acquire) < goal {
            tokio::task::yield_now().await;
        }
        over.store(true, Ordering::Release);
        (head.into_inner().unwrap_or_else(PoisonError::into_inner), copied)
    };
    let ((mut position, mut copied), _) = tokio::join!(copy, join_all((0..4).map(writer)));
    let head = log.head().await.expect("a head");
    loop {
        let Changes { changes, position: reached, more } =
            log.after(position, 100).await.expect("changes");
        for change in changes {
            let version = copied.entry(change.key).or_default();
            *version = change.version.max(*version);
        }
        position = reached;
        if position >= head && !more {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut rows = shard.rows(None, None).await.expect("rows");
    loop {
        let some = rows.next().await.expect("rows");
        if some.is_empty() {
            break;
        }
        for row in some {
            assert_eq!(copied.get(&row.key), Some(&row.version), "{}", row.key);
        }
    }
    shard.end_log().await.expect("an end of the log");
}

/// Writers under way when the state changes have ended before it has, and none comes after it.
async fn waits_for_writers(shard: &Arc<dyn Shard>, first: ShardState) {
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let writer = async |lane: usize| {
        let mut written = Vec::new();
        for round in 0.. {
            let it = key(format!("w{}", round % 7));
            let batch = match lane % 2 {
                0 => vec![Write::put(it, value("w"))],
                _ => vec![Write::delete(it.clone()), Write::put(it, value("w"))],
            };
            count.fetch_add(1, Ordering::AcqRel);
            tokio::task::yield_now().await;
            match shard.at(1).write(batch, &WriteOptions::default()).await {
                Ok(receipts) => written.extend(receipts.into_iter().map(|it| it.version)),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Moved);
                    assert!(over.load(Ordering::Acquire), "refused before the change");
                    return written;
                }
            }
        }
        written
    };
    let change = async {
        while count.load(Ordering::Acquire) < 40 {
            tokio::task::yield_now().await;
        }
        over.store(true, Ordering::Release);
        let to = ShardState { epoch: 2, ..first.clone() };
        let latest = shard.change(1, to, Version::NONE).await.expect("a change");
        let at_the_change = shard.at(2).get(&key("w0")).await.expect("a read");
        (latest, at_the_change)
    };
    let writers = join_all((0..4).map(writer));
    let ((latest, then), written) = tokio::join!(change, writers);
    let newest = written.into_iter().flatten().max().expect("writes before the change");
    assert!(newest <= latest, "a write of version {newest} came after the change at {latest}");
    assert_eq!(shard.at(2).get(&key("w0")).await.expect("a read"), then, "nothing came later");
    let again = shard.change(1, ShardState { epoch: 3, ..first }, Version::NONE).await;
    assert_eq!(again.expect_err("an old epoch").kind(), ErrorKind::Moved);
}

async fn takes_over(from: &dyn Shard, to: &dyn Shard) {
    let slot = Slot::new(7);
    let named =
        |request| WriteOptions { idempotency: Some(Arc::new(request)), ..WriteOptions::default() };
    let request = Idempotency::new("once", [1; 32]).expect("a key");
    let (once, claim) = (named(request.part(slot)), named(request.claim(slot)));
    from.at(2).write(Vec::new(), &claim).await.expect("a claim");
    from.at(2).write(Vec::new(), &claim).await.expect("the same claim");
    let write = || vec![Write::put(key("once"), value("1"))];
    let done = from.at(2).write(write(), &once).await.expect("a write");
    from.at(2).delete(key("a")).await.expect("a write");

    let mut rows = from.rows(None, None).await.expect("rows");
    let mut all = Vec::new();
    loop {
        let some = rows.next().await.expect("rows");
        match some.last() {
            None => break,
            Some(_) => all.extend(some),
        }
    }
    assert!(all.is_sorted_by(|a, b| a.key < b.key), "rows are in the order of keys");
    assert!(
        all.iter().any(|row| row.key == key("a") && row.record.is_none()),
        "a deleted one, too"
    );
    takes_rows_over(to, &all).await;
    let slots = |number| SlotSet::from_iter([Slot::new(number)]);
    assert!(from.results(&slots(8)).await.expect("results").is_empty());
    let results = from.results(&slots(7)).await.expect("results");
    to.keep_results(1, results).await.expect("results");
    let again = to.at(1).write(write(), &once).await.expect("a repeated write");
    assert_eq!(again[0].version, done[0].version, "it is the first result");
    to.at(1).write(Vec::new(), &claim).await.expect("the same claim");
    let other = Idempotency::new("once", [2; 32]).expect("a key").claim(slot);
    let reused = to.at(1).write(Vec::new(), &named(other)).await.expect_err("another request");
    assert_eq!(reused.kind(), ErrorKind::InvalidInput);
    goes_on_above(to).await;
}

async fn takes_rows_over(to: &dyn Shard, all: &[crate::Logged]) {
    let taker = to.follower(1, "from");
    taker.begin_anew("log").await.expect("begun");
    let begun = taker.checkpoint().await.expect("a place");
    assert_eq!(begun, Checkpoint { log: "log".into(), ..Checkpoint::default() });
    let there = Checkpoint { copied: Some("x".into()), ..begun.clone() };
    let batch = Batch { from: begun, to: there.clone(), changes: all.to_vec(), ..Batch::default() };
    let wrong = to.follower(7, "from").apply(&batch).await;
    assert_eq!(wrong.expect_err("another epoch").kind(), ErrorKind::Moved);
    assert!(taker.apply(&batch).await.expect("rows"));
    assert!(!taker.apply(&batch).await.expect("an answer"), "it is not there any more");
    // Again, and older ones, change nothing.
    let older = all.iter().map(|row| crate::Logged { version: Version::new(1), ..row.clone() });
    let older = Batch { from: there.clone(), to: there.clone(), changes: older.collect(), ..batch };
    assert!(taker.apply(&older).await.expect("rows"));
    assert_eq!(taker.checkpoint().await.expect("a place"), there);
    let nobody = to.follower(1, "nobody").checkpoint().await.expect("a place");
    assert_eq!(nobody, Checkpoint::default());
    for row in all {
        let there = to.at(1).get_read(&row.key, &ReadOptions::default()).await.expect("a read");
        assert_eq!((&there.record, there.version), (&row.record, row.version), "{}", row.key);
    }
}

async fn goes_on_above(to: &dyn Shard) {
    let state = to.state().await.expect("a state").expect("a shard");
    let floor = Version::new(1_000_000);
    let raised = to.change(1, ShardState { epoch: 5, ..state }, floor).await.expect("a change");
    assert!(raised >= floor);
    let receipt = to.at(5).put(key("late"), value("1")).await.expect("a write");
    assert!(receipt.version > floor, "versions go on above the floor");
    to.forget(5, vec![key("late")]).await.expect("rows go");
    let gone = to.at(5).get_read(&key("late"), &ReadOptions::default()).await.expect("a read");
    assert_eq!((gone.record, gone.version), (None, Version::NONE), "without a trace");
    let receipt = to.at(5).put(key("late"), value("1")).await.expect("a write");
    assert_eq!(receipt.outcome, Outcome::Created);
    let size = to.size().await.expect("a size");
    to.at(5).put(key("one more"), value("1")).await.expect("a write");
    assert_eq!(to.size().await.expect("a size"), size + 1, "at once");
}
