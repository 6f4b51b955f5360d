//! Breakers that count in a row, breakers that count a rate, and who is admitted when they are half-open.

use super::BreakerState::{Closed, HalfOpen, Open};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn breaker_of(trip: Trip) -> Breaker {
    let pauses = Backoff::new(10 * SECOND, 40 * SECOND);
    Breaker::new(trip, pauses, Runtime::seeded(1))
}

fn breaker(threshold: u32) -> Breaker {
    breaker_of(Trip::InARow(threshold))
}

/// Half of at least 10 calls within 4 s; two probes.
fn by_rate() -> Breaker {
    breaker_of(Trip::Rate { percent: 50, calls: 10, within: 4 * SECOND, probes: 2 })
}

/// With the ± 20 % of a pause.
async fn pass_pauses(seconds: u32) {
    tokio::time::advance(SECOND * seconds * 6 / 5).await;
}

fn admitted(breaker: &Breaker) -> Pass {
    breaker.admit().expect("it admits")
}

/// Admits so many calls, of which none ends before the last was admitted.
fn calls(breaker: &Breaker, failed: usize, succeeded: usize) {
    let all = (0..failed + succeeded).map(|_| admitted(breaker)).collect::<Vec<_>>();
    for (number, call) in all.into_iter().enumerate() {
        let _ = if number < failed { call.failed() } else { call.succeeded() };
    }
}

fn figures(breaker: &Breaker) -> [Option<u64>; 3] {
    let tree = breaker.show(Inspection::new("user"));
    ["breaker_opened", "breaker_probes", "breaker_refused"].map(|name| tree.number(name))
}

#[tokio::test(start_paused = true)]
async fn opens_after_failures_in_a_row_and_admits_one_probe() {
    let breaker = breaker(2);
    assert!(!admitted(&breaker).failed());
    assert!(!admitted(&breaker).succeeded(), "it was closed");
    assert!(!admitted(&breaker).failed(), "no two in a row");
    assert!(admitted(&breaker).failed() && breaker.admit().is_none());
    assert_eq!(breaker.state(), Open);
    pass_pauses(10).await;
    assert_eq!(breaker.state(), HalfOpen);
    let probe = admitted(&breaker);
    assert!(breaker.admit().is_none() && breaker.admit().is_none());
    assert!(probe.succeeded());
    assert_eq!(breaker.state(), Closed);
    assert_eq!(figures(&breaker), [Some(1), Some(1), Some(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_makes_the_next_pause_longer_and_a_success_the_first_again() {
    let breaker = breaker(1);
    assert!(admitted(&breaker).failed());
    for seconds in [10, 20, 40, 40] {
        tokio::time::advance(SECOND * seconds * 4 / 5 - SECOND / 10).await;
        assert!(breaker.admit().is_none(), "{seconds}");
        tokio::time::advance(SECOND * seconds * 2 / 5 + SECOND / 5).await;
        assert!(!admitted(&breaker).failed(), "it was open; {seconds}");
    }
    assert!(breaker.succeeded() && breaker.failed());
    pass_pauses(10).await;
    assert!(breaker.admit().is_some());
}

#[tokio::test(start_paused = true)]
async fn the_place_of_a_probe_whose_caller_went_away_is_free_again() {
    let breaker = by_rate();
    calls(&breaker, 10, 0);
    pass_pauses(10).await;
    let probes = [admitted(&breaker), admitted(&breaker)];
    assert!(breaker.admit().is_none());
    drop(probes);
    assert_eq!(breaker.state(), HalfOpen);
    let probes = [admitted(&breaker), admitted(&breaker)];
    assert!(breaker.admit().is_none());
    assert_eq!(probes.map(Pass::succeeded), [false, true]);
}

#[tokio::test(start_paused = true)]
async fn failures_of_earlier_calls_make_no_pause_longer() {
    let breaker = breaker(1);
    for _ in 0..100 {
        breaker.failed();
    }
    pass_pauses(10).await;
    breaker.failed();
    assert_eq!(breaker.state(), HalfOpen);
    assert_eq!(figures(&breaker), [Some(1), Some(0), Some(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_rate_counts_over_a_minimum_of_calls() {
    let breaker = by_rate();
    calls(&breaker, 9, 0);
    assert_eq!(breaker.state(), Closed, "too few to say anything");
    calls(&breaker, 0, 10);
    assert_eq!(breaker.state(), Closed);
    calls(&breaker, 1, 0);
    assert_eq!(breaker.state(), Open, "10 of 20");
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_failures_amid_many_calls_is_no_outage() {
    let breaker = by_rate();
    calls(&breaker, 0, 200);
    calls(&breaker, 64, 0);
    calls(&breaker, 0, 200);
    assert_eq!(breaker.state(), Closed);
    // What is older than the window says nothing.
    tokio::time::advance(4 * SECOND).await;
    calls(&breaker, 10, 0);
    assert_eq!(breaker.state(), Open);
}

#[tokio::test(start_paused = true)]
async fn outcomes_of_earlier_calls_close_nothing_that_counts_a_rate() {
    let breaker = by_rate();
    let early = [admitted(&breaker), admitted(&breaker)];
    calls(&breaker, 10, 0);
    pass_pauses(10).await;
    let probe = admitted(&breaker);
    assert_eq!(early.map(Pass::succeeded), [false, false]);
    assert_eq!(breaker.state(), HalfOpen);
    // The first that fails opens it again, and the other probe is of the past then.
    let other = admitted(&breaker);
    assert!(!probe.failed() && !other.succeeded());
    assert_eq!(breaker.state(), Open);
    assert_eq!(figures(&breaker), [Some(1), Some(2), Some(0)]);
}

/// Of a thousand callers at once only the probes get through, on all threads.
#[test]
fn a_half_open_breaker_gives_no_place_twice() {
    let trip = Trip::Rate { percent: 50, calls: 1, within: SECOND, probes: 3 };
    let pauses = Backoff::new(Duration::from_nanos(1), Duration::from_nanos(1));
    let breaker = Breaker::new(trip, pauses, Runtime::seeded(1));
    let _ = admitted(&breaker).failed();
    while breaker.state() != HalfOpen {
        std::thread::yield_now();
    }
    let all = std::thread::scope(|scope| {
        let threads = (0..8)
            .map(|_| scope.spawn(|| (0..125).filter_map(|_| breaker.admit()).collect::<Vec<_>>()));
        let threads = threads.collect::<Vec<_>>();
        threads.into_iter().flat_map(|it| it.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert_eq!(all.len(), 3);
    assert_eq!(figures(&breaker), [Some(1), Some(3), Some(997)]);
}
