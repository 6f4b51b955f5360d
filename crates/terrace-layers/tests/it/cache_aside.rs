//! `CacheAside`: what it answers, what it tells the cache, and what a cache that fails does to it.

mod cuttable;
mod failures;
mod generations;
mod proofs;
mod races;
mod replicas;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::testkit::{
    BrokenCache, BrokenStore, CacheFlaw, Hand, Scripted, ScriptedGenerations, StoreFixture,
    StoreFlaw, key, value,
};
use terrace_core::{
    Cache, Consistency, Deadline, Generations, Key, Lookup, MemoryCache, MemoryCacheOptions,
    MemoryStore, Origin, Position, Precondition, ReadOptions, Runtime, Store, StoreExt as _, Token,
    Version, Write,
};
use terrace_layers::{CacheAside, CacheAsideOptions, SingleFlight};

pub(crate) use cuttable::{Cuttable, Mode};

async fn over_memory() -> StoreFixture {
    StoreFixture::new(Arc::new(over(Arc::default(), memory_cache(), Default::default())))
}

terrace_core::store_contract!(over_memory);

pub(crate) fn memory_cache() -> Arc<MemoryCache> {
    let options = MemoryCacheOptions { jitter: 0.0, ..MemoryCacheOptions::default() };
    Arc::new(MemoryCache::new(options, Runtime::system()))
}

fn aside(
    inner: Arc<dyn Store>,
    cache: Arc<dyn Cache>,
    generations: Arc<dyn Generations>,
    options: CacheAsideOptions,
) -> CacheAside {
    CacheAside::new(inner, cache, generations, options, Runtime::system())
}

/// Over a store in memory, which has its own generations.
fn over(inner: Arc<MemoryStore>, cache: Arc<dyn Cache>, options: CacheAsideOptions) -> CacheAside {
    aside(inner.clone(), cache, inner, options)
}

/// Over a scripted store and a cache in memory.
fn scripted() -> (CacheAside, Hand, Arc<MemoryCache>) {
    let cache = memory_cache();
    let (store, hand, _) = scripted_over(cache.clone(), CacheAsideOptions::default());
    (store, hand, cache)
}

/// Over a scripted store with scripted generations, and this cache.
fn scripted_over(
    cache: Arc<dyn Cache>,
    options: CacheAsideOptions,
) -> (CacheAside, Hand, Arc<ScriptedGenerations>) {
    let (inner, hand) = Scripted::new();
    let generations = Arc::<ScriptedGenerations>::default();
    (aside(inner, cache, generations.clone(), options), hand, generations)
}

/// Tells the cache of each write before it is committed, and not after.
fn invalidating_first(
    inner: Arc<dyn Store>,
    cache: Arc<dyn Cache>,
    generations: Arc<dyn Generations>,
) -> CacheAside {
    let inner = BrokenStore::new(inner, StoreFlaw::InvalidatesFirst(cache.clone()));
    let deaf = BrokenCache::new(cache, CacheFlaw::IgnoresInvalidations);
    aside(Arc::new(inner), Arc::new(deaf), generations, CacheAsideOptions::default())
}

/// Lets time pass, paused time at once.
async fn sleep(time: Duration) {
    Runtime::system().sleep(time).await;
}

/// A token of the scripted store.
fn token(position: u64) -> Token {
    Token::of(Scripted::HISTORY, Position::new(position))
}

fn with(token: Token) -> ReadOptions {
    ReadOptions { token: Some(token), ..ReadOptions::default() }
}

/// The version that the cache holds of a key.
fn cached(cache: &MemoryCache, key: &Key) -> Option<u64> {
    match cache.lookup(key) {
        Lookup::Hit(entry) => Some(entry.version.get()),
        Lookup::Miss(_) | Lookup::Written { .. } => None,
    }
}

async fn load(store: &CacheAside, hand: &mut Hand, key: &Key, version: u64) {
    let (read, ()) = tokio::join!(store.get(key), async {
        hand.read().await.found(&[(key.as_str(), "x", version)]);
    });
    assert_eq!(read.unwrap().unwrap().version, Version::new(version));
}

