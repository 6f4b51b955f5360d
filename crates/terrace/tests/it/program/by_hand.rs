//! Rows that only a hand can have made: errors name them, and they stop nothing but themselves.

use serde_json::{Value, json};
use terrace_lab::testing::fresh_database;

use super::cqrs::sql;
use super::{Program, Stores};

async fn list(program: &Program) -> (u16, Value) {
    let answer = program.get("/v1/records").await;
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

async fn put(program: &Program, key: &str, headers: &[(&str, &str)]) -> u16 {
    let mut request = program.client.put(format!("{}/v1/records/{key}", program.url()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let sent = request.json(&json!({"value": "x"})).send().await.expect("an answer");
    sent.status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_a_list_names_the_row() {
    let database = fresh_database();
    let stores = Stores::Servers { database: &database, cache: "" };
    let program = Program::serve(1, &stores).await;
    assert_eq!(put(&program, "good", &[]).await, 201);
    sql(
        &database,
        "ALTER TABLE records ALTER version DROP NOT NULL, ALTER value DROP NOT NULL, \
         DROP CONSTRAINT records_key_length, DROP CONSTRAINT records_value_length",
    )
    .await;
    let long = "k".repeat(300);
    let bad = [
        ("zero", "'v', 0"),
        ("negative", "'v', -7"),
        ("highest", "'v', 9223372036854775807"),
        ("no version", "'v', NULL"),
        ("no value", "NULL, nextval('records_version')"),
        ("large", "repeat('v', 1048577), nextval('records_version')"),
        (&*long, "'v', nextval('records_version')"),
    ];
    for (key, columns) in bad {
        sql(
            &database,
            &format!("INSERT INTO records (key, value, version) VALUES ('{key}', {columns})"),
        )
        .await;
        let (status, problem) = list(&program).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        let shown = format!("\"{}", key.chars().take(40).collect::<String>());
        assert!(status == 500 && detail.contains(&shown), "{key}: {status} {problem}");
        if key.len() < 255 {
            let read = program.get(&format!("/v1/records/{key}")).await;
            assert_eq!(read.status(), 500, "{key}");
            // Whoever writes it anew mends it.
            assert_eq!(put(&program, key, &[]).await, 200, "{key}");
            assert_eq!(list(&program).await.0, 200, "{key}");
        }
        sql(&database, &format!("DELETE FROM records WHERE key = '{key}'")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_with_the_highest_version_stops_no_other() {
    for level in [1, 7] {
        let database = fresh_database();
        let cache = terrace_lab::testing::redis().url();
        let stores = Stores::Servers { database: &database, cache: &cache };
        let program = Program::serve(level, &stores).await;
        let insert = "INSERT INTO records (key, value, version) \
             SELECT 'highest ' || n, 'v', 9223372036854775807 - n FROM generate_series(0, 2) AS n";
        sql(&database, insert).await;
        for (round, program) in [program, Program::serve(level, &stores).await].iter().enumerate() {
            let fresh = format!("fresh-{round}");
            assert_eq!(put(program, &fresh, &[]).await, 201, "level {level}");
            assert_eq!(put(program, &fresh, &[("if-match", "*")]).await, 200);
            // Whoever writes such a row anew gives it a version like others.
            assert_eq!(put(program, &format!("highest%20{round}"), &[]).await, 200);
        }
    }
}
