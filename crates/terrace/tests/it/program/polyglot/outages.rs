//! The outage matrix of level 8: which endpoint works while which engine is down.

use std::sync::atomic::{AtomicU64, Ordering};

use terrace_lab::{PostgresServer, RedisServer};

use super::super::own_postgres;
use super::*;
use crate::freshness::until;

/// The level over engines of its own.
struct Level {
    _directory: tempfile::TempDir,
    database: String,
    postgres: PostgresServer,
    redis: RedisServer,
    documents: MongoServer,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Down {
    Ledger,
    Documents,
    Cache,
}

impl Level {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path();
        let (postgres, redis, documents) =
            tokio::join!(own_postgres(place), own_redis(place), own_documents(place));
        let database = postgres.create_database("terrace").await.expect("a database");
        Self { database, postgres, redis, documents, _directory: directory }
    }

    async fn serve(&self) -> Program {
        let (cache, documents) = (self.redis.url(), self.documents.url());
        let stores = Stores::Servers { database: &self.database, cache: &cache };
        Program::serve_with(8, &stores, &[], &[("MONGODB_URL", &documents)]).await
    }

    fn kill(&self, what: Down) {
        match what {
            Down::Ledger => self.postgres.kill(),
            Down::Documents => self.documents.kill(),
            Down::Cache => self.redis.kill(),
        }
    }

    async fn restart(&self, what: Down) {
        let started = match what {
            Down::Ledger => self.postgres.restart().await,
            Down::Documents => self.documents.restart().await,
            Down::Cache => self.redis.restart().await,
        };
        started.expect("it starts again");
    }
}

/// The endpoints of the matrix, and which engines each cannot do without.
const MATRIX: [(&str, &str, &[Down]); 13] = [
    ("POST", "/write/transaction", &[Down::Ledger]),
    ("GET", "/read/transaction/new", &[Down::Ledger]),
    ("GET", "/read/transaction/cached", &[]),
    ("POST", "/v1/transactions", &[Down::Ledger]),
    ("GET", "/v1/transactions?user_id=u", &[Down::Ledger]),
    ("POST", "/write/document", &[Down::Documents]),
    ("GET", "/read/document/new", &[Down::Documents]),
    ("GET", "/read/document/cached", &[]),
    ("GET", "/v1/documents/cached", &[]),
    ("PUT", "/v1/documents/d", &[Down::Documents]),
    ("GET", "/v1/documents/search?q=ada", &[Down::Documents]),
    ("GET", "/v1/users/u/summary", &[Down::Documents]),
    ("GET", "/stats", &[]),
];

/// Reads what the matrix calls cached, until it is.
async fn cache(program: &Program) {
    program.pay("cached", 1.0).await;
    let document = json!({"key": "cached", "data": {"name": "Ada"}});
    program.send("POST", "/write/document", &document).await;
    for (path, from_cache) in [
        ("/read/transaction/cached", ("source", json!("cache"))),
        ("/read/document/cached", ("from_cache", json!(true))),
    ] {
        until(path, async || program.json(path).await[from_cache.0] == from_cache.1).await;
    }
}

/// Every cell of the row of this engine; `None` is that of no engine. What is read was never cached, unless
/// its name says so.
async fn row(program: &Program, down: Option<Down>) {
    static ROWS: AtomicU64 = AtomicU64::new(0);
    let number = ROWS.fetch_add(1, Ordering::Relaxed).to_string();
    for (method, path, needs) in MATRIX {
        let path = &path.replace("new", &number);
        let body = match (method, path.as_str()) {
            ("GET", _) => Value::Null,
            (_, "/write/document") => json!({"key": "d", "data": {"name": "Ada"}}),
            ("PUT", _) => json!({"name": "Ada"}),
            _ => json!({"user_id": "u", "amount": 1, "transaction_type": "credit"}),
        };
        let (status, answer) = program.send(method, path, &body).await;
        let works = !down.is_some_and(|down| needs.contains(&down));
        let cell = format!("{method} {path} without {down:?}: {status} {answer}");
        match works {
            true => assert!(status.is_success(), "{cell}"),
            false => {
                assert!([503, 504].contains(&status.as_u16()), "{cell}");
                assert!(answer["detail"].as_str().is_some_and(|it| it.len() > 20), "{cell}");
            }
        }
    }
    let health = program.health().await;
    assert_eq!(health, if down.is_some() { "degraded" } else { "healthy" }, "{down:?}");
    assert_eq!(program.get("/readyz").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_engine_alone_may_be_killed_and_comes_back() {
    let level = Level::start().await;
    let program = level.serve().await;
    program.becomes("healthy").await;
    program.pay("u", 1.0).await;
    program.summary("u").await;
    cache(&program).await;
    row(&program, None).await;
    for down in [Down::Ledger, Down::Documents, Down::Cache] {
        cache(&program).await;
        level.kill(down);
        program.becomes("degraded").await;
        row(&program, Some(down)).await;
        level.restart(down).await;
        program.becomes("healthy").await;
        row(&program, None).await;
    }
    let (_, posted) = program.pay("u", 1.0).await;
    assert_eq!(posted["success"], true);
    let all = program.json("/stats").await["total_transactions"].as_u64().expect("a count");
    let mut told = 0;
    for user in ["u", "cached"] {
        told += program.summary(user).await["transactions"].as_u64().expect("a count");
    }
    assert_eq!(told, all, "nothing was lost on the way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_starts_while_any_engine_is_down() {
    let level = Level::start().await;
    let program = level.serve().await;
    program.becomes("healthy").await;
    program.pay("u", 1.0).await;
    let summary = program.summary("u").await;
    assert_eq!(summary["transactions"], 1);
    program.terminate().await;
    for down in [Down::Ledger, Down::Documents, Down::Cache] {
        level.kill(down);
        let program = level.serve().await;
        for (method, path, needs) in MATRIX {
            // What may be believed of the cache, only the engine tells that is down.
            let known = !path.ends_with("summary") && !path.ends_with("cached");
            if method == "GET" && known {
                let path = path.replace("new", &format!("{down:?}"));
                let (status, answer) = program.send(method, &path, &Value::Null).await;
                assert_eq!(status.is_success(), !needs.contains(&down), "{down:?} {path} {answer}");
            }
        }
        assert_eq!(program.health().await, "degraded", "{down:?}");
        level.restart(down).await;
        program.becomes("healthy").await;
        cache(&program).await;
        row(&program, None).await;
        program.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_both_owners_the_level_is_unhealthy() {
    let level = Level::start().await;
    let program = level.serve().await;
    program.becomes("healthy").await;
    level.kill(Down::Ledger);
    level.kill(Down::Documents);
    program.becomes("unhealthy").await;
    assert_eq!(program.get("/readyz").await.status(), 503);
    assert_eq!(program.get("/livez").await.status(), 200);
}
