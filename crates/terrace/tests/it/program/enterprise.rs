//! Level 10 as people run it: what the documents' API answers, and what a dead cache or shard does to it.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Program, Stores, own_postgres, own_redis};

impl Program {
    async fn body(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.expect("a body")
    }

    /// The answer to a write.
    async fn written(&self, key: &str, value: &str) -> (u16, Value) {
        let body = json!({"key": key, "value": value});
        let request = self.client.post(format!("{}/write", self.url)).json(&body);
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("a body"))
    }

    /// The answer to a write that the caches have taken. On a busy machine they may not in time, and then
    /// the answer says so.
    async fn cached(&self, key: &str) -> (u16, Value) {
        for _ in 0..20 {
            let answer = self.written(key, "v").await;
            if answer.1["cached"] != false {
                return answer;
            }
        }
        panic!("{key} is never cached");
    }
}

/// The keys by which the documents reach both shards.
fn keys() -> impl Iterator<Item = String> {
    (0..10).map(|number| format!("shard_test_{number}"))
}

async fn answers_as_documented(program: &Program) {
    program.becomes("healthy").await;
    let mut shards = HashSet::new();
    for key in keys() {
        let (status, answer) = program.cached(&key).await;
        let shard = answer["shard"].as_str().expect("a shard").to_owned();
        let wanted = json!({
            "success": true, "key": key, "shard": shard, "cached": true,
            "message": format!("Written to {shard} and cached"),
        });
        assert_eq!((status, answer), (200, wanted));
        shards.insert(shard);
        let mut read = program.body(&format!("/read/{key}")).await;
        assert!(read["latency_ms"].take().as_f64().is_some());
        let wanted = json!({
            "success": true, "key": key, "value": "v", "message": null, "cache_hit": true,
            "cache_level": "L1", "shard": null, "latency_ms": null,
        });
        assert_eq!(read, wanted);
    }
    assert_eq!(shards, HashSet::from(["shard1".to_owned(), "shard2".to_owned()]));
    let missing = program.body("/read/missing").await;
    assert_eq!((&missing["success"], &missing["cache_hit"]), (&json!(false), &json!(false)));
    assert_eq!(missing["message"], "Key not found");
    assert!(missing["shard"].as_str().is_some_and(|shard| shard.starts_with("shard")), "{missing}");

    let health = program.body("/health").await;
    assert_eq!(health["environment"], "test");
    assert_eq!(health["shards_healthy"], json!({"shard1": true, "shard2": true}));
    assert_eq!(health["caches_healthy"], json!({"L1": true, "L2": true}));
    let closed = json!({
        "shard1": "closed", "shard2": "closed", "cache_l1": "closed", "cache_l2": "closed",
    });
    assert_eq!(health["circuit_breakers"], closed);
    let stats = program.body("/stats").await;
    assert_eq!(stats["circuit_breakers"], closed);
    assert_eq!(stats["environment"], "test");
    let records = |shard: &str| stats["shards"][shard]["records"].as_u64().expect("a count");
    assert_eq!(records("shard1") + records("shard2"), 10);
    assert!(stats["cache"]["l1_size"].as_u64().is_some_and(|entries| entries >= 10), "{stats}");
    assert_eq!(stats["features"]["multi_tier_cache"], true);
}

