//! `POST /write`, `GET /read/{key}`.

use std::sync::Arc;

use serde_json::json;
use terrace_core::testkit::Scripted;
use terrace_core::{Consistency, MemoryStore, Token};

use super::server::Server;

#[tokio::test]
async fn what_is_written_is_read_with_every_field_in_order() {
    let server = Server::start();
    let wrote = server.send("POST", "/write", &json!({"key": "a", "value": "one"})).await;
    assert_eq!(wrote.status, 200);
    let expected = r#"{"success":true,"key":"a","message":"Data written successfully"}"#;
    assert_eq!(wrote.text(), expected);
    assert_eq!(wrote.header("terrace-origin"), Some("primary"));
    assert_eq!(wrote.header("terrace-durability"), Some("accepted"));
    assert!(wrote.header("terrace-token").unwrap().parse::<Token>().is_ok());

    let read = server.get("/read/a").await;
    assert_eq!(read.status, 200);
    assert_eq!(read.fields(), ["success", "key", "value", "created_at", "updated_at", "message"]);
    let body = read.json();
    assert_eq!(body["value"], "one");
    assert_eq!(body["message"], json!(null));
    let time = body["created_at"].as_str().unwrap();
    assert_eq!((time.len(), &time[10..11], &time[19..20]), (26, "T", "."), "{time}");
    assert_eq!(read.header("terrace-origin"), Some("primary"));
    assert_eq!(read.header("terrace-token"), wrote.header("terrace-token"));
}

#[tokio::test]
async fn a_missing_key_answers_200_with_nulls() {
    let read = Server::start().get("/read/nobody").await;
    assert_eq!(read.status, 200);
    assert_eq!(
        read.text(),
        "{\"success\":false,\"key\":\"nobody\",\"value\":null,\"created_at\":null,\
         \"updated_at\":null,\"message\":\"Key not found\"}"
    );
}

#[tokio::test]
async fn level_7_names_the_event_and_counts_reads() {
    let server = Server::level(7, "7-cqrs", Arc::new(MemoryStore::default()));
    let body = json!({"key": "a", "value": "one"});
    let wrote = server.send("POST", "/write", &body).await;
    assert_eq!(wrote.fields(), ["success", "key", "message", "event_id"]);
    assert_eq!(wrote.json()["message"], "Command written and event published");
    let wrote = server.send("PUT", "/write", &body).await;
    assert_eq!(wrote.json()["message"], "Command updated and event published");
    let read = server.get("/read/a").await;
    let common = ["success", "key", "value", "created_at", "updated_at", "message"];
    assert_eq!(read.fields(), [&common[..], &["read_count", "from_read_db"]].concat());
    assert_eq!(read.json()["read_count"], 3);
    assert_eq!(read.json()["from_read_db"], false, "a memory store is no read model");
    let missing = server.get("/read/nobody").await.json();
    let message = "Key not found in read database (may not be projected yet)";
    assert_eq!(missing["message"], message);
    let stats = server.get("/stats").await;
    let sides = ["write_db_pool_size", "read_db_pool_size", "events_published"];
    let counts = ["events_projected", "read_db_records", "write_db_records"];
    assert_eq!(stats.fields(), [sides, counts].concat());
}

#[tokio::test]
async fn queries_are_answered_or_refused() {
    let server = Server::level(7, "7-cqrs", Arc::new(MemoryStore::default()));
    let found = server.get("/v1/search?q=two+words&limit=5").await.json();
    assert_eq!(found["records"][0]["key"], "two words 5");
    assert_eq!(found["records"][0]["write_count"], 4);
    assert_eq!(server.get("/v1/top?by=writes").await.json()["records"][0]["key"], "writes 20");
    let buckets = server.get("/v1/activity?bucket=2h").await.json();
    assert_eq!(
        buckets["buckets"][0],
        json!({"from": "1970-01-01T00:00:00.000000Z", "writes": 7200})
    );
    assert_eq!(server.get("/v1/projection").await.json()["projects"], false);
    for bad in
        ["search", "search?q=", "search?q=a&limit=0", "top", "top?by=x", "activity?bucket=1s"]
    {
        assert_eq!(server.get(&format!("/v1/{bad}")).await.status, 422, "{bad}");
    }
}

