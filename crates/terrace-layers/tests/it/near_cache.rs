//! `NearCache`: what it answers from memory, what the feed does to it, and when it says nothing.

mod feed;
mod gapless;
mod generations;
mod races;
mod script;
mod simulation;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use terrace_core::testkit::{Hand, Scripted, ScriptedGenerations, StoreFixture, key, value};
use terrace_core::{
    Consistency, Deadline, ErrorKind, Generations, Invalidations, Key, MemoryCache, MemoryStore,
    Notice, Origin, ReadOptions, Runtime, Status, Store, StoreExt as _, Version,
};
use terrace_layers::{CacheAside, CacheAsideOptions, NearCache, NearCacheOptions};

use crate::cache_aside::memory_cache;
use gapless::without_gaps;
use script::{Script, script};

/// One instance over a cache and a database that others share.
async fn instance(cache: &Arc<MemoryCache>, database: &Arc<MemoryStore>) -> NearCache {
    let (cache, database) = (Arc::clone(cache), Arc::clone(database));
    let runtime = Runtime::system();
    let options = CacheAsideOptions::default();
    let generations = database.clone();
    let far =
        CacheAside::new(database, cache.clone(), generations.clone(), options, runtime.clone());
    let options = NearCacheOptions::default();
    let store = NearCache::new(Arc::new(far), cache, generations, options, runtime);
    trusted(&store).await;
    store
}

async fn over_memory() -> StoreFixture {
    StoreFixture::new(Arc::new(instance(&memory_cache(), &Arc::default()).await))
}

terrace_core::store_contract!(over_memory);

/// Lets time pass, paused time at once.
async fn sleep(time: Duration) {
    Runtime::system().sleep(time).await;
}

/// Waits until the feed is heard.
pub(crate) async fn trusted(store: &NearCache) {
    while store.inspect().await.status != Status::Healthy {
        tokio::task::yield_now().await;
    }
}

/// Over a scripted store and a scripted feed, which is connected.
async fn scripted() -> (NearCache, Hand, Script) {
    let (store, hand, feed) = scripted_by(NearCache::new);
    feed.send(Notice::Connected);
    trusted(&store).await;
    (store, hand, feed)
}

type Make = fn(
    Arc<dyn Store>,
    Arc<dyn Invalidations>,
    Arc<dyn Generations>,
    NearCacheOptions,
    Runtime,
) -> NearCache;

fn scripted_by(make: Make) -> (NearCache, Hand, Script) {
    scripted_over(make, Arc::<ScriptedGenerations>::default())
}

fn scripted_over(make: Make, generations: Arc<dyn Generations>) -> (NearCache, Hand, Script) {
    let (inner, hand) = Scripted::new();
    let (feed, script) = script();
    let store = make(inner, feed, generations, NearCacheOptions::default(), Runtime::system());
    (store, hand, script)
}

async fn load(store: &NearCache, hand: &mut Hand, key: &Key, version: u64) {
    let (read, ()) = tokio::join!(store.get(key), async {
        hand.read().await.found(&[(key.as_str(), "x", version)]);
    });
    assert_eq!(read.unwrap().unwrap().version, Version::new(version));
}

/// The version that is answered from memory; nothing when the inner store is asked.
fn near(store: &NearCache, key: &Key) -> Option<u64> {
    let read = store.get_read(key, &ReadOptions::default()).now_or_never()?.unwrap();
    assert_eq!(read.origin, Origin::NEAR);
    Some(read.version.get())
}

async fn figure(store: &NearCache, name: &str) -> u64 {
    store.inspect().await.number(name).expect("a figure")
}

#[tokio::test(start_paused = true)]
async fn a_write_a_miss_a_hit() {
    let store = instance(&memory_cache(), &Arc::default()).await;
    let key = key("a");
    for text in ["1", "2"] {
        store.put(key.clone(), value(text)).await.unwrap();
        // The echo of the own write on the feed takes nothing away.
        for origin in [Origin::PRIMARY, Origin::NEAR, Origin::NEAR] {
            let read = store.get_read(&key, &ReadOptions::default()).await.unwrap();
            assert_eq!((read.record.unwrap().value.as_str(), read.origin), (text, origin));
            sleep(Duration::from_millis(1)).await;
        }
    }
    store.clear();
    let read = store.get_read(&key, &ReadOptions::default()).await.unwrap();
    assert_eq!(read.origin, Origin::FAR);
}

