//! `/openapi.json` says what is served, no more and no less.

use std::sync::Arc;

use terrace_core::MemoryStore;

use super::server::Server;

const LEVELS: [(u8, &str); 9] = [
    (0, "0-single-db"),
    (1, "1-connection-pooling"),
    (2, "2-read-cache"),
    (3, "3-read-replicas"),
    (4, "4-db-sharding"),
    (5, "5-multi-tier-cache"),
    (6, "6-write-buffering"),
    (7, "7-cqrs"),
    (9, "9-global-distributed"),
];

const METHODS: [&str; 8] = ["get", "head", "put", "post", "delete", "patch", "options", "trace"];

#[tokio::test]
async fn every_documented_operation_is_served_and_no_other() {
    for (number, name) in LEVELS {
        let server = Server::level(number, name, Arc::new(MemoryStore::default()));
        let key = serde_json::json!({"value": "x"});
        server.send("PUT", "/v1/records/there", &key).await;
        let document = server.get("/openapi.json").await.json();
        assert_eq!(document["openapi"], "3.1.0");
        for (path, item) in document["paths"].as_object().unwrap() {
            let documented = METHODS.map(|m| item.get(m).map(|_| m.to_uppercase()));
            let documented = documented.into_iter().flatten().collect::<Vec<_>>();
            for method in METHODS.map(str::to_uppercase) {
                let place = path.replace("{key}", "there");
                let reply = server.call(&method, &place, &[], "").await;
                if !documented.contains(&method) {
                    assert_eq!(reply.status, 405, "{name}: {method} {path}");
                    let allow = reply.header("allow").unwrap().split(", ").collect::<Vec<_>>();
                    let mut sorted = documented.clone();
                    sorted.sort();
                    let mut allow = allow.clone();
                    allow.sort_unstable();
                    assert_eq!(allow, sorted, "{name}: {path}");
                    continue;
                }
                let answers = &item[method.to_lowercase()]["responses"];
                assert!(![404, 405].contains(&reply.status), "{name}: {method} {path}");
                let status = reply.status.to_string();
                assert!(answers.get(&status).is_some(), "{name}: {method} {path}: {status}");
                // Deleted by the call before.
                server.send("PUT", "/v1/records/there", &key).await;
            }
        }
    }
}

#[tokio::test]
async fn each_level_documents_its_own_endpoints() {
    let paths = |number, name| async move {
        let server = Server::level(number, name, Arc::new(MemoryStore::default()));
        let document = server.get("/openapi.json").await.json();
        document["paths"].as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    };
    assert!(!paths(0, "0-single-db").await.contains("stats"));
    assert!(paths(1, "1-connection-pooling").await.contains("/pool-stats"));
    assert!(paths(2, "2-read-cache").await.contains("/cache-stats"));
    let five = paths(5, "5-multi-tier-cache").await;
    assert!(five.contains("/stats") && five.contains("/clear-cache"), "{five}");
    let seven = paths(7, "7-cqrs").await;
    for path in ["/stats", "/v1/search", "/v1/top", "/v1/activity", "/v1/projection"] {
        assert!(seven.contains(path) && !five.contains("/v1/top"), "{seven}");
    }
    let nine = paths(9, "9-global-distributed").await;
    for path in ["/stats", "/regions", "/v1/conflicts"] {
        assert!(nine.contains(path) && !five.contains("/regions"), "{nine}");
    }
}

#[tokio::test]
async fn the_page_brings_all_it_needs() {
    let page = Server::start().get("/docs").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let text = page.text();
    assert!(!text.contains("{{") && !text.contains("http://") && !text.contains("https://"));
    assert!(text.contains("id=\"outcome-unknown\"") && text.contains("/v1/records/{key}"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"));
    assert!(!policy.contains("unsafe") && policy.matches("'sha256-").count() == 2, "{policy}");
}