#[tokio::test(start_paused = true)]
async fn misses_are_one_batch_and_hits_tell_their_age() {
    let (store, mut hand, _) = scripted();
    load(&store, &mut hand, &key("b"), 2).await;
    tokio::time::advance(Duration::from_secs(3)).await;

    let keys = ["a", "b", "c", "a"].map(key);
    let how = ReadOptions::default();
    let (reads, ()) = tokio::join!(store.read(&keys, &how), async {
        let call = hand.read().await;
        assert_eq!(call.keys, ["a", "c", "a"].map(key));
        call.found(&[("a", "1", 1)]);
    });
    let told: Vec<_> = reads
        .unwrap()
        .iter()
        .map(|read| (read.version.get(), read.origin, read.age.as_secs()))
        .collect();
    let (far, primary) = (Origin::FAR, Origin::PRIMARY);
    assert_eq!(told, [(1, primary, 0), (2, far, 3), (0, primary, 0), (1, primary, 0)]);
    // All of them are hits now, the missing one, too.
    let reads = store.read(&keys, &how).await.unwrap();
    assert!(reads.iter().all(|read| read.origin == Origin::FAR));
    assert_eq!(reads[2].record, None);
    let tree = store.inspect().await;
    assert_eq!((tree.number("hits"), tree.number("misses")), (Some(5), Some(4)));
}

#[tokio::test(start_paused = true)]
async fn a_hit_must_be_as_new_as_asked() {
    let (store, mut hand, cache) = scripted();
    let key = key("a");
    load(&store, &mut hand, &key, 5).await;
    tokio::time::advance(Duration::from_secs(10)).await;
    let stale = |seconds| ReadOptions {
        consistency: Consistency::MaxStale(Duration::from_secs(seconds)),
        ..ReadOptions::default()
    };
    for how in [stale(10), with(token(5))] {
        assert_eq!(store.get_read(&key, &how).await.unwrap().origin, Origin::FAR);
    }
    // What is loaded in the place of such a hit is offered; a strong read is not.
    let strong = ReadOptions::strong(Deadline::NEVER);
    for (how, kept) in [(stale(9), 6), (with(token(7)), 7), (strong, 7)] {
        let (read, ()) = tokio::join!(store.get_read(&key, &how), async {
            let call = hand.read().await;
            assert_eq!(call.how, how);
            call.found(&[("a", "x", kept)]);
        });
        assert_eq!(read.unwrap().origin, Origin::PRIMARY);
        assert_eq!(cached(&cache, &key), Some(kept));
    }
}

#[tokio::test]
async fn a_write_empties_its_keys_and_no_others() {
    let (store, mut hand, cache) = scripted();
    for (name, version) in [("a", 1), ("b", 2)] {
        load(&store, &mut hand, &key(name), version).await;
    }
    let (receipt, ()) = tokio::join!(store.put(key("a"), value("x")), async {
        hand.write().await.applied(3);
    });
    assert_eq!(receipt.unwrap().version, Version::new(3));
    assert_eq!((cached(&cache, &key("a")), cached(&cache, &key("b"))), (None, Some(2)));
}

#[tokio::test]
async fn what_was_not_applied_empties_nothing() {
    let cache = memory_cache();
    let store = over(Arc::default(), cache.clone(), CacheAsideOptions::default());
    let key = key("a");
    let version = store.put(key.clone(), value("1")).await.unwrap().version;
    store.get(&key).await.unwrap();
    let write = Write::put(key.clone(), value("2")).when(Precondition::Absent);
    store.write_one(write).await.unwrap();
    assert_eq!(cached(&cache, &key), Some(version.get()));
}

#[tokio::test]
async fn a_thousand_readers_of_a_cold_key_are_one_read_of_the_store() {
    let (store, mut hand, _) = scripted();
    let store = SingleFlight::new(Arc::new(store), Runtime::system());
    let key = key("cold");
    let calls = AtomicU64::new(0);
    let answer = async {
        let call = hand.read().await;
        calls.fetch_add(1, Ordering::Relaxed);
        call.found(&[("cold", "x", 1)]);
        while let terrace_core::testkit::Call::Read(call) = hand.next().await {
            calls.fetch_add(1, Ordering::Relaxed);
            call.found(&[("cold", "x", 1)]);
        }
    };
    let readers = join_all((0..1000).map(|_| store.get(&key)));
    tokio::select! {
        records = readers => assert!(records.into_iter().all(|it| it.unwrap().is_some())),
        () = answer => {}
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn it_prints_the_stack() {
    let (store, _hand, _) = scripted();
    assert_eq!(store.to_string(), "CacheAside(memory, scripted)");
}
