//! `FillOnWrite`: what it reads back, and when it says that the caches have it.

use std::sync::Arc;

use terrace_core::testkit::{Hand, Scripted, StoreFixture, key, value};
use terrace_core::{
    ErrorKind, MemoryStore, Origin, ReadOptions, Receipt, Runtime, Store as _, StoreExt as _,
    Write, WriteOptions,
};
use terrace_layers::{CacheAside, CacheAsideOptions, FillOnWrite, NearCache, NearCacheOptions};

use crate::cache_aside::memory_cache;
use crate::near_cache::trusted;

/// Both caches over a store in memory.
async fn over_memory() -> FillOnWrite {
    let (cache, database) = (memory_cache(), Arc::<MemoryStore>::default());
    let runtime = Runtime::system();
    let options = CacheAsideOptions::default();
    let far = CacheAside::new(
        database.clone(),
        cache.clone(),
        database.clone(),
        options,
        runtime.clone(),
    );
    let options = NearCacheOptions::default();
    let near = NearCache::new(Arc::new(far), cache, database, options, runtime.clone());
    trusted(&near).await;
    FillOnWrite::new(Arc::new(near), runtime)
}

async fn fixture() -> StoreFixture {
    StoreFixture::new(Arc::new(over_memory().await))
}

terrace_core::store_contract!(fixture);

fn scripted() -> (FillOnWrite, Hand) {
    let (inner, hand) = Scripted::new();
    (FillOnWrite::new(inner, Runtime::system()), hand)
}

#[tokio::test]
async fn what_was_written_is_a_near_hit() {
    let store = over_memory().await;
    for text in ["1", "2"] {
        let receipt = store.put(key("a"), value(text)).await.expect("a write");
        assert!(receipt.cached);
        let read = store.get_read(&key("a"), &ReadOptions::default()).await.expect("a read");
        assert_eq!(read.origin, Origin::NEAR);
        assert_eq!(read.record.expect("a record").value, value(text));
    }
    let receipt = store.delete(key("a")).await.expect("a delete");
    assert!(!receipt.cached, "there is nothing to fill them with");
    let tree = store.inspect().await;
    assert_eq!((tree.number("filled"), tree.number("not_filled")), (Some(2), Some(0)));
}

#[tokio::test]
async fn keys_of_a_batch_are_told_one_by_one() {
    let store = over_memory().await;
    let first = store.put(key("b"), value("1")).await.expect("a write");
    let batch = vec![
        Write::put(key("a"), value("1")),
        Write::put(key("b"), value("2")).when(terrace_core::Precondition::Absent),
        Write::delete(key("c")),
        Write::put(key("d"), value("1")),
    ];
    let receipts = store.write(batch, &WriteOptions::default()).await.expect("a batch");
    let cached = receipts.iter().map(|receipt| receipt.cached).collect::<Vec<_>>();
    assert_eq!(cached, [true, false, false, true]);
    assert!(first.cached);
}

/// What a write answers while this happens below.
async fn written(below: impl AsyncFnOnce(&mut Hand)) -> Receipt {
    let (store, mut hand) = scripted();
    let write = store.put(key("a"), value("1"));
    let (receipt, ()) = tokio::join!(write, async {
        hand.write().await.applied(1);
        below(&mut hand).await;
    });
    receipt.expect("a write")
}

#[tokio::test(start_paused = true)]
async fn an_answer_does_not_wait_for_caches_that_hang() {
    let hangs = async |hand: &mut Hand| hand.read().await.abandoned().await;
    assert!(!written(hangs).await.cached);
}

#[tokio::test]
async fn a_read_that_fails_does_not_fail_the_write() {
    let fails = async |hand: &mut Hand| hand.read().await.fail(ErrorKind::Unavailable);
    assert!(!written(fails).await.cached);
}

#[tokio::test]
async fn an_answer_of_the_database_is_no_hit() {
    let misses = async |hand: &mut Hand| {
        for _ in 0..2 {
            hand.read().await.found(&[("a", "1", 1)]);
        }
    };
    assert!(!written(misses).await.cached, "nothing kept it");
}
