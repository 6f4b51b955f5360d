//! Level 9: regions by header, body or address; what the documents' API and `/v1/conflicts` answer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy takes only test functions as tests"
)]

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use terrace::http::{
    ClientPlaces, Documents, Face, Geography, Records, Regions, Service, documents,
};
use terrace_core::testkit::{MemoryRegion, key, value};
use terrace_core::{
    BoxFuture, Conflict, Deadline, Key, KeyRange, MemoryCache, MemoryCacheOptions, Receipt,
    RegionId, RegionName, RegionOptions, RegionStore, Result, Runtime, Store, StoreExt as _,
    Version,
};
use terrace_layers::{
    CacheAside, CacheAsideOptions, GeoRouter, GeoRouterOptions, RegionLink, RegionParts,
};

use super::server::{Reply, Server, faces, service};

const NAMES: [&str; 3] = ["us-east", "eu-west", "asia-pac"];

/// Level 9 over memory.
pub(super) struct World {
    pub(super) server: Server,
    regions: Vec<Arc<MemoryRegion>>,
}

#[derive(Debug)]
struct Port(Arc<GeoRouter>);

impl Regions for Port {
    fn names(&self) -> Vec<RegionName> {
        self.0.names()
    }

    fn confirmed<'a>(
        &'a self,
        key: &'a Key,
        receipt: &'a Receipt,
        by: Deadline,
    ) -> BoxFuture<'a, Vec<RegionName>> {
        Box::pin(self.0.confirmed(key, receipt, by))
    }

    fn conflicts<'a>(
        &'a self,
        region: Option<RegionName>,
        after: Option<(Key, Version)>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Conflict>>> {
        Box::pin(self.0.conflicts(region, after, limit))
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(GeoRouterOptions::default())
    }

    fn with(options: GeoRouterOptions) -> Self {
        let runtime = Runtime::system();
        let named = NAMES.iter().zip(1..).map(|(name, id)| {
            let name: RegionName = name.parse().unwrap();
            (name, RegionId::new(id).unwrap())
        });
        let named = named.collect::<Vec<_>>();
        let stores = named.iter().map(|(name, id)| {
            Arc::new(MemoryRegion::new(RegionOptions::new(*id, *name), runtime.clone()))
        });
        let regions = stores.collect::<Vec<_>>();
        let caches = regions.iter().map(|region| {
            let cache = MemoryCache::new(MemoryCacheOptions::default(), runtime.clone());
            let (store, generations) = (Arc::clone(region), Arc::clone(region));
            let options = CacheAsideOptions::default();
            let cache = Arc::new(cache);
            Arc::new(CacheAside::new(store, cache, generations, options, runtime.clone()))
        });
        let caches = caches.collect::<Vec<_>>();
        let links = regions.iter().zip(&caches).map(|(region, cache)| {
            let (store, region) = (Arc::clone(cache) as _, Arc::clone(region) as _);
            Arc::new(RegionLink::new(store, region, runtime.clone()))
        });
        let links = links.collect::<Vec<_>>();
        let parts = named.iter().zip(caches).map(|((name, id), cache)| RegionParts {
            name: *name,
            id: *id,
            links: links.clone(),
            cache: Some(cache),
            follows: true,
        });
        let here = named[0].0;
        let router =
            GeoRouter::start(parts.collect(), here, Vec::new(), options, runtime.clone()).unwrap();
        let router = Arc::new(router);
        let geography = Geography::new(named, here, ClientPlaces::default(), &runtime);
        let store = Arc::clone(&router) as Arc<dyn Store>;
        let geography = Some(Arc::new(geography));
        let records = Records { geography, ..Records::of(Arc::clone(&store)) };
        let port: Arc<dyn Regions> = Arc::new(Port(router));
        let documents = Documents::of(&documents::L9, records);
        let documents = Documents { regions: Some(Arc::clone(&port)), ..documents };
        let faces = faces(documents).into_iter().chain([Face::Regions(port)]).collect();
        let name = "9-global-distributed";
        let server = Server::of(Service { name, faces, ..service(store) });
        Self { server, regions }
    }

    async fn in_region(&self, method: &str, path: &str, region: &str, body: &Json) -> Reply {
        self.server.send_with(method, path, &[("X-Region", region)], body).await
    }

    async fn read(&self, path: &str, region: &str) -> Reply {
        self.server.call("GET", path, &[("X-Region", region)], "").await
    }

    /// Waits until all regions have the same rows.
    async fn settled(&self) {
        let runtime = Runtime::system();
        let until = runtime.now() + Duration::from_secs(30);
        loop {
            let mut digests = Vec::new();
            for region in &self.regions {
                let digest = region.digest(&KeyRange::default()).await.unwrap();
                digests.push((digest.rows, digest.sum));
            }
            if digests.iter().all(|it| *it == digests[0]) {
                return;
            }
            assert!(runtime.now() < until, "{digests:?}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_write_names_its_region_and_those_that_have_it() {
    let world = World::new();
    let body = json!({"key": "a", "value": "1"});
    let wrote = world.in_region("POST", "/write", "eu-west", &body).await;
    assert_eq!(wrote.status, 200, "{}", wrote.text());
    assert_eq!(wrote.fields(), ["success", "key", "message", "primary_region", "replicated_to"]);
    let said = wrote.json();
    assert_eq!(said["message"], "Written to EU-WEST and replicated to 2 regions");
    assert_eq!(said["primary_region"], "EU-WEST");
    assert_eq!(said["replicated_to"], json!(["US-EAST", "ASIA-PAC"]));
    assert_eq!(wrote.header("terrace-origin"), Some("region:eu-west"));

    let read = world.read("/read/a", "asia-pac").await;
    let fields = ["success", "key", "value", "message", "source", "region", "latency_ms"];
    assert_eq!(read.fields(), fields);
    let first = read.json();
    assert_eq!((&first["source"], &first["region"]), (&json!("database"), &json!("ASIA-PAC")));
    assert!(first["latency_ms"].is_number() && first["message"].is_null());
    let second = world.read("/read/a", "asia-pac").await;
    assert_eq!(second.json()["source"], "cache");
    assert_eq!(second.header("terrace-origin"), Some("far"));

    let missing = world.read("/read/nobody", "eu-west").await.json();
    let expected = json!({"success": false, "key": "nobody", "value": null, "source": "none",
        "message": "Key not found in any region", "region": "EU-WEST"});
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&missing[field], value, "{field}");
    }
}

