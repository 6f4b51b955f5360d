//! What one request may make the program load: a batch of reads that is refused, a list, a search.

use futures_util::future::join_all;
use serde_json::json;
use terrace_lab::testing::fresh_database;

use super::cqrs::sql;
use super::{Program, Stores, own_redis};

/// Together nine times what an answer holds.
const KEYS: usize = 150;
const VALUE_BYTES: usize = 1_000_000;

/// The most that a request may add to the memory of the program.
const ALLOWED: usize = 64 * 1024 * 1024;

/// A figure of the process, in bytes.
pub(super) fn memory(program: &Program, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a figure");
    let figure = line.trim_matches([':', ' ', '\t']).split(' ').next().expect("a number");
    figure.parse::<usize>().expect("a number") * 1024
}

/// How much more memory the program has at any moment of the work than before.
async fn grows(program: &Program, work: impl Future<Output = ()>) -> usize {
    // The highest figure is counted from now on.
    std::fs::write(format!("/proc/{}/clear_refs", program.pid()), "5").expect("its own user");
    let before = memory(program, "VmRSS");
    work.await;
    memory(program, "VmHWM").saturating_sub(before)
}

/// Asks for all keys at once, which is more than an answer holds.
async fn refused(program: &Program) {
    let keys: Vec<_> = (1..=KEYS).map(|number| format!("k{number}")).collect();
    let request = program.client.post(format!("{}/v1/batch/read", program.url()));
    let answer = request.json(&json!({"keys": keys})).send().await.expect("an answer");
    let status = answer.status().as_u16();
    let problem = answer.text().await.expect("a body");
    assert!(status == 422 && problem.contains("fewer keys"), "{status}: {:.300}", problem);
}

async fn loaded(program: &Program, path: &str) {
    let answer = program.get(path).await;
    let status = answer.status();
    let bytes = answer.bytes().await.expect("a body").len();
    assert!(status == 200 && bytes > VALUE_BYTES && bytes < ALLOWED, "{path}: {status}, {bytes}");
}

async fn bounded(program: &Program, what: &str, paths: &[&str]) {
    let one = grows(program, refused(program)).await;
    assert!(one < ALLOWED, "{what}: a refused batch took {one} bytes");
    let six =
        grows(program, async { drop(join_all((0..6).map(|_| refused(program))).await) }).await;
    assert!(six < 6 * ALLOWED, "{what}: six refused batches took {six} bytes");
    for path in paths {
        let bytes = grows(program, loaded(program, path)).await;
        assert!(bytes < 3 * ALLOWED / 2, "{what}: {path} took {bytes} bytes");
    }
}

async fn fill(database: &str) {
    let rows = format!(
        "INSERT INTO records (key, value) \
         SELECT 'k' || n, 'word ' || repeat('x', {VALUE_BYTES}) FROM generate_series(1, {KEYS}) AS n"
    );
    sql(database, &rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_and_redis() {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    for level in [1, 5] {
        let (database, cache) = (fresh_database(), redis.url());
        let stores = Stores::Servers { database: &database, cache: &cache };
        let program = Program::serve(level, &stores).await;
        fill(&database).await;
        bounded(&program, &format!("level {level}"), &["/v1/records?limit=1000"]).await;
        for number in 1..=KEYS {
            program.read(&format!("k{number}")).await.expect("a read");
        }
        bounded(&program, &format!("level {level}, cached"), &[]).await;
        program.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_read_model() {
    let (database, cache) = (fresh_database(), terrace_lab::testing::redis().url());
    let stores = Stores::Servers { database: &database, cache: &cache };
    let program = Program::serve(7, &stores).await;
    fill(&database).await;
    loop {
        let found: serde_json::Value =
            program.get("/stats").await.json().await.expect("statistics");
        if found["read_db_records"] == KEYS {
            break;
        }
        tokio::task::yield_now().await;
    }
    let paths = ["/v1/records?limit=1000", "/v1/top?by=writes&limit=1000"];
    bounded(&program, "level 7", &paths).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_files() {
    for level in [5, 7] {
        let directory = tempfile::tempdir().expect("a directory");
        let program = Program::serve(level, &Stores::Embedded(directory.path())).await;
        let value = format!("word {}", "x".repeat(VALUE_BYTES));
        for number in 1..=KEYS {
            assert!(program.write(&format!("k{number}"), &value).await);
        }
        if level == 5 {
            for number in 1..=KEYS {
                program.read(&format!("k{number}")).await.expect("a read");
            }
        }
        bounded(&program, &format!("level {level}"), &["/v1/records?limit=1000"]).await;
        program.kill().await;
    }
}
