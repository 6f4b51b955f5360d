//! "How freshness is known", shown from outside: two instances of the program on the same real
//! engines, each behind fault proxies of its own, and the checkers of `terrace-prove`.
//!
//! Every scenario asserts that its fault happened. `TERRACE_FULL_COUNTS=1` repeats each ten times.

pub(crate) mod engines;
mod field;
mod readers;

mod cache_returns;
mod clocks;
mod clones;
mod commits_alone;
mod copied_files;
mod crashes;
mod failover;
mod held_rows;
mod idempotency_keys;
mod invented_tokens;
mod journals;
mod late_writes;
mod levels;
mod lost_tails;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "nats")]
mod nats_killed;
mod projections;
mod refusing_cache;
mod replaced_memory;
mod restore;
mod sentinels;
mod settings;
mod siblings;
mod slow_looks;
mod standbys;
mod storm;
mod tables;
mod tokens_over_caches;
mod waiting;
mod way_back;

use std::time::Duration;

/// How long an instance may be stale that did not hear of an invalidation: it looks at the
/// database's cache generation once a second.
const WATCH: Duration = Duration::from_secs(1);
/// What a measurement on a busy machine may add to a stated bound.
const SLACK: Duration = Duration::from_millis(250);

/// How often each scenario runs.
fn rounds() -> usize {
    if std::env::var_os("TERRACE_FULL_COUNTS").is_some() { 10 } else { 1 }
}

/// Waits for what real programs bring about; fails after half a minute.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let within = tokio::time::Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(tokio::time::Instant::now() < within, "not within 30 s: {what}");
        pause(Duration::from_millis(5)).await;
    }
}

/// Lets time pass where a stated bound is measured; never in the hope that something happens.
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
