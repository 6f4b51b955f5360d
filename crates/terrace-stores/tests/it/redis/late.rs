//! Fills that come when what kept them out could be gone.

use std::time::Duration;

use terrace_core::testkit::key;
use terrace_core::{Cache as _, Key, Runtime, Version};
use terrace_stores::{RedisCache, RedisCacheOptions};

use super::{Private, cache, fill, hit, invalidate, lease, live, offer, options};

/// Lets time pass that the server counts.
async fn pass(millis: u64) {
    Runtime::system().sleep(Duration::from_millis(millis)).await;
}

async fn doubt(cache: &RedisCache, key: &Key) {
    cache.invalidate(&[(key.clone(), Version::UNKNOWN)]).await.unwrap();
}

#[tokio::test]
async fn a_known_write_under_a_doubt_is_protected_for_its_whole_time() {
    let options = RedisCacheOptions { tombstone_ttl: Duration::from_secs(3), ..options() };
    let cache = cache(options).await;
    let key = key("doubt");
    doubt(&cache, &key).await;
    pass(1500).await;
    let reader = lease(&cache, &key).await;
    invalidate(&cache, &key, 3).await;
    fill(&cache, &key, reader, 3).await;
    assert_eq!(hit(&cache, &key).await, None, "the doubt lasts");
    pass(1600).await;
    fill(&cache, &key, reader, 2).await;
    assert_eq!(hit(&cache, &key).await, None);
    // The known write does not prolong the doubt.
    fill(&cache, &key, reader, 3).await;
    assert_eq!(hit(&cache, &key).await, Some(3));
}

#[tokio::test]
async fn a_doubt_about_a_known_write_keeps_what_is_known() {
    let options = RedisCacheOptions { tombstone_ttl: Duration::from_secs(2), ..options() };
    let cache = cache(options).await;
    let key = key("known");
    let reader = lease(&cache, &key).await;
    invalidate(&cache, &key, 3).await;
    doubt(&cache, &key).await;
    invalidate(&cache, &key, 2).await;
    pass(1400).await;
    invalidate(&cache, &key, 2).await;
    pass(1000).await;
    fill(&cache, &key, reader, 2).await;
    assert_eq!(hit(&cache, &key).await, None);
}

#[tokio::test]
async fn an_entry_that_expires_leaves_the_tombstone_behind() {
    let cache = cache(RedisCacheOptions { ttl: Duration::from_secs(1), ..options() }).await;
    let key = key("short");
    let slow = lease(&cache, &key).await;
    invalidate(&cache, &key, 3).await;
    for _ in 0..2 {
        // The second one finds an entry of its own version that is over.
        fill(&cache, &key, slow, 3).await;
        assert_eq!(hit(&cache, &key).await, Some(3));
        pass(1300).await;
        assert_eq!(hit(&cache, &key).await, None);
        fill(&cache, &key, slow, 2).await;
        assert_eq!(hit(&cache, &key).await, None);
    }
}

#[tokio::test]
async fn an_entry_that_an_invalidation_finds_keeps_older_ones_out_as_long_as_a_tombstone() {
    let cache = cache(RedisCacheOptions { ttl: Duration::from_secs(1), ..options() }).await;
    let key = key("found");
    let slow = lease(&cache, &key).await;
    fill(&cache, &key, slow, 3).await;
    invalidate(&cache, &key, 3).await;
    pass(1300).await;
    fill(&cache, &key, slow, 2).await;
    assert_eq!(hit(&cache, &key).await, None);
}

#[tokio::test]
async fn a_fill_that_a_stalled_server_executes_late_is_refused() {
    let private = Private::start().await;
    let options =
        RedisCacheOptions { tombstone_ttl: Duration::from_millis(500), ..private.options() };
    let cache = cache(options).await;
    let key = key("stalled");
    let reader = lease(&cache, &key).await;
    invalidate(&cache, &key, 2).await;
    private.server.pause();
    let (_, ()) = tokio::join!(cache.fill(vec![offer(&key, reader, 1)]), async {
        pass(1000).await;
        private.server.resume();
    });
    live(&cache).await;
    assert_eq!(hit(&cache, &key).await, None);
}
