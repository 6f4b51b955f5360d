//! One database under two addresses.

use terrace_lab::testing;

use super::{Program, Stores, terrace};

/// The same server under another name.
fn otherwise(url: &str) -> String {
    assert!(url.contains("127.0.0.1"), "{url}");
    url.replace("127.0.0.1", "localhost")
}

#[tokio::test]
async fn a_primary_that_is_named_as_its_own_replica_serves() {
    let (database, redis) = (testing::fresh_database(), testing::redis().url());
    for replica in [database.clone(), otherwise(&database)] {
        let stores = Stores::Servers { database: &database, cache: &redis };
        let named = [("REPLICA_DATABASE_URL", replica.as_str())];
        let program = Program::serve_with(3, &stores, &[], &named).await;
        for number in 0..5 {
            let value = number.to_string();
            assert!(program.write("a", &value).await, "{replica}");
            assert_eq!(program.read("a").await, Ok(Some(value)), "{replica}");
        }
        let health: serde_json::Value = program.get("/health").await.json().await.expect("JSON");
        assert_eq!(health["status"], "degraded", "{health}");
        let reason = health["reason"].as_str().expect("a reason");
        assert!(reason.contains("same server"), "{reason}");
        assert!(program.terminate().await.success());
    }
}

#[tokio::test]
async fn a_database_that_is_named_as_two_shards_is_refused_and_left_as_it_was() {
    let (database, redis) = (testing::fresh_database(), testing::redis().url());
    for other in [database.clone(), otherwise(&database)] {
        let mut command = terrace(&["serve", "4", "--port", "0"]);
        command.env("SHARD_0_URL", &database).env("SHARD_1_URL", other).env("REDIS_URL", &redis);
        let output = command.output().await.expect("it runs");
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("the same database") && !error.contains("test:"), "{error}");
    }
    // As if it had not been.
    let stores = Stores::Shards { databases: &[database], cache: &redis };
    let program = Program::serve(4, &stores).await;
    assert!(program.write("a", "1").await);
    assert!(program.terminate().await.success());
}

#[tokio::test]
async fn one_database_for_commands_and_for_queries_keeps_them_apart() {
    let (database, redis) = (testing::fresh_database(), testing::redis().url());
    let stores = Stores::Servers { database: "", cache: &redis };
    let named = [("WRITE_DB_URL", database.as_str()), ("READ_DB_URL", database.as_str())];
    let program = Program::serve_with(7, &stores, &[], &named).await;
    assert!(program.write("a", "1").await);
    while program.read("a").await != Ok(Some("1".into())) {
        tokio::task::yield_now().await;
    }
    program.becomes("healthy").await;
    assert!(program.terminate().await.success());
    let mut command = terrace(&["serve", "7", "--port", "0"]);
    command.env("WRITE_DB_URL", &database).env("READ_DB_URL", otherwise(&database));
    let output = command.env("REDIS_URL", &redis).output().await.expect("it runs");
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.code() == Some(1) && error.contains("leave READ_DB_URL out"), "{error}");
}
