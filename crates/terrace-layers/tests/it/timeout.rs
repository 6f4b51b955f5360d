//! `Timeout`: which deadline goes down, and what is answered when nothing comes back.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{Call, Hand, Scripted, StoreFixture, key, value};
use terrace_core::{
    Deadline, Error, ErrorKind, MemoryStore, ReadOptions, Runtime, Scan, Store, StoreExt as _,
    Write, WriteOptions,
};
use terrace_layers::{Timeout, TimeoutOptions};

async fn over_memory() -> StoreFixture {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    StoreFixture::new(Arc::new(Timeout::new(inner, TimeoutOptions::default(), runtime)))
}

terrace_core::store_contract!(over_memory);

const MS: Duration = Duration::from_millis(1);

fn timeout() -> (Timeout, Hand) {
    let (inner, hand) = Scripted::new();
    let options =
        TimeoutOptions { read: 100 * MS, write: 200 * MS, scan: 300 * MS, grace: 50 * MS };
    (Timeout::new(inner, options, Runtime::system()), hand)
}

#[tokio::test(start_paused = true)]
async fn the_earlier_deadline_goes_down() {
    let (store, mut hand) = timeout();
    let (a, now) = (key("a"), Runtime::system().now());
    let at = |time| Deadline::at(now + time);
    for (asked, passed_on) in
        [(Deadline::NEVER, at(100 * MS)), (at(10 * MS), at(10 * MS)), (at(1000 * MS), at(100 * MS))]
    {
        let how = ReadOptions { deadline: asked, ..ReadOptions::default() };
        let call = async {
            let call = hand.read().await;
            assert_eq!(call.how.deadline, passed_on);
            call.found(&[]);
        };
        let (answer, ()) = tokio::join!(store.get_read(&a, &how), call);
        answer.unwrap();
    }
    let call = async {
        let call = hand.write().await;
        assert_eq!(call.how.deadline, at(200 * MS));
        call.applied(1);
    };
    let (answer, ()) = tokio::join!(store.put(a.clone(), value("1")), call);
    answer.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_given_up_after_the_grace() {
    let runtime = Runtime::system();
    let (store, mut hand) = timeout();
    let (a, how, start) = (key("a"), ReadOptions::default(), runtime.now());
    let (answer, mut call) = tokio::join!(store.get_read(&a, &how), hand.read());
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    // Timers of the runtime count whole milliseconds.
    assert!((150 * MS..=152 * MS).contains(&(runtime.now() - start)));
    call.abandoned().await;

    let (answer, call) = tokio::join!(store.put(a.clone(), value("1")), hand.write());
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert!(call.is_abandoned());

    let scan = Scan::prefix("");
    let (answer, call) = tokio::join!(store.scan(&scan, &how), hand.next());
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(matches!(call, Call::Scan(_)));
    assert_eq!(store.inspect().await.number("cut_off"), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_keeps_the_deadline_says_itself_what_happened() {
    let runtime = Runtime::system();
    let (store, mut hand) = timeout();
    let late = async {
        let call = hand.write().await;
        runtime.sleep_until(call.how.deadline.instant().unwrap()).await;
        call.answer(Err(Deadline::exceeded()));
    };
    let (answer, ()) = tokio::join!(store.put(key("a"), value("1")), late);
    assert_eq!(answer.unwrap_err(), Deadline::exceeded());

    let late = async { hand.write().await.answer(Err(Error::invalid("no"))) };
    let (answer, ()) = tokio::join!(store.put(key("a"), value("1")), late);
    assert_eq!(answer.unwrap_err().message(), "no");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_too_late_from_the_start_is_not_unknown() {
    let (store, mut hand) = timeout();
    let deadline = Deadline::at(Runtime::system().now());
    let how = WriteOptions { deadline, ..WriteOptions::default() };
    let error = store.write(vec![Write::delete(key("a"))], &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(hand.try_next().is_none());
}
