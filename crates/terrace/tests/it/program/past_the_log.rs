//! Level 7 where somebody works on its databases by hand, past what Terrace sees.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::cqrs::{read_with, sql, write};
use super::{Program, Stores, own_postgres, terrace};

/// What `terrace projections` answers, as JSON.
async fn projections(database: &str, arguments: &[&str]) -> Value {
    let mut command = terrace(&["projections"]);
    command.args(arguments).arg("--json").env("DATABASE_URL", database).stdout(Stdio::piped());
    let output = command.output().await.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(text.lines().last().unwrap_or_default()).expect("JSON")
}

/// The health, once it says something.
async fn says(program: &Program, words: &str) -> String {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let health = program.client.get(format!("{}/health", program.url)).send().await;
        let text = health.expect("an answer").text().await.expect("text");
        if text.contains(words) {
            return text;
        }
        assert!(tokio::time::Instant::now() < end, "{words}: {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The read model comes to hold what a question answers.
async fn becomes(database: &str, question: &str, wanted: &str) {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let found = sql(database, question).await.concat().concat();
        if found == wanted {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{question}: {found} is no {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn served() -> (String, Program) {
    let database = terrace_lab::testing::fresh_database();
    let cache = terrace_lab::testing::redis().url();
    let program = Program::serve(7, &Stores::Servers { database: &database, cache: &cache }).await;
    (database, program)
}

/// Changes that no trigger saw are found by a comparison with the records themselves, and projected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_finds_changes_that_no_trigger_saw() {
    let (database, program) = served().await;
    for key in ["kept", "changed", "removed"] {
        write(&program, key, 1).await.expect("a write");
    }
    let model = "SELECT string_agg(key || value, ' ' ORDER BY key) FROM terrace_read.records \
                 WHERE NOT deleted";
    becomes(&database, model, "changed1 kept1 removed1").await;
    assert_eq!(projections(&database, &["rebuild", "--check"]).await["differing"], 0);
    let past = "SET session_replication_role = replica; \
         UPDATE records SET value = '2' WHERE key = 'changed'; \
         DELETE FROM records WHERE key = 'removed'; \
         INSERT INTO records (key, value, version, created_at, updated_at) \
           SELECT 'added', '2', version, created_at, updated_at FROM records WHERE key = 'kept'";
    sql(&database, past).await;
    let found = projections(&database, &["rebuild", "--check"]).await;
    assert_eq!(found["differing"], 3, "{found}");
    assert_eq!(found["examples"], serde_json::json!(["added", "changed", "removed"]));
    let found = projections(&database, &["rebuild"]).await;
    assert_eq!(found["differing"], 3, "{found}");
    becomes(&database, model, "added2 changed2 kept1").await;
    assert_eq!(projections(&database, &["rebuild", "--check"]).await["differing"], 0);
    // What comes later goes on as before.
    let token = write(&program, "removed", 3).await.expect("a write");
    assert_eq!(read_with(&program, "removed", &token).await, Some(3));
    becomes(&database, model, "added2 changed2 kept1 removed3").await;
    assert!(program.terminate().await.success());
}

/// Triggers that are disabled or dropped are told, and the next start makes them and the log anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_that_do_not_fire_are_told_and_mended_by_a_restart() {
    let (database, program) = served().await;
    write(&program, "a", 1).await.expect("a write");
    let mut program = program;
    let model = "SELECT value FROM terrace_read.records WHERE key = 'a'";
    let acts = [
        "ALTER TABLE records DISABLE TRIGGER ALL",
        "ALTER TABLE records ENABLE REPLICA TRIGGER commands_2_updated",
        "DROP TRIGGER commands_1_inserted ON records",
    ];
    for (act, value) in acts.into_iter().zip(2..) {
        program.becomes("healthy").await;
        sql(&database, act).await;
        write(&program, "a", value).await.expect("a write is taken, and is not followed");
        let health = says(&program, "triggers of the table `records`").await;
        assert!(health.contains("degraded") && health.contains("restart Terrace"), "{health}");
        assert!(program.terminate().await.success());
        let cache = terrace_lab::testing::redis().url();
        let stores = Stores::Servers { database: &database, cache: &cache };
        program = Program::serve(7, &stores).await;
        becomes(&database, model, &value.to_string()).await;
    }
    assert!(program.terminate().await.success());
}

/// A transaction that stays open holds the log back: that is told, with who it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_the_log_back_is_named() {
    // On a server of its own: the other tests' databases would be held back, too.
    let directory = tempfile::tempdir().expect("a directory");
    let server = own_postgres(directory.path()).await;
    let database = server.create_database("terrace").await.expect("a database");
    let cache = terrace_lab::testing::redis().url();
    let program = Program::serve(7, &Stores::Servers { database: &database, cache: &cache }).await;
    let psql = terrace_lab::find_program("postgres").expect("PostgreSQL").with_file_name("psql");
    let mut blocker = tokio::process::Command::new(psql);
    blocker.args(["--no-psqlrc", "--quiet", "-d", &database]).env("PGAPPNAME", "the-blocker");
    let mut blocker =
        blocker.stdin(Stdio::piped()).kill_on_drop(true).spawn().expect("psql starts");
    let mut hand = blocker.stdin.take().expect("its input");
    let open = b"BEGIN; CREATE TABLE held_open (); \n";
    tokio::io::AsyncWriteExt::write_all(&mut hand, open).await.expect("it reads");
    let begun = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the-blocker' \
                 AND state = 'idle in transaction'";
    becomes(&database, begun, "1").await;
    let pid = "SELECT pid FROM pg_stat_activity WHERE application_name = 'the-blocker'";
    let pid = sql(&database, pid).await.concat().concat();
    write(&program, "a", 1).await.expect("a write");
    let health = says(&program, "the-blocker").await;
    assert!(health.contains("degraded") && health.contains(&pid), "{health}");
    let status = projections(&database, &["status"]).await;
    assert!(status["held_back_by"].to_string().contains(&pid), "{status}");
    assert!(status["waiting"].as_u64() > Some(0), "{status}");
    let lag = program.client.get(format!("{}/v1/projection", program.url)).send().await;
    let lag: Value = lag.expect("an answer").json().await.expect("JSON");
    assert!(lag["behind_us"].as_u64() >= Some(5_000_000), "{lag}");
    drop(hand);
    blocker.wait().await.expect("it ends");
    program.becomes("healthy").await;
    assert!(program.terminate().await.success());
}

/// What somebody empties in the read database is projected again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_read_database_is_filled_again() {
    let (database, program) = served().await;
    let model = "SELECT string_agg(key || value, ' ' ORDER BY key) FROM terrace_read.records";
    let words = "SELECT count(*) FROM terrace_read.terrace_words";
    write(&program, "a", 1).await.expect("a write");
    let token = write(&program, "b", 1).await.expect("a write");
    becomes(&database, words, "2").await;
    let schema = "terrace_read";
    for emptied in [
        format!("TRUNCATE {schema}.records"),
        format!("TRUNCATE {schema}.terrace_words"),
        format!("TRUNCATE {schema}.terrace_projection"),
        format!(
            "TRUNCATE {schema}.records, {schema}.terrace_words, {schema}.terrace_projection, {schema}.terrace_parked"
        ),
    ] {
        sql(&database, &emptied).await;
        assert_eq!(read_with(&program, "b", &token).await, Some(1), "{emptied}");
        becomes(&database, model, "a1 b1").await;
        becomes(&database, words, "2").await;
    }
    // The tables that a rebuild makes are no others.
    projections(&database, &["rebuild"]).await;
    sql(&database, &format!("TRUNCATE {schema}.records")).await;
    becomes(&database, model, "a1 b1").await;
    assert!(program.terminate().await.success());
}

/// Where triggers are switched off for everybody, no command is acknowledged that no event tells of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_refused_while_no_trigger_runs() {
    let (database, program) = served().await;
    write(&program, "k", 1).await.expect("a write");
    let name = database.rsplit_once('/').expect("a name").1;
    let altered = format!("ALTER DATABASE {name} SET session_replication_role = replica");
    sql(&database, &altered).await;
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sql(&database, others).await;
    says(&program, "session_replication_role").await;
    assert_eq!(write(&program, "k", 2).await, None);
    sql(&database, &format!("ALTER DATABASE {name} RESET session_replication_role")).await;
    says(&program, "\"healthy\"").await;
    let token = write(&program, "k", 3).await.expect("a write");
    assert_eq!(read_with(&program, "k", &token).await, Some(3));
    becomes(&database, "SELECT value FROM terrace_read.records WHERE key = 'k'", "3").await;
}
