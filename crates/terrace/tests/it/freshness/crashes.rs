//! PostgreSQL crashes and recovers on its own timeline: ids that were seen and not on disk are given out
//! again, and with `synchronous_commit = off` acknowledged writes are gone.

use std::time::Duration;

use terrace_lab::{PostgresOptions, PostgresServer, RedisServer};
use terrace_prove::checkers::sessions;

use super::engines::{postgres_program, sql};
use super::field::Field;
use super::{WATCH, pause, until};

/// A server of its own, which flushes what nobody waits for after this time.
async fn server(directory: &std::path::Path, flush_after: &str) -> PostgresServer {
    let settings = vec![("wal_writer_delay".to_owned(), flush_after.to_owned())];
    let options = PostgresOptions { settings, ..PostgresOptions::new(directory.join("own")) };
    PostgresServer::start(options).await.expect("PostgreSQL starts")
}

async fn crash(server: &PostgresServer) {
    server.kill();
    server.restart().await.expect("PostgreSQL starts again");
}

/// Uses transaction ids for nothing that anybody waits for.
async fn burn_ids(url: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "SELECT pg_current_xact_id();\n".repeat(3000)).expect("a write");
    let path = file.path().to_str().expect("a path");
    let psql = postgres_program("psql", &["-X", "-q", "-A", "-t", "-f", path, url]).output().await;
    assert!(psql.expect("psql runs").status.success());
}

async fn next_id(url: &str) -> u64 {
    let text = sql(url, "SELECT pg_snapshot_xmax(pg_current_snapshot())").await;
    text.parse().expect("a number")
}

fn nearest(level: u8) -> &'static str {
    if level == 5 { "near" } else { "far" }
}

/// An entry that proves more ids than the server knows after its crash is read with a token of one that
/// was given out again.
async fn ids_are_given_out_again(level: u8) {
    let directory = tempfile::tempdir().expect("a directory");
    let own = server(directory.path(), "10000ms").await;
    let field = Field::on(level, own.url()).await;
    let journal = if level == 6 { Some(field.journal().await) } else { None };
    let url = journal.as_ref().map(RedisServer::url).unwrap_or_default();
    let more = if level == 6 { vec![("JOURNAL_URL", url.as_str())] } else { Vec::new() };
    let a = field.instance_with("a", &field.database, &more).await;
    let b = field.instance_with("b", &field.database, &more).await;
    let keys: Vec<_> = (0..4).map(|number| format!("k{number}")).collect();
    for key in &keys {
        assert!(a.client.write(key, "old").wait().send().await.is_acknowledged());
    }
    pause(Duration::from_millis(300)).await;
    burn_ids(&own.url()).await;
    let before = next_id(&own.url()).await;
    for key in &keys {
        b.caches(key, "old", nearest(level)).await;
    }
    let seen = b.client.read("k0").strong().send().await;
    crash(&own).await;
    assert!(next_id(&own.url()).await < before, "no ids were lost");
    let writes = async || a.client.write("poke", "x").wait().send().await.is_acknowledged();
    until("a writes", writes).await;
    until("b reads", async || b.client.read("k0").strong().send().await.has_read()).await;
    let read = b.client.read("k0").after(&seen).send().await;
    assert!(read.has_read(), "a token from before the crash, which lost nothing: {read}");
    a.becomes_healthy().await;
    a.redis.cut();
    for key in &keys {
        let write = a.client.write(key, "new").wait().send().await;
        assert!(write.is_acknowledged(), "{write}");
        for _ in 0..20 {
            b.client.read(key).after(&write).send().await;
        }
    }
    sessions(&field.history.operations()).assert_holds();
}

macro_rules! at_levels {
    ($($name:ident: $level:literal;)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            ids_are_given_out_again($level).await;
        }
    )* };
}
at_levels! {
    ids_are_given_out_again_at_level_2: 2;
    ids_are_given_out_again_at_level_3: 3;
    ids_are_given_out_again_at_level_4: 4;
    ids_are_given_out_again_at_level_5: 5;
    ids_are_given_out_again_at_level_6: 6;
}

async fn commits_without_waiting(own: &PostgresServer) {
    sql(&own.url(), "ALTER SYSTEM SET synchronous_commit = off").await;
    sql(&own.url(), "SELECT pg_reload_conf()").await;
    pause(WATCH + Duration::from_millis(500)).await;
}

