//! The cache in Redis: the contract, races over flushes and restarts, outages, invalidations.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests")]

mod clusters;
mod entries;
mod invalidations;
mod late;
#[cfg(feature = "mutants")]
mod mutants;
mod outages;
mod permits;
mod races;
mod secure;
mod sentinels;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use terrace_core::Budget;
use terrace_core::testkit::{CacheFixture, cache_contract};
use terrace_core::{Cache, Deadline, Key, Lease, Lookup, Offer, Runtime, Version};
use terrace_lab::{RedisOptions, RedisServer, testing};
use terrace_stores::{RedisCache, RedisCacheOptions};

mod contract {
    use super::*;

    async fn fresh() -> CacheFixture {
        CacheFixture::new(Arc::new(cache(options()).await))
    }

    terrace_core::cache_contract!(fresh);
}

/// Options for a namespace of its own on the shared server.
fn options() -> RedisCacheOptions {
    let fresh = testing::fresh_prefix();
    // A busy machine must not make a test of answers one of timeouts.
    RedisCacheOptions {
        namespace: fresh.prefix.trim_end_matches(':').into(),
        command_timeout: Duration::from_secs(5),
        ..RedisCacheOptions::new(fresh.url)
    }
}

async fn cache(options: RedisCacheOptions) -> RedisCache {
    RedisCache::connect(options, Runtime::system()).await.expect("options that are in order")
}

/// A server that the test may stop, flush and pause, in a directory that ends with the test.
struct Private {
    server: RedisServer,
    _directory: tempfile::TempDir,
}

impl Private {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let options =
            RedisOptions { temporary: true, ..RedisOptions::new(directory.path().join("redis")) };
        let server = RedisServer::start(options).await.expect("a Redis server");
        Self { server, _directory: directory }
    }

    fn options(&self) -> RedisCacheOptions {
        RedisCacheOptions {
            backoff: Duration::from_millis(5),
            backoff_limit: Duration::from_millis(50),
            command_timeout: Duration::from_secs(2),
            ..RedisCacheOptions::new(self.server.url())
        }
    }

    async fn cache(&self) -> RedisCache {
        cache(self.options()).await
    }

    /// A command beside the cache.
    async fn by_hand<T: ::redis::FromRedisValue>(&self, words: &str) -> T {
        by_hand(&self.server.url(), words).await
    }
}

async fn connection(url: &str) -> MultiplexedConnection {
    let client = ::redis::Client::open(url).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("a connection")
}

async fn by_hand<T: ::redis::FromRedisValue>(url: &str, words: &str) -> T {
    let mut words = words.split(' ');
    let mut command = ::redis::cmd(words.next().expect("a command"));
    words.for_each(|word| {
        command.arg(word);
    });
    command.query_async(&mut connection(url).await).await.expect("a good command")
}

async fn get(cache: &RedisCache, key: &Key) -> Lookup {
    cache.get(std::slice::from_ref(key), Budget::default()).await.expect("a get").remove(0)
}

/// The version that is hit.
async fn hit(cache: &RedisCache, key: &Key) -> Option<u64> {
    match get(cache, key).await {
        Lookup::Hit(entry) => Some(entry.version.get()),
        Lookup::Miss(_) | Lookup::Written { .. } => None,
    }
}

async fn lease(cache: &RedisCache, key: &Key) -> Lease {
    match get(cache, key).await {
        Lookup::Miss(lease) | Lookup::Written { lease, .. } => lease,
        Lookup::Hit(entry) => panic!("a miss was expected, not {entry:?}"),
    }
}

fn offer(key: &Key, lease: Lease, version: u64) -> Offer {
    let entry = cache_contract::entry(key, Some("value"), version);
    Offer { key: key.clone(), lease, entry }
}

async fn fill(cache: &RedisCache, key: &Key, lease: Lease, version: u64) {
    cache.fill(vec![offer(key, lease, version)]).await.expect("a fill");
}

async fn invalidate(cache: &RedisCache, key: &Key, version: u64) {
    cache.invalidate(&[(key.clone(), Version::new(version))]).await.expect("an invalidation");
}

/// Waits for a state that comes by itself.
async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let runtime = Runtime::system();
    let end = Deadline::at(runtime.now() + Duration::from_secs(20));
    while !done().await {
        assert!(!end.passed(runtime.now()), "{what} did not come about");
        runtime.sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a cache answers.
async fn live(cache: &RedisCache) {
    until("a connection", || async {
        cache.get(&[Key::new("probe").unwrap()], Budget::default()).await.is_ok()
    })
    .await;
}
