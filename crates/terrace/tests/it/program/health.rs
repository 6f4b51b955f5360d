//! Health says what requests meet, also where a hand has changed the database.

use serde_json::json;
use terrace_lab::testing::fresh_database;

use super::cqrs::sql;
use super::{Program, Stores, own_redis};
use crate::freshness::until;

/// The statuses of a write, and of a read of a key that no cache has.
async fn meets(program: &Program) -> (u16, u16) {
    let write = program.client.post(format!("{}/write", program.url()));
    let write = write.json(&json!({"key": "a", "value": "one"})).send().await.expect("an answer");
    (write.status().as_u16(), program.get("/read/other").await.status().as_u16())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_level_without_its_table_is_unhealthy() {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    for level in [0, 1, 2, 5] {
        let (database, cache) = (fresh_database(), redis.url());
        let stores = Stores::Servers { database: &database, cache: &cache };
        let program = Program::serve(level, &stores).await;
        program.becomes("healthy").await;
        sql(&database, "DROP TABLE records").await;
        assert_eq!(meets(&program).await, (503, 503), "level {level}");
        program.becomes("unhealthy").await;
        assert_eq!(program.get("/health").await.status(), 503);
        assert_eq!(program.get("/readyz").await.status(), 503);
        program.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_level_that_can_only_read_is_degraded() {
    let database = fresh_database();
    for level in [0, 1] {
        let stores = Stores::Servers { database: &database, cache: "" };
        let program = Program::serve(level, &stores).await;
        program.becomes("healthy").await;
        let trigger = "CREATE FUNCTION missing() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO nowhere SELECT 1; RETURN NULL; END'; \
             CREATE TRIGGER missing AFTER INSERT ON records EXECUTE FUNCTION missing()";
        sql(&database, trigger).await;
        assert_eq!(meets(&program).await, (503, 200), "level {level}");
        program.becomes("degraded").await;
        assert_eq!(program.get("/readyz").await.status(), 200);
        sql(&database, "DROP FUNCTION missing CASCADE").await;
        assert_eq!(meets(&program).await, (200, 200), "level {level}");
        program.becomes("healthy").await;
        program.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_7_tells_which_side_does_not_work() {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    let cache = redis.url();
    let [write_side, read_side] = [(); 2].map(|()| fresh_database());
    let sides = [("WRITE_DB_URL", &*write_side), ("READ_DB_URL", &*read_side)];
    let stores = Stores::Servers { database: &write_side, cache: &cache };
    let program = Program::serve_with(7, &stores, &[], &sides).await;
    program.becomes("healthy").await;
    assert_eq!(meets(&program).await, (200, 200));
    until("the read model answers", async || {
        let read = program.get("/v1/records/a").await;
        read.headers().get("terrace-origin").is_some_and(|it| it == "read-model")
    })
    .await;

    // Commands are refused and the read database goes on answering.
    sql(&write_side, "ALTER TABLE commands RENAME TO gone").await;
    assert_eq!(meets(&program).await, (503, 200));
    program.becomes("degraded").await;
    sql(&write_side, "ALTER TABLE gone RENAME TO commands").await;
    assert_eq!(meets(&program).await, (200, 200));
    program.becomes("healthy").await;

    // The write database answers in the place of a read database without its table.
    sql(&read_side, "ALTER TABLE records RENAME TO gone").await;
    assert_eq!(meets(&program).await, (200, 200));
    program.becomes("degraded").await;

    sql(&read_side, "ALTER TABLE gone RENAME TO records").await;
    program.becomes("healthy").await;
    shut(&write_side).await;
    assert_eq!(meets(&program).await, (503, 200));
    program.becomes("degraded").await;
    assert_eq!(program.get("/readyz").await.status(), 200);
    sql(&read_side, "ALTER TABLE records RENAME TO gone").await;
    assert_eq!(meets(&program).await, (503, 503));
    program.becomes("unhealthy").await;
}

/// Lets nobody into a database any more.
async fn shut(url: &str) {
    let (server, name) = url.rsplit_once('/').expect("a URL with a database");
    let shut = format!(
        "ALTER DATABASE {name} ALLOW_CONNECTIONS false; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    );
    sql(&format!("{server}/postgres"), &shut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_4_is_unhealthy_when_no_shard_has_its_table() {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    let (databases, cache) = ([(); 2].map(|()| fresh_database()), redis.url());
    let stores = Stores::Shards { databases: &databases, cache: &cache };
    let program = Program::serve(4, &stores).await;
    for (database, status) in [("", "healthy"), (&databases[0], "degraded")] {
        if !database.is_empty() {
            sql(database, "DROP TABLE records").await;
        }
        program.becomes(status).await;
        assert_eq!(program.get("/readyz").await.status(), 200);
    }
    sql(&databases[1], "DROP TABLE records").await;
    program.becomes("unhealthy").await;
    assert_eq!(meets(&program).await, (503, 503));
}
