//! Slots move between real databases while instances serve, and whatever dies meanwhile.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use terrace_core::Runtime;
use terrace_lab::PostgresServer;
use terrace_lab::testing::fresh_database;

use super::{Program, Stores, own_postgres, own_redis, terrace};

const KEYS: usize = 120;

/// Clients of several instances. Each key has one writer, whose values are numbers.
struct Clients {
    urls: Mutex<Vec<String>>,
    client: reqwest::Client,
    acknowledged: Vec<AtomicU64>,
    sent: Vec<AtomicU64>,
    /// Writes that nobody answered, as of an instance that was killed: each may still come, also after
    /// a later one.
    unknown: Mutex<HashSet<(usize, u64)>>,
    reads: AtomicU64,
    writes: AtomicU64,
    errors: AtomicU64,
    wrong: Mutex<Vec<String>>,
    over: AtomicBool,
    runtime: Runtime,
}

impl Clients {
    fn of(programs: &[&Program]) -> Arc<Self> {
        let numbers = || (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            urls: Mutex::new(programs.iter().map(|it| it.url.clone()).collect()),
            client: reqwest::Client::new(),
            acknowledged: numbers(),
            sent: numbers(),
            unknown: Mutex::default(),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            wrong: Mutex::default(),
            over: AtomicBool::new(false),
            runtime: Runtime::system(),
        })
    }

    fn at_work(self: &Arc<Self>) -> Vec<terrace_core::Task> {
        let mut tasks = Vec::new();
        for lane in 0..4 {
            let (writer, reader) = (Arc::clone(self), Arc::clone(self));
            tasks.push(self.runtime.spawn("writer", async move { writer.write(lane).await }));
            tasks.push(self.runtime.spawn("reader", async move { reader.read().await }));
        }
        tasks
    }

    fn url(&self) -> String {
        let urls = self.urls.lock().expect("a lock");
        urls[self.draw(urls.len())].clone()
    }

    fn draw(&self, below: usize) -> usize {
        usize::try_from(self.runtime.random() % below as u64).expect("small")
    }

    async fn write(&self, lane: usize) {
        while !self.over.load(Ordering::Relaxed) {
            let index = self.draw(KEYS / 4) * 4 + lane;
            let number = self.sent[index].fetch_add(1, Ordering::AcqRel) + 1;
            let body = serde_json::json!({"key": name(index), "value": number.to_string()});
            let sent = self.client.post(format!("{}/write", self.url())).json(&body).send().await;
            match sent {
                Ok(answer) if answer.status().is_success() => {
                    self.acknowledged[index].store(number, Ordering::Release);
                    self.writes.fetch_add(1, Ordering::Relaxed);
                }
                // Refused: nothing was changed.
                Ok(answer) if answer.status() == reqwest::StatusCode::SERVICE_UNAVAILABLE => {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                }
                _ => {
                    self.unknown.lock().expect("a lock").insert((index, number));
                    self.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    async fn read(&self) {
        while !self.over.load(Ordering::Relaxed) {
            self.read_one(&self.url(), self.draw(KEYS)).await;
        }
    }

    async fn read_one(&self, url: &str, index: usize) {
        let floor = self.acknowledged[index].load(Ordering::Acquire);
        let sent = self.client.get(format!("{url}/read/{}", name(index))).send().await;
        let answer = match sent {
            Ok(answer) if answer.status().is_success() => answer.json::<serde_json::Value>().await,
            _ => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        let Ok(answer) = answer else { return };
        let newest = self.sent[index].load(Ordering::Acquire);
        let number = answer["value"].as_str().map_or(0, |text| text.parse().expect("a number"));
        let late = || self.unknown.lock().expect("a lock").contains(&(index, number));
        let old = number < floor && !late();
        if old || number > newest || !answer["shard_id"].is_u64() {
            let seen = format!("{index}: {answer}, not {floor} to {newest}");
            self.wrong.lock().expect("a lock").push(seen);
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    async fn until_busy(&self) {
        let goal = self.writes.load(Ordering::Relaxed) + 200;
        while self.writes.load(Ordering::Relaxed) < goal {
            self.runtime.sleep(Duration::from_millis(5)).await;
        }
    }

    /// In the end all that was acknowledged is there, once, through every instance.
    async fn end(&self, tasks: Vec<terrace_core::Task>) {
        self.over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await;
        }
        let urls = self.urls.lock().expect("a lock").clone();
        for url in urls {
            for index in 0..KEYS {
                self.read_one(&url, index).await;
            }
            let listed = self.client.get(format!("{url}/v1/records?limit=1000")).send().await;
            let listed: serde_json::Value = listed.expect("a list").json().await.expect("a list");
            let keys = listed["records"].as_array().expect("records").iter();
            let keys = keys.map(|it| it["key"].as_str().expect("a key")).collect::<Vec<_>>();
            assert!(keys.is_sorted_by(|a, b| a < b), "no key is there twice");
            let written = |it: &&AtomicU64| it.load(Ordering::Relaxed) > 0;
            assert!(keys.len() >= self.acknowledged.iter().filter(written).count());
        }
        assert_eq!(*self.wrong.lock().expect("a lock"), Vec::<String>::new());
        assert!(self.reads.load(Ordering::Relaxed) > 200);
    }
}

fn name(index: usize) -> String {
    format!("key-{index}")
}

/// Runs `terrace reshard`; with a life it is killed then. Whether it came to its end: a machine that
/// is too busy to hand slots over in time is told to resume.
async fn reshard(stores: &Stores<'_>, work: &[&str], life: Option<Duration>) -> bool {
    let mut command = terrace(&["reshard", "--level", "4"]);
    command.args(work);
    stores.tell(&mut command);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    if let Some(life) = life {
        let end = terrace_core::Deadline::at(Runtime::system().now() + life);
        if Runtime::system().within(end, child.wait()).await.is_none() {
            child.kill().await.expect("it is killed");
            return false;
        }
    }
    let output = child.wait_with_output().await.expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let gave_up = said.contains("did not come to the end of the change log in time");
    assert!(output.status.success() || gave_up, "{work:?}: {said}");
    output.status.success()
}

/// Runs `terrace reshard`, and resumes it as often as it asks for that.
async fn to_the_end(stores: &Stores<'_>, work: &[&str]) {
    let mut ended = reshard(stores, work, None).await;
    while !ended {
        ended = reshard(stores, &["--resume"], None).await;
    }
}

/// One server with four databases: what matters here is that they are four.
async fn four(server: &PostgresServer) -> Vec<String> {
    let mut urls = Vec::new();
    for number in 0..4 {
        let name = format!("shard_{number}");
        urls.push(server.create_database(&name).await.expect("a database"));
    }
    urls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_database_takes_its_share_under_load_without_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let (postgres, redis) =
        (own_postgres(directory.path()).await, own_redis(directory.path()).await);
    let (urls, cache) = (four(&postgres).await, redis.url());
    let stores = Stores::Shards { databases: &urls[..3], cache: &cache };
    let (a, b) = (Program::serve(4, &stores).await, Program::serve(4, &stores).await);
    let clients = Clients::of(&[&a, &b]);
    let tasks = clients.at_work();
    clients.until_busy().await;
    reshard(&stores, &["--add", &urls[3], "--dry-run"], None).await;
    to_the_end(&stores, &["--add", &urls[3]]).await;
    clients.until_busy().await;
    to_the_end(&stores, &["--back"]).await;
    to_the_end(&stores, &["--finish"]).await;
    clients.until_busy().await;
    clients.end(tasks).await;
    assert_eq!(clients.errors.load(Ordering::Relaxed), 0);
    assert_eq!(a.health().await, "healthy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_slots_and_what_serves_may_be_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (postgres, redis) =
        (own_postgres(directory.path()).await, own_redis(directory.path()).await);
    let (urls, cache) = (four(&postgres).await, redis.url());
    let stores = Stores::Shards { databases: &urls[..3], cache: &cache };
    let (a, b) = (Program::serve(4, &stores).await, Program::serve(4, &stores).await);
    let clients = Clients::of(&[&a, &b]);
    let tasks = clients.at_work();
    clients.until_busy().await;
    let mut begun = ["--add", &urls[3]].to_vec();
    let mut b = Some(b);
    for round in 0..kills() {
        let life = Duration::from_millis(30 + Runtime::system().random() % 400);
        let ended = reshard(&stores, &begun, Some(life)).await;
        if ended {
            break;
        }
        // Whether a plan was announced before the kill is told by the next command.
        if reshard_knows_a_plan(&stores).await {
            begun = ["--resume"].to_vec();
        }
        if round == 2 {
            b.take().expect("it serves").kill().await;
            let again = Program::serve(4, &stores).await;
            clients.urls.lock().expect("a lock")[1].clone_from(&again.url);
            b = Some(again);
        }
        if round == 4 {
            postgres.kill();
            postgres.restart().await.expect("it is back");
        }
    }
    if reshard_knows_a_plan(&stores).await {
        begun = ["--resume"].to_vec();
    }
    to_the_end(&stores, &begun).await;
    to_the_end(&stores, &["--finish"]).await;
    clients.until_busy().await;
    clients.end(tasks).await;
}

/// A tenth of the kills, unless all are asked for.
fn kills() -> u32 {
    if std::env::var_os("TERRACE_FULL_COUNTS").is_some() { 60 } else { 6 }
}

async fn reshard_knows_a_plan(stores: &Stores<'_>) -> bool {
    let mut command = terrace(&["reshard", "--level", "4", "--rebalance", "--dry-run"]);
    stores.tell(&mut command);
    let output = command.output().await.expect("it ends");
    String::from_utf8_lossy(&output.stderr).contains("being moved already")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_shared_out_anew_while_they_are_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let program = Program::serve(4, &stores).await;
    let clients = Clients::of(&[&program]);
    let tasks = clients.at_work();
    clients.until_busy().await;
    reshard(&stores, &["--add", "more.sqlite"], None).await;
    reshard(&stores, &["--finish"], None).await;
    clients.until_busy().await;
    reshard(&stores, &["--remove", "0"], None).await;
    reshard(&stores, &["--finish"], None).await;
    clients.until_busy().await;
    clients.end(tasks).await;
    assert_eq!(clients.errors.load(Ordering::Relaxed), 0);
}

/// Three databases, each on a server of its own.
async fn three(directory: &Path) -> (Vec<PostgresServer>, Vec<String>) {
    let (mut servers, mut urls) = (Vec::new(), Vec::new());
    for number in 0..3 {
        let server = own_postgres(&directory.join(number.to_string())).await;
        urls.push(server.create_database("shard").await.expect("a database"));
        servers.push(server);
    }
    (servers, urls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_may_be_killed_and_started_again_under_load() {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    let (servers, urls) = three(directory.path()).await;
    let cache = redis.url();
    let stores = Stores::Shards { databases: &urls, cache: &cache };
    let (a, b) = (Program::serve(4, &stores).await, Program::serve(4, &stores).await);
    let clients = Clients::of(&[&a, &b]);
    let tasks = clients.at_work();
    for server in [&servers[1], &servers[2]] {
        clients.until_busy().await;
        server.kill();
        // The keys of the others go on meanwhile.
        clients.until_busy().await;
        server.restart().await.expect("it is back");
        a.becomes("healthy").await;
        b.becomes("healthy").await;
    }
    clients.until_busy().await;
    clients.end(tasks).await;
    assert!(clients.errors.load(Ordering::Relaxed) > 0, "the dead one's keys were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_killed_takes_only_its_keys_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    let (servers, urls) = three(directory.path()).await;
    let cache = redis.url();
    let program = Program::serve(4, &Stores::Shards { databases: &urls, cache: &cache }).await;
    let mut keys = [Vec::new(), Vec::new(), Vec::new()];
    for index in 0..30 {
        let body = serde_json::json!({"key": name(index), "value": "1"});
        let sent = program.client.post(format!("{}/write", program.url)).json(&body).send().await;
        let answer: serde_json::Value = sent.expect("an answer").json().await.expect("a body");
        let shard = answer["shard_id"].as_u64().expect("a shard");
        assert_eq!(answer["message"], format!("Data written successfully to shard {shard}"));
        keys[usize::try_from(shard).expect("small")].push(name(index));
    }
    servers[1].kill();
    for round in 0..20 {
        for (shard, keys) in keys.iter().enumerate().filter(|(shard, _)| *shard != 1) {
            for key in keys {
                assert!(program.write(key, &round.to_string()).await, "shard {shard} goes on");
                let read = program.read(key).await.expect("an answer");
                assert_eq!(read, Some(round.to_string()));
            }
        }
    }
    assert!(!program.write(&keys[1][0], "2").await);
    let all = keys.concat();
    let read = program.client.post(format!("{}/v1/batch/read", program.url));
    let answer = read.json(&serde_json::json!({"keys": all})).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let answer: serde_json::Value = answer.json().await.expect("a body");
    for item in answer["records"].as_array().expect("records") {
        let dead = keys[1].iter().any(|key| item["key"] == *key.as_str());
        assert_eq!(item["unavailable"] == true, dead, "{item}");
    }
    program.becomes("degraded").await;
    servers[1].restart().await.expect("it is back");
    while !program.write(&keys[1][0], "3").await {
        tokio::task::yield_now().await;
    }
    program.becomes("healthy").await;
    assert_eq!(program.read(&keys[1][0]).await, Ok(Some("3".to_owned())));
}

/// Whoever starts while the first shard is down serves the others' keys, and that one's when it is back.
async fn starts_without_the_first_shard(level: u8, name: impl Fn(usize) -> String) {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    let first = own_postgres(directory.path()).await;
    let own = first.create_database("shard").await.expect("a database");
    let (other, apart) = (fresh_database(), fresh_database());
    let start = async || {
        let mut command = terrace(&["serve", &level.to_string()]);
        command.env("REDIS_URL", redis.url()).env("CACHE_L2_URL", redis.url());
        command.env("DATABASE_URL", &apart).env("AUTH_ENABLED", "false");
        command.env("RATE_LIMIT_REQUESTS", "1000000");
        command.env(name(0), &own).env(name(1), &other);
        Program::start(command).await
    };
    let founder = start().await;
    founder.becomes("healthy").await;
    assert!(founder.terminate().await.success());
    first.kill();
    let program = start().await;
    program.becomes("degraded").await;
    let mut written = HashSet::new();
    for index in 0..30 {
        written.insert(program.write(&self::name(index), "1").await);
    }
    assert_eq!(written, HashSet::from([true, false]), "the other's keys are written");
    first.restart().await.expect("it is back");
    program.becomes("healthy").await;
    for index in 0..30 {
        assert!(program.write(&self::name(index), "2").await);
    }
    assert!(program.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_4_starts_without_the_first_shard() {
    starts_without_the_first_shard(4, |number| format!("SHARD_{number}_URL")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_10_starts_without_the_first_shard() {
    starts_without_the_first_shard(10, |number| format!("DB_SHARD{}_URL", number + 1)).await;
}
