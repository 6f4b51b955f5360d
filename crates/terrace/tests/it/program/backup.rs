//! Backups of a level that is written to, and what becomes of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use terrace_core::Runtime;
use terrace_lab::{PostgresOptions, PostgresServer};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::{Program, Stores, terrace};
use crate::freshness::engines::postgres_program;

const WRITERS: usize = 3;

/// Writers that each write one key after the other, once the one before is acknowledged. So what one of them
/// has written is, at any moment, all keys up to a number: over all shards.
struct Load {
    url: String,
    client: reqwest::Client,
    begun: [AtomicU64; WRITERS],
    acknowledged: [AtomicU64; WRITERS],
    over: AtomicBool,
}

impl Load {
    fn on(program: &Program) -> (Arc<Self>, Vec<terrace_core::Task>) {
        let load = Arc::new(Self {
            url: program.url.clone(),
            client: reqwest::Client::new(),
            begun: Default::default(),
            acknowledged: Default::default(),
            over: AtomicBool::new(false),
        });
        let start = |writer| {
            let load = Arc::clone(&load);
            Runtime::system().spawn("writer", async move { load.write(writer).await })
        };
        let tasks = (0..WRITERS).map(start).collect();
        (load, tasks)
    }

    /// No write is ever refused.
    async fn write(&self, writer: usize) {
        while !self.over.load(Ordering::Acquire) {
            let number = self.begun[writer].fetch_add(1, Ordering::AcqRel) + 1;
            let body = json!({"key": format!("load-{writer}-{number}"), "value": "v"});
            let sent = self.client.post(format!("{}/write", self.url)).json(&body).send().await;
            let answer = sent.expect("an answer");
            assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
            self.acknowledged[writer].store(number, Ordering::Release);
        }
    }

    async fn until_busy(&self) {
        let now = || self.acknowledged.each_ref().map(|it| it.load(Ordering::Acquire));
        let goal = now().map(|number| number + 20);
        while now().iter().zip(goal).any(|(now, goal)| *now < goal) {
            Runtime::system().sleep(Duration::from_millis(5)).await;
        }
    }

    fn counts(which: &[AtomicU64; WRITERS]) -> [u64; WRITERS] {
        which.each_ref().map(|it| it.load(Ordering::Acquire))
    }
}

/// Runs `terrace backup` and answers what it says to programs.
pub(super) async fn backup(mut command: Command) -> Result<Value, String> {
    let output = command.arg("--json").output().await.expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    match output.status.success() {
        true => Ok(serde_json::from_str(&text(output.stdout)).expect("JSON")),
        false => Err(text(output.stderr)),
    }
}

/// `terrace backup` for these stores.
pub(super) fn command(stores: &Stores<'_>, directory: &Path, work: &[&str]) -> Command {
    let mut command = terrace(&["backup"]);
    stores.tell(&mut command);
    command.args(work).arg("--dir").arg(directory.join("backups"));
    command
}

/// Makes a backup under load; answers its name and, for each writer, what it must have and can have.
async fn under_load(
    program: &Program,
    stores: &Stores<'_>,
    directory: &Path,
) -> (String, [u64; WRITERS], [u64; WRITERS]) {
    let (load, tasks) = Load::on(program);
    load.until_busy().await;
    let least = Load::counts(&load.acknowledged);
    let made = backup(command(stores, directory, &["create", "4"])).await.expect("a backup");
    let most = Load::counts(&load.begun);
    load.until_busy().await;
    load.over.store(true, Ordering::Release);
    for task in tasks {
        task.await;
    }
    assert_eq!(Load::counts(&load.begun), Load::counts(&load.acknowledged), "none was refused");
    (made["name"].as_str().expect("a name").to_owned(), least, most)
}