const ENVIRONMENT: [(&str, &str); 2] = [("ENVIRONMENT", "test"), ("AUTH_ENABLED", "false")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_answer_as_documented() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    answers_as_documented(&Program::serve_with(10, &stores, &[], &ENVIRONMENT).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_answer_as_documented_by_their_documented_names() {
    let databases = [0, 1].map(|_| terrace_lab::testing::fresh_database());
    let cache = terrace_lab::testing::redis().url();
    let environment = [
        ENVIRONMENT[0],
        ENVIRONMENT[1],
        ("DB_SHARD1_URL", &databases[0]),
        ("DB_SHARD2_URL", &databases[1]),
        ("CACHE_L2_URL", &cache),
    ];
    let mut command = super::terrace(&["serve", "10"]);
    command.envs(environment);
    answers_as_documented(&Program::start(command).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_cache_or_shard_says_so_and_takes_no_other_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (redis, postgres) =
        (own_redis(directory.path()).await, own_postgres(directory.path()).await);
    let own = postgres.create_database("terrace").await.expect("a database");
    let (other, cache) = (terrace_lab::testing::fresh_database(), redis.url());
    let mut command = super::terrace(&["serve", "10"]);
    command.envs([("DB_SHARD1_URL", &own), ("DB_SHARD2_URL", &other), ("CACHE_L2_URL", &cache)]);
    command.envs(ENVIRONMENT);
    let program = Program::start(command).await;
    program.becomes("healthy").await;
    redis.kill();
    program.becomes("degraded").await;
    for key in keys() {
        let (status, answer) = program.written(&key, "v").await;
        let shard = answer["shard"].as_str().expect("a shard");
        assert_eq!((status, &answer["cached"]), (200, &json!(false)), "{answer}");
        assert_eq!(answer["message"], format!("Written to {shard}"));
    }
    assert_eq!(program.body("/health").await["circuit_breakers"]["cache_l2"], "open");
    redis.restart().await.expect("Redis starts again");
    program.becomes("healthy").await;
    postgres.kill();
    program.becomes("degraded").await;
    let mut answers = HashSet::new();
    for key in keys() {
        answers.insert(program.written(&key, "w").await.0);
    }
    assert_eq!(answers, HashSet::from([200, 503]));
    let health = program.body("/health").await;
    assert_eq!(health["shards_healthy"], json!({"shard1": false, "shard2": true}));
    // It opens with the next look at the shards.
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while program.body("/health").await["circuit_breakers"]["shard1"] == "closed" {
        assert!(tokio::time::Instant::now() < until, "its breaker does not open");
        tokio::task::yield_now().await;
    }
    let counts = program.body("/v1/analytics?metric=writes").await;
    assert_eq!(counts["unavailable"], json!(["shard1"]), "{counts}");
    assert_eq!(counts["shards"][0]["name"], "shard2", "{counts}");
    let metrics = program.get("/metrics").await.text().await.expect("a body");
    for figure in [
        "circuit_breaker_state{service=\"shard2\"} 0",
        "circuit_breaker_state{service=\"cache_l2\"} 0",
        "terrace_part_status{part=\"shard\",which=\"shard 0\"} 2",
        "terrace_part_status{part=\"shard\",which=\"shard 1\"} 0",
    ] {
        assert!(metrics.lines().any(|line| line == figure), "{figure} is not in\n{metrics}");
    }
    assert!(!metrics.contains("circuit_breaker_state{service=\"shard1\"} 0"), "{metrics}");
}

/// A supervisor's signal is told to load balancers first: until they know, requests are served, also those
/// on new connections. Whoever sits at a terminal does not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_is_served_on_and_a_terminal_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let environment = [ENVIRONMENT[1], ("TERRACE_SERVER_DRAIN_DELAY_MS", "60000")];
    let program = Program::serve_with(10, &stores, &[], &environment).await;
    program.signal("TERM");
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while program.get("/readyz").await.status() != 503 {
        assert!(tokio::time::Instant::now() < until, "it says that it is ready");
        tokio::task::yield_now().await;
    }
    let other = reqwest::Client::new().get(format!("{}/read/a", program.url())).send().await;
    assert_eq!(other.expect("a new connection is served").status(), 200);
    assert_eq!(program.written("a", "1").await.0, 200);
    // A second signal ends at once.
    assert_eq!(program.terminate().await.code(), Some(1));
    let program = Program::serve_with(10, &stores, &[], &environment).await;
    let asked = tokio::time::Instant::now();
    assert!(program.end_by("INT").await.success());
    assert!(asked.elapsed() < Duration::from_secs(30), "it did not wait");
    let environment = [ENVIRONMENT[1], ("TERRACE_SERVER_DRAIN_DELAY_MS", "1")];
    let program = Program::serve_with(10, &stores, &[], &environment).await;
    assert!(program.terminate().await.success());
}
