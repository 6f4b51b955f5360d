//! `/v1/batch`.

use std::sync::Arc;

use serde_json::json;
use terrace_core::testkit::{Scripted, key};
use terrace_core::{MemoryStore, StoreExt as _, Value};

use super::server::Server;

#[tokio::test]
async fn writes_and_reads_answer_in_the_order_asked() {
    let server = Server::start();
    let writes = json!({"writes": [
        {"op": "put", "key": "a", "value": "one"},
        {"op": "put", "key": "b", "value": "two", "if_version": 7},
        {"op": "put", "key": "c", "value": "three", "if_version": 0},
        {"op": "delete", "key": "a"},
        {"op": "delete", "key": "nobody"},
    ]});
    let wrote = server.send("POST", "/v1/batch/write", &writes).await;
    assert_eq!(wrote.status, 200);
    assert_eq!(wrote.fields(), ["results", "durability", "token"]);
    assert_eq!(
        wrote.json()["results"],
        json!([
            {"key": "a", "status": "applied", "version": 1},
            {"key": "b", "status": "precondition_failed", "version": 0},
            {"key": "c", "status": "applied", "version": 2},
            {"key": "a", "status": "applied", "version": 3},
            {"key": "nobody", "status": "applied", "version": 0},
        ])
    );
    let read = server.send("POST", "/v1/batch/read", &json!({"keys": ["c", "a", "c"]})).await;
    let records = read.json()["records"].clone();
    assert_eq!(records[0]["value"], "three");
    assert_eq!(records[1], json!({"key": "a", "missing": true}));
    assert_eq!(records[2]["version"], 2);
    assert_eq!(read.header("terrace-origin"), Some("primary"));
    assert_eq!(read.header("terrace-token"), wrote.header("terrace-token"));
}

#[tokio::test]
async fn refusals_name_the_item_and_apply_nothing() {
    let server = Server::start();
    let good = json!({"op": "put", "key": "a", "value": "secret-1"});
    let cases = [
        (json!({"op": "put", "key": "", "value": "x"}), "writes[1]"),
        (json!({"op": "put", "key": "b"}), "writes[1].value"),
        (json!({"op": "put", "key": 5, "value": "x"}), "writes[1].key"),
        (json!({"op": "drop", "key": "b"}), "writes[1].op"),
        (json!({"op": "delete", "key": "b", "value": "x"}), "writes[1].value"),
        (json!({"op": "delete", "key": "b", "if_version": -1}), "writes[1].if_version"),
        (json!({"op": "delete", "key": "b", "if_version": 1.5}), "writes[1].if_version"),
        (json!({"op": "delete", "key": "b", "iff": 1}), "iff"),
        (json!("secret-2"), "writes[1]"),
    ];
    for (bad, named) in cases {
        let body = json!({"writes": [good, bad]});
        let reply = server.send("POST", "/v1/batch/write", &body).await;
        let detail = reply.problem(422, "invalid-input");
        assert!(detail.contains(named) && !detail.contains("secret"), "{named}: {detail}");
    }
    assert_eq!(server.get("/v1/records/a").await.status, 404);
}

#[tokio::test]
async fn batches_have_1_to_1000_items() {
    let server = Server::start();
    let keys = |count: usize| json!({"keys": vec!["k"; count]});
    assert_eq!(server.send("POST", "/v1/batch/read", &keys(1000)).await.status, 200);
    for body in [keys(0), keys(1001), json!({"keys": "k"}), json!({})] {
        let reply = server.send("POST", "/v1/batch/read", &body).await;
        assert!(reply.problem(422, "invalid-input").contains("keys"));
    }
    let reply = server.send("POST", "/v1/batch/read", &json!({"keys": ["a", ""]})).await;
    assert!(reply.problem(422, "invalid-input").contains("keys[1]"));
}

#[tokio::test]
async fn a_key_asked_for_again_is_not_read_again() {
    let (store, mut hand) = Scripted::new();
    let server = Server::over(store);
    let keys = json!({"keys": ["c", "a", "c", "b", "a"]});
    let (reply, ()) = tokio::join!(server.send("POST", "/v1/batch/read", &keys), async {
        let call = hand.read().await;
        assert_eq!(call.keys, [key("c"), key("a"), key("b")]);
        call.found(&[("a", "one", 1), ("c", "three", 3)]);
    });
    let records = reply.json()["records"].clone();
    let found = ["three", "one", "three", "", "one"];
    for (record, value) in records.as_array().unwrap().iter().zip(found) {
        assert_eq!(record["value"].as_str().unwrap_or_default(), value);
    }
    assert_eq!(records[3], json!({"key": "b", "missing": true}));
}

#[tokio::test]
async fn an_answer_holds_16_mib_of_values() {
    let store = Arc::new(MemoryStore::default());
    for index in 10..28 {
        let value = Value::new("x".repeat(Value::MAX_BYTES)).unwrap();
        store.put(key(index.to_string()), value).await.unwrap();
    }
    let server = Server::over(store);
    let keys = |count: usize| json!({"keys": vec!["10"; count]});
    assert_eq!(server.send("POST", "/v1/batch/read", &keys(16)).await.status, 200);
    let reply = server.send("POST", "/v1/batch/read", &keys(17)).await;
    assert!(reply.problem(422, "invalid-input").contains("ask for fewer keys"));

    let first = server.get("/v1/records").await.json();
    assert_eq!(first["records"].as_array().unwrap().len(), 16);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = server.get(&format!("/v1/records?cursor={cursor}")).await;
    assert_eq!(second.fields(), ["records"]);
    let second = second.json();
    let keys = second["records"].as_array().unwrap().iter().map(|record| &record["key"]);
    assert!(keys.eq(["26", "27"]));
}
