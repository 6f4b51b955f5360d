//! `Coalesce`: what is merged, what is kept apart, and who is told what when it fails.

mod locked;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use terrace_core::testkit::{Hand, Scripted, StoreFixture, key, value};
use terrace_core::{
    BoxFuture, Consistency, Deadline, Durability, ErrorKind, Idempotency, Inspection, Key,
    MemoryStore, Page, Position, Read, ReadOptions, Receipt, Result, Runtime, Scan, Store,
    StoreExt as _, Token, Version, Write, WriteOptions,
};
use terrace_layers::{Coalesce, CoalesceOptions};

async fn over_memory() -> StoreFixture {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    StoreFixture::new(Arc::new(Coalesce::new(inner, CoalesceOptions::default(), runtime)))
}

terrace_core::store_contract!(over_memory);

/// One batch at a time of each kind, so that the second call waits for the first.
fn one_lane() -> CoalesceOptions {
    CoalesceOptions { read_lanes: 1, write_lanes: 1, ..CoalesceOptions::default() }
}

fn coalesce(options: CoalesceOptions) -> (Coalesce, Hand) {
    let (inner, hand) = Scripted::new();
    (Coalesce::new(inner, options, Runtime::system()), hand)
}

fn keys(names: &[&str]) -> Vec<Key> {
    names.iter().map(key).collect()
}

fn puts(names: &[&str]) -> Vec<Write> {
    names.iter().map(|name| Write::put(key(name), value("x"))).collect()
}

fn names(batch: &[Write]) -> Vec<&str> {
    batch.iter().map(|write| write.key.as_str()).collect()
}

/// Polls a call once: it is sent or waits from now on.
fn begin<T>(call: &mut BoxFuture<'_, T>) {
    assert!(call.as_mut().now_or_never().is_none(), "the call waits for the test");
}

