//! The races, on caches that break one rule each: the checks must see it.

use terrace_stores::RedisCacheOptions;
use terrace_stores::redis::mutants::Mutant;

use super::races::{late_fill, old_snapshot};
use super::{Private, cache, options};

#[tokio::test]
async fn a_blind_fill_is_caught() {
    let options = RedisCacheOptions { mutant: Some(Mutant::FillsBlindly), ..options() };
    assert_eq!(late_fill(&cache(options).await).await, Some(1), "the race brings the old value");
}

#[tokio::test]
async fn a_missing_tombstone_is_caught() {
    let options = RedisCacheOptions { mutant: Some(Mutant::LeavesNoTombstone), ..options() };
    assert_eq!(late_fill(&cache(options).await).await, Some(1), "the race brings the old value");
}

#[tokio::test]
async fn trust_in_any_memory_is_caught() {
    let private = Private::start().await;
    let options = RedisCacheOptions { mutant: Some(Mutant::TrustsAnyMemory), ..private.options() };
    let cache = cache(options).await;
    assert_eq!(old_snapshot(&private, &cache).await, Some(1), "the snapshot brings the old value");
}
