//! What single entries are: their life, their namespace, their format.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use terrace_core::Budget;
use terrace_core::testkit::{cache_contract, key};
use terrace_core::{Cache, Lookup, Offer, Version};
use terrace_stores::RedisCacheOptions;

use super::{Private, by_hand, cache, fill, hit, invalidate, lease, options};

#[tokio::test]
async fn lives_differ_within_their_share() {
    let options = RedisCacheOptions { ttl: Duration::from_secs(1000), ..options() };
    let cache = cache(options.clone()).await;
    let keys: Vec<_> = (0..100).map(|number| key(format!("k{number}"))).collect();
    let first = lease(&cache, &keys[0]).await;
    cache.fill(keys.iter().map(|key| super::offer(key, first, 1)).collect()).await.unwrap();
    let mut lives = Vec::new();
    for key in &keys {
        let name = format!("PTTL {{{}}}:entry:{key}", options.namespace);
        lives.push(by_hand::<u64>(&options.url, &name).await);
    }
    let (least, most) = (lives.iter().min().unwrap(), lives.iter().max().unwrap());
    assert!((870_000..=1_100_000).contains(least) && *most <= 1_100_000, "{least} to {most} ms");
    assert!(most - least > 50_000, "{least} to {most} ms");
}

#[tokio::test]
async fn single_changes_that_come_together_share_their_calls() {
    let server = Private::start().await;
    let cache = server.cache().await;
    let keys: Vec<_> = (0..300).map(|number| key(format!("k{number}"))).collect();
    let lease = lease(&cache, &keys[0]).await;
    server.by_hand::<()>("CONFIG RESETSTAT").await;
    join_all(keys.iter().map(async |key| {
        fill(&cache, key, lease, 1).await;
        assert_eq!(hit(&cache, key).await, Some(1));
        invalidate(&cache, key, 2).await;
        // By now this one has been applied, whatever it left with.
        assert_eq!(hit(&cache, key).await, None);
    }))
    .await;
    let told: String = server.by_hand("INFO commandstats").await;
    let calls = told.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    let calls: usize = calls.unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(calls < 100, "{calls} calls for 600 changes");
}

#[tokio::test]
async fn what_is_no_entry_is_replaced_and_fails_no_other() {
    let options = options();
    let cache = cache(options.clone()).await;
    let (foreign, other) = (key("foreign"), key("other"));
    let lease = lease(&cache, &other).await;
    for change in ["fill", "invalidate"] {
        let name = format!("{{{}}}:entry:{foreign}", options.namespace);
        by_hand::<()>(&options.url, &format!("DEL {name}")).await;
        by_hand::<()>(&options.url, &format!("LPUSH {name} x")).await;
        if change == "fill" {
            let offers = [&foreign, &other].map(|key| super::offer(key, lease, 1));
            cache.fill(offers.to_vec()).await.unwrap();
            assert_eq!(hit(&cache, &foreign).await, Some(1));
            assert_eq!(hit(&cache, &other).await, Some(1));
        } else {
            let written = [&foreign, &other].map(|key| (key.clone(), Version::new(2)));
            cache.invalidate(&written).await.unwrap();
            assert_eq!(hit(&cache, &foreign).await, None);
            assert_eq!(hit(&cache, &other).await, None);
            fill(&cache, &foreign, lease, 1).await;
            assert_eq!(hit(&cache, &foreign).await, None, "the tombstone is there");
        }
    }
}

#[tokio::test]
async fn a_change_that_nobody_waits_for_does_not_hold_up_others() {
    let cache = cache(options()).await;
    let (left, stays) = (key("left"), key("stays"));
    let lease = lease(&cache, &stays).await;
    let written = [(left.clone(), Version::new(1))];
    assert!(cache.fill(vec![super::offer(&left, lease, 1)]).now_or_never().is_none());
    assert!(cache.invalidate(&written).now_or_never().is_none());
    fill(&cache, &stays, lease, 1).await;
    assert_eq!(hit(&cache, &stays).await, Some(1));
    invalidate(&cache, &stays, 2).await;
    assert_eq!(hit(&cache, &stays).await, None);
}

