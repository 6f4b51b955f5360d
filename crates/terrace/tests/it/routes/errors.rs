//! Every row of the error table.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use terrace::http::{Limits, Service};
use terrace_core::testkit::Scripted;
use terrace_core::{
    BoxFuture, Error, ErrorKind, Inspection, Key, Page, Read, ReadOptions, Receipt, Result,
    Runtime, Scan, Store, Write, WriteOptions,
};
use terrace_layers::{Timeout, TimeoutOptions};

use super::server::{SOON, Server, service};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn wrong_bodies_are_told_where_and_never_repeated() {
    let server = Server::start();
    let long = format!(r#"{{"key":"{}","value":"v"}}"#, "k".repeat(256));
    let cases: &[(&str, &str)] = &[
        ("", "empty"),
        ("{\"key\":\"secret\",", "line 1 column"),
        ("{\"key\":\"secret\" \"value\"}", "line 1 column"),
        ("[\"secret\"]", "JSON object"),
        ("\"secret\"", "JSON object"),
        ("{\"value\":\"secret\"}", "key is missing"),
        ("{\"key\":\"a\"}", "value is missing"),
        ("{\"key\":\"a\",\"value\":null}", "value is missing or null"),
        ("{\"key\":\"a\",\"value\":{\"secret\":1}}", "value must be a string, not an object"),
        ("{\"key\":12345,\"value\":\"secret\"}", "key must be a string, not a number"),
        ("{\"key\":\"a\",\"key\":\"b\",\"value\":\"secret\"}", "key"),
        ("{\"key\":\"\",\"value\":\"secret\"}", "key is empty"),
        ("{\"key\":\"a\\u0000\",\"value\":\"secret\"}", "key holds a NUL"),
        ("{\"key\":\"a\",\"value\":\"secret\\u0000\"}", "value holds a NUL"),
        ("{\"key\":\"a\",\"value\":\"secret\\ud800\"}", "value has an escape"),
        (&long, "key is too long"),
    ];
    for (body, wanted) in cases {
        let reply = server.call("POST", "/write", &[JSON], body).await;
        let detail = reply.problem(422, "invalid-input");
        assert!(detail.contains(wanted) && !detail.contains("secret"), "{body}: {detail}");
        assert!(!detail.contains("12345"), "{detail}");
    }
    let mut client = server.connect().await;
    client.request("POST", "/write", &[JSON, ("content-length", "4")], "").await;
    client.write(b"{\"\xff\"").await;
    client.reply_to("POST").await.problem(422, "invalid-input");
}

#[tokio::test]
async fn the_record_api_refuses_fields_it_does_not_know() {
    let server = Server::start();
    let body = json!({"value": "x", "valu": "y"});
    let reply = server.send("PUT", "/v1/records/a", &body).await;
    assert!(reply.problem(422, "invalid-input").contains("`valu`"));
}

#[tokio::test]
async fn keys_in_paths_are_checked() {
    let server = Server::start();
    for face in ["/read/", "/v1/records/"] {
        for key in ["", "%", "%4", "%zz", "%ff", "%00", "a%00b"] {
            server.get(&format!("{face}{key}")).await.problem(422, "invalid-input");
        }
        let long = format!("{face}{}", "%C3%A9".repeat(256));
        assert!(server.get(&long).await.problem(422, "invalid-input").contains("too long"));
        let longest = format!("{face}{}", "%C3%A9".repeat(255));
        assert!([200, 404].contains(&server.get(&longest).await.status));
    }
}

#[tokio::test]
async fn headers_that_ask_nonsense_are_refused() {
    let server = Server::start();
    let cases = [
        ("terrace-consistency", "eventual"),
        ("terrace-consistency", "max-stale=soon"),
        ("terrace-token", "garbage!"),
    ];
    for header in cases {
        server.call("GET", "/read/a", &[header], "").await.problem(422, "invalid-input");
    }
    let twice = [("terrace-consistency", "strong"), ("terrace-consistency", "default")];
    server.call("GET", "/read/a", &twice, "").await.problem(422, "invalid-input");
    let long = "k".repeat(256);
    let headers = [("idempotency-key", long.as_str())];
    let body = json!({"key": "a", "value": "x"});
    server.send_with("POST", "/write", &headers, &body).await.problem(422, "invalid-input");
}

#[tokio::test]
async fn only_json_is_taken() {
    let server = Server::start();
    let body = r#"{"key":"a","value":"x"}"#;
    for headers in [&[][..], &[("content-type", "application/x-www-form-urlencoded")]] {
        let reply = server.call("POST", "/write", headers, body).await;
        let detail = reply.problem(415, "unsupported-media-type");
        assert!(detail.contains("-H 'content-type: application/json'"), "{detail}");
    }
    for good in ["application/json; charset=utf-8", "application/merge-patch+json"] {
        assert_eq!(
            server.call("POST", "/write", &[("content-type", good)], body).await.status,
            200
        );
    }
}

#[tokio::test]
async fn a_body_may_begin_with_a_byte_order_mark_and_may_not_be_compressed() {
    let server = Server::start();
    let body = "\u{feff}{\"key\":\"a\",\"value\":\"x\"}";
    assert_eq!(server.call("POST", "/write", &[JSON], body).await.status, 200);
    let plain = [JSON, ("content-encoding", "identity")];
    assert_eq!(server.call("POST", "/write", &plain, body).await.status, 200);
    for coding in ["gzip", "br", "identity, gzip"] {
        let packed = [JSON, ("content-encoding", coding)];
        let reply = server.call("POST", "/write", &packed, body).await;
        let detail = reply.problem(415, "unsupported-media-type");
        assert!(detail.contains("Content-Encoding"), "{detail}");
        assert_eq!(reply.header("accept-encoding"), Some("identity"));
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let limits = Limits { body_bytes: 1000, value_bytes: 100, ..Limits::default() };
    let server = Server::limited(limits);
    let value = json!({"key": "a", "value": "x".repeat(101)});
    assert!(
        server.send("POST", "/write", &value).await.problem(422, "invalid-input").contains("value")
    );
    let body = json!({"key": "a", "value": "x".repeat(1000)});
    server.send("POST", "/write", &body).await.problem(413, "body-too-large");

    // Without a length in advance, and far too much of it.
    let mut client = server.connect().await;
    client.request("POST", "/write", &[JSON, ("transfer-encoding", "chunked")], "").await;
    for _ in 0..64 {
        client.write(format!("4000\r\n{}\r\n", "x".repeat(0x4000))).await;
    }
    client.write("0\r\n\r\n").await;
    client.reply_to("POST").await.problem(413, "body-too-large");

    let path = format!("/read/{}", "a".repeat(9000));
    server.get(&path).await.problem(414, "uri-too-long");
    let long = "x".repeat(40_000);
    let reply = server.call("GET", "/read/a", &[("x-long", &long)], "").await;
    reply.problem(431, "headers-too-large");
    let many = vec![("x-many", "1"); 150];
    assert_eq!(server.call("GET", "/read/a", &many, "").await.status, 431);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    let server = Server::start();
    for path in ["/nothing", "/read", "/read/a/b", "/write/", "/v1", "/v1/records/a/b"] {
        server.get(path).await.problem(404, "unknown-path");
    }
    let cases = [
        ("GET", "/write", "POST"),
        ("POST", "/read/a", "GET, HEAD"),
        ("PATCH", "/v1/records/a", "GET, HEAD, PUT, DELETE"),
        ("OPTIONS", "/v1/batch/read", "POST"),
    ];
    for (method, path, allowed) in cases {
        let reply = server.call(method, path, &[], "").await;
        reply.problem(405, "method-not-allowed");
        assert_eq!(reply.header("allow"), Some(allowed), "{method} {path}");
    }
}

#[tokio::test]
async fn what_the_store_says_decides_the_status() {
    let cases = [
        (ErrorKind::InvalidInput, 422, "invalid-input"),
        (ErrorKind::Unavailable, 503, "unavailable"),
        (ErrorKind::Overloaded, 503, "overloaded"),
        (ErrorKind::DeadlineExceeded, 504, "deadline-exceeded"),
        (ErrorKind::OutcomeUnknown, 504, "outcome-unknown"),
        (ErrorKind::Unauthenticated, 401, "unauthenticated"),
        (ErrorKind::Forbidden, 403, "forbidden"),
        (ErrorKind::RateLimited, 429, "rate-limited"),
        (ErrorKind::Corrupt, 500, "corrupt"),
        (ErrorKind::Internal, 500, "internal"),
    ];
    let (store, mut hand) = Scripted::new();
    let server = Server::over(store);
    for (kind, status, slug) in cases {
        let body = json!({"key": "a", "value": "x"});
        let (reply, ()) = tokio::join!(server.send("POST", "/write", &body), async {
            let source = std::io::Error::other("secret driver text");
            let error = Error::new(kind, "what to do").with("host", "secret").caused_by(source);
            hand.write().await.answer(Err(error.retry_after(Duration::from_millis(1500))));
        });
        assert_eq!(reply.problem(status, slug), "what to do");
        let waits = matches!(status, 429) || matches!(slug, "unavailable" | "overloaded");
        assert_eq!(reply.header("retry-after"), waits.then_some("2"), "{slug}");
        assert_eq!(reply.header("www-authenticate").is_some(), status == 401);
    }
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_given_up_at_the_deadline() {
    let (store, mut hand) = Scripted::new();
    // As every level has it: the edge sets the deadline, and this layer ends what misses it.
    let store = Timeout::new(store, TimeoutOptions::default(), Runtime::system());
    let limits = Limits { request_time: SOON, ..Limits::default() };
    let server = Server::of(Service { limits, ..service(Arc::new(store)) });
    let (reply, call) = tokio::join!(server.get("/read/a"), hand.read());
    reply.problem(504, "deadline-exceeded");
    assert!(call.is_abandoned());
    let body = json!({"key": "a", "value": "x"});
    let (reply, _call) = tokio::join!(server.send("POST", "/write", &body), hand.write());
    assert!(reply.problem(504, "outcome-unknown").contains("Idempotency-Key"));
}

/// Panics at every read.
#[derive(Debug)]
struct Panics;

impl std::fmt::Display for Panics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("panics")
    }
}

impl Store for Panics {
    fn read<'a>(&'a self, _: &'a [Key], _: &'a ReadOptions) -> BoxFuture<'a, Result<Vec<Read>>> {
        panic!("secret")
    }
    fn write<'a>(
        &'a self,
        _: Vec<Write>,
        _: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn scan<'a>(&'a self, _: &'a Scan, _: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async { panic!("secret") })
    }
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { Inspection::new("panics") })
    }
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn a_panic_ends_one_request_and_not_the_connection() {
    let server = Server::over(Arc::new(Panics));
    let mut client = server.connect().await;
    for path in ["/read/a", "/v1/records"] {
        client.request("GET", path, &[], "").await;
        let detail = client.reply_to("GET").await.problem(500, "internal");
        assert!(!detail.contains("secret"));
    }
    client.request("GET", "/livez", &[], "").await;
    assert_eq!(client.reply_to("GET").await.status, 200);
    // A store that breaks its contract is a defect, too, and not a crash.
    let body = json!({"key": "a", "value": "x"});
    server.send("POST", "/write", &body).await.problem(500, "internal");
}
