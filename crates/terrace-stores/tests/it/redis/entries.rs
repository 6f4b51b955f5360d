//! What single entries are: their life, their namespace, their format.

use std::time::Duration;

use futures_util::FutureExt as _;
use terrace_core::testkit::{cache_contract, key};
use terrace_core::{Cache, Lookup, Offer, Version};
use terrace_stores::RedisCacheOptions;

use super::{by_hand, cache, fill, hit, invalidate, lease, options};

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
    let set = format!("SET {{{}}}:entry:foreign 2-something-of-another-version", options.namespace);
    by_hand::<()>(&options.url, &set).await;
    let lease = lease(&cache, &key).await;
    assert_eq!(cache.inspect().await.figure("malformed"), Some(1));
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
        let _ = cache.get(std::slice::from_ref(key)).now_or_never();
    }
    assert_eq!(hit(&cache, &keys[7]).await, Some(8));
    let inspection = cache.inspect().await;
    assert!(inspection.figure("hits") >= Some(501), "{inspection:?}");
    assert_eq!(inspection.figure("fills"), Some(500));
}
