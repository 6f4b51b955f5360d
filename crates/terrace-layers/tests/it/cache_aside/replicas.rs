//! Over replicas: what is older than a tombstone is asked for again, what is too old is not kept.

use terrace_core::testkit::proof_of;
use terrace_core::{ErrorKind, Generation, Page, Proof, Read, Record, Scan, Timestamp};

use super::*;

fn options() -> CacheAsideOptions {
    CacheAsideOptions { over_replicas: true, ..CacheAsideOptions::default() }
}

fn over_replicas() -> (CacheAside, Hand, Arc<MemoryCache>) {
    let cache = memory_cache();
    let (store, hand, _) = scripted_over(cache.clone(), options());
    (store, hand, cache)
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
        hand.write().await.fail(ErrorKind::OutcomeUnknown);
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
    Ok(vec![Read { age, ..proving(key, proof_of(1)) }])
}

/// What a replica answers that proves this.
fn proving(key: &Key, proof: Proof) -> Read {
    let (at, version) = (Timestamp::UNIX_EPOCH, Version::new(1));
    let (key, value) = (key.clone(), value("old"));
    let record = Some(Record { key, value, version, created_at: at, updated_at: at });
    let (origin, age, token) = (Origin::replica(1), Duration::ZERO, proof.token());
    Read { record, version, origin, age, token, proof: Some(proof) }
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
    let how = ReadOptions::default();
    let (read, ()) = tokio::join!(store.get_read(&key, &how), async {
        hand.read().await.answer(aged(&key, Duration::from_secs(3)));
        hand.read().await.fail(ErrorKind::Unavailable);
    });
    let read = read.unwrap();
    assert_eq!((read.version, read.age), (Version::new(1), Duration::from_secs(3)));
    assert_eq!(read.proof, None, "no cache above may keep it either");
    assert_eq!(cached(&cache, &key), None);
}

/// A replica that has not come to a raise yet may not have the write that raised it.
#[tokio::test]
async fn an_answer_of_an_older_generation_is_asked_for_again() {
    for generation in [0, 1] {
        let cache = memory_cache();
        let (store, mut hand, generations) = scripted_over(cache.clone(), options());
        generations.raise(&[]).await.unwrap();
        let key = key("a");
        let generation = Generation::new(generation);
        let proof = Proof { generation, ..proof_of(1) };
        let (read, ()) = tokio::join!(store.get(&key), async {
            hand.read().await.answer(Ok(vec![proving(&key, proof)]));
            if generation == Generation::default() {
                let call = hand.read().await;
                assert_eq!(call.how.consistency, Consistency::Strong);
                let generation = Generation::new(1);
                let proof = Proof { generation, ..proof_of(2) };
                call.answer(Ok(vec![Read { version: Version::new(2), ..proving(&key, proof) }]));
            }
        });
        assert!(read.unwrap().is_some());
        assert_eq!(cached(&cache, &key), Some(2 - generation.get()));
    }
}

/// Single reads are as new as every acknowledged write, and so are lists.
#[tokio::test]
async fn a_list_is_asked_of_the_primary_first() {
    let (store, mut hand, _) = over_replicas();
    let (scan, key) = (Scan::prefix(""), key("a"));
    let page = |origin| {
        let records = proving(&key, proof_of(1)).record.into_iter().collect();
        Ok(Page::cut(records, 100, origin))
    };
    let how = ReadOptions::default();
    let (listed, ()) = tokio::join!(store.scan(&scan, &how), async {
        let call = hand.scan().await;
        assert_eq!(call.how.consistency, Consistency::Strong);
        call.answer(page(Origin::PRIMARY));
    });
    assert_eq!(listed.unwrap().origin, Origin::PRIMARY);

    // While the primary cannot answer, a replica does.
    let (listed, ()) = tokio::join!(store.scan(&scan, &how), async {
        hand.scan().await.fail(ErrorKind::Unavailable);
        let call = hand.scan().await;
        assert_eq!(call.how.consistency, Consistency::Default);
        call.answer(page(Origin::replica(1)));
    });
    assert_eq!(listed.unwrap().origin, Origin::replica(1));

    // Not to who sends a token: the primary has said that it cannot prove it.
    let how = with(token(5));
    let (listed, ()) = tokio::join!(store.scan(&scan, &how), async {
        let call = hand.scan().await;
        assert_eq!(call.how.token, how.token);
        call.fail(ErrorKind::Unavailable);
    });
    assert!(listed.is_err());

    // Who says how old it may be gets what the store below makes of it.
    let stale = Consistency::MaxStale(Duration::from_secs(5));
    let how = ReadOptions { consistency: stale, ..ReadOptions::default() };
    let (listed, ()) = tokio::join!(store.scan(&scan, &how), async {
        let call = hand.scan().await;
        assert_eq!(call.how.consistency, stale);
        call.answer(page(Origin::replica(1)));
    });
    assert!(listed.is_ok());
}

/// While the cache is away nobody knows what was written a moment ago.
#[tokio::test]
async fn without_the_cache_the_primary_is_asked_first() {
    let cut = super::cuttable::Cuttable::new(memory_cache());
    cut.set(super::cuttable::Mode::Down);
    let (store, mut hand, _) = scripted_over(cut, options());
    let key = key("a");
    let (read, ()) = tokio::join!(store.get(&key), async {
        let call = hand.read().await;
        assert_eq!(call.how.consistency, Consistency::Strong);
        call.found(&[("a", "new", 5)]);
    });
    assert_eq!(read.unwrap().unwrap().version, Version::new(5));
    let (read, ()) = tokio::join!(store.get(&key), async {
        hand.read().await.fail(ErrorKind::Unavailable);
        let call = hand.read().await;
        assert_eq!(call.how.consistency, Consistency::Default, "a replica, with its age");
        call.found(&[("a", "old", 4)]);
    });
    assert_eq!(read.unwrap().unwrap().version, Version::new(4));
}
