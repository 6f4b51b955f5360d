//! The write database is restored while it serves, and the read database is another one: what is lost
//! leaves the projection, too.

use std::time::Duration;

use terrace_lab::testing::fresh_database;
use terrace_prove::Answer;

use super::engines::{postgres_program, sql};
use super::field::{Field, Instance};
use super::restore::{dump, restore};
use super::{pause, until};

/// Level 7: the write database is restored (as a whole, or only its data) while it serves; reads with tokens, and
/// bounds.
async fn restored(data_only: bool) {
    let field = Field::new(7).await;
    let read = fresh_database();
    let environment = [("READ_DB_URL", read.as_str())];
    let a = field.instance_with("a", &field.database, &environment).await;
    let b = field.instance_with("b", &field.database, &environment).await;
    for key in ["written", "left"] {
        a.writes(key, "kept").await;
    }
    pause(Duration::from_millis(800)).await;
    let saved = if data_only {
        let mut command = postgres_program("pg_dump", &["--data-only", &field.database]);
        let text =
            String::from_utf8(command.output().await.expect("pg_dump").stdout).expect("text");
        let tables = "SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables \
                      WHERE schemaname = 'public'";
        let tables = sql(&field.database, tables).await;
        format!("TRUNCATE {tables};\n{text}")
    } else {
        dump(&field).await
    };
    let mut lost = None;
    for number in 0..30 {
        lost = Some(a.writes("written", &format!("lost {number}")).await);
    }
    let left = a.writes("left", "lost").await;
    pause(Duration::from_millis(800)).await;
    restore(&field, &saved).await;
    for instance in [&a, &b] {
        until("it writes", async || {
            instance.client.write("other", "x").send().await.is_acknowledged()
        })
        .await;
    }
    pause(Duration::from_secs(3)).await;
    let wrong = violations(&a, &b, [("written", &lost.expect("one")), ("left", &left)]).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What shows of the lost commands, through either instance.
async fn violations(a: &Instance, b: &Instance, lost: [(&str, &Answer); 2]) -> Vec<String> {
    let mut wrong = Vec::new();
    for instance in [a, b] {
        for (key, token) in lost {
            let read = instance.client.read(key).after(token).send().await;
            if read.status != 503 {
                wrong.push(format!("a token of what is lost: {read}"));
            }
        }
        for bound in [100, 2000] {
            let read =
                instance.client.read("left").max_stale(Duration::from_millis(bound)).send().await;
            if read.found.as_deref() != Some("kept") {
                wrong.push(format!("max-stale={bound}: {read}"));
            }
        }
        let strong = instance.client.read("left").strong().send().await;
        assert_eq!(strong.found.as_deref(), Some("kept"), "it is lost: {strong}");
        let read = instance.client.read("left").send().await;
        if read.found.as_deref() != Some("kept") {
            wrong.push(format!("3 s later: {read}"));
        }
    }
    let after = a.writes("written", "after").await;
    let read = b.client.read("written").after(&after).send().await;
    if read.found.as_deref() != Some("after") {
        wrong.push(format!("{read} after {after}"));
    }
    pause(Duration::from_secs(1)).await;
    let read = b.client.read("written").send().await;
    if read.found.as_deref() != Some("after") {
        wrong.push(format!("a second later: {read} after {after}"));
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole() {
    restored(false).await;
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_only() {
    restored(true).await;
}
