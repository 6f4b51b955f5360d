//! The races that fill a cache with something old, forced by holding calls.

use futures_util::StreamExt as _;
use terrace_core::{
    Budget, ErrorKind, Invalidations as _, MemoryStore, Notice, Outcome, Place, Precondition,
    Sequence, Write, WriteOptions,
};

use super::*;

/// A reader is held between load and fill while a writer commits and invalidates. Answers what the
/// cache holds afterwards.
async fn reader_held_until_after_a_write(cache: Arc<dyn Cache>) -> Option<u64> {
    let (store, mut hand, _) = scripted_over(cache.clone(), CacheAsideOptions::default());
    let key = key("race");
    let (old, ()) = tokio::join!(store.get(&key), async {
        let held = hand.read().await;
        let (receipt, ()) = tokio::join!(store.put(key.clone(), value("2")), async {
            hand.write().await.applied(2);
        });
        receipt.unwrap();
        held.found(&[("race", "1", 1)]);
    });
    assert_eq!(old.unwrap().unwrap().version, Version::new(1), "it began before the write");
    match cache.get(&[key], Budget::default()).await.unwrap().remove(0) {
        Lookup::Hit(entry) => Some(entry.version.get()),
        _ => None,
    }
}

/// A reader comes while the write is under way and has not been committed.
async fn reader_comes_before_the_commit(
    (store, mut hand, cache): (CacheAside, Hand, Arc<MemoryCache>),
) -> Option<u64> {
    let key = key("race");
    let (receipt, ()) = tokio::join!(store.put(key.clone(), value("2")), async {
        let held = hand.write().await;
        load(&store, &mut hand, &key, 1).await;
        held.applied(2);
    });
    receipt.unwrap();
    cached(&cache, &key)
}

#[tokio::test]
async fn a_reader_held_between_load_and_fill_stores_nothing_old() {
    assert_eq!(reader_held_until_after_a_write(memory_cache()).await, None);
}

#[tokio::test]
async fn what_was_loaded_before_the_commit_is_gone_when_it_is_acknowledged() {
    assert_eq!(reader_comes_before_the_commit(scripted()).await, None);
}

/// A flusher dies between its commit and its invalidation; another repeats its batch.
#[tokio::test]
async fn a_repeated_write_of_a_journal_empties_what_the_first_did_not() {
    let (inner, cache) = (Arc::new(MemoryStore::default()), memory_cache());
    let store = over(inner.clone(), cache.clone(), CacheAsideOptions::default());
    let (kept, gone) = (key("kept"), key("gone"));
    for key in [&kept, &gone] {
        store.put(key.clone(), value("1")).await.unwrap();
        store.get(key).await.unwrap();
        assert!(cached(&cache, key).is_some());
    }
    let settled = Sequence::NONE;
    let placed = |write: Write, sequence| {
        write.when(Precondition::After(Place { sequence: Sequence::new(sequence), settled }))
    };
    let batch = || {
        let put = Write::put(kept.clone(), value("2"));
        vec![placed(put, 7), placed(Write::delete(gone.clone()), 8)]
    };
    inner.write(batch(), &WriteOptions::default()).await.unwrap();
    let repeated = store.write(batch(), &WriteOptions::default()).await.unwrap();
    assert!(repeated.iter().all(|it| it.outcome == Outcome::PreconditionFailed));
    assert_eq!((cached(&cache, &kept), cached(&cache, &gone)), (None, None));
}

/// The one that repeats has dropped the first delete for a later one, which finds nothing to delete.
#[tokio::test]
async fn a_later_delete_of_a_journal_empties_what_the_first_did_not() {
    let (inner, cache) = (Arc::new(MemoryStore::default()), memory_cache());
    let store = over(inner.clone(), cache.clone(), CacheAsideOptions::default());
    let gone = key("gone");
    store.put(gone.clone(), value("1")).await.unwrap();
    store.get(&gone).await.unwrap();
    assert!(cached(&cache, &gone).is_some());
    let delete = |sequence| {
        let place = Place { sequence: Sequence::new(sequence), settled: Sequence::NONE };
        vec![Write::delete(gone.clone()).when(Precondition::After(place))]
    };
    inner.write(delete(7), &WriteOptions::default()).await.unwrap();
    let later = store.write(delete(8), &WriteOptions::default()).await.unwrap();
    assert_eq!(later[0].outcome, Outcome::Absent);
    assert_eq!(cached(&cache, &gone), None);
}

#[tokio::test]
async fn a_naive_cache_is_caught() {
    let naive = Arc::new(BrokenCache::new(memory_cache(), CacheFlaw::Naive));
    assert_eq!(reader_held_until_after_a_write(naive).await, Some(1));
}

#[tokio::test]
async fn an_invalidation_before_the_commit_is_caught() {
    let (inner, hand) = Scripted::new();
    let cache = memory_cache();
    let store = invalidating_first(inner, cache.clone(), Arc::<ScriptedGenerations>::default());
    assert_eq!(reader_comes_before_the_commit((store, hand, cache)).await, Some(1));
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_the_invalidation() {
    let (store, mut hand, cache) = scripted();
    let key = key("a");
    load(&store, &mut hand, &key, 1).await;
    let mut notices = cache.subscribe();
    assert_eq!(notices.next().await, Some(Notice::Connected));

    let mut write = store.put(key.clone(), value("2"));
    let held = tokio::select! {
        biased;
        _ = &mut write => panic!("the write is held"),
        held = hand.write() => held,
    };
    drop(write);
    assert!(!held.is_abandoned(), "the write goes on");
    held.applied(2);
    let keys = vec![(key.clone(), Version::new(2))];
    assert_eq!(notices.next().await, Some(Notice::Written { number: 1, keys }));
    assert_eq!(cached(&cache, &key), None);
}

#[tokio::test(start_paused = true)]
async fn a_write_of_unknown_outcome_keeps_its_key_out_until_its_tombstone_expires() {
    for kind in [ErrorKind::OutcomeUnknown, ErrorKind::Internal] {
        let (store, mut hand, cache) = scripted();
        let key = key("a");
        load(&store, &mut hand, &key, 1).await;
        let (answer, ()) = tokio::join!(store.put(key.clone(), value("2")), async {
            hand.write().await.fail(kind);
        });
        assert_eq!(answer.unwrap_err().kind(), kind);
        load(&store, &mut hand, &key, 1).await;
        assert_eq!(cached(&cache, &key), None, "the write may still come");
        sleep(Duration::from_secs(60)).await;
        load(&store, &mut hand, &key, 2).await;
        assert_eq!(cached(&cache, &key), Some(2));
    }
    // An error that says that nothing was applied empties nothing.
    let (store, mut hand, cache) = scripted();
    let key = key("a");
    load(&store, &mut hand, &key, 1).await;
    let (answer, ()) = tokio::join!(store.put(key.clone(), value("2")), async {
        hand.write().await.fail(ErrorKind::Overloaded);
    });
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Overloaded);
    assert_eq!(cached(&cache, &key), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_load_that_took_too_long_is_not_offered() {
    let (store, mut hand, cache) = scripted();
    let key = key("slow");
    let (read, ()) = tokio::join!(store.get(&key), async {
        let held = hand.read().await;
        tokio::time::advance(Duration::from_secs(31)).await;
        held.found(&[("slow", "x", 1)]);
    });
    assert!(read.unwrap().is_some());
    assert_eq!(cached(&cache, &key), None);
}
