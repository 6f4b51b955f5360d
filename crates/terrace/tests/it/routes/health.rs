//! `/health`, `/livez`, `/readyz`, `/`.

use std::sync::Arc;

use serde_json::json;
use terrace_core::MemoryStore;
use terrace_core::testkit::Scripted;

use super::server::Server;

#[tokio::test]
async fn a_healthy_level_says_so() {
    let server = Server::start();
    let health = server.get("/health").await;
    assert_eq!(health.text(), r#"{"status":"healthy","layer":"0-single-db"}"#);
    assert_eq!(server.get("/livez").await.json(), json!({"status": "alive"}));
    assert_eq!(server.get("/readyz").await.json(), json!({"status": "ready"}));
    assert_eq!(server.get("/").await.json()["layer"], "0-single-db");
}

#[tokio::test]
async fn levels_with_caches_name_their_parts() {
    let of = |number, name| Server::level(number, name, Arc::new(MemoryStore::default()));
    let two = of(2, "2-read-cache").get("/health").await;
    // Over bare memory there is a database and no cache.
    assert_eq!(
        two.text(),
        "{\"status\":\"healthy\",\"layer\":\"2-read-cache\",\"database\":\"healthy\",\
         \"cache\":\"unavailable\"}"
    );
    let five = of(5, "5-multi-tier-cache").get("/health").await;
    assert_eq!(five.fields(), ["status", "layer", "database", "l1_cache", "l2_cache"]);
}

#[tokio::test]
async fn a_level_that_is_down_is_alive_and_not_ready() {
    let (store, hand) = Scripted::new();
    let server = Server::level(2, "2-read-cache", store);
    assert_eq!(server.get("/readyz").await.status, 200);
    hand.report_down(true);
    let health = server.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("unhealthy")));
    assert_eq!(health.json()["database"], "unhealthy");
    server.get("/readyz").await.problem(503, "unavailable");
    assert_eq!(server.get("/livez").await.status, 200);
}
