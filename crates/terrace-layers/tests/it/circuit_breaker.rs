//! `CircuitBreaker`: what opens it, and who reaches the store while it is half-open.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use terrace_core::testkit::{Call, Hand, Scripted, StoreFixture, key, value};
use terrace_core::{
    Deadline, ErrorKind, Inspection, MemoryStore, ReadOptions, Result, Runtime, Status, Store,
    StoreExt as _,
};
use terrace_layers::{CircuitBreaker, CircuitBreakerOptions};

async fn over_memory() -> StoreFixture {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    let options = CircuitBreakerOptions::default();
    StoreFixture::new(Arc::new(CircuitBreaker::new(inner, options, runtime)))
}

terrace_core::store_contract!(over_memory);

const SECOND: Duration = Duration::from_secs(1);
const DOWN: (ErrorKind, Duration) = (ErrorKind::Unavailable, Duration::ZERO);

fn breaker() -> (CircuitBreaker, Hand) {
    let (inner, hand) = Scripted::new();
    (CircuitBreaker::new(inner, CircuitBreakerOptions::default(), Runtime::seeded(1)), hand)
}

/// Reads at once, each of which fails like this after a while.
async fn fail_reads(
    store: &CircuitBreaker,
    hand: &mut Hand,
    count: usize,
    (kind, after): (ErrorKind, Duration),
) {
    let (a, how) = (key("a"), ReadOptions::default());
    let reads = join_all((0..count).map(|_| store.get_read(&a, &how)));
    let turns = async {
        Runtime::system().sleep(after).await;
        for _ in 0..count {
            hand.read().await.fail(kind);
        }
    };
    let (answers, ()) = tokio::join!(reads, turns);
    assert!(answers.iter().all(Result::is_err));
}

/// Without the look that probes.
async fn is_refused(store: &CircuitBreaker) -> bool {
    let how =
        ReadOptions { deadline: Deadline::at(Runtime::system().now()), ..ReadOptions::default() };
    let answer = store.get_read(&key("a"), &how).now_or_never();
    answer.is_some_and(|answer| answer.is_err_and(|error| error.wait() == Some(SECOND)))
}

fn state(tree: &Inspection, of: usize) -> String {
    tree.children[of].known("breaker").expect("a state").to_string()
}

/// At a half-open breaker a thousand concurrent calls arrive: three reach the store, all others are refused.
#[tokio::test(start_paused = true)]
async fn of_a_thousand_calls_at_once_the_probes_alone_reach_the_store() {
    let (store, mut hand) = breaker();
    fail_reads(&store, &mut hand, 20, DOWN).await;
    assert!(is_refused(&store).await);
    Runtime::system().sleep(SECOND).await;
    let (a, how) = (key("a"), ReadOptions::default());
    let mut calls = (0..1000).map(|_| store.get_read(&a, &how)).collect::<Vec<_>>();
    let mut refused = 0;
    calls.retain_mut(|call| match call.now_or_never() {
        None => true,
        Some(answer) => {
            let error = answer.expect_err("nobody has answered");
            assert_eq!((error.kind(), error.wait()), (ErrorKind::Unavailable, Some(SECOND)));
            refused += 1;
            false
        }
    });
    assert_eq!((calls.len(), refused), (3, 997));
    let probes = [hand.read().await, hand.read().await, hand.read().await];
    assert!(hand.try_next().is_none(), "no other call has come through");
    // A caller that goes away makes room for one more.
    drop(calls.pop());
    let mut next = store.get_read(&a, &how);
    assert!(next.as_mut().now_or_never().is_none());
    let last = hand.read().await;
    assert!(is_refused(&store).await);
    let answers = async {
        probes.into_iter().for_each(|probe| probe.found(&[]));
        last.found(&[]);
    };
    let (ended, next, ()) = tokio::join!(join_all(calls), next, answers);
    assert!(ended.iter().all(Result::is_ok) && next.is_ok());
    assert!(!is_refused(&store).await, "it is closed");
}

#[tokio::test(start_paused = true)]
async fn what_the_client_is_the_reason_of_opens_nothing() {
    let (store, mut hand) = breaker();
    for kind in [ErrorKind::InvalidInput, ErrorKind::Overloaded, ErrorKind::Moved] {
        fail_reads(&store, &mut hand, 100, (kind, 2 * SECOND)).await;
    }
    // Their callers had no time: it took none.
    fail_reads(&store, &mut hand, 100, (ErrorKind::DeadlineExceeded, Duration::ZERO)).await;
    assert!(!is_refused(&store).await);
    let Some(Call::Read(asked)) = hand.try_next() else { panic!("the look came through") };
    assert!(asked.is_abandoned());
    fail_reads(&store, &mut hand, 20, DOWN).await;
    assert!(is_refused(&store).await);
}

/// A full disk, or a database that is read-only, takes no writes and answers reads.
#[tokio::test(start_paused = true)]
async fn writes_that_fail_keep_no_reads_out() {
    let (store, mut hand) = breaker();
    for _ in 0..20 {
        let turn = async { hand.write().await.fail(ErrorKind::Unavailable) };
        let (answer, ()) = tokio::join!(store.put(key("a"), value("v")), turn);
        answer.unwrap_err();
    }
    let error = store.put(key("a"), value("v")).await.unwrap_err();
    assert_eq!((error.kind(), error.wait()), (ErrorKind::Unavailable, Some(SECOND)));
    let (a, how) = (key("a"), ReadOptions::default());
    let turn = async { hand.read().await.found(&[]) };
    let (answer, ()) = tokio::join!(store.get_read(&a, &how), turn);
    assert!(answer.is_ok());
    let tree = store.inspect().await;
    assert_eq!((state(&tree, 0), state(&tree, 1)), ("closed".to_owned(), "open".to_owned()));
    assert_eq!(tree.status, Status::Degraded);
}

#[tokio::test(start_paused = true)]
async fn whoever_looks_tries_it_where_no_request_does() {
    let (store, mut hand) = breaker();
    fail_reads(&store, &mut hand, 20, DOWN).await;
    assert_eq!(store.inspect().await.status, Status::Degraded);
    Runtime::system().sleep(SECOND).await;
    let turn = async { hand.scan().await.fail(ErrorKind::Unavailable) };
    let (tree, ()) = tokio::join!(store.inspect(), turn);
    assert_eq!(state(&tree, 0), "open");
    Runtime::system().sleep(2 * SECOND).await;
    let memory = MemoryStore::new(Runtime::system());
    let turn = async { Call::Scan(hand.scan().await).pass_on(&memory).await };
    let (tree, ()) = tokio::join!(store.inspect(), turn);
    assert_eq!((state(&tree, 0).as_str(), tree.status), ("closed", Status::Healthy));
}
