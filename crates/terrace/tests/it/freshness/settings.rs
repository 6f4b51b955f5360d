//! Settings of engines that change while instances run: answers say within a
//! second how durable a write really is.

use terrace_lab::testing::replicated;

use super::engines::{redis, sql};
use super::field::{Field, Instance};
use super::{SLACK, WATCH, pause, until};

async fn durability(instance: &Instance, value: &str) -> String {
    let write = instance.writes("k", value).await;
    write.durability.expect("a durability")
}

async fn synchronous_commit_is_seen(level: u8) {
    let server = replicated(0, &[]).await.primary;
    let field = Field::on(level, server.url()).await;
    let a = field.instance("a").await;
    assert_eq!(durability(&a, "before").await, "committed");
    sql(&field.database, "ALTER SYSTEM SET synchronous_commit = off").await;
    sql(&field.database, "SELECT pg_reload_conf()").await;
    let is_off = async || sql(&field.database, "SHOW synchronous_commit").await == "off";
    until("it is off", is_off).await;
    pause(WATCH + SLACK).await;
    for round in 0..5 {
        let said = durability(&a, &format!("after {round}")).await;
        assert_eq!(said, "accepted", "commits are not flushed before they are answered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synchronous_commit_is_seen_at_level_1() {
    synchronous_commit_is_seen(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synchronous_commit_is_seen_at_level_2() {
    synchronous_commit_is_seen(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appendfsync_is_seen_at_level_6() {
    let field = Field::new(6).await;
    let journal = field.journal().await;
    let url = journal.url();
    let environment = [("JOURNAL_URL", url.as_str())];
    let a = field.instance_with("a", &field.database, &environment).await;
    assert_eq!(durability(&a, "before").await, "journaled");
    redis(&journal, "CONFIG SET appendfsync everysec").await;
    pause(WATCH + SLACK).await;
    for round in 0..5 {
        let said = durability(&a, &format!("after {round}")).await;
        assert_eq!(said, "accepted", "the journal is not flushed before it answers");
    }
}
