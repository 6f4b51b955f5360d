//! The layers over scripted stores and paused time, and the contract suites over each of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's helpers fail it by panicking"
)]

mod cache_aside;
mod cached_ledger;
mod circuit_breaker;
mod coalesce;
mod concurrency_limit;
mod cqrs;
mod fill_on_write;
mod follow;
mod geo_router;
mod late;
mod near_cache;
mod observe;
mod overload;
mod region_set;
mod replica_router;
mod resharding;
mod retry;
mod shard_router;
mod single_flight;
mod summaries;
mod timeout;
mod write_buffer;
