//! A cache over replicas that lag.

use std::sync::Arc;

use terrace_core::Budget;
use terrace_core::testkit::{BrokenCache, CacheFlaw, key, value};
use terrace_core::{
    Cache, Key, Lookup, MemoryCache, MemoryCacheOptions, Origin, ReadOptions, Runtime,
    StoreExt as _, Token,
};
use terrace_layers::{CacheAside, CacheAsideOptions, ReplicaRouter};

use super::{Field, sql};

/// Three records of version 1, at which both replicas are paused.
async fn behind() -> (Field, Arc<ReplicaRouter>) {
    let field = Field::new().await;
    let router = field.router().await;
    for name in ["after a write", "not cached", "mutant"] {
        router.put(key(name), value("1")).await.expect("a write");
    }
    for number in [1, 2] {
        let standby = field.standby(number);
        let shown = "SELECT count(*) FROM records";
        super::until("they are there", || async { sql(standby, shown).await == "3" }).await;
        sql(standby, "SELECT pg_wal_replay_pause()").await;
    }
    (field, router)
}

/// A cache of its own over the router, through which version 2 of a record was acknowledged.
struct Behind {
    name: Key,
    cache: Arc<dyn Cache>,
    store: CacheAside,
    token: Token,
}

impl Behind {
    async fn new(
        router: &Arc<ReplicaRouter>,
        name: &str,
        cache: Arc<dyn Cache>,
        over_replicas: bool,
    ) -> Self {
        let name = key(name);
        let options = CacheAsideOptions { over_replicas, ..CacheAsideOptions::default() };
        let (inner, far) = (Arc::clone(router), Arc::clone(&cache));
        let store = CacheAside::new(inner.clone(), far, inner, options, Runtime::system());
        let token = store.put(name.clone(), value("2")).await.expect("a write").token;
        Self { name, cache, store, token }
    }

    async fn read(&self, how: &ReadOptions) -> (String, Origin) {
        let read = self.store.get_read(&self.name, how).await.expect("a read");
        (read.record.expect("a record").value.as_str().to_owned(), read.origin)
    }

    async fn cached(&self) -> Option<String> {
        match self
            .cache
            .get(std::slice::from_ref(&self.name), Budget::default())
            .await
            .expect("a lookup")
            .remove(0)
        {
            Lookup::Hit(entry) => entry.record.map(|record| record.value.as_str().to_owned()),
            Lookup::Miss(_) | Lookup::Written { .. } => None,
        }
    }
}

fn cache() -> Arc<dyn Cache> {
    Arc::new(MemoryCache::new(MemoryCacheOptions::default(), Runtime::system()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_are_behind_undo_no_write() {
    let (_field, router) = behind().await;
    let how = ReadOptions::default();
    let with = |token: &Token| ReadOptions { token: Some(token.clone()), ..ReadOptions::default() };

    // A read after a write is not older, though all replicas are.
    let behind = Behind::new(&router, "after a write", cache(), true).await;
    assert_eq!(behind.read(&how).await, ("2".to_owned(), Origin::PRIMARY));
    assert_eq!(behind.read(&how).await, ("2".to_owned(), Origin::FAR));
    // The entry proves the token once all that began before the write has ended.
    let (found, origin) = behind.read(&with(&behind.token)).await;
    assert!(found == "2" && matches!(origin, Origin::FAR | Origin::PRIMARY));

    // Without that rule the answer is old, and still nothing old is cached: versions see to it.
    let behind = Behind::new(&router, "not cached", cache(), false).await;
    let (found, origin) = behind.read(&how).await;
    assert!(found == "1" && origin.replica.is_some(), "the replicas are behind");
    assert_eq!(behind.cached().await, None);
    assert_eq!(behind.read(&with(&behind.token)).await, ("2".to_owned(), Origin::PRIMARY));

    // Without versions it is.
    let naive = Arc::new(BrokenCache::new(cache(), CacheFlaw::Naive));
    let behind = Behind::new(&router, "mutant", naive, false).await;
    behind.read(&how).await;
    assert_eq!(behind.cached().await.as_deref(), Some("1"));
}
