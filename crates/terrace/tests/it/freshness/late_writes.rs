//! A write of unknown outcome lands after every doubt about it has ended.

use std::time::Duration;

use terrace_lab::testing::replicated;
use terrace_prove::Outcome;
use terrace_prove::checkers::linearizability;

use super::engines::{redis, signal, sql};
use super::field::Field;
use super::{SLACK, WATCH, pause, until};

const KEY: &str = "late";
/// Longer than an instance doubts a write today (15 s), from the answer on.
const STOPPED: Duration = Duration::from_secs(16);

/// The backend stands in the commit, where neither a timeout nor a cancellation takes it back: it
/// waits for a synchronous standby that does not exist, and its process is stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_lands_late_is_seen() {
    let server = replicated(0, &[]).await.primary;
    let field = Field::on(2, server.url()).await;
    let soon = [("TERRACE_SERVER_REQUEST_TIMEOUT_MS", "1000")];
    let a = field.instance_with("a", &field.database, &soon).await;
    let b = field.instance_with("b", &field.database, &soon).await;
    a.writes(KEY, "old").await;
    b.caches(KEY, "old", "far").await;

    sql(&field.database, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    sql(&field.database, "SELECT pg_reload_conf()").await;
    let names = "SHOW synchronous_standby_names";
    until("commits wait", async || sql(&field.database, names).await == "nobody").await;
    let write = async { a.client.write(KEY, "new").send().await };
    let stop = async {
        let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let mut pid = String::new();
        until("the commit waits", async || {
            pid = sql(&field.database, waiting).await;
            !pid.is_empty()
        })
        .await;
        signal(&pid, "-STOP");
        // Everybody else commits as usual.
        sql(&field.database, "ALTER SYSTEM RESET synchronous_standby_names").await;
        sql(&field.database, "SELECT pg_reload_conf()").await;
        pid
    };
    let (write, pid) = tokio::join!(write, stop);
    assert_eq!(write.outcome, Outcome::Unknown, "{write}");
    pause(STOPPED).await;
    // Its tombstones are gone, and the value from before is cached again.
    redis(&field.redis, "FLUSHALL").await;
    for _ in 0..20 {
        for instance in [&a, &b] {
            instance.client.read(KEY).send().await;
        }
        pause(Duration::from_millis(50)).await;
    }
    let before = b.client.read(KEY).strong().send().await;
    assert_eq!(before.found.as_deref(), Some("old"), "it has not landed: {before}");
    signal(&pid, "-CONT");
    until("it has landed", async || {
        b.client.read(KEY).strong().send().await.found.as_deref() == Some("new")
    })
    .await;
    // One look for the end of the transaction, one for the generation.
    pause(WATCH * 2 + SLACK).await;
    for instance in [&a, &b] {
        let after = instance.client.read(KEY).send().await;
        let order = linearizability(&field.history.operations(), 1_000_000);
        assert_eq!(
            after.found.as_deref(),
            Some("new"),
            "a late write is not seen: {after}\n{order}"
        );
    }
}
