//! `CachedLedger`: its lists are those of the ledger, also from the cache.

use std::sync::Arc;

use terrace_core::ledger::{Amount, Kind, Posting};
use terrace_core::testkit::{
    Fixture, MemoryLedger, key, ledger_contract::WithAccounts, ledger_contract::posting,
};
use terrace_core::{
    Consistency, Ledger as _, MemoryCache, MemoryCacheOptions, Origin, ReadOptions, Runtime, Tier,
    WriteOptions,
};
use terrace_layers::CachedLedger;

fn over(ledger: Arc<MemoryLedger>) -> CachedLedger {
    let cache = Arc::new(MemoryCache::new(MemoryCacheOptions::default(), Runtime::system()));
    CachedLedger::new(ledger, cache, Runtime::system())
}

fn fresh() -> CachedLedger {
    over(Arc::new(MemoryLedger::new(Runtime::system())))
}

async fn over_memory() -> Fixture<WithAccounts> {
    let ledger = Arc::new(MemoryLedger::new(Runtime::system()));
    let accounts = Arc::clone(ledger.accounts()) as _;
    Fixture::new(Arc::new(WithAccounts { ledger: Arc::new(over(ledger)), accounts }))
}

terrace_core::ledger_contract!(over_memory);

/// The amounts of a list, and where it came from.
async fn list(ledger: &CachedLedger, user: &str) -> (Vec<i64>, Tier) {
    let latest = ledger.latest(&key(user), &ReadOptions::default()).await.unwrap();
    let amounts = latest.transactions.iter().map(|it| it.posting.amount.cents()).collect();
    (amounts, latest.origin.tier)
}

#[tokio::test]
async fn a_post_empties_the_list_of_its_user_alone() {
    let ledger = fresh();
    assert_eq!(list(&ledger, "a").await, (vec![], Origin::PRIMARY.tier));
    assert_eq!(list(&ledger, "a").await, (vec![], Origin::FAR.tier), "that there is none is known");
    let how = WriteOptions::default();
    ledger.post(vec![posting("a", 1), posting("b", 7)], &how).await.unwrap();
    assert_eq!(list(&ledger, "a").await, (vec![1], Origin::PRIMARY.tier));
    assert_eq!(list(&ledger, "b").await, (vec![7], Origin::PRIMARY.tier));
    ledger.post(vec![posting("a", -2)], &how).await.unwrap();
    assert_eq!(list(&ledger, "a").await, (vec![-2, 1], Origin::PRIMARY.tier));
    assert_eq!(list(&ledger, "a").await, (vec![-2, 1], Origin::FAR.tier));
    assert_eq!(list(&ledger, "b").await, (vec![7], Origin::FAR.tier));
}

#[tokio::test]
async fn a_list_from_the_cache_is_the_ledger_s() {
    let ledger = fresh();
    let kind = Kind::new("ünïcode \"kind\"").unwrap();
    let entry = Posting { user: key("a"), amount: Amount::LIMIT, kind };
    ledger.post(vec![entry; 1001], &WriteOptions::default()).await.unwrap();
    let page = ledger.page(&key("a"), None, 1000, &ReadOptions::default()).await.unwrap();
    assert!(page.next.is_some());
    for tier in [Tier::Database, Tier::Far] {
        let latest = ledger.latest(&key("a"), &ReadOptions::default()).await.unwrap();
        assert_eq!((latest.origin.tier, latest.transactions), (tier, page.transactions.clone()));
    }
}

#[tokio::test]
async fn a_list_with_a_token_or_a_strong_one_has_what_was_posted() {
    let ledger = fresh();
    list(&ledger, "a").await;
    let posted = ledger.post(vec![posting("a", 5)], &WriteOptions::default()).await.unwrap();
    let with = ReadOptions { token: Some(posted[0].token.clone()), ..ReadOptions::default() };
    assert_eq!(ledger.latest(&key("a"), &with).await.unwrap().transactions.len(), 1);
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let latest = ledger.latest(&key("a"), &strong).await.unwrap();
    assert_eq!(latest.origin.tier, Tier::Database);
}
