//! Old values that must not come in: late fills, over invalidations, flushes and restarts.

use std::time::Duration;

use terrace_core::testkit::key;
use terrace_core::{Cache as _, Runtime};

use super::{Private, cache, fill, hit, invalidate, lease, live, options};
use terrace_stores::{RedisCache, RedisCacheOptions};

/// What is hit after the race: loaded before a write, offered after its invalidation.
pub(super) async fn late_fill(cache: &RedisCache) -> Option<u64> {
    let key = key("late");
    let reader = lease(cache, &key).await;
    invalidate(cache, &key, 2).await;
    fill(cache, &key, reader, 1).await;
    hit(cache, &key).await
}

/// What is hit after a restart from a snapshot that is older than an invalidation.
pub(super) async fn old_snapshot(private: &Private, cache: &RedisCache) -> Option<u64> {
    let key = key("snapshot");
    let reader = lease(cache, &key).await;
    fill(cache, &key, reader, 1).await;
    assert_eq!(hit(cache, &key).await, Some(1));
    private.by_hand::<()>("SAVE").await;
    invalidate(cache, &key, 2).await;
    private.server.kill();
    private.server.restart().await.unwrap();
    let remembered: u64 = private.by_hand("DBSIZE").await;
    assert!(remembered >= 2, "the snapshot came back");
    live(cache).await;
    hit(cache, &key).await
}

#[tokio::test]
async fn a_late_fill_is_refused() {
    assert_eq!(late_fill(&cache(options()).await).await, None);
}

#[tokio::test]
async fn a_late_fill_is_refused_though_the_tombstone_was_flushed() {
    let private = Private::start().await;
    let cache = private.cache().await;
    let key = key("flushed");
    let reader = lease(&cache, &key).await;
    invalidate(&cache, &key, 2).await;
    private.by_hand::<()>("FLUSHALL").await;
    fill(&cache, &key, reader, 1).await;
    assert_eq!(hit(&cache, &key).await, None);
    // In the new epoch work goes on.
    let next = lease(&cache, &key).await;
    assert_ne!(next, reader);
    fill(&cache, &key, reader, 1).await;
    fill(&cache, &key, next, 2).await;
    assert_eq!(hit(&cache, &key).await, Some(2));
}

#[tokio::test]
async fn an_invalidation_is_kept_by_a_server_without_an_epoch() {
    let private = Private::start().await;
    let cache = private.cache().await;
    let key = key("no-epoch");
    private.by_hand::<()>("FLUSHALL").await;
    invalidate(&cache, &key, 2).await;
    let after = lease(&cache, &key).await;
    fill(&cache, &key, after, 1).await;
    assert_eq!(hit(&cache, &key).await, None);
    fill(&cache, &key, after, 2).await;
    assert_eq!(hit(&cache, &key).await, Some(2));
}

/// Whoever fills from a replica must know since when the memory has the traces of writes.
#[tokio::test]
async fn a_memory_says_since_when_it_is_whole() {
    let private = Private::start().await;
    let (one, other) = (private.cache().await, private.cache().await);
    let key = key("whole");
    let second = Duration::from_secs(1);
    // Both know; a clear takes no traces away.
    let begun = Runtime::system().now();
    while one.whole_for() < second {
        Runtime::system().sleep(second / 20).await;
    }
    assert!(Runtime::system().now() - begun >= second / 2);
    one.clear().await.unwrap();
    lease(&one, &key).await;
    lease(&other, &key).await;
    assert!(one.whole_for() >= second && other.whole_for() >= second);
    // A flush does, whoever notices it: a reader here, a writer there.
    private.by_hand::<()>("FLUSHALL").await;
    invalidate(&one, &key, 2).await;
    lease(&other, &key).await;
    lease(&one, &key).await;
    assert!(one.whole_for() < second && other.whole_for() < second);
    private.by_hand::<()>("FLUSHALL").await;
    lease(&other, &key).await;
    assert!(other.whole_for() < second);
}