/// What was only `accepted` is gone: its versions are not given out again, its tokens are lost, and no
/// cache shows it. Also where commits wait again by the time of the crash.
async fn accepted_writes_that_are_gone(waits_again: bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let own = server(directory.path(), "10000ms").await;
    let field = Field::on(5, own.url()).await;
    let (a, b) = (field.instance("a").await, field.instance("b").await);
    commits_without_waiting(&own).await;
    a.writes("k", "old").await;
    sql(&own.url(), "CHECKPOINT").await;
    for number in 0..60 {
        a.writes("filler", &number.to_string()).await;
    }
    let lost = a.writes("k", "lost").await;
    b.caches("k", "lost", "near").await;
    if waits_again {
        sql(&own.url(), "ALTER SYSTEM RESET synchronous_commit").await;
        sql(&own.url(), "SELECT pg_reload_conf()").await;
        pause(Duration::from_millis(500)).await;
    }
    crash(&own).await;
    assert_eq!(sql(&own.url(), "SELECT value FROM records WHERE key = 'k'").await, "old");
    until("b reads", async || b.client.read("k").strong().send().await.has_read()).await;
    pause(WATCH).await;
    assert_eq!(b.client.read("k").send().await.found.as_deref(), Some("old"));
    assert_eq!(b.client.read("k").after(&lost).send().await.status, 503);
    assert_eq!(b.client.read("k").after(&lost).strong().send().await.status, 503);
    until("a writes", async || a.client.write("k", "after").send().await.is_acknowledged()).await;
    let version = lost.version.expect("a version");
    let other = a.client.write("k", "over").if_version(version).send().await;
    assert!(!other.is_acknowledged(), "{other}");
    assert!(b.client.read("k").strong().send().await.version > lost.version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_writes_that_are_gone_leave_no_trace() {
    accepted_writes_that_are_gone(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_writes_that_are_gone_leave_no_trace_where_commits_wait_again() {
    accepted_writes_that_are_gone(true).await;
}

/// What a journal has settled is on the database's disk, also where its commits do not wait for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_journal_has_settled_outlives_a_crash() {
    let directory = tempfile::tempdir().expect("a directory");
    let own = server(directory.path(), "10000ms").await;
    let field = Field::on(6, own.url()).await;
    let journal = field.journal().await;
    let url = journal.url();
    let a = field.instance_with("a", &field.database, &[("JOURNAL_URL", url.as_str())]).await;
    a.writes("k", "old").await;
    commits_without_waiting(&own).await;
    a.writes("k", "new").await;
    let shown = "SELECT value FROM records WHERE key = 'k'";
    until("it is applied", async || sql(&own.url(), shown).await == "new").await;
    crash(&own).await;
    assert_eq!(sql(&own.url(), shown).await, "new");
}

/// The read database takes its last commits back while nobody writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_read_database_took_back_is_projected_again() {
    let field = Field::new(7).await;
    let directory = tempfile::tempdir().expect("a directory");
    let own = server(directory.path(), "10000ms").await;
    let read = own.url();
    let a = field.instance_with("a", &field.database, &[("READ_DB_URL", read.as_str())]).await;
    let row = async || sql(&read, "SELECT value FROM records WHERE key = 'k'").await;
    a.writes("k", "0").await;
    until("it is projected", async || row().await == "0").await;
    sql(&read, "CHECKPOINT").await;
    a.writes("k", "1").await;
    until("it is projected", async || row().await == "1").await;
    crash(&own).await;
    assert_eq!(row().await, "0", "nothing was lost");
    until("it is projected again", async || row().await == "1").await;
}

/// A crash empties a table that somebody has made unlogged, so no more than `accepted` is promised.
async fn nothing_is_promised_of_an_unlogged(table: &str, level: u8) {
    let field = Field::new(level).await;
    let a = field.instance("a").await;
    let promised = async || a.client.write("k", "v").send().await.durability;
    assert_eq!(promised().await.as_deref(), Some("committed"));
    sql(&field.database, &format!("ALTER TABLE {table} SET UNLOGGED")).await;
    until("it is noticed", async || promised().await.as_deref() == Some("accepted")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_promised_of_unlogged_records() {
    nothing_is_promised_of_an_unlogged("records", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_promised_of_unlogged_idempotency_keys() {
    nothing_is_promised_of_an_unlogged("terrace_idempotency", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_promised_of_an_unlogged_log() {
    nothing_is_promised_of_an_unlogged("commands", 7).await;
}