/// What each writer had written when the restored level was what it is.
async fn restored_prefixes(program: &Program) -> [u64; WRITERS] {
    let mut prefixes = [0; WRITERS];
    for (writer, prefix) in prefixes.iter_mut().enumerate() {
        let (mut numbers, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/records?prefix=load-{writer}-&limit=1000{cursor}");
            let page: Value = program.get(&path).await.json().await.expect("a page");
            let keys = page["records"].as_array().expect("records").iter();
            let number = |it: &Value| it["key"].as_str()?.rsplit('-').next()?.parse::<u64>().ok();
            numbers.extend(keys.map(|it| number(it).expect("a number")));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        numbers.sort_unstable();
        *prefix = numbers.len() as u64;
        let whole = (1..=*prefix).eq(numbers);
        assert!(whole, "of writer {writer} a later write is there without an earlier one");
    }
    prefixes
}

fn check(restored: [u64; WRITERS], least: [u64; WRITERS], most: [u64; WRITERS]) {
    for writer in 0..WRITERS {
        let (least, most) = (least[writer], most[writer]);
        let restored = restored[writer];
        assert!((least..=most).contains(&restored), "{restored} of {least} to {most}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_written_to_restore_to_one_point() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let stores = Stores::Embedded(&data);
    let program = Program::serve(4, &stores).await;
    let (name, least, most) = under_load(&program, &stores, directory.path()).await;
    let to = directory.path().join("restored");
    let place = to.to_string_lossy().into_owned();
    let restore = ["restore", "4", "--backup", &name, "--to", &place];
    backup(command(&stores, directory.path(), &restore)).await.expect("a restore");
    let again = backup(command(&stores, directory.path(), &restore)).await;
    assert!(again.expect_err("there is something").contains("is not empty"));
    // Beside the one that is served.
    let restored = Program::serve(4, &Stores::Embedded(&to)).await;
    check(restored_prefixes(&restored).await, least, most);
    let drilled = backup(command(&stores, directory.path(), &["drill", "4"])).await;
    let drilled = drilled.expect("a drill");
    assert!(drilled["rounds"].as_u64() >= Some(1), "{drilled}");
    // One that is damaged hides no other.
    let damaged = directory.path().join("backups/damaged");
    std::fs::create_dir(&damaged).expect("a directory");
    std::fs::write(damaged.join("backup.json"), "{").expect("a file");
    let listed = backup(command(&stores, directory.path(), &["list"])).await.expect("a list");
    assert_eq!(listed["backups"].as_array().expect("a list").len(), 1, "{listed}");
    assert_eq!(listed["unusable"][0]["name"], "damaged", "{listed}");
}

/// Two servers of this test's own, and their URLs.
async fn two(directory: &Path) -> (Vec<PostgresServer>, Vec<String>) {
    let (mut servers, mut urls) = (Vec::new(), Vec::new());
    for number in 0..2 {
        let options = PostgresOptions::new(directory.join(format!("shard-{number}")));
        let server = PostgresServer::start(options).await.expect("PostgreSQL starts");
        urls.push(server.create_database("terrace").await.expect("a database"));
        servers.push(server);
    }
    (servers, urls)
}

/// Starts a restored server with the settings that the restore has left, where its own user can read it.
async fn start(restored: PathBuf, home: PathBuf) -> PostgresServer {
    let settings = std::fs::read_to_string(restored.join("data/postgresql.auto.conf"));
    let settings = settings.expect("settings");
    let settings = settings.lines().filter_map(|line| line.split_once(" = '"));
    let settings = settings
        .map(|(name, value)| (name.to_owned(), value.trim_end_matches('\'').to_owned()))
        .collect();
    let options = PostgresOptions { settings, temporary: true, ..PostgresOptions::new(home) };
    let server = PostgresServer::restore(options, move |home| {
        let mut cp = std::process::Command::new("cp");
        let parts = ["data", "wal"].map(|part| restored.join(part));
        let status = cp.arg("-R").args(parts).arg(home).status()?;
        if status.success() { Ok(()) } else { Err(std::io::Error::other("it is not copied")) }
    });
    server.await.expect("it recovers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_written_to_restore_to_one_point_and_are_adopted() {
    let directory = tempfile::tempdir().expect("a directory");
    let (servers, urls) = two(directory.path()).await;
    let cache = terrace_lab::testing::redis().url();
    let stores = Stores::Shards { databases: &urls, cache: &cache };
    let program = Program::serve(4, &stores).await;
    // What a recovery of its own has left in its settings.
    let target = "ALTER SYSTEM SET recovery_target_time = '2020-01-01 00:00:00+00'";
    let set = postgres_program("psql", &["-X", "-q", "-c", target, &urls[0]]).status().await;
    assert!(set.expect("psql runs").success());
    let (name, least, most) = under_load(&program, &stores, directory.path()).await;
    let to = directory.path().join("restored");
    let place = to.to_string_lossy().into_owned();
    let restore = ["restore", "4", "--backup", &name, "--to", &place];
    backup(command(&stores, directory.path(), &restore)).await.expect("a restore");
    let adopt = ["adopt", "4", "--backup", &name];
    let refused = backup(command(&stores, directory.path(), &adopt)).await;
    let refused = refused.expect_err("these are the originals");
    assert!(refused.contains("name the restored ones"), "{refused}");
    let (mut restored, mut copies) = (Vec::new(), Vec::new());
    for (number, url) in urls.iter().enumerate() {
        let home = directory.path().join(format!("copy-{number}"));
        let server = start(to.join(format!("server-{number}")), home).await;
        let (login, _) = url.rsplit_once(':').expect("a port");
        copies.push(format!("{login}:{}/terrace", server.port()));
        restored.push(server);
    }
    let copied = Stores::Shards { databases: &copies, cache: &cache };
    backup(command(&copied, directory.path(), &adopt)).await.expect("they are adopted");
    // By the addresses that the first one has now it finds the other, and no original.
    program.kill().await;
    servers.iter().for_each(|server| server.kill());
    let one = Stores::Shards { databases: &copies[..1], cache: &cache };
    let served = Program::serve(4, &one).await;
    served.becomes("healthy").await;
    check(restored_prefixes(&served).await, least, most);
    served.kill().await;
}

/// A copy of a backup that something is done to.
fn copy_of(backups: &Path, name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    let mut cp = std::process::Command::new("cp");
    let done = cp.arg("-R").arg(backups.join(name)).arg(copy.path()).status().expect("cp runs");
    assert!(done.success());
    copy
}

/// The last segment of a server's log.
fn last_segment(copy: &Path, name: &str) -> PathBuf {
    let wal = std::fs::read_dir(copy.join(name).join("server-0/wal")).expect("a log");
    wal.map(|entry| entry.expect("a segment").path()).max().expect("a segment")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_is_red_without_a_segment_and_with_another_byte() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let local = ["--stores", "local", "--data-dir", data.to_str().expect("text"), "--no-cache"];
    let mut serve = terrace(&["serve", "4"]);
    serve.args(local);
    let program = Program::start(serve).await;
    let (load, tasks) = Load::on(&program);
    load.until_busy().await;
    let run = |backups: &Path, work: &[&str]| {
        let mut command = terrace(&["backup"]);
        command.args(local).args(work).arg("--dir").arg(backups);
        command
    };
    let backups = directory.path().join("backups");
    let made = backup(run(&backups, &["create", "4"])).await.expect("a backup");
    let name = made["name"].as_str().expect("a name");
    let drill = ["drill", "4", "--backup", name];
    backup(run(&backups, &drill)).await.expect("it is green");
    let key = directory.path().join("key");
    std::fs::write(&key, "k".repeat(32)).expect("a key");
    let sealed = ["drill", "4", "--key-file", key.to_str().expect("text")];
    let drilled = backup(run(&backups, &sealed)).await.expect("a drill under load");
    assert!(drilled["rounds"].as_u64() >= Some(1), "{drilled}");
    load.over.store(true, Ordering::Release);
    for task in tasks {
        task.await;
    }

    let copy = copy_of(&backups, name);
    let segment = last_segment(copy.path(), name);
    std::fs::remove_file(&segment).expect("it is removed");
    let red = backup(run(copy.path(), &drill)).await.expect_err("a segment is missing");
    let segment = segment.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(red.contains(&segment), "{red}");
    let verified = backup(run(copy.path(), &["verify", name])).await;
    assert!(verified.expect_err("a segment is missing").contains("1 faults"));
    // Also where the catalogue does not know of it: no server stops short of the marker and says it is well.
    let catalogue = copy.path().join(name).join("backup.json");
    let mut text: Value = serde_json::from_slice(&std::fs::read(&catalogue).expect("it is there"))
        .expect("a catalogue");
    let files = text["files"].as_array_mut().expect("files");
    files.retain(|file| {
        !file["path"].as_str().expect("a path").ends_with(&format!("0/wal/{segment}"))
    });
    std::fs::write(&catalogue, text.to_string()).expect("a catalogue");
    backup(run(copy.path(), &["verify", name])).await.expect("a catalogue that knows no better");
    let red = backup(run(copy.path(), &drill)).await.expect_err("it does not recover");
    assert!(red.contains("does not come to the marker"), "{red}");

    let copy = copy_of(&backups, name);
    let table = copy.path().join(name).join("server-1/base/global/pg_control");
    let mut bytes = std::fs::read(&table).expect("a file");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&table, bytes).expect("a write");
    let red = backup(run(copy.path(), &drill)).await.expect_err("a byte is another");
    assert!(red.contains("is not as it was made") && red.contains("pg_control"), "{red}");
    backup(run(&backups, &drill)).await.expect("the backup itself is as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_killed_is_none_and_the_next_is_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_servers, urls) = two(directory.path()).await;
    let cache = terrace_lab::testing::redis().url();
    let stores = Stores::Shards { databases: &urls, cache: &cache };
    let program = Program::serve(4, &stores).await;
    assert!(program.write("a", "1").await);
    let mut child =
        command(&stores, directory.path(), &["create", "4"]).spawn().expect("it starts");
    let backups = directory.path().join("backups");
    let begun = || {
        let entries = std::fs::read_dir(&backups).into_iter().flatten().flatten();
        entries.filter(|it| it.path().join("server-0").exists()).count()
    };
    while begun() == 0 {
        tokio::task::yield_now().await;
    }
    child.kill().await.expect("it is killed");
    // One that is asked to end leaves nothing at all.
    let spawn = || command(&stores, directory.path(), &["create", "4"]).spawn().expect("it starts");
    let mut asked = spawn();
    while begun() < 2 {
        // A name is given out once a second.
        if asked.try_wait().expect("a status").is_some() {
            asked = spawn();
        }
        tokio::task::yield_now().await;
    }
    let pid = asked.id().expect("a process").to_string();
    let sent = std::process::Command::new("kill").args(["-TERM", &pid]).status();
    assert!(sent.expect("kill runs").success());
    assert_eq!(asked.wait().await.expect("it ends").code(), Some(1));
    assert_eq!(begun(), 1, "what it has begun is removed");
    let list = || command(&stores, directory.path(), &["list"]);
    let listed = backup(list()).await.expect("a list");
    assert_eq!(listed["backups"], json!([]), "what was begun is no backup");
    // A name is given out once a second.
    let made = loop {
        match backup(command(&stores, directory.path(), &["create", "4"])).await {
            Err(error) if error.contains("File exists") => {}
            made => break made.expect("the next one"),
        }
    };
    let listed = backup(list()).await.expect("a list");
    assert_eq!(listed["backups"][0]["name"], made["name"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_records_are_held_is_named_and_nothing_stays_held() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_servers, urls) = two(directory.path()).await;
    let cache = terrace_lab::testing::redis().url();
    let stores = Stores::Shards { databases: &urls, cache: &cache };
    let program = Program::serve(4, &stores).await;
    let holds =
        "BEGIN; LOCK TABLE records IN ROW EXCLUSIVE MODE; \\echo held\n SELECT pg_sleep(600)";
    let script = directory.path().join("hold.sql");
    std::fs::write(&script, holds).expect("a script");
    let script = script.to_str().expect("text");
    let mut psql = postgres_program("psql", &["-X", "-q", "-f", script, &urls[1]]);
    let mut holder = psql.stdout(std::process::Stdio::piped()).spawn().expect("psql runs");
    let mut said = [0; 4];
    let mut output = holder.stdout.take().expect("a pipe");
    output.read_exact(&mut said).await.expect("it says so");
    let refused = backup(command(&stores, directory.path(), &["create", "4"])).await;
    let refused = refused.expect_err("a database is held");
    assert!(refused.contains("another session has the records"), "{refused}");
    assert!(refused.contains("database 1"), "{refused}");
    for number in 0..20 {
        assert!(program.write(&format!("after-{number}"), "1").await, "writers go on");
    }
    let left = std::fs::read_dir(directory.path().join("backups")).expect("a directory").count();
    assert_eq!(left, 0, "nothing is left of it");
    holder.kill().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maintenance_of_records_is_named_and_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_servers, urls) = two(directory.path()).await;
    let cache = terrace_lab::testing::redis().url();
    let stores = Stores::Shards { databases: &urls, cache: &cache };
    let program = Program::serve(4, &stores).await;
    let piped = std::process::Stdio::piped;
    let mut psql = postgres_program("psql", &["-X", "-q", &urls[1]]);
    let mut maintainer = psql.stdin(piped()).stdout(piped()).spawn().expect("psql runs");
    let mut input = maintainer.stdin.take().expect("a pipe");
    input.write_all(b"BEGIN;\nANALYZE records;\n\\echo held\n").await.expect("a write");
    let mut output = maintainer.stdout.take().expect("a pipe");
    output.read_exact(&mut [0; 4]).await.expect("it says so");
    let mut command = command(&stores, directory.path(), &["create", "4"]);
    let making = command.arg("--json").stdout(piped()).stderr(piped()).kill_on_drop(true).spawn();
    let mut making = making.expect("it starts");
    let mut told = BufReader::new(making.stderr.take().expect("a pipe")).lines();
    loop {
        let line = told.next_line().await.expect("text").expect("it waits, and says so");
        if line.contains("Database 1") && line.contains("ANALYZE of records by pid") {
            break;
        }
    }
    assert!(program.write("meanwhile", "1").await, "writers go on");
    drop(input);
    maintainer.wait().await.expect("it ends");
    assert!(making.wait().await.expect("it ends").success(), "it is a backup then");
}

#[tokio::test]
async fn what_cannot_be_backed_up_says_why() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let run = async |work: &[&str]| {
        backup(command(&stores, directory.path(), work)).await.expect_err("it is refused")
    };
    assert!(run(&["create", "0"]).await.contains("serve the level first"));
    assert!(run(&["create", "7"]).await.contains("by its own means"));
    assert!(run(&["drill", "0", "--backup", "none"]).await.contains("there is no such backup"));
    let mut command = terrace(&["backup", "list"]);
    let output = command.output().await.expect("it runs");
    assert_eq!(output.status.code(), Some(2), "--dir is missing");
}
