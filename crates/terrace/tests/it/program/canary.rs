//! A canary beside a level, on real engines: who is served by which, what is compared, how it is taken back, and
//! which two stacks are refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use terrace_lab::FaultProxy;
use tokio::time::Instant;

use super::{Program, Stores, terrace};

/// No test waits for more than this.
const WITHIN: Duration = Duration::from_secs(60);
/// Differences are looked at again after a second.
const SOON: (&str, &str) = ("TERRACE_REPLICAS_MAX_LAG_MS", "1");

/// The file of a canary.
fn file(directory: &Path, settings: &str) -> PathBuf {
    let path = directory.join("other.toml");
    std::fs::write(&path, settings).expect("a file");
    path
}

async fn with_canary(
    level: u8,
    stores: &Stores<'_>,
    file: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Program {
    let file = file.to_string_lossy();
    let arguments = [&["--canary", &*file][..], arguments].concat();
    let environment = [&[SOON, ("AUTH_ENABLED", "false")], environment].concat();
    Program::serve_with(level, stores, &arguments, &environment).await
}

impl Program {
    async fn canary(&self) -> Value {
        self.get("/canary-stats").await.json().await.expect("a body")
    }

    /// What a client is answered to a read of a record: the status, and the value.
    async fn read_as(&self, client: &str, key: &str) -> (u16, Option<String>) {
        let request = self.client.get(format!("{}/v1/records/{key}", self.url));
        let answer = request.header("X-Client-ID", client).send().await.expect("an answer");
        let status = answer.status().as_u16();
        let body = answer.json::<Value>().await.expect("a body");
        (status, body["value"].as_str().map(str::to_owned))
    }

    async fn write_as(&self, client: &str, key: &str, value: &str) -> u16 {
        let request = self.client.put(format!("{}/v1/records/{key}", self.url));
        let request = request.header("X-Client-ID", client).json(&json!({"value": value}));
        request.send().await.expect("an answer").status().as_u16()
    }

    /// How many reads each cohort was answered: baseline, canary.
    async fn reads_by_cohort(&self) -> [u64; 2] {
        let stats = self.canary().await;
        ["baseline", "canary"].map(|cohort| stats[cohort]["reads"].as_u64().expect("a count"))
    }

    /// A client of the baseline and one of the canary, each of which stays so.
    async fn clients(&self) -> [String; 2] {
        let (mut found, mut seen) = ([None, None], self.reads_by_cohort().await);
        for client in (0..64).map(|number| format!("client-{number}")) {
            for _ in 0..3 {
                self.read_as(&client, "nothing").await;
            }
            let now = self.reads_by_cohort().await;
            let cohort = match [now[0] - seen[0], now[1] - seen[1]] {
                [3, 0] => 0,
                [0, 3] => 1,
                torn => panic!("{client} was served by both: {torn:?}"),
            };
            found[cohort].get_or_insert(client);
            seen = now;
        }
        found.map(|client| client.expect("64 clients are in both cohorts"))
    }
}

/// Each sees what the other has written, as soon as one instance sees what another has.
async fn see_each_other(program: &Program) {
    let clients = program.clients().await;
    for round in 0..40 {
        let (key, value) = (format!("key-{}", round % 4), round.to_string());
        let (writer, reader) = (&clients[round % 2], &clients[1 - round % 2]);
        // What is cached of it is from before.
        program.read_as(reader, &key).await;
        assert!(program.write_as(writer, &key, &value).await < 300);
        let (wanted, until) = ((200, Some(value)), Instant::now() + WITHIN);
        while program.read_as(reader, &key).await != wanted {
            assert!(Instant::now() < until, "round {round}: it is not there");
        }
    }
    let stats = program.canary().await;
    assert_eq!((&stats["state"], &stats["reason"]), (&json!("serving"), &json!("")));
    assert_eq!(stats["differences"], json!({"failed": 0, "missing": 0, "value": 0, "version": 0}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_levels_2_and_5_on_one_database_see_each_others_writes() {
    let directory = tempfile::tempdir().expect("a directory");
    let (database, cache) =
        (terrace_lab::testing::fresh_database(), terrace_lab::testing::redis().url());
    let stores = Stores::Servers { database: &database, cache: &cache };
    let file = file(directory.path(), "[cache]\nnear_ttl_seconds = 20\n");
    let arguments = ["--canary-level", "5", "--percent", "50"];
    let environment = [("ENABLE_METRICS", "true")];
    let program = with_canary(2, &stores, &file, &arguments, &environment).await;
    let said = program.said.join("\n");
    assert!(said.contains("Canary: level 5") && said.contains("50 %"), "{said}");
    see_each_other(&program).await;
    let health = program.get("/health").await.json::<Value>().await.expect("a body");
    assert_eq!((&health["canary"], &health["layer"]), (&json!("serving"), &json!("2-read-cache")));
    let metrics = program.get("/metrics").await.text().await.expect("a body");
    for figure in [
        "terrace_canary_per_mille 500",
        "terrace_part_status{part=\"canary\"} 0",
        "terrace_cohort_failed_reads_total{which=\"canary\"} 0",
        "terrace_cohort_read_time_seconds_count{which=\"baseline\"}",
    ] {
        assert!(
            metrics.lines().any(|line| line.starts_with(figure)),
            "{figure} is not in\n{metrics}"
        );
    }
    // Both end, with what they hold.
    assert!(program.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_levels_4_and_10_on_the_same_shards_see_each_others_writes() {
    let directory = tempfile::tempdir().expect("a directory");
    let databases = [0, 1].map(|_| terrace_lab::testing::fresh_database());
    let cache = terrace_lab::testing::redis().url();
    let stores = Stores::Shards { databases: &databases, cache: &cache };
    let urls = format!("[enterprise]\nshard_urls = [\"{}\", \"{}\"]\n", databases[0], databases[1]);
    let file = file(directory.path(), &urls);
    let arguments = ["--canary-level", "10", "--percent", "50"];
    let program = with_canary(4, &stores, &file, &arguments, &[]).await;
    see_each_other(&program).await;
    assert!(program.terminate().await.success());
}

/// The canary reaches the same database on a way of its own, which is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_whose_database_is_cut_off_is_taken_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let database = terrace_lab::testing::fresh_database();
    let port = terrace_lab::testing::postgres().port();
    let proxy = FaultProxy::to_port(port).await.expect("a proxy");
    let stores = Stores::Servers { database: &database, cache: "" };
    let url = format!("[database]\nurl = \"{}\"\n", proxy.url(&database));
    let file = file(directory.path(), &url);
    let program = with_canary(1, &stores, &file, &["--percent", "50"], &[]).await;
    let [_, client] = program.clients().await;
    assert_eq!(program.write_as(&client, "a", "1").await, 201);
    proxy.cut();
    assert_eq!(program.read_as(&client, "a").await.0, 503);
    let until = Instant::now() + WITHIN;
    while program.canary().await["state"] != "returned" {
        assert!(Instant::now() < until, "{}", program.canary().await);
        let clients = (0..64).map(|number| format!("client-{number}")).collect::<Vec<_>>();
        let reads = clients.iter().map(|client| program.read_as(client, "a"));
        futures_util::future::join_all(reads).await;
    }
    // It reads what it has written through the canary.
    assert_eq!(program.read_as(&client, "a").await, (200, Some("1".into())));
    program.becomes("degraded").await;
    let stats = program.canary().await;
    assert!(stats["reason"].as_str().is_some_and(|it| it.starts_with("reads fail")), "{stats}");
    assert_eq!((&stats["verdict"], &stats["percent"]), (&json!("bad"), &json!(0.0)));
    // The way is whole again, and nobody goes it.
    proxy.pass();
    let before = program.reads_by_cohort().await;
    assert_eq!(program.read_as(&client, "a").await.0, 200);
    assert_eq!(program.reads_by_cohort().await, [before[0] + 1, before[1]]);
    assert!(program.terminate().await.success());
}

/// Levels 1 and 2 on one database may not serve side by side, and may be compared, under writes, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_levels_1_and_2_are_compared_while_others_write() {
    let directory = tempfile::tempdir().expect("a directory");
    let (database, cache) =
        (terrace_lab::testing::fresh_database(), terrace_lab::testing::redis().url());
    let stores = Stores::Servers { database: &database, cache: &cache };
    let file = file(directory.path(), "");
    let arguments = ["--canary-level", "2", "--percent", "0"];
    let program = with_canary(1, &stores, &file, &arguments, &[]).await;
    let until = Instant::now() + WITHIN;
    let mut round = 0;
    while program.canary().await["compared"].as_u64() < Some(100) {
        assert!(Instant::now() < until, "{}", program.canary().await);
        let keys = (0..8).map(|number| format!("key-{number}")).collect::<Vec<_>>();
        round += 1;
        let writes =
            keys.iter().map(|key| program.write(key, if round % 2 == 0 { "a" } else { "b" }));
        let reads = keys.iter().cycle().take(32).map(|key| program.read(key));
        futures_util::future::join(
            futures_util::future::join_all(writes),
            futures_util::future::join_all(reads),
        )
        .await;
    }
    let stats = program.canary().await;
    assert_eq!((&stats["state"], &stats["canary"]["reads"]), (&json!("mirroring"), &json!(0)));
    assert_eq!(stats["differences"], json!({"failed": 0, "missing": 0, "value": 0, "version": 0}));
}

/// The canary stands on a copy, in which one row is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_was_changed_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let [original, copy] = ["original", "copy"].map(|name| directory.path().join(name));
    let program = Program::serve(1, &Stores::Embedded(&original)).await;
    for key in ["same", "other"] {
        assert!(program.write(key, "1").await);
    }
    assert!(program.terminate().await.success());
    std::fs::create_dir_all(copy.join("embedded")).expect("a directory");
    std::fs::copy(original.join("embedded/l1.sqlite"), copy.join("embedded/l1.sqlite"))
        .expect("a copy");
    let program = Program::serve(1, &Stores::Embedded(&copy)).await;
    assert!(program.write("other", "2").await);
    assert!(program.terminate().await.success());

    let settings = format!("[stores]\ndata_dir = \"{}\"\n", copy.display());
    let file = file(directory.path(), &settings);
    let stores = Stores::Embedded(&original);
    let program = with_canary(1, &stores, &file, &["--percent", "0"], &[]).await;
    let until = Instant::now() + WITHIN;
    let differs = async |key| {
        for _ in 0..40 {
            program.read(key).await.expect("an answer");
        }
        program.canary().await["differences"]["version"].as_u64() > Some(0)
    };
    while program.canary().await["compared"].as_u64() < Some(5) {
        assert!(Instant::now() < until && !differs("same").await, "{}", program.canary().await);
    }
    while !differs("other").await {
        assert!(Instant::now() < until, "{}", program.canary().await);
    }
    program.becomes("healthy").await;
}

/// The settings, the arguments, the other file, the exit code, and what the error must say.
type Refused<'a> = (&'a str, &'a [&'a str], &'a str, i32, &'a [&'a str]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_served_side_by_side_is_refused_with_what_to_do() {
    let [database, another] = [0, 1].map(|_| terrace_lab::testing::fresh_database());
    let cache = terrace_lab::testing::redis().url();
    let other = format!("[database]\nurl = \"{another}\"");
    let cases: [Refused<'_>; 13] = [
        (
            "1",
            &["--percent", "5", "--canary-level", "2"],
            "",
            1,
            &["past its cache", "--percent 0"],
        ),
        ("2", &["--percent", "5", "--canary-level", "1"], "", 1, &["a level with a cache"]),
        ("1", &["--percent", "5"], &other, 1, &["on another database"]),
        ("2", &["--percent", "5"], "[stores]\nnamespace = \"b\"", 1, &["cache of its own"]),
        ("2", &["--percent", "5", "--canary-level", "6"], "", 1, &["journal"]),
        ("1", &["--percent", "0", "--canary-level", "8"], "", 1, &["keeps documents"]),
        (
            "1",
            &["--percent", "5"],
            "[database]\npool_mix = 1",
            2,
            &["did you mean database.pool_m"],
        ),
        ("1", &["--percent", "5"], "[auth]\nenabled = true", 2, &["[auth]", "take it out"]),
        ("1", &["--percent", "5"], "[server]\nport_base = 1", 2, &["[server]"]),
        ("1", &["--percent", "51"], "", 2, &["from 0.1 to 50"]),
        ("1", &["--percent", "5", "--canary-level", "11"], "", 2, &["no level 11"]),
        ("1", &[], "", 2, &["--percent"]),
        (
            "1",
            &["--percent", "5"],
            "[database]\nurl = \"postgres://u@127.0.0.1:1/d\"",
            1,
            &["other.toml"],
        ),
    ];
    for (level, arguments, settings, code, wanted) in cases {
        let directory = tempfile::tempdir().expect("a directory");
        let file = file(directory.path(), settings);
        let mut command = terrace(&["serve", level, "--port", "0", "--canary"]);
        command.arg(file).args(arguments).current_dir(directory.path());
        command.envs([
            ("DATABASE_URL", &*database),
            ("REDIS_URL", &cache),
            ("AUTH_ENABLED", "false"),
        ]);
        command.env("MONGODB_URL", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100");
        let output = command.output().await.expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {settings}: {error}");
        for text in wanted {
            assert!(
                error.contains(text),
                "{arguments:?} {settings}: {error:?} should say {text:?}"
            );
        }
    }
    // The canary alone is no canary.
    let mut command = terrace(&["serve", "1", "--percent", "5"]);
    assert_eq!(command.output().await.expect("it runs").status.code(), Some(2));
}
