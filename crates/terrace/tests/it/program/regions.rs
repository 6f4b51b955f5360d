//! Level 9 as people run it: killed amid writes, a region's server killed, keys that stay in a region.

use std::collections::HashMap;
use std::path::Path;
use std::process::Output;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use terrace_lab::{PostgresOptions, PostgresServer};

use super::cqrs::kills;
use super::{Program, Stores, own_redis, send, terrace};

const NAMES: [&str; 3] = ["us-east", "eu-west", "asia-pac"];
const KEYS: usize = 6;

/// `terrace regions` beside the program; its answer, and whether it is content.
async fn regions(stores: &Stores<'_>, arguments: &[&str]) -> Output {
    let mut command = terrace(&["regions"]);
    stores.tell(&mut command);
    command.args(arguments).output().await.expect("it runs")
}

/// The same, which succeeds.
async fn done(stores: &Stores<'_>, arguments: &[&str]) -> String {
    let said = regions(stores, arguments).await;
    let (out, error) = (said.stdout, String::from_utf8_lossy(&said.stderr).into_owned());
    let out = String::from_utf8(out).expect("text");
    assert!(said.status.success(), "{arguments:?}: {out}{error}");
    out
}

impl Program {
    async fn write_in(&self, region: &str, key: &str, value: &str) -> Option<Value> {
        let body = json!({"key": key, "value": value});
        let request = self.client.post(format!("{}/write", self.url)).header("X-Region", region);
        let answer = request.json(&body).send().await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        answer.json().await.ok()
    }

    async fn read_in(&self, region: &str, key: &str) -> Value {
        let request =
            self.client.get(format!("{}/read/{key}", self.url)).header("X-Region", region);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{key} in {region}");
        answer.json().await.expect("a body")
    }

    /// Waits until a read in a region is as wanted.
    async fn reads_in(&self, region: &str, key: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let found = self.read_in(region, key).await;
            if wanted(&found) {
                return found;
            }
            assert!(tokio::time::Instant::now() < until, "{key} in {region}: {found}");
            tokio::task::yield_now().await;
        }
    }

    /// What a region lists of lost updates: how many of each key.
    async fn lost(&self, region: &str) -> HashMap<String, usize> {
        let url = format!("{}/v1/conflicts?limit=1000", self.url);
        let answer = self.client.get(url).header("X-Region", region).send().await.expect("answer");
        let page: Value = answer.json().await.expect("a body");
        assert!(page["next_cursor"].is_null(), "more than a page");
        let mut lost = HashMap::new();
        for conflict in page["conflicts"].as_array().expect("a list") {
            *lost.entry(conflict["key"].as_str().expect("a key").to_owned()).or_default() += 1;
        }
        lost
    }
}

/// What was acknowledged: the highest number that each region has written to a key of its own.
type Acknowledged = Mutex<HashMap<&'static str, usize>>;

/// Each region has a writer until the program is gone: of keys that all write, and of a key of its own.
async fn write_everywhere(program: &Program, from: usize, acknowledged: &Acknowledged) {
    let writers = NAMES.iter().map(|region| async move {
        for number in from.. {
            let shared = format!("k{}", number % KEYS);
            let (own, value) = (format!("own-{region}"), number.to_string());
            let wrote = program.write_in(region, &shared, &format!("{region}-{number}")).await;
            if wrote.is_none() || program.write_in(region, &own, &value).await.is_none() {
                return;
            }
            acknowledged.lock().expect("a lock").insert(region, number);
        }
    });
    futures_util::future::join_all(writers).await;
}

