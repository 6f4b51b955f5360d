//! `Retry`: what is made again, how often, and when not.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{Hand, Scripted, StoreFixture, key, value};
use terrace_core::{
    Deadline, Error, ErrorKind, MemoryStore, ReadOptions, Runtime, Scan, Store, StoreExt as _,
};
use terrace_layers::{Retry, RetryOptions};

async fn over_memory() -> StoreFixture {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    StoreFixture::new(Arc::new(Retry::new(inner, RetryOptions::default(), runtime)))
}

terrace_core::store_contract!(over_memory);

fn retry() -> (Retry, Hand) {
    let (inner, hand) = Scripted::new();
    (Retry::new(inner, RetryOptions::default(), Runtime::seeded(1)), hand)
}

async fn figures(store: &Retry) -> [Option<u64>; 4] {
    let tree = store.inspect().await;
    ["retries", "recovered", "unaffordable", "budget"].map(|name| tree.number(name))
}

#[tokio::test(start_paused = true)]
async fn a_read_or_a_list_is_made_again_and_a_write_is_not() {
    let (store, mut hand) = retry();
    let (a, how) = (key("a"), ReadOptions::default());
    let turns = async {
        hand.read().await.fail(ErrorKind::Unavailable);
        hand.read().await.found(&[]);
        for _ in 0..3 {
            hand.scan().await.fail(ErrorKind::Unavailable);
        }
        hand.write().await.fail(ErrorKind::Unavailable);
    };
    let calls = async {
        assert!(store.get_read(&a, &how).await.is_ok());
        let listed = store.scan(&Scan::prefix(""), &how).await;
        assert_eq!(listed.unwrap_err().kind(), ErrorKind::Unavailable, "three times is enough");
        assert!(store.put(a.clone(), value("v")).await.is_err());
    };
    tokio::join!(turns, calls);
    assert!(hand.try_next().is_none(), "the write was made once");
    assert_eq!(figures(&store).await, [Some(3), Some(1), Some(0), Some(7)]);
}

/// What stays wrong, what is too late, and what says when to come back.
#[tokio::test(start_paused = true)]
async fn what_would_not_be_better_in_a_moment_is_answered_at_once() {
    let (store, mut hand) = retry();
    let (a, how) = (key("a"), ReadOptions::default());
    let begun = Runtime::system().now();
    let plain = |kind| Error::new(kind, "scripted");
    let errors = [
        plain(ErrorKind::InvalidInput),
        plain(ErrorKind::Overloaded),
        plain(ErrorKind::DeadlineExceeded),
        plain(ErrorKind::Moved),
        plain(ErrorKind::Unavailable).retry_after(Duration::from_secs(1)),
    ];
    for error in errors {
        let kind = error.kind();
        let turn = async { hand.read().await.answer(Err(error)) };
        let (answer, ()) = tokio::join!(store.get_read(&a, &how), turn);
        assert_eq!(answer.unwrap_err().kind(), kind);
    }
    assert_eq!(Runtime::system().now(), begun);
    // The pause would outlast the deadline.
    let how = ReadOptions { deadline: Deadline::at(begun + Duration::from_nanos(1)), ..how };
    let turn = async { hand.read().await.fail(ErrorKind::Unavailable) };
    let (answer, ()) = tokio::join!(store.get_read(&a, &how), turn);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(figures(&store).await, [Some(0), Some(0), Some(0), Some(10)]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_gets_a_tenth_more_calls() {
    let (store, mut hand) = retry();
    let (a, how) = (key("a"), ReadOptions::default());
    let calls = async {
        for _ in 0..1000 {
            store.get_read(&a, &how).await.unwrap_err();
        }
    };
    let down = async {
        loop {
            hand.read().await.fail(ErrorKind::Unavailable);
        }
    };
    tokio::select! { () = calls => {}, () = down => {} }
    let [retries, _, unaffordable, _] = figures(&store).await;
    assert!((100..=110).contains(&retries.unwrap()), "{retries:?}");
    assert!(unaffordable >= Some(890), "{unaffordable:?}");
}
