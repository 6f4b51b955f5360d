//! The program as people run it: started, killed, started again, misused.

mod access;
mod analytics;
mod backup;
mod bench;
mod bench_ends;
mod browser;
mod by_hand;
mod caches;
mod canary;
mod cqrs;
mod crash;
mod databases;
mod docs;
mod enterprise;
mod front_caches;
mod health;
mod instances;
mod journal;
mod limits;
mod live;
mod memory;
mod metrics;
mod openapi;
mod output;
mod past_the_log;
mod polyglot;
mod reference;
mod regions;
mod reshard;
mod sealed_backups;
mod signals;
mod tls;
mod tokens;
#[cfg(feature = "otlp")]
mod traces;
mod twice;
mod usage;

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use terrace_lab::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A running `terrace serve`.
pub(crate) struct Program {
    child: Child,
    /// What it said before it served.
    said: Vec<String>,
    url: String,
    client: reqwest::Client,
}

/// Where a program keeps its records.
pub(crate) enum Stores<'a> {
    Embedded(&'a Path),
    Servers { database: &'a str, cache: &'a str },
    Shards { databases: &'a [String], cache: &'a str },
    Regions { databases: &'a [String], cache: &'a str },
}

/// The names of the regions in the environment.
const REGIONS: [&str; 3] = ["US_EAST", "EU_WEST", "ASIA_PAC"];

impl Stores<'_> {
    fn tell(&self, command: &mut Command) {
        match self {
            Stores::Embedded(directory) => {
                command.arg("--stores").arg("embedded").arg("--data-dir").arg(directory);
            }
            Stores::Servers { database, cache } => {
                command.env("DATABASE_URL", database).env("REDIS_URL", cache);
            }
            Stores::Shards { databases, cache } => {
                for (number, url) in databases.iter().enumerate() {
                    command.env(format!("SHARD_{number}_URL"), url);
                }
                command.env("REDIS_URL", cache);
            }
            Stores::Regions { databases, cache } => {
                for (name, url) in REGIONS.iter().zip(*databases) {
                    command.env(format!("DB_{name}_URL"), url);
                    command.env(format!("CACHE_{name}_URL"), cache);
                }
            }
        }
    }
}

/// `terrace` with an environment that this machine's settings do not reach.
fn terrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrace"));
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

impl Program {
    /// Starts `terrace serve` on a free port and waits until it says that it serves.
    pub(crate) async fn serve(level: u8, stores: &Stores<'_>) -> Self {
        Self::serve_with(level, stores, &[], &[]).await
    }

    /// The same with more arguments, and more in its environment.
    pub(crate) async fn serve_with(
        level: u8,
        stores: &Stores<'_>,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = terrace(&["serve", &level.to_string()]);
        stores.tell(&mut command);
        // Limits have tests of their own.
        command.env("RATE_LIMIT_REQUESTS", "1000000");
        command.args(arguments).envs(environment.iter().copied());
        Self::start(command).await
    }

    /// Starts a `terrace serve` that lacks nothing but its port, and waits until it says that it serves.
    async fn start(command: Command) -> Self {
        Self::start_on(free_port(), command).await
    }

    /// The same on a port that something else knows already.
    async fn start_on(port: u16, mut command: Command) -> Self {
        let port = port.to_string();
        command.args(["--port", &port]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut said = Vec::new();
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.contains("Ctrl-C stops") {
                // A request to a program that was killed may wait for ever in the client.
                let client = reqwest::Client::builder().timeout(Duration::from_secs(120));
                let client = client.build().expect("a client");
                return Self { child, said, url: format!("http://127.0.0.1:{port}"), client };
            }
            said.push(line);
        }
        panic!("the program ended: {:?}", child.wait().await);
    }

    /// Where it serves.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The process, while it runs.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Writes a value; true once it is acknowledged.
    pub(crate) async fn write(&self, key: &str, value: &str) -> bool {
        let body = json!({"key": key, "value": value});
        let sent = self.client.post(format!("{}/write", self.url)).json(&body).send().await;
        match sent {
            Ok(answer) => answer.status().is_success() && answer.bytes().await.is_ok(),
            Err(_) => false,
        }
    }

    /// The value of a key; an error says what was answered instead.
    async fn read(&self, key: &str) -> Result<Option<String>, String> {
        let sent = self.client.get(format!("{}/read/{key}", self.url)).send().await;
        let answer = sent.map_err(|error| error.to_string())?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("{status}: {text}"));
        }
        let body: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        Ok(body["value"].as_str().map(str::to_owned))
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).send().await.expect("an answer")
    }

    async fn health(&self) -> String {
        let answer = self.client.get(format!("{}/health", self.url)).send().await.expect("health");
        let body: Value = answer.json().await.expect("a body");
        body["status"].as_str().expect("a status").to_owned()
    }

    /// Waits until the level says that it is in this state.
    async fn becomes(&self, wanted: &str) {
        let mut seen = self.health().await;
        let within = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        while seen != wanted {
            assert!(tokio::time::Instant::now() < within, "{seen} for 30 s, not {wanted}");
            tokio::task::yield_now().await;
            seen = self.health().await;
        }
    }

    /// `kill -9`, and the wait for its effect.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("the program is killed");
    }

    /// SIGTERM, and the wait for the exit.
    pub(crate) async fn terminate(self) -> ExitStatus {
        self.end_by("TERM").await
    }

    /// A signal, and the wait for the exit.
    async fn end_by(mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.child.wait().await.expect("it ends")
    }

    /// How many files and sockets it has open.
    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    fn signal(&self, signal: &str) {
        send(signal, self.pid());
    }
}

/// Sends a signal to a process that runs.
fn send(signal: &str, process: u32) {
    let arguments = ["-s", signal, &process.to_string()];
    let status = std::process::Command::new("kill").args(arguments).status();
    assert!(status.expect("kill runs").success());
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// A PostgreSQL of this test's own, which it may kill.
async fn own_postgres(directory: &Path) -> PostgresServer {
    let options = PostgresOptions::new(directory.join("postgres"));
    PostgresServer::start(options).await.expect("PostgreSQL starts")
}

/// A Redis of this test's own, which it may kill.
async fn own_redis(directory: &Path) -> RedisServer {
    let options = RedisOptions::new(directory.join("redis"));
    RedisServer::start(options).await.expect("Redis starts")
}
