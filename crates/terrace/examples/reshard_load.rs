//! Reshards a million records under a steady load, and says how long it took and what clients felt.
//!
//! Usage: `scripts/reshard-load [RECORDS] [REQUESTS A SECOND]`. Starts private PostgreSQL servers, a
//! Redis and `terrace serve 4`, and runs `terrace reshard --add`. Half of the requests are writes.
//! Latency counts from the moment at which a request was due, so a pause shows.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement, not a part of the program"
)]

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use terrace_core::Runtime;
use terrace_lab::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

struct Load {
    url: String,
    client: reqwest::Client,
    records: u64,
    /// For each key that is written, the latest number that was acknowledged.
    acknowledged: Vec<AtomicU64>,
    sent: Vec<AtomicU64>,
    micros: Mutex<Vec<(Instant, u64)>>,
    errors: AtomicU64,
    stale: AtomicU64,
    over: AtomicBool,
    runtime: Runtime,
}

const WRITTEN_KEYS: u64 = 20_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|it| {
        it.parse::<u64>().unwrap_or_else(|_| {
            use std::io::Write as _;
            let usage = "usage: scripts/reshard-load [RECORDS] [REQUESTS A SECOND]";
            let _ = writeln!(std::io::stderr(), "{it} is no number; {usage}");
            std::process::exit(2);
        })
    });
    let records = arguments.next().unwrap_or(1_000_000);
    let rate = arguments.next().unwrap_or(2000);
    let directory = tempfile::Builder::new().tempdir_in("/var/tmp").expect("a directory");
    let (mut servers, mut urls) = (Vec::new(), Vec::new());
    for number in 0..4 {
        let home = directory.path().join(format!("shard_{number}"));
        let server = PostgresServer::start(PostgresOptions::new(home)).await.expect("PostgreSQL");
        urls.push(server.create_database("terrace").await.expect("a database"));
        servers.push(server);
    }
    let options = RedisOptions::new(directory.path().join("redis"));
    let redis = RedisServer::start(options).await.expect("Redis");
    let (mut serving, url) = serve(&urls[..3], &redis.url()).await;
    let load = Arc::new(Load::new(url, records));
    load.fill().await;
    println!("{records} records are there");
    let tasks = load.begin(rate);
    load.runtime.sleep(Duration::from_secs(10)).await;
    let begun = Instant::now();
    let status = terrace(&urls[..3], &redis.url(), &["reshard", "--add", &urls[3]]).status().await;
    let (took, ended) = (begun.elapsed(), Instant::now());
    assert!(status.expect("it ran").success(), "the reshard failed");
    load.runtime.sleep(Duration::from_secs(5)).await;
    load.over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await;
    }
    println!("reshard of {records} records at {rate}/s took {:.1} s", took.as_secs_f64());
    load.say("before", |at| at < begun);
    load.say("during", |at| at >= begun && at <= ended);
    load.say("after", |at| at > ended);
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!("errors {}, stale or lost {}", of(&load.errors), of(&load.stale));
    let finish = Instant::now();
    let status = terrace(&urls[..3], &redis.url(), &["reshard", "--finish"]).status().await;
    assert!(status.expect("it ran").success(), "the end failed");
    println!("--finish took {:.1} s", finish.elapsed().as_secs_f64());
    serving.kill().await.expect("it ends");
}

fn terrace(urls: &[String], cache: &str, arguments: &[&str]) -> Command {
    let program = std::env::current_exe().expect("a path");
    let program = program.parent().and_then(|it| it.parent()).expect("a folder").join("terrace");
    let mut command = Command::new(program);
    command.args(arguments).env("REDIS_URL", cache).stdin(Stdio::null()).kill_on_drop(true);
    for (number, url) in urls.iter().enumerate() {
        command.env(format!("SHARD_{number}_URL"), url);
    }
    command
}

