//! Over replicas: what is older than a tombstone is asked for again, what is too old is not kept.

use terrace_core::{Read, Record, Timestamp};

use super::*;

fn over_replicas() -> (CacheAside, Hand, Arc<MemoryCache>) {
    let (inner, hand) = Scripted::new();
    let cache = memory_cache();
    let options = CacheAsideOptions { over_replicas: true, ..CacheAsideOptions::default() };
    (aside(inner, cache.clone(), options), hand, cache)
}

async fn written(store: &CacheAside, hand: &mut Hand, key: &Key, version: u64) {
    let (receipt, ()) = tokio::join!(store.put(key.clone(), value("x")), async {
        hand.write().await.applied(version);
    });
    receipt.unwrap();
}

#[tokio::test]
async fn a_load_older_than_the_tombstone_is_done_again_by_the_primary() {
    let (store, mut hand, cache) = over_replicas();
    let key = key("a");
    written(&store, &mut hand, &key, 5).await;
    let (read, ()) = tokio::join!(store.get(&key), async {
        let call = hand.read().await;
        assert_eq!(call.how.consistency, Consistency::Default);
        call.found(&[("a", "old", 4)]);
        let call = hand.read().await;
        assert_eq!(call.how.consistency, Consistency::Strong);
        call.found(&[("a", "new", 5)]);
    });
    assert_eq!(read.unwrap().unwrap().version, Version::new(5));
    assert_eq!(cached(&cache, &key), Some(5));
}

#[tokio::test]
async fn a_replica_that_has_the_write_is_enough() {
    let (store, mut hand, _) = over_replicas();
    let keys = ["a", "b"].map(key);
    written(&store, &mut hand, &keys[0], 5).await;
    let how = ReadOptions::default();
    let (reads, ()) = tokio::join!(store.read(&keys, &how), async {
        hand.read().await.found(&[("a", "new", 5), ("b", "any", 1)]);
    });
    assert_eq!(reads.unwrap().len(), 2);
}

#[tokio::test]
async fn a_write_in_doubt_is_looked_up_at_the_primary() {
    let (store, mut hand, _) = over_replicas();
    let key = key("a");
    let (receipt, ()) = tokio::join!(store.put(key.clone(), value("x")), async {
        hand.write().await.fail(terrace_core::ErrorKind::OutcomeUnknown);
    });
    assert!(receipt.is_err());
    let (read, ()) = tokio::join!(store.get(&key), async {
        let call = hand.read().await;
        assert_eq!(call.how.consistency, Consistency::Strong);
        call.found(&[("a", "x", 9)]);
    });
    assert!(read.unwrap().is_some());
}

/// What a replica answers that is so old.
fn aged(key: &Key, age: Duration) -> terrace_core::Result<Vec<Read>> {
    let (at, version) = (Timestamp::UNIX_EPOCH, Version::new(1));
    let (key, value) = (key.clone(), value("old"));
    let record = Some(Record { key, value, version, created_at: at, updated_at: at });
    Ok(vec![Read { record, version, origin: Origin::Replica(1), age, token: token(1) }])
}

/// After the tombstone no version tells that it was overtaken, however late it comes.
#[tokio::test(start_paused = true)]
async fn what_may_be_older_than_tombstones_last_is_not_cached() {
    for (seconds, kept) in [(0, true), (29, true), (31, false)] {
        let (store, mut hand, cache) = over_replicas();
        Runtime::system().sleep(Duration::from_secs(60)).await;
        let key = key("a");
        let (read, ()) = tokio::join!(store.get(&key), async {
            hand.read().await.answer(aged(&key, Duration::from_secs(seconds)));
        });
        assert!(read.unwrap().is_some());
        assert_eq!(cached(&cache, &key).is_some(), kept, "{seconds} s old");
    }
}

/// A cache that was lost has lost the traces of writes that the replica may not have yet.
#[tokio::test(start_paused = true)]
async fn what_may_be_older_than_the_memory_of_the_cache_is_asked_for_again() {
    let (store, mut hand, cache) = over_replicas();
    let key = key("a");
    Runtime::system().sleep(Duration::from_secs(2)).await;
    let (read, ()) = tokio::join!(store.get(&key), async {
        hand.read().await.answer(aged(&key, Duration::from_secs(3)));
        let call = hand.read().await;
        assert_eq!(call.how.consistency, Consistency::Strong);
        call.found(&[("a", "new", 5)]);
    });
    assert_eq!(read.unwrap().unwrap().version, Version::new(5));
    assert_eq!(cached(&cache, &key), Some(5));
}

/// While the primary is down, too, what there is is answered, and not kept.
#[tokio::test(start_paused = true)]
async fn without_a_primary_what_is_older_than_the_memory_is_answered_and_not_kept() {
    let (store, mut hand, cache) = over_replicas();
    let key = key("a");
    Runtime::system().sleep(Duration::from_secs(2)).await;
    let (read, ()) = tokio::join!(store.get(&key), async {
        hand.read().await.answer(aged(&key, Duration::from_secs(3)));
        hand.read().await.fail(terrace_core::ErrorKind::Unavailable);
    });
    assert_eq!(read.unwrap().unwrap().version, Version::new(1));
    assert_eq!(cached(&cache, &key), None);
}