#[tokio::test]
async fn the_header_counts_then_the_body_then_the_region_of_the_process() {
    let world = World::new();
    let body = json!({"key": "a", "value": "1", "region": "asia-pac"});
    let region = |reply: Reply| reply.json()["primary_region"].as_str().unwrap().to_owned();
    let from_body = world.server.send("POST", "/write", &body).await;
    assert_eq!(region(from_body), "ASIA-PAC");
    assert_eq!(region(world.in_region("POST", "/write", "eu-west", &body).await), "EU-WEST");
    let unknown = world.in_region("POST", "/write", "mars", &body).await;
    assert_eq!(region(unknown), "US-EAST", "an unknown name is the first region");
    let plain = json!({"key": "a", "value": "1"});
    assert_eq!(region(world.server.send("POST", "/write", &plain).await), "US-EAST");
    let wrong = json!({"key": "a", "value": "1", "region": 1});
    assert_eq!(world.server.send("POST", "/write", &wrong).await.status, 422);

    let put = world.in_region("PUT", "/v1/records/a", "mars", &json!({"value": "1"})).await;
    assert_eq!(put.status, 422);
    assert!(put.json()["detail"].as_str().unwrap().contains("us-east, eu-west, asia-pac"));
    let put = world.in_region("PUT", "/v1/records/a", "eu-west", &json!({"value": "1"})).await;
    assert_eq!(put.header("terrace-origin"), Some("region:eu-west"));
}

#[tokio::test]
async fn a_read_from_another_region_says_fallback() {
    let world = World::with(GeoRouterOptions { replicates: false, ..GeoRouterOptions::default() });
    let body = json!({"key": "a", "value": "1"});
    let wrote = world.in_region("POST", "/write", "eu-west", &body).await.json();
    assert_eq!(
        (&wrote["message"], &wrote["replicated_to"]),
        (&json!("Written to EU-WEST"), &json!([]))
    );
    let read = world.read("/read/a", "us-east").await;
    assert_eq!(read.json()["region"], "EU-WEST (fallback)");
    assert_eq!(read.header("terrace-origin"), Some("region:eu-west"));
    assert_eq!(world.server.get("/stats").await.json()["replication_enabled"], false);
}