async fn serve(urls: &[String], cache: &str) -> (Child, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
    let port = port.expect("a port").port();
    let mut command = terrace(urls, cache, &["serve", "4", "--port", &port.to_string()]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    while let Some(line) = lines.next_line().await.expect("text") {
        if line.contains("Ctrl-C stops") {
            return (child, format!("http://127.0.0.1:{port}"));
        }
    }
    panic!("it ended");
}

impl Load {
    fn new(url: String, records: u64) -> Self {
        let numbers = || (0..WRITTEN_KEYS).map(|_| AtomicU64::new(0)).collect();
        Self {
            url,
            client: reqwest::Client::new(),
            records,
            acknowledged: numbers(),
            sent: numbers(),
            micros: Mutex::default(),
            errors: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            over: AtomicBool::new(false),
            runtime: Runtime::system(),
        }
    }

    async fn fill(&self) {
        for first in (0..self.records).step_by(1000) {
            let write = |key| json!({"op": "put", "key": format!("key-{key}"), "value": "0"});
            let writes = (first..first + 1000).map(write).collect::<Vec<_>>();
            let sent = self.client.post(format!("{}/v1/batch/write", self.url));
            let answer = sent.json(&json!({ "writes": writes })).send().await.expect("an answer");
            assert!(answer.status().is_success());
        }
    }

    /// Sends a request when it is due, whatever became of the one before.
    fn begin(self: &Arc<Self>, rate: u64) -> Vec<terrace_core::Task> {
        let mut tasks = Vec::new();
        let begun = Instant::now();
        // Enough lanes that none waits for its last answer while answers take less than 64 ms.
        let lanes = (rate / 16).max(1);
        for lane in 0..lanes {
            let load = Arc::clone(self);
            tasks.push(self.runtime.spawn("lane", async move {
                let mut due = begun + Duration::from_micros(1_000_000 * lane / rate);
                while !load.over.load(Ordering::Relaxed) {
                    load.runtime.sleep_until(due).await;
                    load.one(lane, lanes).await;
                    let took = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
                    load.micros.lock().expect("a lock").push((due, took));
                    due += Duration::from_micros(1_000_000 * lanes / rate);
                }
            }));
        }
        tasks
    }

    /// A key is written by one lane alone.
    async fn one(&self, lane: u64, lanes: u64) {
        let draw = self.runtime.random();
        if draw.is_multiple_of(2) {
            let place = (draw / 2 % (WRITTEN_KEYS / lanes)) * lanes + lane;
            let index = usize::try_from(place).expect("small");
            let number = self.sent[index].fetch_add(1, Ordering::AcqRel) + 1;
            let body = json!({"key": format!("key-{index}"), "value": number.to_string()});
            let sent = self.client.post(format!("{}/write", self.url)).json(&body).send().await;
            match sent {
                Ok(answer) if answer.status().is_success() => {
                    self.acknowledged[index].store(number, Ordering::Release);
                }
                _ => drop(self.errors.fetch_add(1, Ordering::Relaxed)),
            }
            return;
        }
        let key = draw / 2 % self.records;
        let index = usize::try_from(key).expect("small");
        let floor = self.acknowledged.get(index).map_or(0, |it| it.load(Ordering::Acquire));
        let sent = self.client.get(format!("{}/read/key-{key}", self.url)).send().await;
        let Ok(answer) = sent else {
            self.errors.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let answer = answer.json::<Value>().await.unwrap_or_default();
        match answer["value"].as_str().and_then(|text| text.parse::<u64>().ok()) {
            Some(number) if number >= floor => {}
            Some(_) => drop(self.stale.fetch_add(1, Ordering::Relaxed)),
            None if answer["success"] == false => {
                self.stale.fetch_add(1, Ordering::Relaxed);
            }
            None => drop(self.errors.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn say(&self, when: &str, within: impl Fn(Instant) -> bool) {
        let micros = self.micros.lock().expect("a lock");
        let mut some =
            micros.iter().filter(|(at, _)| within(*at)).map(|it| it.1).collect::<Vec<_>>();
        some.sort_unstable();
        let at = |percent: usize| {
            let place = some.len() * percent / 1000;
            some.get(place.min(some.len().saturating_sub(1))).copied().unwrap_or(0)
        };
        println!(
            "{when}: {} requests, p50 {} us, p99 {} us, p99.9 {} us, most {} us",
            some.len(),
            at(500),
            at(990),
            at(999),
            some.last().copied().unwrap_or(0)
        );
    }
}
