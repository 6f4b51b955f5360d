//! `kill -9` of everything that level 6 is made of, amid writes: nothing acknowledged is lost,
//! nothing is applied twice, nothing out of the order of its key.
//!
//! `TERRACE_KILLS=500` kills that often; `TERRACE_WRITES=2000` acknowledges that many writes between
//! two kills.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use terrace_lab::{Persistence, PostgresServer, RedisOptions, RedisServer};
use tokio::process::Child;

use super::{Program, own_postgres, terrace};

const WRITERS: usize = 16;
const KEYS: usize = 4;

/// Names every write that is applied, in the order of the commits of its key.
const AUDIT: &str = "
    CREATE TABLE audit (id bigserial PRIMARY KEY, key text NOT NULL, value text NOT NULL);
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO audit (key, value) VALUES (new.key, new.value); RETURN new; END $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE ON records FOR EACH ROW EXECUTE FUNCTION audit();";

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What was acknowledged, and the number that each writer goes on from.
#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<HashMap<String, usize>>,
    next: [AtomicUsize; WRITERS],
    count: AtomicUsize,
    stop: AtomicBool,
}

/// The only writer of its keys: numbers that grow, whatever becomes of them.
async fn write(program: Arc<Program>, ledger: Arc<Ledger>, writer: usize) {
    while !ledger.stop.load(Ordering::Relaxed) {
        let number = ledger.next[writer].fetch_add(1, Ordering::Relaxed) + 1;
        let key = format!("w{writer}-{}", number % KEYS);
        if program.write(&key, &number.to_string()).await {
            ledger.acknowledged.lock().expect("not poisoned").insert(key, number);
            ledger.count.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

/// Writes until so many are acknowledged, and kills half way.
async fn writes_with_a_kill(
    program: &Arc<Program>,
    ledger: &Arc<Ledger>,
    kill: impl AsyncFnOnce(),
) {
    let target = setting("TERRACE_WRITES", 300);
    ledger.stop.store(false, Ordering::Relaxed);
    ledger.count.store(0, Ordering::Relaxed);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(Arc::clone(program), Arc::clone(ledger), writer)))
        .collect();
    while ledger.count.load(Ordering::Relaxed) < target {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    kill().await;
    ledger.stop.store(true, Ordering::Relaxed);
    for outcome in join_all(writers).await {
        outcome.expect("a writer");
    }
}

pub(super) async fn drained(program: &Program) {
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        let sent = program.client.get(format!("{}/stats", program.url)).send().await;
        let body: serde_json::Value = match sent {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => serde_json::Value::Null,
        };
        if body["queue_length"].as_u64() == Some(0) {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "not drained: {body}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Every acknowledged write, or a later one of its key, is there.
async fn check(program: &Program, ledger: &Ledger) -> HashMap<String, usize> {
    let acknowledged = ledger.acknowledged.lock().expect("not poisoned").clone();
    let mut there = HashMap::new();
    for (key, number) in acknowledged {
        let value = program.read(&key).await.expect("a read").unwrap_or_default();
        let found: usize = value.parse().unwrap_or_default();
        assert!(found >= number, "{key}: {number} was acknowledged, {value:?} is there");
        there.insert(key, found);
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_instance_loses_nothing_on_sqlite() {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = Arc::new(Ledger::default());
    let stores = super::Stores::Embedded(directory.path());
    for _ in 0..setting("TERRACE_KILLS", 4) {
        let program = Arc::new(Program::serve(6, &stores).await);
        if ledger.next[0].load(Ordering::Relaxed) > 0 {
            check(&program, &ledger).await;
        }
        writes_with_a_kill(&program, &ledger, async || kill(&program.child)).await;
        Arc::into_inner(program).expect("the writers are gone").kill().await;
    }
    let program = Program::serve(6, &stores).await;
    drained(&program).await;
    check(&program, &ledger).await;
}

fn kill(child: &Child) {
    if let Some(pid) = child.id() {
        let status = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        assert!(status.expect("kill runs").success());
    }
}

/// Everything on servers of its own.
struct World {
    postgres: PostgresServer,
    journal: RedisServer,
    environment: Vec<(&'static str, String)>,
}

impl World {
    async fn start(directory: &Path) -> Self {
        let postgres = own_postgres(directory).await;
        let database = postgres.create_database("terrace").await.expect("a database");
        let redis = |name: &str, persistence| RedisOptions {
            persistence,
            ..RedisOptions::new(directory.join(name))
        };
        let journal = RedisServer::start(redis("journal", Persistence::AofAlways)).await;
        let journal = journal.expect("Redis starts");
        let environment = vec![
            ("DATABASE_URL", database),
            ("REDIS_URL", terrace_lab::testing::redis().url()),
            ("JOURNAL_URL", journal.url()),
            ("TERRACE_JOURNAL_TAKEOVER_SECONDS", "1".into()),
            ("TERRACE_LOG_LEVEL", "error".into()),
        ];
        Self { postgres, journal, environment }
    }

    async fn serve(&self) -> Program {
        let nothing = super::Stores::Servers { database: "", cache: "" };
        let environment = self.environment.iter().map(|(name, value)| (*name, value.as_str()));
        Program::serve_with(6, &nothing, &[], &environment.collect::<Vec<_>>()).await
    }

    fn flush(&self) -> Child {
        let mut command = terrace(&["flush"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(std::process::Stdio::null()).spawn().expect("the program starts")
    }

    /// What a person would ask of the database: rows of columns.
    fn ask(&self, question: &str) -> Vec<Vec<String>> {
        let programs = terrace_lab::find_program("postgres").expect("PostgreSQL");
        let mut psql = std::process::Command::new(programs.with_file_name("psql"));
        psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", question]);
        let output = psql.arg(&self.environment[0].1).output().expect("psql runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
    }
}

/// The instance, a flusher beside it, Redis and PostgreSQL are killed in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reordered_on_servers() {
    let directory = tempfile::tempdir().expect("a directory");
    let world = World::start(directory.path()).await;
    let ledger = Arc::new(Ledger::default());
    let mut program = Arc::new(world.serve().await);
    world.ask(AUDIT);
    let mut flusher = world.flush();
    let kills = setting("TERRACE_KILLS", 8);
    for cycle in 0..kills {
        let alive = Arc::clone(&program);
        writes_with_a_kill(&alive, &ledger, async || match cycle % 4 {
            0 => kill(&alive.child),
            1 => kill(&flusher),
            2 => world.journal.kill(),
            _ => world.postgres.kill(),
        })
        .await;
        drop(alive);
        match cycle % 4 {
            0 => {
                Arc::into_inner(program).expect("the writers are gone").kill().await;
                program = Arc::new(world.serve().await);
            }
            1 => {
                let _ = flusher.wait().await;
                flusher = world.flush();
            }
            2 => world.journal.restart().await.expect("Redis starts again"),
            _ => world.postgres.restart().await.expect("PostgreSQL starts again"),
        }
    }
    drained(&program).await;
    let there = check(&program, &ledger).await;
    let mut last = HashMap::<String, usize>::new();
    let mut applied = 0;
    for row in world.ask("SELECT key, value FROM audit ORDER BY id") {
        let (key, value) = (row[0].clone(), &row[1]);
        let number: usize = value.parse().expect("a number");
        applied += 1;
        if let Some(before) = last.insert(key.clone(), number) {
            assert!(before < number, "{key}: {number} was applied after {before}");
        }
    }
    for (key, number) in &there {
        assert_eq!(last.get(key), Some(number), "{key}");
    }
    let sent: usize = ledger.next.iter().map(|next| next.load(Ordering::Relaxed)).sum();
    eprintln!("{kills} kills, {sent} writes sent, {applied} rows written");
    let _ = flusher.kill().await;
}

impl World {
    /// What `terrace journal` answers, as JSON.
    async fn journal(&self, arguments: &[&str]) -> serde_json::Value {
        let mut command = terrace(&["journal", "--json"]);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.output().await.expect("the program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

/// A write that the database refuses for good is set aside, shown, and tried again when it can be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_write_is_set_aside_shown_and_tried_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let world = World::start(directory.path()).await;
    let program = world.serve().await;
    world.ask("ALTER TABLE records ADD CONSTRAINT no_poison CHECK (value <> 'poison')");
    for number in 0..20 {
        assert!(program.write(&format!("k{number}"), &number.to_string()).await);
    }
    assert!(program.write("bad", "poison").await);
    for number in 20..40 {
        assert!(program.write(&format!("k{number}"), &number.to_string()).await);
    }
    drained(&program).await;
    for number in 0..40 {
        let read = program.read(&format!("k{number}")).await;
        assert_eq!(read, Ok(Some(number.to_string())), "beside a poison write");
    }
    program.becomes("degraded").await;
    let status = world.journal(&["status"]).await;
    assert_eq!((&status["dead"], &status["durability"]), (&1.into(), &"journaled".into()));
    let letters = world.journal(&["dead", "list"]).await;
    assert_eq!((letters.as_array().map(Vec::len), &letters[0]["key"]), (Some(1), &"bad".into()));
    let sequence = letters[0]["sequence"].to_string();
    let shown = world.journal(&["dead", "show", &sequence]).await;
    assert_eq!(shown["value"], "poison");
    world.ask("ALTER TABLE records DROP CONSTRAINT no_poison");
    assert_eq!(world.journal(&["dead", "retry"]).await["retried"], 1);
    while program.read("bad").await != Ok(Some("poison".into())) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    program.becomes("healthy").await;
    assert!(program.terminate().await.success());
}

/// The command beside a level whose records are in a file and whose journal is on a broker sees that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_sees_the_journal_that_is_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let (files, broker) = (directory.path().join("files"), directory.path().join("journal"));
    let journal = RedisServer::start(RedisOptions::new(broker)).await.expect("Redis starts");
    let url = journal.url();
    let environment = [("JOURNAL_URL", url.as_str()), ("TERRACE_JOURNAL_FLUSHER", "apart")];
    let stores = super::Stores::Embedded(&files);
    let program = Program::serve_with(6, &stores, &[], &environment).await;
    assert!(program.write("waits", "1").await);
    let mut command = terrace(&["journal", "--json", "--stores", "embedded", "--data-dir"]);
    let output = command.arg(&files).arg("status").envs(environment).output().await;
    let output = output.expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["writes"], 1, "{status}");
    assert!(program.terminate().await.success());
}
