//! `/v1/batch`.

use serde_json::json;

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