#[tokio::test(start_paused = true)]
async fn ages_add_up_and_misses_are_one_batch() {
    let cache = memory_cache();
    let database = Arc::default();
    let (a, b) = (instance(&cache, &database).await, instance(&cache, &database).await);
    let keys = ["x", "y", "z"].map(key);
    let how = ReadOptions::default();
    a.read(&keys, &how).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    b.get(&keys[1]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let told: Vec<_> = b
        .read(&keys, &how)
        .await
        .unwrap()
        .iter()
        .map(|read| (read.origin, read.age.as_secs()))
        .collect();
    assert_eq!(told, [(Origin::FAR, 3), (Origin::NEAR, 3), (Origin::FAR, 3)]);

    let stale = |seconds| ReadOptions {
        consistency: Consistency::MaxStale(Duration::from_secs(seconds)),
        ..ReadOptions::default()
    };
    for (how, origin) in [
        (stale(3), Origin::NEAR),
        (stale(2), Origin::PRIMARY),
        (stale(2), Origin::NEAR),
        (ReadOptions::strong(Deadline::NEVER), Origin::PRIMARY),
    ] {
        assert_eq!(b.get_read(&keys[0], &how).await.unwrap().origin, origin, "{how:?}");
    }
}

#[tokio::test]
async fn a_write_through_one_instance_empties_the_other() {
    let cache = memory_cache();
    let database = Arc::default();
    let (a, b) = (instance(&cache, &database).await, instance(&cache, &database).await);
    let key = key("a");
    for round in 0..100 {
        let text = round.to_string();
        a.put(key.clone(), value(&text)).await.unwrap();
        while b.get(&key).await.unwrap().is_none_or(|it| it.value.as_str() != text) {
            tokio::task::yield_now().await;
        }
        assert_eq!(near(&b, &key), Some(round + 1));
    }
    b.delete(key.clone()).await.unwrap();
    while a.get(&key).await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_write_keeps_its_key_out() {
    let (store, mut hand, feed) = scripted().await;
    let key = key("a");
    load(&store, &mut hand, &key, 1).await;
    let mut write = store.put(key.clone(), value("2"));
    assert!((&mut write).now_or_never().is_none());
    drop(write);
    assert!(hand.write().await.is_abandoned());
    load(&store, &mut hand, &key, 1).await;
    assert_eq!(near(&store, &key), None, "the write may still come");
    // The inner store is asked for nothing that a dropped read wanted.
    while hand.try_next().is_some() {}
    // The feed's word of some write does not end the doubt; time does.
    feed.send(Notice::Written { number: 1, keys: vec![(key.clone(), Version::new(2))] });
    for _ in 0..65 {
        feed.send(Notice::Heartbeat { number: 1 });
        sleep(Duration::from_secs(1)).await;
    }
    load(&store, &mut hand, &key, 2).await;
    assert_eq!(near(&store, &key), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_write_of_unknown_outcome_keeps_its_key_out() {
    let (store, mut hand, _feed) = scripted().await;
    let key = key("a");
    load(&store, &mut hand, &key, 1).await;
    let (answer, ()) = tokio::join!(store.put(key.clone(), value("2")), async {
        hand.write().await.fail(ErrorKind::OutcomeUnknown);
    });
    assert!(answer.is_err());
    load(&store, &mut hand, &key, 1).await;
    assert_eq!(near(&store, &key), None);
}

#[tokio::test]
async fn memory_stays_within_its_limit_under_a_scan() {
    let (feed, script) = script();
    let options = NearCacheOptions { max_bytes: 256 * 1024, ..NearCacheOptions::default() };
    let inner = Arc::<MemoryStore>::default();
    let store = NearCache::new(inner.clone(), feed, inner, options, Runtime::system());
    script.send(Notice::Connected);
    trusted(&store).await;
    for number in 0..5000 {
        store.get(&key(format!("key{number}"))).await.unwrap();
    }
    assert!(figure(&store, "bytes").await <= 256 * 1024);
    assert!(figure(&store, "keys").await > 50);
    assert_eq!(figure(&store, "misses").await, 5000);
}

#[tokio::test]
async fn it_prints_the_stack() {
    let store = instance(&memory_cache(), &Arc::default()).await;
    assert_eq!(store.to_string(), "NearCache(CacheAside(memory, memory))");
}