#[tokio::test]
async fn created_at_survives_updates() {
    let server = Server::start();
    server.send("POST", "/write", &json!({"key": "a", "value": "one"})).await;
    let first = server.get("/read/a").await.json();
    server.send("POST", "/write", &json!({"key": "a", "value": "two", "extra": [1]})).await;
    let second = server.get("/read/a").await.json();
    assert_eq!(second["value"], "two");
    assert_eq!(second["created_at"], first["created_at"]);
    assert_ne!(second["updated_at"], first["updated_at"]);
}

#[tokio::test]
async fn keys_and_values_may_be_any_text() {
    let server = Server::start();
    let paths = [
        ("a/b", "/read/a%2Fb"),
        ("with space", "/read/with%20space"),
        ("ключ", "/read/%D0%BA%D0%BB%D1%8E%D1%87"),
        ("a+b?c#d", "/read/a+b%3Fc%23d"),
        ("quote\"\\", "/read/quote%22%5C"),
        ("{key}", "/read/%7Bkey%7D"),
        ("..", "/read/.."),
    ];
    for (key, path) in paths {
        let value = format!("\u{1F600} \"{key}\" \n\t\u{7f}");
        let wrote = server.send("POST", "/write", &json!({"key": key, "value": value})).await;
        assert_eq!(wrote.status, 200, "{key}");
        let read = server.get(path).await.json();
        assert_eq!((&read["key"], &read["value"]), (&json!(key), &json!(value)));
    }
    server.send("POST", "/write", &json!({"key": "empty", "value": ""})).await;
    assert_eq!(server.get("/read/empty").await.json()["value"], "");
}

#[tokio::test]
async fn levels_add_their_fields_and_endpoints() {
    let of = |number, name| Server::level(number, name, Arc::new(MemoryStore::default()));
    let (l1, l2, l5) =
        (of(1, "1-connection-pooling"), of(2, "2-read-cache"), of(5, "5-multi-tier-cache"));
    for server in [&l1, &l2, &l5] {
        server.send("POST", "/write", &json!({"key": "a", "value": "one"})).await;
    }
    assert_eq!(l1.get("/read/a").await.json().get("from_cache"), None);
    assert_eq!(l2.get("/read/a").await.json()["from_cache"], false);
    assert_eq!(l5.get("/read/a").await.json()["cache_level"], "L3");
    assert_eq!(l5.get("/read/none").await.json()["cache_level"], "L3");
    assert_eq!(l5.get("/read/a").await.fields().last().unwrap(), "cache_level");
    assert_eq!(l1.get("/cache-stats").await.status, 404);
    assert_eq!(l2.get("/pool-stats").await.status, 404);
}

#[tokio::test]
async fn what_the_headers_ask_reaches_the_store() {
    let (store, mut hand) = Scripted::new();
    let server = Server::over(store);
    let token = Token::of("db", terrace_core::Position::new(9));
    let text = token.to_string();
    let headers = [("terrace-consistency", "max-stale=250"), ("terrace-token", text.as_str())];
    let (reply, ()) = tokio::join!(server.call("GET", "/read/a", &headers, ""), async {
        let call = hand.read().await;
        let bound = std::time::Duration::from_millis(250);
        assert_eq!(call.how.consistency, Consistency::MaxStale(bound));
        assert_eq!(call.how.token.as_ref(), Some(&token));
        assert!(call.how.deadline.instant().is_some());
        call.found(&[("a", "one", 7)]);
    });
    assert_eq!(reply.json()["value"], "one");
}

#[tokio::test]
async fn a_repeated_write_under_one_idempotency_key_is_applied_once() {
    let server = Server::start();
    let body = json!({"key": "a", "value": "one"});
    let send = |body: serde_json::Value| {
        let server = &server;
        async move { server.send_with("POST", "/write", &[("idempotency-key", "order-7")], &body).await }
    };
    let first = send(body.clone()).await;
    let second = send(body).await;
    assert_eq!(first.header("terrace-token"), second.header("terrace-token"));
    let other = send(json!({"key": "a", "value": "two"})).await;
    assert!(other.problem(422, "invalid-input").contains("Idempotency-Key"));
    assert_eq!(server.get("/read/a").await.json()["value"], "one");
}

#[tokio::test]
async fn request_ids_are_kept_or_made() {
    let server = Server::start();
    let kept = server.call("GET", "/read/a", &[("x-request-id", "order-7")], "").await;
    assert_eq!(kept.header("x-request-id"), Some("order-7"));
    let one = server.get("/read/a").await;
    let two = server.get("/read/a").await;
    assert_ne!(one.header("x-request-id").unwrap(), two.header("x-request-id").unwrap());
}
