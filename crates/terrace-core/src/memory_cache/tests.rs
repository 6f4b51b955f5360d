use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use super::*;
use crate::testkit::cache_contract::entry;
use crate::testkit::{CacheFixture, key};
use crate::{Entry, Lease};

async fn fixture() -> CacheFixture {
    CacheFixture::new(Arc::new(small(MemoryCacheOptions::default())))
}

crate::cache_contract!(fixture);

fn small(options: MemoryCacheOptions) -> MemoryCache {
    MemoryCache::new(options, Runtime::seeded(1))
}

fn exact() -> MemoryCacheOptions {
    MemoryCacheOptions { jitter: 0.0, ..MemoryCacheOptions::default() }
}

fn lease(cache: &MemoryCache, key: &Key) -> Lease {
    match cache.lookup(key) {
        Lookup::Miss(lease) | Lookup::Written { lease, .. } => lease,
        Lookup::Hit(entry) => panic!("a miss was expected, not {entry:?}"),
    }
}

fn hit(cache: &MemoryCache, key: &Key) -> Option<Entry> {
    match cache.lookup(key) {
        Lookup::Miss(_) | Lookup::Written { .. } => None,
        Lookup::Hit(entry) => Some(entry),
    }
}

fn fill(cache: &MemoryCache, key: &Key, text: Option<&str>, version: u64) -> bool {
    let lease = cache.lease_now(key);
    cache.offer(Offer { key: key.clone(), lease, entry: entry(key, text, version) })
}

async fn figure(cache: &MemoryCache, name: &str) -> u64 {
    cache.inspect().await.number(name).expect("a figure")
}

