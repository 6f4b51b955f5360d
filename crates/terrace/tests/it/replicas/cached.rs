//! A cache over replicas that lag.

use std::sync::Arc;

use terrace_core::testkit::{key, value};
use terrace_core::{
    Cache as _, Lookup, MemoryCache, MemoryCacheOptions, Origin, ReadOptions, Runtime,
    StoreExt as _, Token,
};
use terrace_layers::{CacheAside, CacheAsideOptions};

use super::{Field, sql};

/// Both replicas are paused at version 1 of a record, and version 2 is acknowledged.
struct Behind {
    cache: Arc<MemoryCache>,
    store: CacheAside,
    token: Token,
    _field: Field,
}

impl Behind {
    async fn new(cache: MemoryCache, over_replicas: bool) -> Self {
        let field = Field::new().await;
        let router = field.router().await;
        let first = router.put(key("a"), value("1")).await.expect("a write");
        for number in [1, 2] {
            // Whoever has the token's position has the record.
            let how = ReadOptions { token: Some(first.token.clone()), ..ReadOptions::default() };
            while router.get_read(&key("a"), &how).await.expect("a read").origin == Origin::Primary
            {
            }
            let standby = field.standby(number);
            let shown = "SELECT count(*) FROM records WHERE key = 'a'";
            super::until("it is there", || async { sql(standby, shown).await == "1" }).await;
            sql(standby, "SELECT pg_wal_replay_pause()").await;
        }
        let cache = Arc::new(cache);
        let options = CacheAsideOptions { over_replicas, ..CacheAsideOptions::default() };
        let store = CacheAside::new(router, Arc::clone(&cache) as _, options, Runtime::system());
        let token = store.put(key("a"), value("2")).await.expect("a write").token;
        Self { cache, store, token, _field: field }
    }

    async fn read(&self, how: &ReadOptions) -> (String, Origin) {
        let read = self.store.get_read(&key("a"), how).await.expect("a read");
        (read.record.expect("a record").value.as_str().to_owned(), read.origin)
    }

    async fn cached(&self) -> Option<String> {
        match self.cache.get(&[key("a")]).await.expect("a lookup").remove(0) {
            Lookup::Hit(entry) => entry.record.map(|record| record.value.as_str().to_owned()),
            Lookup::Miss(_) | Lookup::Written { .. } => None,
        }
    }
}

fn cache() -> MemoryCache {
    MemoryCache::new(MemoryCacheOptions::default(), Runtime::system())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_after_a_write_is_not_older_though_all_replicas_are() {
    let behind = Behind::new(cache(), true).await;
    let how = ReadOptions::default();
    assert_eq!(behind.read(&how).await, ("2".to_owned(), Origin::Primary));
    assert_eq!(behind.read(&how).await, ("2".to_owned(), Origin::Far));
    let token = ReadOptions { token: Some(behind.token.clone()), ..how };
    assert_eq!(behind.read(&token).await, ("2".to_owned(), Origin::Far));
}

/// Without that rule the answer is old, and still nothing old is cached: versions see to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_had_before_a_write_is_not_cached_after_it() {
    let behind = Behind::new(cache(), false).await;
    let (found, origin) = behind.read(&ReadOptions::default()).await;
    assert!(found == "1" && matches!(origin, Origin::Replica(_)), "the replicas are behind");
    assert_eq!(behind.cached().await, None);
    let token = ReadOptions { token: Some(behind.token.clone()), ..ReadOptions::default() };
    assert_eq!(behind.read(&token).await, ("2".to_owned(), Origin::Primary));
}

#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_without_that_rule_is_caught() {
    let behind = Behind::new(cache().naive(), false).await;
    behind.read(&ReadOptions::default()).await;
    assert_eq!(behind.cached().await.as_deref(), Some("1"));
}