async fn killed_amid_writes(stores: Stores<'_>) {
    let acknowledged = Acknowledged::default();
    for cycle in 1..=kills() {
        let program = Program::serve(9, &stores).await;
        let from = cycle * 1_000_000;
        let writes = write_everywhere(&program, from, &acknowledged);
        let killed = async {
            let enough = |it: &HashMap<&str, usize>| {
                it.len() == NAMES.len() && it.values().all(|number| *number > from + 5)
            };
            while !enough(&acknowledged.lock().expect("a lock")) {
                tokio::task::yield_now().await;
            }
            send("KILL", program.pid());
        };
        tokio::join!(writes, killed);
        program.kill().await;
    }
    let program = Program::serve(9, &stores).await;
    done(&stores, &["sync"]).await;
    done(&stores, &["diff"]).await;
    let mut lost = Vec::new();
    for region in NAMES {
        lost.push(program.lost(region).await);
    }
    assert!(lost.iter().all(|it| *it == lost[0]), "regions list other losses: {lost:?}");
    let acknowledged = acknowledged.into_inner().expect("a lock");
    for region in NAMES {
        for (writer, number) in &acknowledged {
            let found = program.read_in(region, &format!("own-{writer}")).await;
            let found = found["value"].as_str().and_then(|it| it.parse::<usize>().ok());
            assert!(found >= Some(*number), "{writer} in {region}: {found:?} < {number}");
        }
    }
    assert!(program.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_in_files_are_equal_after_kills_amid_writes() {
    let directory = tempfile::tempdir().expect("a directory");
    killed_amid_writes(Stores::Embedded(directory.path())).await;
}

/// What the files of a region hold of a text.
fn occurrences(directory: &Path, region: &str, text: &str) -> usize {
    let files = std::fs::read_dir(directory).expect("a directory").flatten();
    let own = files.filter(|file| file.file_name().to_string_lossy().contains(region));
    let bytes = own.map(|file| std::fs::read(file.path()).expect("a file")).collect::<Vec<_>>();
    assert!(!bytes.is_empty(), "{region} has no files");
    let hits = bytes.iter().flat_map(|all| all.windows(text.len()));
    hits.filter(|window| *window == text.as_bytes()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_resides_in_a_region_is_in_no_file_of_another() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let homes = [("TERRACE_REGIONS_HOMES", "eu:=eu-west!")];
    let program = Program::serve_with(9, &stores, &[], &homes).await;
    let wrote = program.write_in("us-east", "eu:person", "residentsecret").await.expect("a write");
    assert_eq!(wrote["primary_region"], "EU-WEST");
    program.write_in("us-east", "plain", "everywhere").await.expect("a write");
    program.reads_in("asia-pac", "plain", |it| it["region"] == "ASIA-PAC").await;
    let found = program.read_in("asia-pac", "eu:person").await;
    assert_eq!(
        (&found["value"], &found["region"]),
        (&json!("residentsecret"), &json!("EU-WEST (fallback)"))
    );
    // The other way: rows of a first copy and of a repair stay, too.
    let settings = ["--data-dir", directory.path().to_str().expect("text"), "repair"];
    let mut command = terrace(&["regions"]);
    let repaired = command.args(settings).envs(homes).output().await.expect("it runs");
    assert!(repaired.status.success(), "{}", String::from_utf8_lossy(&repaired.stderr));
    assert!(program.terminate().await.success());
    let files = directory.path().join("embedded");
    for (region, most) in [("us-east", 0), ("asia-pac", 0), ("eu-west", usize::MAX)] {
        for text in ["eu:person", "residentsecret"] {
            let found = occurrences(&files, region, text);
            assert!(found <= most && (most == 0 || found > 0), "{text} in {region}: {found}");
        }
        assert!(occurrences(&files, region, "everywhere") > 0, "{region} has what is everybody's");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_is_removed_and_another_one_added() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let program = Program::serve(9, &stores).await;
    for number in 0..20 {
        program.write_in(NAMES[number % 3], &format!("k{number}"), "1").await.expect("a write");
    }
    done(&stores, &["sync"]).await;
    let drill = done(&stores, &["--json", "drill", "us-east", "--for", "300ms"]).await;
    let drill: Value = serde_json::from_str(&drill).expect("JSON");
    assert_eq!(drill["taken_by"], "eu-west", "{drill}");
    assert!(drill["written"].as_u64() > Some(0), "{drill}");
    done(&stores, &["sync"]).await;
    assert!(program.terminate().await.success());
    done(&stores, &["remove", "eu-west"]).await;
    let refused = regions(&stores, &["remove", "mars"]).await;
    assert_eq!(refused.status.code(), Some(2));
    let names = [("TERRACE_REGIONS_NAMES", "us-east - asia-pac sa-east")];
    let mut command = terrace(&["regions"]);
    stores.tell(&mut command);
    let added = command.args(["add", "sa-east"]).envs(names).output().await.expect("it runs");
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let program = Program::serve_with(9, &stores, &[], &names).await;
    for number in 0..20 {
        let found = program.read_in("sa-east", &format!("k{number}")).await;
        assert_eq!((&found["value"], &found["region"]), (&json!("1"), &json!("SA-EAST")));
    }
    program.write_in("sa-east", "new", "2").await.expect("a write");
    program.reads_in("us-east", "new", |it| it["region"] == "US-EAST").await;
    assert!(program.terminate().await.success());
}

/// A PostgreSQL for each region.
async fn own_regions(directory: &Path) -> (Vec<PostgresServer>, Vec<String>) {
    let (mut servers, mut urls) = (Vec::new(), Vec::new());
    for name in NAMES {
        let options = PostgresOptions::new(directory.join(name));
        let server = PostgresServer::start(options).await.expect("PostgreSQL starts");
        urls.push(server.create_database("terrace").await.expect("a database"));
        servers.push(server);
    }
    (servers, urls)
}

/// A client that writes in one region and reads in others, with the tokens that it was given.
async fn hop(program: &Program) {
    let url = format!("{}/v1/records/hops", program.url);
    let (mut token, mut seen) = (None::<String>, 0);
    for step in 0..120 {
        let (place, request) = match step % 4 {
            0 => (step / 4, program.client.put(&url).json(&json!({"value": step.to_string()}))),
            _ => (step, program.client.get(&url)),
        };
        let request = request.header("X-Region", NAMES[place % 3]);
        let request = token.iter().fold(request, |it, token| it.header("Terrace-Token", token));
        let answer = request.send().await.expect("an answer");
        assert!(answer.status().is_success(), "{step}: {answer:?}");
        let given = answer.headers().get("terrace-token").expect("a token");
        token = Some(given.to_str().expect("text").to_owned());
        let body: Value = answer.json().await.expect("a body");
        let version = body["version"].as_u64().expect("a version");
        assert!(version >= seen, "step {step} in {}: {version} < {seen}", NAMES[place % 3]);
        seen = version;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_whose_server_is_killed_is_answered_for_and_catches_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let (servers, databases) = own_regions(directory.path()).await;
    let redis = own_redis(directory.path()).await;
    let stores = Stores::Regions { databases: &databases, cache: &redis.url() };
    let program = Program::serve(9, &stores).await;
    let wrote = program.write_in("us-east", "a", "1").await.expect("a write");
    assert_eq!(wrote["primary_region"], "US-EAST");
    program.reads_in("eu-west", "a", |it| it["value"] == "1").await;
    done(&stores, &["sync"]).await;
    hop(&program).await;

    servers[0].kill();
    // Not in the cache of the region, and its database is gone.
    program.reads_in("us-east", "missing", |it| it["success"] == false).await;
    let wrote = program.write_in("us-east", "a", "2").await.expect("the next region takes it");
    assert_eq!(wrote["primary_region"], "EU-WEST");
    program.reads_in("us-east", "a", |it| it["region"] == "EU-WEST (fallback)").await;
    program.becomes("degraded").await;

    servers[0].restart().await.expect("PostgreSQL starts again");
    program.becomes("healthy").await;
    program.reads_in("us-east", "a", |it| it["value"] == "2" && it["region"] == "US-EAST").await;
    done(&stores, &["sync"]).await;
    done(&stores, &["diff"]).await;
    assert!(program.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_on_servers_are_equal_after_kills_amid_writes() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_servers, databases) = own_regions(directory.path()).await;
    let redis = own_redis(directory.path()).await;
    killed_amid_writes(Stores::Regions { databases: &databases, cache: &redis.url() }).await;
}
