//! `GET /v1/analytics` over shards that always answer the same.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy takes only test functions as tests"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use terrace::http::{Analytics, Face, Service};
use terrace_core::rollup::Count;
use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, LogPosition, MemoryStore, Result, RolledUp, RollupQuery,
};
use terrace_layers::ByShard;

use super::server::{Server, service};

/// What the shards answer, and what they were asked last.
#[derive(Debug)]
struct Fixed {
    answer: Result<ByShard>,
    asked: Mutex<Option<RollupQuery>>,
}

impl Analytics for Fixed {
    fn counts<'a>(&'a self, query: &'a RollupQuery, _: Deadline) -> BoxFuture<'a, Result<ByShard>> {
        *self.asked.lock().unwrap() = Some(*query);
        Box::pin(async { self.answer.clone() })
    }
}

fn count(minute: i64, prefix: &str, writes: u64, bytes: u64) -> Count {
    Count { minute, prefix: prefix.into(), writes, bytes }
}

fn shard(counts: Vec<Count>) -> RolledUp {
    let position = LogPosition { epoch: 5, offset: 7 };
    RolledUp { counts, position, lag: Duration::from_micros(1_999) }
}

fn serve(answer: Result<ByShard>) -> (Server, Arc<Fixed>) {
    let fixed = Arc::new(Fixed { answer, asked: Mutex::default() });
    let service = service(Arc::new(MemoryStore::default()));
    let faces = service.faces.into_iter().chain([Face::Analytics(Arc::clone(&fixed) as _)]);
    let faces = faces.collect();
    (Server::of(Service { faces, name: "10-enterprise-grade", ..service }), fixed)
}

fn two_of_three() -> ByShard {
    let one = shard(vec![count(60, "a/", 1, 10), count(60, "b:", 2, 20), count(61, "", 3, 30)]);
    let other = shard(vec![count(60, "a/", 4, 40)]);
    ByShard { shards: vec![(0, one), (2, other)], unavailable: vec![1] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_told_by_shard_and_by_prefix_and_who_is_missing() {
    let (server, fixed) = serve(Ok(two_of_three()));
    let reply = server.get("/v1/analytics?metric=writes&by=prefix&bucket=1h&limit=3").await;
    assert_eq!(reply.status, 200);
    let shards = json!([
        {"name": "shard1", "as_of": "5-7", "lag_ms": 1},
        {"name": "shard3", "as_of": "5-7", "lag_ms": 1},
    ]);
    let wanted = json!({
        "metric": "writes", "bucket": "1h", "by": "prefix",
        "buckets": [
            {"from": "1970-01-01T01:01:00.000000Z", "counts": [{"name": "", "count": 3}]},
            {"from": "1970-01-01T01:00:00.000000Z", "counts": [
                {"name": "a/", "count": 5}, {"name": "b:", "count": 2},
            ]},
        ],
        "shards": shards, "unavailable": ["shard2"],
    });
    assert_eq!(reply.json(), wanted);
    let asked = fixed.asked.lock().unwrap().expect("it was asked");
    assert!(asked.by_prefix && asked.bucket == 60 && asked.since % 60 == 0, "{asked:?}");
    let reply = server.get("/v1/analytics?metric=bytes").await.json();
    assert_eq!((&reply["by"], &reply["bucket"]), (&json!("shard"), &json!("1m")));
    let counts = json!([{"name": "shard1", "count": 30}, {"name": "shard3", "count": 40}]);
    assert_eq!(reply["buckets"][1]["counts"], counts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_questions_are_refused_with_what_to_ask() {
    let (server, _) = serve(Ok(two_of_three()));
    for (query, says) in [
        ("", "metric must be writes or bytes"),
        ("?metric=reads", "/metrics"),
        ("?metric=all", "metric must be"),
        ("?metric=writes&bucket=2m", "bucket must be"),
        ("?metric=writes&by=key", "by must be"),
        ("?metric=writes&limit=0", "limit must be"),
        ("?metric=writes&limit=101", "limit must be"),
        ("?metric=writes&metric=writes", "metric"),
        ("?metric=writes&shard=1", "unknown parameter"),
    ] {
        let reply = server.get(&format!("/v1/analytics{query}")).await;
        assert_eq!(reply.status, 422, "{query}");
        let problem = reply.json();
        assert!(problem["detail"].as_str().unwrap().contains(says), "{query}: {problem}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_that_no_shard_tells_are_unavailable() {
    let (server, _) = serve(Err(Error::new(ErrorKind::Unavailable, "no shard answers")));
    assert_eq!(server.get("/v1/analytics?metric=writes").await.status, 503);
}
