//! `/pool-stats`, `/cache-stats`, `/stats`, `/clear-cache`, out of the inspection of a stack.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use terrace::http::{ClearCache, Documents, Records, Service, documents};
use terrace_core::{
    BoxFuture, Fact, Inspection, Key, MemoryStore, Page, PartKind, Read, ReadOptions, Receipt,
    Result, Scan, Status, Store, Unit, Write, WriteOptions,
};

use super::server::{Server, faces, service};

/// Memory that says of itself what the test tells it to say.
#[derive(Debug)]
struct Says(MemoryStore, Inspection);

impl std::fmt::Display for Says {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("says")
    }
}

impl Store for Says {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        self.0.read(keys, how)
    }
    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        self.0.write(batch, how)
    }
    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.0.scan(scan, how)
    }
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { self.1.clone() })
    }
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.0.close()
    }
}

/// A whole L5, with both caches made of the same part.
fn stack(far: Status) -> Inspection {
    let pool = Inspection::of(PartKind::Pool, "pool")
        .gauge("pool_size", 8, Unit::Count)
        .gauge("pool_available", 5, Unit::Count)
        .gauge("requests_waiting", 2, Unit::Count)
        .counter("usage_ms", 1234);
    let database = Inspection::of(PartKind::Database, "postgres").needs(pool);
    let cache = Inspection::of(PartKind::Cache, "memory-cache")
        .gauge("keys", 30, Unit::Count)
        .status(far, "");
    let aside = Inspection::new("cache-aside").counter("hits", 1).counter("misses", 2);
    let aside = aside.helped_by(cache).needs(database);
    Inspection::new("near-cache")
        .counter("hits", 6)
        .counter("misses", 3)
        .gauge("keys", 10, Unit::Count)
        .gauge("max_bytes", 4096, Unit::Bytes)
        .gauge("max_keys", 500, Unit::Count)
        .needs(aside)
}

fn level(number: u8, name: &'static str, far: Status) -> Server {
    Server::level(number, name, Arc::new(Says(MemoryStore::default(), stack(far))))
}

#[tokio::test]
async fn numbers_come_from_the_inspection() {
    let pool = level(1, "1-connection-pooling", Status::Healthy).get("/pool-stats").await;
    assert_eq!(
        pool.text(),
        r#"{"pool_size":8,"pool_available":5,"requests_waiting":2,"usage_ms":1234}"#
    );
    let cache = level(2, "2-read-cache", Status::Healthy).get("/cache-stats").await;
    assert_eq!(
        cache.text(),
        r#"{"available":true,"hits":1,"misses":2,"keys":30,"hit_rate":33.33}"#
    );
    let server = level(5, "5-multi-tier-cache", Status::Healthy);
    let stats = server.get("/stats").await;
    assert_eq!(
        stats.text(),
        "{\"l1_cache_available\":true,\"l1_cache_size\":10,\"l1_cache_max_size\":500,\
         \"l1_cache_hits\":6,\"l1_cache_misses\":3,\"l1_hit_rate\":66.67,\
         \"l2_cache_available\":true,\"l2_cache_keys\":30,\"l2_cache_hits\":1,\
         \"l2_cache_misses\":2,\"l2_hit_rate\":33.33,\"db_pool_size\":8,\"total_hits\":7,\
         \"total_misses\":2,\"overall_hit_rate\":77.78}"
    );
    assert_eq!(server.get("/cache-stats").await.text(), stats.text());
}

/// A whole L4 with two shards, one of which is down.
fn sharded() -> Inspection {
    let shard = |number, status| {
        let pool =
            Inspection::of(PartKind::Pool, "pool").gauge("pool_size", 2 + number, Unit::Count);
        Inspection::of(PartKind::Shard, "shard")
            .gauge("number", number, Unit::Count)
            .gauge("records", 7 * number, Unit::Count)
            .counter("reads", 3)
            .counter("writes", number)
            .needs(Inspection::of(PartKind::Database, "postgres").needs(pool).status(status, ""))
    };
    let router = Inspection::new("shard-router")
        .fact("hot_keys", Fact::Numbers(vec![("user: 1".to_owned(), 61)]))
        .gauge("shards", 2, Unit::Count)
        .helped_by(shard(0, Status::Healthy))
        .helped_by(shard(1, Status::Down));
    let cache = Inspection::of(PartKind::Cache, "memory-cache").gauge("keys", 30, Unit::Count);
    let aside = Inspection::new("cache-aside").counter("hits", 3).counter("misses", 1);
    aside.helped_by(cache).needs(router)
}

#[tokio::test]
async fn figures_of_shards_stand_under_their_names() {
    let store = Arc::new(Says(MemoryStore::default(), sharded()));
    let server = Server::level(4, "4-db-sharding", store);
    assert_eq!(
        server.get("/stats").await.text(),
        "{\"cache_available\":true,\"cache_hits\":3,\"cache_misses\":1,\"cache_keys\":30,\
         \"cache_hit_rate\":75.0,\"num_shards\":2,\
         \"shard_pool_sizes\":{\"shard_0\":2,\"shard_1\":3},\
         \"shard_distribution\":{\"shard_0\":0,\"shard_1\":7},\
         \"shard_reads\":{\"shard_0\":3,\"shard_1\":3},\
         \"shard_writes\":{\"shard_0\":0,\"shard_1\":1},\"hot_keys\":{\"user: 1\":61}}"
    );
    assert_eq!(
        server.get("/health").await.text(),
        "{\"status\":\"degraded\",\"layer\":\"4-db-sharding\",\
         \"shards\":{\"shard_0\":\"healthy\",\"shard_1\":\"unhealthy\"},\"cache\":\"healthy\"}"
    );
}

#[tokio::test]
async fn a_near_cache_bounded_by_memory_alone_says_its_bytes() {
    let tree = Inspection::new("near-cache").gauge("max_bytes", 4096, Unit::Bytes);
    let store = Arc::new(Says(MemoryStore::default(), tree));
    let stats = Server::level(5, "5-multi-tier-cache", store).get("/stats").await;
    assert_eq!(stats.json()["l1_cache_max_size"], 4096);
}

#[tokio::test]
async fn a_cache_that_is_down_degrades_the_level() {
    let server = level(5, "5-multi-tier-cache", Status::Down);
    let health = server.get("/health").await;
    assert_eq!(health.status, 200);
    assert_eq!(
        health.text(),
        "{\"status\":\"degraded\",\"layer\":\"5-multi-tier-cache\",\"database\":\"healthy\",\
         \"l1_cache\":\"healthy\",\"l2_cache\":\"unavailable\"}"
    );
    assert_eq!(server.get("/stats").await.json()["l2_cache_available"], false);
    assert_eq!(server.get("/readyz").await.status, 200);
}

#[derive(Debug)]
struct Noted(&'static str, Arc<Mutex<Vec<&'static str>>>);

impl ClearCache for Noted {
    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn clearing_empties_the_far_cache_before_the_near_one() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let cache = |name| -> Arc<dyn ClearCache> { Arc::new(Noted(name, Arc::clone(&order))) };
    let server = Server::of(Service {
        faces: faces(Documents {
            caches: vec![cache("near"), cache("far")],
            ..Documents::of(&documents::L5, Records::of(Arc::new(MemoryStore::default())))
        }),
        ..service(Arc::new(MemoryStore::default()))
    });
    let reply = server.call("POST", "/clear-cache", &[], "").await;
    assert_eq!(reply.json(), json!({"success": true, "message": "All caches cleared"}));
    assert_eq!(*order.lock().unwrap(), ["far", "near"]);
}
