//! `SingleFlight`: a crowd costs two reads, nobody is stranded, and nobody sees an old answer.

mod joining;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use terrace_core::testkit::{Hand, Scripted, StoreFixture, key, value};
use terrace_core::{
    BoxFuture, Deadline, ErrorKind, MemoryStore, Position, Read, ReadOptions, Result, Runtime,
    Store, StoreExt as _, Token, Version,
};
use terrace_layers::SingleFlight;

async fn over_memory() -> StoreFixture {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    StoreFixture::new(Arc::new(SingleFlight::new(inner, runtime)))
}

terrace_core::store_contract!(over_memory);

fn single_flight() -> (SingleFlight, Hand) {
    let (inner, hand) = Scripted::new();
    (SingleFlight::new(inner, Runtime::system()), hand)
}

/// Polls a call once: it is under way or waits from now on.
fn begin<T>(call: &mut BoxFuture<'_, T>) {
    assert!(call.as_mut().now_or_never().is_none(), "the call waits for the test");
}

fn version(read: &Result<Read>) -> u64 {
    read.as_ref().unwrap().version.get()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_readers_of_a_key_are_two_reads() {
    let (store, mut hand) = single_flight();
    let (a, how) = (key("a"), ReadOptions::default());
    let mut readers: Vec<_> = (0..1000).map(|_| store.get_read(&a, &how)).collect();
    readers.iter_mut().for_each(begin);
    let first = hand.read().await;
    assert!(hand.try_next().is_none());
    assert_eq!(store.inspect().await.number("keys_in_flight"), Some(1));
    first.found(&[("a", "1", 1)]);
    let second = async {
        hand.read().await.found(&[("a", "2", 2)]);
        assert!(hand.try_next().is_none());
    };
    let (answers, ()) = tokio::join!(join_all(readers), second);
    assert_eq!(version(&answers[0]), 1);
    assert!(answers[1..].iter().all(|answer| version(answer) == 2));
    let tree = store.inspect().await;
    let figures = ["reads", "shared", "keys_in_flight"].map(|name| tree.number(name));
    assert_eq!(figures, [Some(1000), Some(999), Some(0)]);
}

/// Whether a reader sees the write that was acknowledged before it began, while an older reader's
/// load is held.
async fn sees_what_was_acknowledged(store: impl Store, mut hand: Hand) -> bool {
    let (a, how) = (key("a"), ReadOptions::default());
    let mut old = store.get_read(&a, &how);
    begin(&mut old);
    let held = hand.read().await;
    let write = async { hand.write().await.applied(2) };
    let (receipt, ()) = tokio::join!(store.put(a.clone(), value("2")), write);
    assert_eq!(receipt.unwrap().version, Version::new(2));

    let mut new = store.get_read(&a, &how);
    begin(&mut new);
    held.found(&[("a", "1", 1)]);
    let database = async {
        loop {
            hand.read().await.found(&[("a", "2", 2)]);
        }
    };
    let both = async { tokio::join!(old, new) };
    let (old, new) = tokio::select! { both = both => both, () = database => unreachable!() };
    assert_eq!(version(&old), 1);
    version(&new) == 2
}

#[tokio::test(start_paused = true)]
async fn a_reader_sees_every_write_acknowledged_before_it_began() {
    let (store, hand) = single_flight();
    assert!(sees_what_was_acknowledged(store, hand).await);
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_joins_the_running_read_is_caught() {
    let (inner, hand) = Scripted::new();
    let broken = joining::JoiningFlight::new(inner);
    assert!(!sees_what_was_acknowledged(broken, hand).await);
}

#[tokio::test(start_paused = true)]
async fn a_failure_goes_to_those_who_share_it_and_is_not_kept() {
    let (store, mut hand) = single_flight();
    let (a, how) = (key("a"), ReadOptions::default());
    let mut readers: Vec<_> = (0..3).map(|_| store.get_read(&a, &how)).collect();
    readers.iter_mut().for_each(begin);
    hand.read().await.found(&[]);
    let database = async { hand.read().await.fail(ErrorKind::Unavailable) };
    let (answers, ()) = tokio::join!(join_all(readers), database);
    assert!(answers[0].is_ok());
    for answer in &answers[1..] {
        assert_eq!(answer.as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
    }
    let database = async { hand.read().await.found(&[("a", "1", 1)]) };
    let (answer, ()) = tokio::join!(store.get_read(&a, &how), database);
    assert_eq!(version(&answer), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_away_strands_nobody() {
    let (store, mut hand) = single_flight();
    let (a, how) = (key("a"), ReadOptions::default());
    let mut leader = store.get_read(&a, &how);
    begin(&mut leader);
    let mut abandoned = hand.read().await;
    let mut readers: Vec<_> = (0..3).map(|_| store.get_read(&a, &how)).collect();
    readers.iter_mut().for_each(begin);

    drop(leader);
    abandoned.abandoned().await;
    begin(&mut readers[0]);
    let call = hand.read().await;
    drop(readers.remove(0));
    assert!(!call.is_abandoned(), "two more wait for it");
    call.found(&[("a", "1", 1)]);
    assert!(join_all(readers).await.iter().all(|answer| version(answer) == 1));
    assert_eq!(store.inspect().await.number("keys_in_flight"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn the_work_ends_with_the_last_reader() {
    let (store, mut hand) = single_flight();
    let (a, how) = (key("a"), ReadOptions::default());
    let mut leader = store.get_read(&a, &how);
    begin(&mut leader);
    let first = hand.read().await;
    let mut readers = [store.get_read(&a, &how), store.get_read(&a, &how)];
    readers.iter_mut().for_each(begin);
    // They go before the shared read gets its turn, and another takes their place.
    drop(readers);
    let mut other = store.get_read(&a, &how);
    begin(&mut other);
    first.found(&[]);
    leader.await.unwrap();
    // It goes after the shared read got its turn, before it used it.
    drop(other);
    assert!(hand.try_next().is_none());
    assert_eq!(store.inspect().await.number("keys_in_flight"), Some(0));

    let mut leader = store.get_read(&a, &how);
    begin(&mut leader);
    let first = hand.read().await;
    let mut other = store.get_read(&a, &how);
    begin(&mut other);
    first.found(&[]);
    leader.await.unwrap();
    begin(&mut other);
    let mut call = hand.read().await;
    drop(other);
    call.abandoned().await;
    assert_eq!(store.inspect().await.number("keys_in_flight"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn each_reader_waits_until_its_own_deadline() {
    let (store, mut hand) = single_flight();
    let after = |seconds| ReadOptions {
        deadline: Deadline::at(Runtime::system().now() + Duration::from_secs(seconds)),
        ..ReadOptions::default()
    };
    let (a, long, short, middle) = (key("a"), after(9), after(1), after(5));
    let mut leader = store.get_read(&a, &long);
    begin(&mut leader);
    let first = hand.read().await;
    let (mut hasty, mut patient) = (store.get_read(&a, &short), store.get_read(&a, &middle));
    begin(&mut hasty);
    begin(&mut patient);
    assert_eq!(hasty.await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    first.found(&[]);
    let call = async {
        let call = hand.read().await;
        assert_eq!(call.how, middle, "the latest deadline of those who share it");
        call.found(&[]);
    };
    let (led, shared, ()) = tokio::join!(leader, patient, call);
    assert!(led.is_ok() && shared.is_ok());
}

#[tokio::test(start_paused = true)]
async fn reads_with_wishes_of_their_own_go_straight_through() {
    let (store, mut hand) = single_flight();
    let (a, plain) = (vec![key("a")], ReadOptions::default());
    let mut held = store.read(&a, &plain);
    begin(&mut held);
    let _held = hand.read().await;
    let token = Some(Token::of("db", Position::new(1)));
    let others = [ReadOptions { token, ..plain.clone() }, ReadOptions::strong(Deadline::NEVER)];
    for how in &others {
        let mut read = store.read(&a, how);
        begin(&mut read);
        assert_eq!(hand.read().await.how, *how);
    }
    let two = vec![key("a"), key("b")];
    let mut read = store.read(&two, &plain);
    begin(&mut read);
    assert_eq!(hand.read().await.keys, two);
}
