//! `ConcurrencyLimit`: how many run, how many wait, and for how long.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use terrace_core::testkit::{Hand, Scripted, StoreFixture, key};
use terrace_core::{
    BoxFuture, Deadline, ErrorKind, MemoryStore, ReadOptions, Runtime, Store, StoreExt as _,
};
use terrace_layers::{ConcurrencyLimit, ConcurrencyLimitOptions};

async fn over_memory() -> StoreFixture {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    let options = ConcurrencyLimitOptions { limit: 2, ..ConcurrencyLimitOptions::default() };
    StoreFixture::new(Arc::new(ConcurrencyLimit::new(inner, options, runtime)))
}

terrace_core::store_contract!(over_memory);

fn limited(limit: u32, max_waiting: usize) -> (ConcurrencyLimit, Hand) {
    let (inner, hand) = Scripted::new();
    let options = ConcurrencyLimitOptions { limit, max_waiting };
    (ConcurrencyLimit::new(inner, options, Runtime::system()), hand)
}

/// Polls a call once: it is under way or waits from now on.
fn begin<T>(call: &mut BoxFuture<'_, T>) {
    assert!(call.as_mut().now_or_never().is_none(), "the call waits for the test");
}

async fn figures(store: &ConcurrencyLimit) -> [Option<u64>; 3] {
    let tree = store.inspect().await;
    ["in_use", "waiting", "rejected"].map(|name| tree.number(name))
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_limit_take_turns_in_order_and_beyond_the_queue_are_turned_away() {
    let (store, mut hand) = limited(1, 2);
    let (keys, how) = (["a", "b", "c", "d"].map(key), ReadOptions::default());
    let mut calls: Vec<_> = keys[..3].iter().map(|key| store.get_read(key, &how)).collect();
    calls.iter_mut().for_each(begin);
    let error = store.get_read(&keys[3], &how).await.unwrap_err();
    assert_eq!((error.kind(), error.wait()), (ErrorKind::Overloaded, Some(Duration::from_secs(1))));
    assert_eq!(figures(&store).await, [Some(1), Some(2), Some(1)]);
    let order = async {
        for key in &keys[..3] {
            let call = hand.read().await;
            assert_eq!(call.keys, std::slice::from_ref(key));
            assert!(hand.try_next().is_none());
            call.found(&[]);
        }
    };
    tokio::join!(futures_util::future::join_all(calls), order);
    assert_eq!(figures(&store).await, [Some(0), Some(0), Some(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_gives_its_turn_back() {
    let (store, mut hand) = limited(1, 2);
    let (keys, how) = (["a", "b", "c"].map(key), ReadOptions::default());
    let mut calls: Vec<_> = keys.iter().map(|key| store.get_read(key, &how)).collect();
    calls.iter_mut().for_each(begin);
    let _held = hand.read().await;
    drop(calls.remove(1));
    drop(calls.remove(0));
    begin(&mut calls[0]);
    assert_eq!(hand.read().await.keys, [keys[2].clone()]);
    assert_eq!(figures(&store).await, [Some(1), Some(0), Some(0)]);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_bounds_the_wait() {
    let (store, mut hand) = limited(1, 2);
    let (a, how) = (key("a"), ReadOptions::default());
    let mut held = store.get_read(&a, &how);
    begin(&mut held);
    let _held = hand.read().await;
    let deadline = Deadline::at(Runtime::system().now() + Duration::from_secs(1));
    let how = ReadOptions { deadline, ..ReadOptions::default() };
    let error = store.get_read(&a, &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(figures(&store).await, [Some(1), Some(0), Some(0)]);
}

#[tokio::test(start_paused = true)]
async fn closing_lets_those_who_wait_have_their_turn() {
    let (store, mut hand) = limited(1, 2);
    let (a, how) = (key("a"), ReadOptions::default());
    let mut calls = [store.get_read(&a, &how), store.get_read(&a, &how)];
    calls.iter_mut().for_each(begin);
    let mut close = store.close();
    begin(&mut close);
    let turns = async {
        hand.read().await.found(&[]);
        hand.read().await.found(&[]);
    };
    let [first, second] = calls;
    let (first, second, closed, ()) = tokio::join!(first, second, close, turns);
    assert!(first.is_ok() && second.is_ok() && closed.is_ok());
    let error = store.get_read(&a, &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
