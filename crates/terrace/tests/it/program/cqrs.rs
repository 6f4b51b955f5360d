//! Level 7 amid kills: each command is projected once and published, whatever dies.

use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;

use super::{Program, Stores, own_postgres, own_redis, terrace};

/// A share of what the guarantee's page tells; all of it with `TERRACE_KILLS=500`.
const KILLS: usize = 10;
const WRITERS: usize = 12;

pub(super) fn kills() -> usize {
    std::env::var("TERRACE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS)
}

/// The newest acknowledged number of each key.
type Acknowledged = Arc<Mutex<HashMap<String, usize>>>;

/// Writes until the program, or its database, is gone; reads some of it with its token.
async fn use_until_gone(
    program: Arc<Program>,
    writer: usize,
    cycle: usize,
    seen: Acknowledged,
    count: Arc<AtomicUsize>,
) {
    for number in cycle * 1_000_000.. {
        let key = format!("w{writer}-{}", number % 5);
        let Some(token) = write(&program, &key, number).await else { return };
        seen.lock().expect("not poisoned").insert(key.clone(), number);
        count.fetch_add(1, Ordering::Relaxed);
        if number % 4 == 0
            && let Some(found) = read_with(&program, &key, &token).await
        {
            assert!(found >= number, "{key}: {number} was acknowledged, {found} is read");
        }
    }
}

/// The token of an acknowledged write.
pub(super) async fn write(program: &Program, key: &str, number: usize) -> Option<String> {
    let body = serde_json::json!({"key": key, "value": number.to_string()});
    let sent = program.client.post(format!("{}/write", program.url)).json(&body).send().await;
    let answer = sent.ok().filter(|answer| answer.status().is_success())?;
    let token = answer.headers().get("terrace-token")?.to_str().ok()?.to_owned();
    let body: Value = answer.json().await.ok()?;
    let (epoch, offset) = body["event_id"].as_str()?.split_once('-')?;
    let named = epoch.parse::<u64>().is_ok() && offset.parse::<u64>().is_ok_and(|it| it > 0);
    assert!(named, "{body}");
    Some(token)
}

pub(super) async fn read_with(program: &Program, key: &str, token: &str) -> Option<usize> {
    let request = program.client.get(format!("{}/read/{key}", program.url));
    let answer = request.header("terrace-token", token).send().await.ok()?;
    let body: Value = answer.json().await.ok()?;
    // 503 rather than a lie.
    body["success"].as_bool()?.then(|| body["value"].as_str()?.parse().ok())?
}

async fn one_cycle(
    program: &Arc<Program>,
    cycle: usize,
    seen: &Acknowledged,
    after: usize,
) -> Vec<tokio::task::JoinHandle<()>> {
    let count = Arc::new(AtomicUsize::new(0));
    let writers = (0..WRITERS).map(|writer| {
        let (program, seen, count) = (Arc::clone(program), Arc::clone(seen), Arc::clone(&count));
        tokio::spawn(use_until_gone(program, writer, cycle, seen, count))
    });
    let writers = writers.collect();
    while count.load(Ordering::Relaxed) < after {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    writers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_is_projected_and_published_once_whatever_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (postgres, redis) =
        futures_util::future::join(own_postgres(directory.path()), own_redis(directory.path()))
            .await;
    let database = postgres.create_database("terrace").await.expect("a database");
    let cache = redis.url();
    let stores = Stores::Servers { database: &database, cache: &cache };
    let seen = Acknowledged::default();
    for cycle in 1..=kills() {
        let program = Arc::new(Program::serve(7, &stores).await);
        let writers = one_cycle(&program, cycle, &seen, 20 + cycle * 37 % 150).await;
        match cycle % 5 {
            3 => {
                postgres.kill();
                join_all(writers).await.into_iter().for_each(|done| done.expect("no lie"));
                postgres.restart().await.expect("PostgreSQL starts again");
                kill(&program);
            }
            4 => {
                redis.kill();
                // Commands do not wait for the broker.
                assert!(write(&program, "no-broker", cycle).await.is_some());
                redis.restart().await.expect("Redis starts again");
                kill(&program);
                join_all(writers).await.into_iter().for_each(|done| done.expect("no lie"));
            }
            _ => {
                kill(&program);
                join_all(writers).await.into_iter().for_each(|done| done.expect("no lie"));
            }
        }
        Arc::into_inner(program).expect("the writers are gone").kill().await;
    }
    let program = Program::serve(7, &stores).await;
    check(&program, &seen, &database, &cache).await;
    let kills = kills();
    println!("{kills} kills: 0 missing, 0 double effects, 0 differences to a rebuild");
}

fn kill(program: &Program) {
    let pid = program.child.id().expect("it runs").to_string();
    let status = std::process::Command::new("kill").args(["-KILL", &pid]).status();
    assert!(status.expect("kill runs").success());
}

/// What `psql` answers: a line a row, columns parted by tabs.
pub(super) async fn sql(database: &str, text: &str) -> Vec<Vec<String>> {
    let psql = terrace_lab::find_program("postgres").expect("PostgreSQL").with_file_name("psql");
    let mut command = tokio::process::Command::new(psql);
    command.args(["--no-psqlrc", "--quiet", "-At", "-F", "\t", "-v", "ON_ERROR_STOP=1"]);
    let output = command.args(["-d", database, "-c", text]).output().await.expect("psql runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    answer.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// What the log has is in the read model once, and on the stream.
async fn check(program: &Program, seen: &Acknowledged, database: &str, cache: &str) {
    // The token of a last command: what was before it is projected when it is.
    let token = write(program, "last", 1).await.expect("a write");
    let within = tokio::time::Instant::now() + Duration::from_secs(60);
    while read_with(program, "last", &token).await.is_none() {
        assert!(tokio::time::Instant::now() < within, "the projection does not come to its end");
    }
    let projected = "SELECT 1 FROM terrace_read.records WHERE key = 'last' AND write_count > 0";
    while sql(database, projected).await.is_empty() {
        assert!(tokio::time::Instant::now() < within, "the projection does not come to its end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let logged = "SELECT key, count(*), max(version), (array_agg(value ORDER BY version DESC))[1] \
                  FROM public.commands GROUP BY key";
    let kept = "SELECT key, write_count, version, value FROM terrace_read.records";
    let (logged, kept) = (rows(database, logged).await, rows(database, kept).await);
    assert_eq!(logged, kept, "each command has its effect once");
    for (key, number) in seen.lock().expect("not poisoned").iter() {
        let found = kept[key].2.parse::<usize>().expect("a number");
        assert!(found >= *number, "{key}: {number} was acknowledged, {found} is there");
    }
    let ids = "SELECT transaction::text || '-' || version FROM public.commands \
               ORDER BY transaction, version";
    let ids = sql(database, ids).await.concat();
    while published(database, cache).await.last() != ids.last() {
        let on = published(database, cache).await;
        let (last, wanted) = (on.last(), ids.last());
        assert!(tokio::time::Instant::now() < within, "the relay stands at {last:?} of {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(published(database, cache).await == ids, "each event is published once, in order");
    // The search index follows, also where a killed instance had left it.
    let behind = "SELECT r.key FROM terrace_read.records r LEFT JOIN terrace_read.terrace_words w \
                    ON w.key = r.key AND w.version = r.version \
                  WHERE w.words IS DISTINCT FROM CASE WHEN r.deleted THEN '' \
                    ELSE to_tsvector('simple', r.key || ' ' || r.value) END";
    loop {
        let behind = sql(database, behind).await.concat();
        if behind.is_empty() {
            break;
        }
        assert!(tokio::time::Instant::now() < within, "the search index is behind: {behind:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let difference = rebuild(database).await;
    assert_eq!(difference["differing"], 0, "{difference}");
    assert_eq!(difference["keys"], kept.len());
    assert!(sql(database, behind).await.is_empty(), "a rebuild has its words at once");
}

async fn rows(database: &str, text: &str) -> BTreeMap<String, (i64, i64, String)> {
    let number = |text: &str| text.parse::<i64>().expect("a number");
    let row =
        |row: Vec<String>| (row[0].clone(), (number(&row[1]), number(&row[2]), row[3].clone()));
    sql(database, text).await.into_iter().map(row).collect()
}

/// The ids on the stream.
async fn published(database: &str, cache: &str) -> Vec<String> {
    let log =
        sql(database, "SELECT value FROM public.terrace_meta WHERE name = 'log'").await.concat();
    let lineage = "SELECT split_part(name, '.', 1) FROM public.terrace_history \
         WHERE identity IS NOT NULL";
    let lineage = sql(database, lineage).await.concat().concat();
    let stream = format!("terrace:events:{lineage}:{}", log.concat());
    let server = terrace_lab::find_program("redis-server").expect("Redis");
    let mut command = tokio::process::Command::new(server.with_file_name("redis-cli"));
    let (login, address) = cache.split_once('@').expect("a login in the URL");
    let password = login.rsplit_once(':').expect("a password").1;
    let port = address.split(['/', ':']).nth(1).expect("a port");
    command.args(["-p", port, "EVAL"]).env("REDISCLI_AUTH", password);
    command.arg(
        "local ids = {} for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do \
         ids[#ids + 1] = entry[1] end return table.concat(ids, ' ')",
    );
    let output = command.args(["1", &stream]).output().await.expect("redis-cli runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().trim_matches('"').split_whitespace().map(str::to_owned).collect()
}

/// A rebuild beside the running program, swapped.
async fn rebuild(database: &str) -> Value {
    let mut command = terrace(&["projections", "rebuild", "--json"]);
    command.env("DATABASE_URL", database).stdout(Stdio::piped());
    let output = command.output().await.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(text.lines().last().unwrap_or_default()).expect("JSON")
}

/// A value that the read database refuses stops its key, and `projections retry` lets it go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_event_stops_its_key_until_it_is_retried() {
    let database = terrace_lab::testing::fresh_database();
    let cache = terrace_lab::testing::redis().url();
    let program = Program::serve(7, &Stores::Servers { database: &database, cache: &cache }).await;
    let refuse = "ALTER TABLE terrace_read.records ADD CONSTRAINT no CHECK (value <> '666')";
    sql(&database, refuse).await;
    for (key, number) in [("good", 1), ("bad", 666), ("good", 2)] {
        write(&program, key, number).await.expect("a write");
    }
    program.becomes("degraded").await;
    let token = write(&program, "good", 3).await.expect("a write");
    assert_eq!(read_with(&program, "good", &token).await, Some(3), "the others go on");
    assert_eq!(read_with(&program, "bad", &token).await, Some(666), "from the command side");
    let run = async |arguments: &[&str]| {
        let mut command = terrace(arguments);
        command.env("DATABASE_URL", &database).stdout(Stdio::piped());
        let output = command.output().await.expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (_, status) = run(&["projections", "status", "--json"]).await;
    let status: Value = serde_json::from_str(status.trim()).expect("JSON");
    assert_eq!(status["parked"][0]["key"], "bad", "{status}");
    let (done, _) = run(&["projections", "retry", "bad"]).await;
    assert!(!done, "the cause is still there");
    let forgive = "ALTER TABLE terrace_read.records DROP CONSTRAINT no";
    sql(&database, forgive).await;
    let (done, text) = run(&["projections", "retry"]).await;
    assert!(done, "{text}");
    program.becomes("healthy").await;
    assert_eq!(program.read("bad").await, Ok(Some("666".to_owned())));
}

/// One instance projects, both answer; when it is killed the other takes the projection over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_instance_goes_on_with_the_projection() {
    let database = terrace_lab::testing::fresh_database();
    let cache = terrace_lab::testing::redis().url();
    let stores = Stores::Servers { database: &database, cache: &cache };
    let one = Program::serve(7, &stores).await;
    let two = Program::serve(7, &stores).await;
    for number in 0..20 {
        let token = write(&one, "a", number).await.expect("a write");
        assert_eq!(read_with(&two, "a", &token).await, Some(number));
    }
    one.kill().await;
    let token = write(&two, "a", 20).await.expect("a write");
    // The command side answers until the lease has run out.
    assert_eq!(read_with(&two, "a", &token).await, Some(20));
    let kept = "SELECT 1 FROM terrace_read.records WHERE write_count = 21";
    let within = tokio::time::Instant::now() + Duration::from_secs(30);
    while sql(&database, kept).await.is_empty() {
        assert!(tokio::time::Instant::now() < within, "nobody projects");
    }
    assert!(two.terminate().await.success());
}

/// Counts of a key are the same after a restart as before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_counts_nothing_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    for start in 1..=3 {
        let program = Program::serve(7, &stores).await;
        let mut token = String::new();
        for number in 0..4 {
            token = write(&program, "a", number).await.expect("a write");
        }
        assert!(read_with(&program, "a", &token).await.is_some());
        let url = format!("{}/v1/top?by=writes", program.url);
        let mut counted = 0;
        // The command side may have answered; then the projection is still on its way.
        while counted < start * 4 {
            let answer = program.client.get(&url).send().await.expect("an answer");
            let top: Value = answer.json().await.expect("JSON");
            counted = top["records"][0]["write_count"].as_u64().unwrap_or(0);
        }
        assert_eq!(counted, start * 4);
        assert!(program.terminate().await.success());
    }
}