#[tokio::test]
async fn statistics_regions_and_health_are_as_the_documents_have_them() {
    let world = World::new();
    let stats = world.server.get("/stats").await;
    let fields = ["regions", "total_regions", "healthy_regions", "total_records_global"];
    assert_eq!(stats.fields(), [&fields[..], &["replication_enabled"]].concat());
    let stats = stats.json();
    let first = stats["regions"][0].as_object().unwrap();
    let names = first.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>();
    let wanted = ["cache_keys", "db_pool_size", "healthy", "region", "total_records"];
    assert_eq!(names, wanted.into());
    assert_eq!(first["region"], "US-EAST");
    assert_eq!((&stats["total_regions"], &stats["replication_enabled"]), (&json!(3), &json!(true)));
    let regions = world.server.get("/regions").await.json();
    let one =
        |key: &str, healthy| json!({"key": key, "name": key.to_uppercase(), "healthy": healthy});
    let all = |second| json!([one("us-east", true), one("eu-west", second), one("asia-pac", true)]);
    assert_eq!(regions["regions"], all(true));

    world.regions[1].set_down(true);
    let health = world.server.get("/health").await;
    assert_eq!(health.status, 200);
    let health = health.json();
    assert_eq!(health["status"], "degraded");
    let up = json!({"us-east": true, "eu-west": false, "asia-pac": true});
    assert_eq!(health["regions"], up);
    assert_eq!((&health["total_regions"], &health["healthy_regions"]), (&json!(3), &json!(2)));
    assert_eq!(health["geoip"], "unused");
    assert_eq!(world.server.get("/regions").await.json()["regions"], all(false));
}

#[tokio::test]
async fn lost_updates_are_listed_by_pages() {
    let world = World::new();
    // Each region's followers are cut off while all write the same keys.
    for region in &world.regions {
        region.set_down(true);
    }
    for name in ["a", "b/é"] {
        for region in &world.regions {
            region.set_down(false);
            region.put(key(name), value("x")).await.unwrap();
            region.set_down(true);
        }
    }
    for region in &world.regions {
        region.set_down(false);
    }
    world.settled().await;
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let page = world.read(&format!("/v1/conflicts?limit=3&cursor={cursor}"), "eu-west").await;
        assert_eq!(page.status, 200, "{}", page.text());
        let page = page.json();
        for conflict in page["conflicts"].as_array().unwrap() {
            assert!(conflict["version"].as_u64() > conflict["lost_version"].as_u64());
            assert_eq!(conflict["lost_digest"].as_str().unwrap().len(), 64);
            assert_ne!(conflict["region"], conflict["lost_region"]);
            assert!(NAMES.contains(&conflict["lost_region"].as_str().unwrap()));
            seen.push(conflict["key"].as_str().unwrap().to_owned());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, ["a", "a", "b/é", "b/é"]);
    assert_eq!(world.server.get("/v1/conflicts?cursor=x").await.status, 422);
    assert_eq!(world.server.get("/v1/conflicts?limit=0").await.status, 422);
}

#[tokio::test]
async fn a_record_may_wait_for_other_regions() {
    let world = World::new();
    let headers = [("X-Region", "us-east"), ("Terrace-Durability", "replicated=all")];
    let body = json!({"value": "1"});
    let put = world.server.send_with("PUT", "/v1/records/a", &headers, &body).await;
    assert_eq!((put.status, put.header("terrace-durability")), (201, Some("replicated")));
    let plain = world.in_region("PUT", "/v1/records/a", "us-east", &body).await;
    assert_eq!(plain.header("terrace-durability"), Some("accepted"), "memory keeps nothing safe");
    let headers = [("Terrace-Durability", "often")];
    assert_eq!(world.server.send_with("PUT", "/v1/records/a", &headers, &body).await.status, 422);
}
