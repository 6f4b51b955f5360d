//! Level 6: writes that are queued, and those that are applied before the answer.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use terrace_core::{JournalLimits, MemoryJournal, MemoryStore, Runtime};
use terrace_layers::{WriteBuffer, WriteBufferOptions};

use super::server::Server;

/// Level 6 over memory, with or without somebody who applies what is queued.
async fn level(flushes: bool) -> Server {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    let (limits, takeover) = (JournalLimits::default(), Duration::from_secs(30));
    let journal = Arc::new(MemoryJournal::new(limits, takeover, runtime.clone()));
    let mut options =
        WriteBufferOptions { patience: Duration::from_millis(50), ..WriteBufferOptions::default() };
    if flushes {
        options.patience = Duration::from_secs(60);
    } else {
        options.flusher = None;
    }
    let generations = inner.clone();
    let store = WriteBuffer::open(inner, generations, journal, "journal", options, runtime).await;
    Server::level(6, "6-write-buffering", Arc::new(store))
}

#[tokio::test]
async fn the_documents_write_is_queued_and_read_at_once() {
    let server = level(false).await;
    let wrote = server.send("POST", "/write", &json!({"key": "a", "value": "1"})).await;
    assert_eq!(
        wrote.text(),
        r#"{"success":true,"key":"a","message":"Write queued successfully","queued":true}"#
    );
    assert_eq!((wrote.status, wrote.header("terrace-origin")), (200, Some("journal")));
    assert_eq!(wrote.header("terrace-durability"), Some("accepted"));
    let read = server.get("/read/a").await;
    assert_eq!(read.json()["value"], "1");
    assert_eq!(read.json()["from_cache"], false);
    assert_eq!(read.header("terrace-origin"), Some("journal"));
    let token = wrote.header("terrace-token").expect("a token");
    let again = server.call("GET", "/read/a", &[("terrace-token", token)], "").await;
    assert_eq!(again.json()["value"], "1");

    let stats = server.get("/stats").await;
    let names = [
        "cache_available",
        "cache_hits",
        "cache_misses",
        "cache_keys",
        "cache_hit_rate",
        "db_pool_size",
        "queue_length",
        "writes_queued",
        "writes_processed",
    ];
    assert_eq!(stats.fields(), names);
    assert_eq!(
        (&stats.json()["queue_length"], &stats.json()["writes_queued"]),
        (&json!(1), &json!(1))
    );
    let health = server.get("/health").await;
    assert_eq!(health.fields(), ["status", "layer", "database", "cache", "queue", "queue_length"]);
    assert_eq!(
        (&health.json()["queue"], &health.json()["queue_length"]),
        (&json!("healthy"), &json!(1))
    );
}

#[tokio::test]
async fn an_unconditional_write_of_a_record_answers_202_without_a_version() {
    let server = level(false).await;
    let put = server.send("PUT", "/v1/records/a", &json!({"value": "1"})).await;
    assert_eq!((put.status, put.header("etag")), (202, None));
    assert_eq!(put.fields(), ["key", "durability", "token"]);
    let got = server.get("/v1/records/a").await;
    assert_eq!((got.status, got.header("etag")), (200, None));
    assert_eq!((&got.json()["value"], &got.json()["version"]), (&json!("1"), &json!(0)));
    let batch =
        json!({"writes": [{"op": "put", "key": "b", "value": "2"}, {"op": "delete", "key": "a"}]});
    let wrote = server.send("POST", "/v1/batch/write", &batch).await;
    assert_eq!(wrote.json()["results"][1]["status"], "queued");
    assert_eq!(server.get("/v1/records/a").await.status, 404);
    let gone = server.call("DELETE", "/v1/records/b", &[], "").await;
    assert_eq!((gone.status, gone.fields().len()), (202, 3));
    let list = server.get("/v1/records").await;
    assert_eq!(list.json()["records"], json!([]));
}

#[tokio::test]
async fn conditions_and_prefer_wait_are_applied_before_the_answer() {
    let server = level(true).await;
    server.send("PUT", "/v1/records/a", &json!({"value": "queued"})).await;
    let wait = [("prefer", "respond-async, wait=5")];
    let waited = server.send_with("PUT", "/v1/records/a", &wait, &json!({"value": "2"})).await;
    assert_eq!(waited.status, 200, "after the queued one: {waited:?}");
    let etag = waited.header("etag").expect("a version").to_owned();
    let body = json!({"key": "d", "value": "1"});
    let wrote = server.send_with("POST", "/write", &[("prefer", "wait")], &body).await;
    assert_eq!(wrote.json()["queued"], false);
    let matching = [("if-match", etag.as_str())];
    let put = server.send_with("PUT", "/v1/records/a", &matching, &json!({"value": "3"})).await;
    assert_eq!(put.status, 200);
    let stale = server.send_with("PUT", "/v1/records/a", &matching, &json!({"value": "4"})).await;
    assert_eq!(stale.status, 412);
    server.send("PUT", "/v1/records/a", &json!({"value": "queued again"})).await;
    let star = [("if-match", "*")];
    let any = server.send_with("PUT", "/v1/records/a", &star, &json!({"value": "5"})).await;
    assert_eq!(any.status, 200, "the version of what was queued is waited for");
    assert_eq!(server.get("/v1/records/a").await.json()["value"], "5");
    let absent = [("if-none-match", "*")];
    let refused = server.send_with("PUT", "/v1/records/a", &absent, &json!({"value": "6"})).await;
    assert_eq!(refused.status, 412);
}

#[tokio::test]
async fn what_cannot_be_applied_in_time_is_refused_and_an_idempotent_write_is_queued_once() {
    let server = level(false).await;
    let once = [("idempotency-key", "one")];
    let body = json!({"value": "1"});
    let first = server.send_with("PUT", "/v1/records/a", &once, &body).await;
    let again = server.send_with("PUT", "/v1/records/a", &once, &body).await;
    assert_eq!((first.status, first.text()), (202, again.text()));
    let reused = server.send_with("PUT", "/v1/records/a", &once, &json!({"value": "2"})).await;
    reused.problem(422, "invalid-input");
    let wait = [("prefer", "wait")];
    let late = server.send_with("PUT", "/v1/records/a", &wait, &body).await;
    assert_eq!((late.status, late.header("retry-after")), (503, Some("1")));
}