#[tokio::test(start_paused = true)]
async fn entries_age_and_expire() {
    let cache = small(exact());
    let (there, missing) = (key("there"), key("missing"));
    let mut old = entry(&there, Some("one"), 1);
    old.age = Duration::from_secs(5);
    assert!(cache.offer(Offer { key: there.clone(), lease: lease(&cache, &there), entry: old }));
    assert!(fill(&cache, &missing, None, 0));

    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(hit(&cache, &there).expect("a hit").age, Duration::from_secs(34));
    assert!(hit(&cache, &missing).is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(hit(&cache, &missing), None);
    tokio::time::advance(Duration::from_secs(270)).await;
    assert_eq!(hit(&cache, &there), None);
    assert_eq!(figure(&cache, "keys").await, 0);
    assert_eq!(figure(&cache, "bytes").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_doubt_ends_with_its_tombstone() {
    let (cache, key) = (small(exact()), key("doubt"));
    cache.written(&[(key.clone(), Version::UNKNOWN)]);
    tokio::time::advance(Duration::from_secs(59)).await;
    // A later write neither ends nor prolongs it.
    cache.written(&[(key.clone(), Version::new(5))]);
    assert!(!fill(&cache, &key, Some("five"), 5));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!fill(&cache, &key, Some("four"), 4));
    assert!(fill(&cache, &key, Some("five"), 5));
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_expires_before_its_tombstone_leaves_it_behind() {
    let (cache, key) = (small(exact()), key("gone"));
    cache.written(&[(key.clone(), Version::new(5))]);
    assert!(fill(&cache, &key, None, 5));
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(hit(&cache, &key), None);
    assert!(!fill(&cache, &key, Some("four"), 4), "a replica that lags behind");
}

#[tokio::test]
async fn an_echo_of_a_known_write_voids_no_lease() {
    let (cache, key) = (small(exact()), key("echo"));
    cache.written(&[(key.clone(), Version::new(2))]);
    let reader = lease(&cache, &key);
    cache.written(&[(key.clone(), Version::new(2))]);
    assert!(cache.offer(Offer {
        key: key.clone(),
        lease: reader,
        entry: entry(&key, Some("2"), 2)
    }));
    cache.written(&[(key.clone(), Version::new(2))]);
    assert!(hit(&cache, &key).is_some(), "as new as the write");
    cache.written(&[(key.clone(), Version::new(3))]);
    assert_eq!(hit(&cache, &key), None);
}

#[tokio::test]
async fn forgetting_keeps_tombstones_and_nothing_else() {
    let (cache, there, gone) = (small(exact()), key("there"), key("gone"));
    cache.written(&[(there.clone(), Version::new(2))]);
    assert!(fill(&cache, &there, Some("two"), 2));
    assert!(fill(&cache, &gone, Some("one"), 1));
    let before = cache.lease_now(&gone);
    cache.forget_all();
    assert_eq!((hit(&cache, &there), hit(&cache, &gone)), (None, None));
    assert_eq!(figure(&cache, "keys").await, 0);
    assert!(!fill(&cache, &there, Some("one"), 1));
    assert!(fill(&cache, &there, Some("two"), 2));
    let offer = Offer { key: gone.clone(), lease: before, entry: entry(&gone, Some("one"), 1) };
    assert!(!cache.offer(offer));
}

#[tokio::test]
async fn memory_stays_within_its_limit_under_a_scan_of_ten_times_as_much() {
    let cache = small(MemoryCacheOptions { max_bytes: 1024 * 1024, ..exact() });
    let text = "x".repeat(1000);
    for number in 0..8000 {
        fill(&cache, &key(format!("key{number}")), Some(&text), 1);
        if number % 500 == 0 {
            assert!(figure(&cache, "bytes").await <= 1024 * 1024);
        }
    }
    assert!(figure(&cache, "bytes").await <= 1024 * 1024);
    assert!(figure(&cache, "keys").await > 400, "most of the room is used");
    assert!(figure(&cache, "evictions").await > 5000);
}

#[tokio::test]
async fn entries_can_be_limited_by_number() {
    for most in [1, 2, 10, 1000] {
        let cache = small(MemoryCacheOptions { max_entries: Some(most), ..exact() });
        for number in 0..3000 {
            fill(&cache, &key(format!("key{number}")), Some("x"), 1);
        }
        let keys = figure(&cache, "keys").await;
        assert!(keys <= most && keys * 10 >= most * 8, "{keys} of {most}");
    }
}

#[tokio::test]
async fn a_tombstone_that_is_evicted_still_keeps_older_fills_out() {
    let cache = small(MemoryCacheOptions { max_bytes: 0, ..exact() });
    let key_of = |number: u64| key(format!("key{number}"));
    for number in 0..3000 {
        cache.written(&[(key_of(number), Version::new(1000 + number))]);
    }
    assert!(figure(&cache, "evictions").await > 2000);
    assert!((0..3000).all(|number| !fill(&cache, &key_of(number), Some("old"), 999)));
}

#[tokio::test]
async fn a_value_too_big_for_the_cache_is_refused_and_what_it_replaces_is_not_served() {
    let (cache, key) = (small(MemoryCacheOptions { max_bytes: 0, ..exact() }), key("big"));
    assert!(fill(&cache, &key, Some("one"), 1));
    cache.written(&[(key.clone(), Version::new(2))]);
    assert!(!fill(&cache, &key, Some(&"x".repeat(100_000)), 2));
    assert_eq!(hit(&cache, &key), None);
}

#[tokio::test(start_paused = true)]
async fn notices_are_numbered_and_silence_is_filled() {
    let cache = small(exact());
    let mut notices = cache.subscribe();
    assert_eq!(notices.next().await, Some(Notice::Connected));
    let keys = vec![(key("a"), Version::new(7))];
    cache.invalidate(&keys).await.unwrap();
    cache.clear().await.unwrap();
    assert_eq!(notices.next().await, Some(Notice::Written { number: 1, keys }));
    assert_eq!(notices.next().await, Some(Notice::Cleared { number: 2 }));
    assert_eq!(notices.next().await, Some(Notice::Heartbeat { number: 2 }));
}

#[tokio::test]
async fn a_subscriber_that_lags_behind_is_told() {
    let cache = small(exact());
    let mut notices = cache.subscribe();
    assert_eq!(notices.next().await, Some(Notice::Connected));
    for version in 0..3000 {
        cache.invalidate(&[(key("a"), Version::new(version))]).await.unwrap();
    }
    assert_eq!(notices.next().await, Some(Notice::Disconnected));
    assert_eq!(notices.next().await, Some(Notice::Connected));
    cache.clear().await.unwrap();
    assert_eq!(notices.next().await, Some(Notice::Cleared { number: 3001 }));
}

/// Writers and readers on real threads: a hit is never older than the last finished invalidation.
#[test]
fn no_hit_is_older_than_a_finished_invalidation() {
    let cache = small(MemoryCacheOptions { max_bytes: 0, ..exact() });
    let keys: Vec<_> = (0..8).map(|number| key(format!("key{number}"))).collect();
    let stored: Vec<_> = keys.iter().map(|_| AtomicU64::new(0)).collect();
    let finished: Vec<_> = keys.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..20_000_usize {
                let index = round % keys.len();
                let version = stored[index].fetch_add(1, Ordering::SeqCst) + 1;
                cache.written(&[(keys[index].clone(), Version::new(version))]);
                finished[index].store(version, Ordering::SeqCst);
                if round % 1000 == 0 {
                    cache.forget_all();
                }
            }
        });
        for reader in 0..3 {
            let (cache, keys, stored, finished) = (&cache, &keys, &stored, &finished);
            scope.spawn(move || {
                for round in 0..20_000_usize {
                    let index = (round * 5 + reader) % keys.len();
                    let floor = finished[index].load(Ordering::SeqCst);
                    match cache.lookup(&keys[index]) {
                        Lookup::Hit(entry) => assert!(entry.version.get() >= floor),
                        Lookup::Miss(lease) | Lookup::Written { lease, .. } => {
                            let version = stored[index].load(Ordering::SeqCst);
                            let entry = entry(&keys[index], Some("x"), version);
                            cache.offer(Offer { key: keys[index].clone(), lease, entry });
                        }
                    }
                }
            });
        }
    });
}
