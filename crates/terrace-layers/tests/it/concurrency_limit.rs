//! `ConcurrencyLimit`: how many run, how many wait, and for how long.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use terrace_core::testkit::{Hand, Scripted, StoreFixture, key};
use terrace_core::{
    BoxFuture, Deadline, ErrorKind, MemoryStore, ReadOptions, Runtime, Scan, Store, StoreExt as _,
    Write, WriteOptions,
};
use terrace_layers::{ConcurrencyLimit, ConcurrencyLimitOptions};

async fn over_memory() -> StoreFixture {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    let options = options(2);
    StoreFixture::new(Arc::new(ConcurrencyLimit::new(inner, &options, runtime)))
}

terrace_core::store_contract!(over_memory);

/// So many calls at once whatever happens, and all the time to wait.
fn options(limit: u32) -> ConcurrencyLimitOptions {
    let (least, most, max_wait) = (limit, limit, Duration::MAX);
    ConcurrencyLimitOptions { least, most, max_wait, ..ConcurrencyLimitOptions::default() }
}

fn limited(limit: u32, max_waiting: usize) -> (ConcurrencyLimit, Hand) {
    let (inner, hand) = Scripted::new();
    let options = ConcurrencyLimitOptions { max_waiting, ..options(limit) };
    (ConcurrencyLimit::new(inner, &options, Runtime::system()), hand)
}

/// With eight turns and the patience of the default.
fn impatient() -> (ConcurrencyLimit, Hand) {
    let (inner, hand) = Scripted::new();
    let options = ConcurrencyLimitOptions { limit: 8, ..ConcurrencyLimitOptions::default() };
    (ConcurrencyLimit::new(inner, &options, Runtime::system()), hand)
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
    tokio::join!(join_all(calls), order);
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

/// Reads go before a list that came earlier, and lists have a quarter of the turns.
#[tokio::test(start_paused = true)]
async fn lists_wait_behind_reads_and_leave_them_most_turns() {
    let (store, mut hand) = limited(4, 8);
    let (a, how, all) = (key("a"), ReadOptions::default(), Scan::prefix(""));
    let mut lists = vec![store.scan(&all, &how), store.scan(&all, &how)];
    lists.iter_mut().for_each(begin);
    let mut reads = (0..5).map(|_| store.get_read(&a, &how)).collect::<Vec<_>>();
    reads.iter_mut().for_each(begin);
    let list = hand.scan().await;
    let mut running = Vec::new();
    for _ in 0..3 {
        running.push(hand.read().await);
    }
    assert!(hand.try_next().is_none(), "no second list, and no fifth call");
    let tree = store.inspect().await;
    let names = ["limit", "in_use", "in_use_by_lists", "waiting"];
    assert_eq!(names.map(|name| tree.number(name)), [Some(4), Some(4), Some(1), Some(3)]);
    // The place of the list goes to a read, though the other list has waited longer.
    list.fail(ErrorKind::Internal);
    assert!(lists.remove(0).now_or_never().is_some(), "it has ended");
    begin(&mut reads[3]);
    running.push(hand.read().await);
    assert!(hand.try_next().is_none());
    let turns = async {
        running.into_iter().for_each(|read| read.found(&[]));
        hand.read().await.found(&[]);
        hand.scan().await.fail(ErrorKind::Internal);
    };
    let (reads, lists) = (join_all(reads), join_all(lists));
    let (reads, _, ()) = tokio::join!(reads, lists, turns);
    assert!(reads.iter().all(Result::is_ok));
}

/// The deadline is far; the patience of the limit is not.
#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_refused_in_time_to_go_elsewhere() {
    let (store, mut hand) = impatient();
    let (a, how) = (key("a"), ReadOptions::default());
    let mut held = (0..8).map(|_| store.get_read(&a, &how)).collect::<Vec<_>>();
    held.iter_mut().for_each(begin);
    let begun = Runtime::system().now();
    let error = store.get_read(&a, &how).await.unwrap_err();
    assert_eq!((error.kind(), error.wait()), (ErrorKind::Overloaded, Some(Duration::from_secs(1))));
    assert_eq!(Runtime::system().now() - begun, Duration::from_millis(250));
    assert_eq!(store.inspect().await.number("shed"), Some(1));
    drop(held);
    assert!(hand.try_next().is_some(), "it was asked");
    let mut next = store.get_read(&a, &how);
    begin(&mut next);
    assert_eq!(figures(&store).await, [Some(1), Some(0), Some(0)], "all turns came back");
}

/// What was acknowledged before is not refused: the flusher of a journal would only come again.
#[tokio::test(start_paused = true)]
async fn a_write_in_the_background_waits_for_its_turn_where_others_are_refused() {
    let (store, mut hand) = impatient();
    let (a, how) = (key("a"), ReadOptions::default());
    let mut held = (0..8).map(|_| store.get_read(&a, &how)).collect::<Vec<_>>();
    held.iter_mut().for_each(begin);
    let _reads = [(); 8].map(|()| hand.try_next().expect("a read"));
    let background = WriteOptions { background: true, ..WriteOptions::default() };
    let mut kept = store.write(vec![Write::delete(a.clone())], &background);
    begin(&mut kept);
    let plain = WriteOptions::default();
    let refused = store.write(vec![Write::delete(a.clone())], &plain).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    // Reads that come later do not go before it.
    let mut later = store.get_read(&a, &how);
    begin(&mut later);
    drop(held.pop());
    begin(&mut kept);
    assert_eq!(hand.write().await.batch.len(), 1);
    assert!(hand.try_next().is_none());
    assert_eq!(figures(&store).await, [Some(8), Some(1), Some(0)]);
}

/// What is asked beside the store is a list of the same database, and takes its turns.
#[tokio::test(start_paused = true)]
async fn a_question_beside_the_store_takes_the_turns_of_lists() {
    let (store, _hand) = limited(4, 8);
    let (all, how) = (Scan::prefix(""), ReadOptions::default());
    let mut list = store.scan(&all, &how);
    begin(&mut list);
    let answer = async { Ok("found") };
    let mut asked: BoxFuture<'_, _> = Box::pin(store.turns().list(Deadline::NEVER, answer));
    begin(&mut asked);
    assert_eq!(figures(&store).await, [Some(1), Some(1), Some(0)], "a quarter of four is one");
    drop(list);
    assert_eq!(asked.await.ok(), Some("found"));
    let none = store.turns().read(0, Deadline::NEVER, async { Ok(()) });
    assert!(none.now_or_never().is_some());
}