fn within(time: Duration) -> Deadline {
    Deadline::at(Runtime::system().now() + time)
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn reads_that_arrive_during_a_batch_form_the_next_and_ask_a_key_once() {
    let (store, mut hand) = coalesce(one_lane());
    let how = ReadOptions::default();
    let (a, bc, b) = (keys(&["a"]), keys(&["b", "c"]), keys(&["b"]));
    let mut first = store.read(&a, &how);
    begin(&mut first);
    let call = hand.read().await;
    assert_eq!(call.keys, a, "an idle store sends at once");
    let (mut second, mut third) = (store.read(&bc, &how), store.read(&b, &how));
    begin(&mut second);
    begin(&mut third);
    assert!(hand.try_next().is_none());

    call.found(&[("a", "1", 1)]);
    let merged = hand.read().await;
    assert_eq!(merged.keys, bc);
    merged.found(&[("b", "2", 2), ("c", "3", 3)]);

    let versions = |reads: Result<Vec<Read>>| -> Vec<u64> {
        reads.unwrap().iter().map(|read| read.version.get()).collect()
    };
    assert_eq!(versions(first.await), [1]);
    assert_eq!(versions(second.await), [2, 3]);
    assert_eq!(versions(third.await), [2]);
}

#[tokio::test(start_paused = true)]
async fn lanes_send_at_the_same_time() {
    let (store, mut hand) = coalesce(CoalesceOptions::default());
    let how = ReadOptions::default();
    let all: Vec<_> = ["a", "b", "c"].iter().map(|name| keys(&[name])).collect();
    let mut calls: Vec<_> = all.iter().map(|keys| store.read(keys, &how)).collect();
    begin(&mut calls[0]);
    let first = hand.read().await;
    begin(&mut calls[1]);
    let second = hand.read().await;
    begin(&mut calls[2]);
    tokio::task::yield_now().await;
    assert!(hand.try_next().is_none(), "two lanes are taken");
    second.found(&[]);
    hand.read().await.found(&[]);
    first.found(&[]);
    assert!(join_all(calls).await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn writes_are_merged_in_order_and_each_callers_batch_stays_whole() {
    let (store, mut hand) = coalesce(CoalesceOptions { max_writes: 4, ..one_lane() });
    let how = WriteOptions::default();
    let mut first = store.write(puts(&["a"]), &how);
    begin(&mut first);
    let call = hand.write().await;
    let mut rest: Vec<_> = [&["b", "c"][..], &["d"], &["e", "f"], &["g"]]
        .iter()
        .map(|names| store.write(puts(names), &how))
        .collect();
    rest.iter_mut().for_each(begin);
    call.applied(1);
    let call = hand.write().await;
    assert_eq!(names(&call.batch), ["b", "c", "d"], "five would be too many");
    call.applied(2);
    let call = hand.write().await;
    assert_eq!(names(&call.batch), ["e", "f", "g"]);
    call.applied(5);
    first.await.unwrap();
    let versions: Vec<Vec<u64>> = join_all(rest)
        .await
        .into_iter()
        .map(|receipts| receipts.unwrap().iter().map(|receipt| receipt.version.get()).collect())
        .collect();
    assert_eq!(versions, [vec![2, 3], vec![4], vec![5, 6], vec![7]]);

    let tree = store.inspect().await;
    let coalesce = tree.find("coalesce").unwrap();
    assert_eq!(coalesce.number("writes"), Some(5));
    assert_eq!(coalesce.number("write_batches"), Some(3));
}

#[tokio::test(start_paused = true)]
async fn calls_with_wishes_of_their_own_go_straight_through() {
    let (store, mut hand) =
        coalesce(CoalesceOptions { max_read_keys: 2, max_writes: 2, ..one_lane() });
    let (plain, a, abc) = (ReadOptions::default(), keys(&["a"]), keys(&["a", "b", "c"]));
    let mut held = store.read(&a, &plain);
    begin(&mut held);
    let _held = hand.read().await;
    let token = Some(Token::of("db", Position::new(1)));
    let others = [
        ReadOptions { token, ..ReadOptions::default() },
        ReadOptions { consistency: Consistency::MaxStale(SECOND), ..ReadOptions::default() },
        ReadOptions::strong(Deadline::NEVER),
    ];
    for how in &others {
        let mut read = store.read(&a, how);
        begin(&mut read);
        assert_eq!(hand.read().await.how, *how);
    }
    let mut large = store.read(&abc, &plain);
    begin(&mut large);
    assert_eq!(hand.read().await.keys, abc);

    let plain = WriteOptions::default();
    let mut held = store.write(puts(&["a"]), &plain);
    begin(&mut held);
    let _held = hand.write().await;
    let request = Arc::new(Idempotency::new("1", [0; 32]).unwrap());
    let others = [
        WriteOptions { idempotency: Some(request), ..WriteOptions::default() },
        WriteOptions { durability: Some(Durability::Accepted), ..WriteOptions::default() },
    ];
    for how in &others {
        let mut write = store.write(puts(&["a"]), how);
        begin(&mut write);
        assert_eq!(hand.write().await.how.idempotency, how.idempotency);
    }
    let mut large = store.write(puts(&["a", "b", "c"]), &plain);
    begin(&mut large);
    assert_eq!(hand.write().await.batch.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_past_its_deadline_or_its_caller_is_withdrawn() {
    let (store, mut hand) = coalesce(one_lane());
    let never = WriteOptions::default();
    let soon = WriteOptions { deadline: within(SECOND), ..WriteOptions::default() };
    let mut first = store.write(puts(&["a"]), &never);
    begin(&mut first);
    let call = hand.write().await;
    let mut gone = store.write(puts(&["gone"]), &never);
    begin(&mut gone);
    let mut late = store.write(puts(&["late"]), &soon);
    begin(&mut late);
    let mut last = store.write(puts(&["last"]), &never);
    begin(&mut last);
    drop(gone);
    assert_eq!(late.await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    call.applied(1);
    let call = hand.write().await;
    assert_eq!(names(&call.batch), ["last"]);
    call.applied(2);
    last.await.unwrap();
    assert_eq!(store.inspect().await.number("withdrawn"), Some(2));
    assert_eq!(store.inspect().await.number("waiting_writes"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn after_it_was_sent_a_late_read_is_late_and_a_late_write_unknown() {
    let (store, mut hand) = coalesce(one_lane());
    let (deadline, a) = (within(SECOND), keys(&["a"]));
    let how = ReadOptions { deadline, ..ReadOptions::default() };
    let mut read = store.read(&a, &how);
    begin(&mut read);
    let _held = hand.read().await;
    assert_eq!(read.await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);

    let how = WriteOptions { deadline: within(SECOND), ..WriteOptions::default() };
    let mut write = store.write(puts(&["a"]), &how);
    begin(&mut write);
    let held = hand.write().await;
    assert_eq!(write.await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert!(!held.is_abandoned(), "the batch goes on without the caller");
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_the_latest_deadline_of_its_callers() {
    let (store, mut hand) = coalesce(one_lane());
    let (a, never) = (keys(&["a"]), ReadOptions::default());
    let soon = ReadOptions { deadline: within(SECOND), ..ReadOptions::default() };
    let later = ReadOptions { deadline: within(SECOND * 2), ..ReadOptions::default() };
    let mut first = store.read(&a, &soon);
    begin(&mut first);
    let call = hand.read().await;
    assert_eq!(call.how, soon);
    let mut both = [store.read(&a, &later), store.read(&a, &soon)];
    both.iter_mut().for_each(begin);
    call.found(&[]);
    let call = hand.read().await;
    assert_eq!(call.how, later);
    let mut all = [store.read(&a, &never), store.read(&a, &soon)];
    all.iter_mut().for_each(begin);
    call.found(&[]);
    assert_eq!(hand.read().await.how, never);
}

#[tokio::test(start_paused = true)]
async fn a_bad_write_fails_alone() {
    let (store, mut hand) = coalesce(one_lane());
    let how = WriteOptions::default();
    let mut calls: Vec<_> = (0..9)
        .map(|number| store.write(puts(&[if number == 5 { "bad" } else { "good" }]), &how))
        .collect();
    begin(&mut calls[0]);
    let first = hand.write().await;
    calls[1..].iter_mut().for_each(begin);
    first.applied(1);
    let database = async {
        let mut sent = 0;
        let mut applied = 0;
        while applied < 7 {
            let call = hand.write().await;
            sent += 1;
            if names(&call.batch).contains(&"bad") {
                call.fail(ErrorKind::InvalidInput);
            } else {
                applied += call.batch.len();
                call.applied(10);
            }
        }
        sent
    };
    let (answers, sent) = tokio::join!(join_all(calls), database);
    for (number, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(_) => assert_ne!(number, 5),
            Err(error) => assert_eq!((number, error.kind()), (5, ErrorKind::InvalidInput)),
        }
    }
    assert_eq!(sent, 7, "eight, two fours, two twos, two ones");
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_or_nobody_knows_is_told_to_all_and_not_tried_again() {
    for kind in [ErrorKind::Unavailable, ErrorKind::Overloaded, ErrorKind::OutcomeUnknown] {
        let (store, mut hand) = coalesce(one_lane());
        let how = WriteOptions::default();
        let mut calls: Vec<_> = (0..3).map(|_| store.write(puts(&["a"]), &how)).collect();
        calls.iter_mut().for_each(begin);
        let call = hand.write().await;
        assert_eq!(call.batch.len(), 3, "all came before the lane was polled");
        call.fail(kind);
        for answer in join_all(calls).await {
            assert_eq!(answer.unwrap_err().kind(), kind);
        }
        assert!(hand.try_next().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_the_queue_holds_is_turned_away() {
    let (store, mut hand) = coalesce(CoalesceOptions { max_waiting_writes: 2, ..one_lane() });
    let how = WriteOptions::default();
    let mut first = store.write(puts(&["a"]), &how);
    begin(&mut first);
    let call = hand.write().await;
    let mut waits = store.write(puts(&["b", "c"]), &how);
    begin(&mut waits);
    let error = store.write(puts(&["d"]), &how).await.unwrap_err();
    assert_eq!((error.kind(), error.wait()), (ErrorKind::Overloaded, Some(SECOND)));
    call.applied(1);
    hand.write().await.applied(2);
    waits.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn large_values_make_small_batches_and_fill_the_queue() {
    let options = CoalesceOptions { max_write_bytes: 250, max_waiting_bytes: 400, ..one_lane() };
    let (store, mut hand) = coalesce(options);
    let how = WriteOptions::default();
    // One byte of key each.
    let put = |name, bytes| vec![Write::put(key(name), value("x".repeat(bytes)))];
    let mut first = store.write(put("a", 10), &how);
    begin(&mut first);
    let call = hand.write().await;
    let mut rest = ["b", "c", "d"].map(|name| store.write(put(name, 100), &how));
    rest.iter_mut().for_each(begin);
    let error = store.write(put("e", 100), &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    let mut large = store.write(put("f", 300), &how);
    begin(&mut large);
    assert_eq!(names(&hand.write().await.batch), ["f"], "it goes straight through");
    call.applied(1);
    let call = hand.write().await;
    assert_eq!(names(&call.batch), ["b", "c"]);
    call.applied(2);
    assert_eq!(names(&hand.write().await.batch), ["d"]);
    assert_eq!(store.inspect().await.number("waiting_bytes"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn closing_finishes_what_was_accepted() {
    let (store, mut hand) = coalesce(one_lane());
    let how = WriteOptions::default();
    let mut calls = [store.write(puts(&["a"]), &how), store.write(puts(&["b"]), &how)];
    begin(&mut calls[0]);
    let call = hand.write().await;
    begin(&mut calls[1]);
    let mut close = store.close();
    begin(&mut close);
    let error = store.write(puts(&["c"]), &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    call.applied(1);
    hand.write().await.applied(2);
    close.await.unwrap();
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    store.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_layer_keeps_nothing_alive() {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    let watch = Arc::downgrade(&inner);
    let store = Coalesce::new(inner, CoalesceOptions::default(), runtime);
    store.put(key("a"), value("1")).await.unwrap();
    store.get(&key("a")).await.unwrap();
    while store.inspect().await.number("writes_in_flight") != Some(0)
        || store.inspect().await.number("reads_in_flight") != Some(0)
    {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    drop(store);
    assert!(watch.upgrade().is_none());
}

#[test]
fn a_runtime_that_ends_leaves_nobody_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (store, mut hand) = coalesce(one_lane());
    let how = WriteOptions::default();
    let mut sent = store.write(puts(&["a"]), &how);
    let mut waits = store.write(puts(&["b"]), &how);
    let first = runtime();
    let held = first.block_on(async {
        begin(&mut sent);
        let held = hand.write().await;
        begin(&mut waits);
        held
    });
    drop(first);
    let (sent, waits) = runtime().block_on(async { tokio::join!(sent, waits) });
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(waits.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(held.is_abandoned());
}

#[tokio::test(start_paused = true)]
async fn a_panic_below_is_an_error_above_and_not_the_end() {
    let store = Coalesce::new(Arc::new(Panics), CoalesceOptions::default(), Runtime::system());
    for _ in 0..4 {
        let error = store.get(&key("a")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        let error = store.put(key("a"), value("1")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_too_little_is_found_out() {
    let (store, mut hand) = coalesce(one_lane());
    let (how, a, b) = (ReadOptions::default(), keys(&["a"]), keys(&["b"]));
    let mut calls = [store.read(&a, &how), store.read(&b, &how)];
    calls.iter_mut().for_each(begin);
    hand.read().await.answer(Ok(Vec::new()));
    let one_by_one = async {
        hand.read().await.found(&[("a", "1", 1)]);
        hand.read().await.found(&[]);
    };
    let (answers, ()) = tokio::join!(join_all(calls), one_by_one);
    assert_eq!(answers[0].as_ref().unwrap()[0].version, Version::new(1));
}

/// Callers come and go in an order that a seed decides; what is sent is always what a plain list of
/// those who wait says.
#[tokio::test(start_paused = true)]
async fn whoever_comes_and_goes_what_is_sent_is_who_waits() {
    for seed in 0..50 {
        let runtime = Runtime::seeded(seed);
        let below = |limit: usize| usize::try_from(runtime.random() >> 33).unwrap() % limit;
        let (store, mut hand) = coalesce(CoalesceOptions { max_writes: 5, ..one_lane() });
        let how = WriteOptions::default();
        let mut first = store.write(puts(&["first"]), &how);
        begin(&mut first);
        let mut call = hand.write().await;
        let mut waiting = Vec::new();
        for round in 0..200 {
            match below(8) {
                0..4 => {
                    let own = vec![format!("{round}"); 1 + below(3)];
                    let names: Vec<_> = own.iter().map(String::as_str).collect();
                    let mut write = store.write(puts(&names), &how);
                    begin(&mut write);
                    waiting.push((own, write));
                }
                4..7 if !waiting.is_empty() => drop(waiting.remove(below(waiting.len()))),
                _ if !waiting.is_empty() => {
                    let mut size = 0;
                    let fits = waiting.iter().take_while(|(own, _)| {
                        size += own.len();
                        size <= 5
                    });
                    let taken: Vec<_> = waiting.drain(..fits.count()).collect();
                    call.applied(1);
                    call = hand.write().await;
                    let expected = taken.iter().flat_map(|(own, _)| own);
                    assert!(expected.eq(names(&call.batch)), "seed {seed}, round {round}");
                }
                _ => {}
            }
            let size: usize = waiting.iter().map(|(own, _)| own.len()).sum();
            assert_eq!(store.inspect().await.number("waiting_writes"), Some(size as u64));
        }
    }
}

#[derive(Debug)]
struct Panics;

impl fmt::Display for Panics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("panics")
    }
}

impl Store for Panics {
    fn read<'a>(&'a self, _: &'a [Key], _: &'a ReadOptions) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async { panic!("a defect, on purpose") })
    }

    fn write<'a>(
        &'a self,
        _: Vec<Write>,
        _: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async { panic!("a defect, on purpose") })
    }

    fn scan<'a>(&'a self, _: &'a Scan, _: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async { panic!("a defect, on purpose") })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { Inspection::new("panics") })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
