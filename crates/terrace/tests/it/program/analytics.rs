//! Level 10 counts its writes, each once, whatever dies and whatever moves.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use serde_json::Value;

use super::{Program, Stores, cqrs, terrace};

const WRITERS: usize = 8;
/// How many acknowledgements to wait for before something happens.
const ACKNOWLEDGED: usize = 100;

const OPEN: [(&str, &str); 1] = [("AUTH_ENABLED", "false")];

/// Writes keys of its own until the program is gone: each is written once, so there are as many writes
/// as records.
async fn write_until_gone(program: &Program, life: &str, writer: usize, count: &AtomicUsize) {
    for number in 0.. {
        if !program.write(&format!("w{writer}/{life}-{number}"), "12345").await {
            return;
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
}

async fn until(count: &AtomicUsize, goal: usize) {
    while count.load(Ordering::Relaxed) < goal {
        tokio::task::yield_now().await;
    }
}

async fn analytics(program: &Program, query: &str) -> Value {
    let answer = program.get(&format!("/v1/analytics?{query}")).await;
    let status = answer.status();
    let body: Value = answer.json().await.expect("a body");
    assert_eq!(status, 200, "{body}");
    body
}

fn sum(answer: &Value) -> u64 {
    let buckets = answer["buckets"].as_array().expect("buckets").iter();
    let counts = buckets.flat_map(|bucket| bucket["counts"].as_array().expect("counts"));
    counts.map(|count| count["count"].as_u64().expect("a count")).sum()
}

/// What is counted once all shards have counted everything.
async fn all_counted(program: &Program, query: &str) -> u64 {
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let answer = analytics(program, query).await;
        let shards = answer["shards"].as_array().expect("shards");
        if shards.iter().all(|shard| shard["lag_ms"] == 0)
            && answer["unavailable"] == Value::Array(vec![])
        {
            return sum(&answer);
        }
        assert!(tokio::time::Instant::now() < until, "it is not counted: {answer}");
        tokio::task::yield_now().await;
    }
}

async fn records(program: &Program) -> u64 {
    let mut path = "/v1/records?limit=1000".to_owned();
    let mut all = 0;
    loop {
        let page: Value = program.get(&path).await.json().await.expect("a page");
        all += page["records"].as_array().expect("records").len() as u64;
        let Some(cursor) = page["next_cursor"].as_str() else { return all };
        path = format!("/v1/records?limit=1000&cursor={cursor}");
    }
}

/// As many writes as records, by shard and by prefix, and their bytes.
async fn each_is_counted_once(program: &Program) -> u64 {
    let written = records(program).await;
    let hours = "bucket=1h&limit=100";
    assert_eq!(all_counted(program, &format!("metric=writes&{hours}")).await, written);
    assert_eq!(all_counted(program, &format!("metric=writes&by=prefix&{hours}")).await, written);
    assert_eq!(all_counted(program, &format!("metric=bytes&{hours}")).await, written * 5);
    written
}

/// Two instances; one of them is killed again and again, mostly the one that counts.
async fn killed_while_it_counts(stores: Stores<'_>, alone: bool) {
    let count = Arc::new(AtomicUsize::new(0));
    let other = match alone {
        true => None,
        false => Some(Program::serve_with(10, &stores, &[], &OPEN).await),
    };
    for cycle in 0..cqrs::kills() {
        let program = Program::serve_with(10, &stores, &[], &OPEN).await;
        let goal = count.load(Ordering::Relaxed) + ACKNOWLEDGED;
        let life = cycle.to_string();
        let writers = (0..WRITERS).map(|writer| write_until_gone(&program, &life, writer, &count));
        let kill = async {
            until(&count, goal).await;
            let pid = program.pid().to_string();
            let killed = std::process::Command::new("kill").args(["-KILL", &pid]).status();
            assert!(killed.expect("kill runs").success());
        };
        tokio::join!(join_all(writers), kill);
        program.kill().await;
    }
    drop(other);
    let program = Program::serve_with(10, &stores, &[], &OPEN).await;
    let written = each_is_counted_once(&program).await;
    assert!(written >= (cqrs::kills() * ACKNOWLEDGED) as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_to_files_is_counted_once_amid_kills() {
    let directory = tempfile::tempdir().expect("a directory");
    killed_while_it_counts(Stores::Embedded(directory.path()), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_to_servers_is_counted_once_amid_kills_of_one_of_two() {
    let database = terrace_lab::testing::fresh_database();
    let cache = terrace_lab::testing::redis().url();
    killed_while_it_counts(Stores::Servers { database: &database, cache: &cache }, false).await;
}

async fn reshard(stores: &Stores<'_>, work: &[&str]) {
    let mut arguments = work.to_vec();
    loop {
        let mut command = terrace(&["reshard", "--level", "10"]);
        command.args(&arguments);
        stores.tell(&mut command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.output().await.expect("it ends");
        if output.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("did not come to the end of the change log in time"), "{said}");
        arguments = vec!["--resume"];
    }
}

/// Slots move to a third shard while writes are counted.
async fn moved_while_it_counts(stores: Stores<'_>, third: &str) {
    let program = Program::serve_with(10, &stores, &[], &OPEN).await;
    let (count, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let writers = (0..WRITERS).map(async |writer| {
        for number in 0.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            assert!(program.write(&format!("w{writer}/{number}"), "12345").await);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let more = async || until(&count, count.load(Ordering::Relaxed) + ACKNOWLEDGED).await;
    let moves = async {
        more().await;
        reshard(&stores, &["--add", third]).await;
        more().await;
        reshard(&stores, &["--finish"]).await;
        more().await;
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(writers), moves);
    each_is_counted_once(&program).await;
    let shards = analytics(&program, "metric=writes").await["shards"].clone();
    assert_eq!(shards.as_array().expect("shards").len(), 3, "{shards}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_between_files_is_not_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    moved_while_it_counts(Stores::Embedded(directory.path()), "third.sqlite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_between_servers_is_not_counted() {
    let (database, third) =
        (terrace_lab::testing::fresh_database(), terrace_lab::testing::fresh_database());
    let cache = terrace_lab::testing::redis().url();
    moved_while_it_counts(Stores::Servers { database: &database, cache: &cache }, &third).await;
}