#[tokio::test]
async fn a_life_begins_at_the_load() {
    let options = RedisCacheOptions { ttl: Duration::from_secs(100), ..options() };
    let cache = cache(options.clone()).await;
    let (old, ancient) = (key("old"), key("ancient"));
    let lease = lease(&cache, &old).await;
    let aged = |key, age| {
        let entry = cache_contract::entry(key, Some("v"), 1);
        let entry = terrace_core::Entry { age: Duration::from_secs(age), ..entry };
        Offer { key: key.clone(), lease, entry }
    };
    cache.fill(vec![aged(&old, 60), aged(&ancient, 200)]).await.unwrap();
    let Lookup::Hit(entry) = super::get(&cache, &old).await else { panic!("a hit") };
    assert!((60..90).contains(&entry.age.as_secs()), "{:?}", entry.age);
    let name = format!("PTTL {{{}}}:entry:old", options.namespace);
    assert!(by_hand::<u64>(&options.url, &name).await <= 50_000);
    assert_eq!(hit(&cache, &ancient).await, None);
}

#[tokio::test]
async fn a_missing_key_is_known_for_a_shorter_time() {
    let options = options();
    let cache = cache(options.clone()).await;
    let key = key("missing");
    let offer = Offer {
        key: key.clone(),
        lease: lease(&cache, &key).await,
        entry: cache_contract::entry(&key, None, 0),
    };
    cache.fill(vec![offer]).await.unwrap();
    let Lookup::Hit(entry) = super::get(&cache, &key).await else { panic!("a hit") };
    assert_eq!((entry.record, entry.version), (None, Version::NONE));
    let name = format!("PTTL {{{}}}:entry:missing", options.namespace);
    assert!(by_hand::<u64>(&options.url, &name).await <= 33_000);
}

#[tokio::test]
async fn namespaces_do_not_see_each_other() {
    let (one, other) = (cache(options()).await, cache(options()).await);
    let key = key("shared-name");
    let (mine, theirs) = (lease(&one, &key).await, lease(&other, &key).await);
    fill(&one, &key, mine, 1).await;
    assert_eq!(hit(&other, &key).await, None);
    fill(&other, &key, theirs, 9).await;
    invalidate(&other, &key, 10).await;
    other.clear().await.unwrap();
    assert_eq!(hit(&one, &key).await, Some(1));
}

#[tokio::test]
async fn foreign_bytes_are_counted_and_written_over() {
    let options = options();
    let cache = cache(options.clone()).await;
    let key = key("foreign");
    let set = format!("SET {{{}}}:entry:foreign 3-something-of-another-version", options.namespace);
    by_hand::<()>(&options.url, &set).await;
    let lease = lease(&cache, &key).await;
    assert_eq!(cache.inspect().await.number("malformed"), Some(1));
    fill(&cache, &key, lease, 1).await;
    assert_eq!(hit(&cache, &key).await, Some(1));
}

#[tokio::test]
async fn versions_beyond_what_a_double_keeps_are_ordered() {
    let cache = cache(options()).await;
    let key = key("large");
    let (even, odd) = (1u64 << 60, (1u64 << 60) + 1);
    let lease = lease(&cache, &key).await;
    invalidate(&cache, &key, odd).await;
    fill(&cache, &key, lease, even).await;
    assert_eq!(hit(&cache, &key).await, None);
    fill(&cache, &key, lease, odd).await;
    assert_eq!(hit(&cache, &key).await, Some(odd));
}

#[tokio::test]
async fn a_second_doubt_lasts_its_whole_time() {
    let options = options();
    let cache = cache(options.clone()).await;
    let written = [(key("doubt"), Version::UNKNOWN)];
    let name = format!("{{{}}}:entry:doubt", options.namespace);
    cache.invalidate(&written).await.unwrap();
    by_hand::<()>(&options.url, &format!("PEXPIRE {name} 10000")).await;
    cache.invalidate(&written).await.unwrap();
    assert!(by_hand::<u64>(&options.url, &format!("PTTL {name}")).await > 20_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_reads_that_leave_together_get_their_own_answers() {
    let cache = cache(options()).await;
    let keys: Vec<_> = (0..500).map(|number| key(format!("k{number}"))).collect();
    let first = lease(&cache, &keys[0]).await;
    let offers = keys.iter().enumerate().map(|(at, key)| super::offer(key, first, at as u64 + 1));
    cache.fill(offers.collect()).await.unwrap();
    let hits = futures_util::future::join_all(keys.iter().map(|key| hit(&cache, key))).await;
    assert!(hits.into_iter().eq((1..=500).map(Some)));
    // A caller that leaves takes nobody's answer away.
    for key in &keys {
        let _ = cache.get(std::slice::from_ref(key), Budget::default()).now_or_never();
    }
    assert_eq!(hit(&cache, &keys[7]).await, Some(8));
    let inspection = cache.inspect().await;
    assert!(inspection.number("hits") >= Some(501), "{inspection:?}");
    assert_eq!(inspection.number("fills"), Some(500));
}
