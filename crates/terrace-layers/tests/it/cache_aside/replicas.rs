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

/// After the tombstone no version tells that it was overtaken, however late it comes.
#[tokio::test]
async fn what_may_be_older_than_tombstones_last_is_not_cached() {
    for (seconds, kept) in [(0, true), (29, true), (31, false)] {
        let (store, mut hand, cache) = over_replicas();
        let key = key("a");
        let (read, ()) = tokio::join!(store.get(&key), async {
            let at = Timestamp::UNIX_EPOCH;
            let version = Version::new(1);
            let record = Record {
                key: key.clone(),
                value: value("old"),
                version,
                created_at: at,
                updated_at: at,
            };
            hand.read().await.answer(Ok(vec![Read {
                record: Some(record),
                version,
                origin: Origin::Replica(1),
                age: Duration::from_secs(seconds),
                token: token(1),
            }]));
        });
        assert!(read.unwrap().is_some());
        assert_eq!(cached(&cache, &key).is_some(), kept, "{seconds} s old");
    }
}
