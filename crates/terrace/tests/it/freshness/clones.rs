//! A clone of the database on the same Redis: staging, made from production.

use std::time::Duration;

use terrace_lab::testing::postgres;

use super::engines::sql;
use super::field::{Field, Instance};
use super::{pause, rounds};

const WRITES: usize = 40;

/// A database and its copy, with an instance each; one Redis for both.
struct Twins {
    field: Field,
    production: Instance,
    staging: Instance,
    copy: String,
}

impl Twins {
    /// Both have the key `before`, which was written before the copy was made.
    async fn new(level: u8, environment: &[(&str, &str)]) -> Self {
        let field = Field::new(level).await;
        let first = field.instance_with("first", &field.database, environment).await;
        let before = first.client.write("before", "before").wait().send().await;
        assert!(before.is_acknowledged(), "{before}");
        assert!(first.program.terminate().await.success());
        let (_, original) = field.database.rsplit_once('/').expect("a name");
        let name = format!("{original}_clone");
        let clone = format!("CREATE DATABASE {name} TEMPLATE {original}");
        sql(&postgres().url(), &clone).await;
        let copy = postgres().database_url(&name);
        let production = field.instance_with("production", &field.database, environment).await;
        let staging = field.instance_with("staging", &copy, environment).await;
        Self { field, production, staging, copy }
    }
}

async fn caches_are_apart(level: u8, nearest: &str) {
    for _ in 0..rounds() {
        let twins = Twins::new(level, &[]).await;
        let mut wrong = Vec::new();
        let (production, staging) = (&twins.production, &twins.staging);
        production.writes("before", "of production").await;
        production.caches("before", "of production", nearest).await;
        let read = staging.client.read("before").send().await;
        if read.found.as_deref() != Some("before") {
            wrong.push(read.to_string());
        }
        staging.writes("before", "of staging").await;
        for _ in 0..3 {
            let read = production.client.read("before").send().await;
            if read.found.as_deref() != Some("of production") {
                wrong.push(read.to_string());
            }
            let read = staging.client.read("before").send().await;
            if read.found.as_deref() != Some("of staging") {
                wrong.push(read.to_string());
            }
        }
        assert!(wrong.is_empty(), "one serves what the other has:\n{}", wrong.join("\n"));
        let token = production.writes("token", "of production").await;
        let read = staging.client.read("token").after(&token).send().await;
        assert_eq!(read.status, 503, "a token of another database was satisfied: {read}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_are_apart_at_level_2() {
    caches_are_apart(2, "far").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_are_apart_at_level_5() {
    caches_are_apart(5, "near").await;
}

/// What production acknowledged is applied to production's database, and to no other. Production
/// does not flush: whoever else takes its writes out of the journal is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journals_are_apart_at_level_6() {
    for _ in 0..rounds() {
        let twins = Twins::new(6, &[]).await;
        assert!(twins.production.program.terminate().await.success());
        let (field, staging) = (&twins.field, &twins.staging);
        let apart = [("TERRACE_JOURNAL_FLUSHER", "apart")];
        let production = field.instance_with("production", &field.database, &apart).await;
        for number in 0..WRITES {
            production.writes(&format!("p{number}"), "of production").await;
            staging.writes(&format!("s{number}"), "of staging").await;
        }
        // Staging's own are applied: it has had its turn with everything that it takes.
        let last = staging.client.write("last", "of staging").wait().send().await;
        assert!(last.is_acknowledged(), "{last}");
        pause(Duration::from_secs(1)).await;
        let foreign = count(&twins.copy, "of production").await;
        assert_eq!(foreign, 0, "{foreign} writes of production landed in staging");
        assert!(production.program.terminate().await.success());
        let _flushes = field.instance("production").await;
        super::until("production's writes are applied", async || {
            count(&field.database, "of production").await == WRITES
        })
        .await;
    }
}

/// How many records of a database have this value.
async fn count(url: &str, value: &str) -> usize {
    let question = format!("SELECT count(*) FROM records WHERE value = '{value}'");
    sql(url, &question).await.parse().expect("a number")
}