#[tokio::test]
async fn an_old_snapshot_is_not_believed() {
    let private = Private::start().await;
    let (one, other) = (private.cache().await, private.cache().await);
    assert_eq!(old_snapshot(&private, &one).await, None);
    // Both instances agree on one new epoch.
    live(&other).await;
    let key = key("after");
    let lease = lease(&one, &key).await;
    fill(&other, &key, lease, 3).await;
    assert_eq!(hit(&one, &key).await, Some(3));
}

#[tokio::test]
async fn an_epoch_that_ended_does_not_come_back() {
    let private = Private::start().await;
    let cache = private.cache().await;
    let key = key("returned");
    let reader = lease(&cache, &key).await;
    fill(&cache, &key, reader, 1).await;
    let epoch: String = private.by_hand("GET {terrace}:epoch").await;
    terrace_core::Cache::clear(&cache).await.unwrap();
    assert_eq!(hit(&cache, &key).await, None);
    // Somebody puts the old memory back, under the same process.
    private.by_hand::<()>(&format!("SET {{terrace}}:epoch {epoch}")).await;
    private.by_hand::<()>("CLIENT KILL TYPE normal").await;
    live(&cache).await;
    assert_eq!(hit(&cache, &key).await, None);
}

#[tokio::test]
async fn forgotten_scripts_are_loaded_again() {
    let private = Private::start().await;
    let cache = private.cache().await;
    let key = key("scripts");
    let reader = lease(&cache, &key).await;
    private.by_hand::<()>("SCRIPT FLUSH").await;
    fill(&cache, &key, reader, 1).await;
    assert_eq!(hit(&cache, &key).await, Some(1));
    private.by_hand::<()>("SCRIPT FLUSH").await;
    invalidate(&cache, &key, 2).await;
    assert_eq!(hit(&cache, &key).await, None);
}

#[tokio::test]
async fn a_full_server_still_takes_invalidations() {
    let private = Private::start().await;
    let cache = private.cache().await;
    let key = key("full");
    let reader = lease(&cache, &key).await;
    fill(&cache, &key, reader, 1).await;
    private.by_hand::<()>("CONFIG SET maxmemory 1").await;
    let other = terrace_core::testkit::key("other");
    let refused = terrace_core::Cache::fill(&cache, vec![super::offer(&other, reader, 1)]).await;
    assert_eq!(refused.unwrap_err().kind(), terrace_core::ErrorKind::Unavailable);
    invalidate(&cache, &key, 2).await;
    assert_eq!(hit(&cache, &key).await, None);
}

#[tokio::test]
async fn an_instance_that_comes_to_another_process_later_begins_an_epoch() {
    let private = Private::start().await;
    let url = private.server.url();
    let secret = url.split([':', '@']).nth(2).unwrap();
    // A user that a restart forgets: so the test decides when this instance comes back.
    let grant = format!("ACL SETUSER late on >{secret} ~* &* +@all");
    private.by_hand::<()>(&grant).await;
    let url = url.replacen("redis://", "redis://late", 1);
    let late = cache(RedisCacheOptions { url, ..private.options() }).await;
    live(&late).await;
    let first = private.cache().await;
    let key = key("moved");
    private.server.kill();
    private.server.restart().await.unwrap();
    live(&first).await;
    let reader = lease(&first, &key).await;
    fill(&first, &key, reader, 1).await;
    assert_eq!(hit(&first, &key).await, Some(1));
    // Until now the other one may have told the old process of its writes.
    private.by_hand::<()>(&grant).await;
    live(&late).await;
    assert_eq!(hit(&first, &key).await, None);
    // Once is enough.
    let reader = lease(&first, &key).await;
    fill(&first, &key, reader, 2).await;
    private.by_hand::<()>("CLIENT KILL TYPE normal").await;
    live(&late).await;
    live(&first).await;
    assert_eq!(hit(&late, &key).await, Some(2));
}
