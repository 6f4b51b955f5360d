//! Commits that were to wait for a standby, and were let go on without one.

use terrace_lab::testing::replicated;

use super::engines::sql;
use super::field::Field;
use super::{WATCH, pause, until};

const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

/// A commit that waits for nobody, since a moment, has not been waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_commits_no_longer_wait() {
    let server = replicated(0, &[]).await.primary;
    let field = Field::on(1, server.url()).await;
    let a = field.instance("a").await;
    let set = async |setting: &str| {
        sql(&field.database, &format!("ALTER SYSTEM SET {setting}")).await;
        sql(&field.database, "SELECT pg_reload_conf()").await;
        let (name, value) = setting.split_once(" = ").expect("a setting");
        until("it is set", async || {
            sql(&field.database, &format!("SHOW {name}")).await == value.trim_matches('\'')
        })
        .await;
    };
    set("synchronous_standby_names = 'nobody'").await;
    pause(WATCH * 2).await;
    set("synchronous_commit = 'local'").await;
    let write = a.writes("k", "new").await;
    assert_eq!(write.durability.as_deref(), Some("committed"), "{write}");
}

/// No standby confirms anything: what is answered is committed, and not replicated.
async fn no_more_is_said_than_was_waited_for(release: &str) {
    let server = replicated(0, &[]).await.primary;
    let field = Field::on(1, server.url()).await;
    let a = field.instance("a").await;
    sql(&field.database, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    sql(&field.database, "SELECT pg_reload_conf()").await;
    let names = "SHOW synchronous_standby_names";
    until("commits wait", async || sql(&field.database, names).await == "nobody").await;
    // Every instance has looked by then.
    pause(WATCH * 2).await;
    let write = async { a.client.write("k", "new").idempotency_key("once").send().await };
    let go_on = async {
        until("it waits", async || sql(&field.database, WAITING).await == "1").await;
        for statement in release.split(';') {
            sql(&field.database, statement).await;
        }
    };
    let (write, ()) = tokio::join!(write, go_on);
    assert!(write.is_acknowledged(), "{write}");
    assert_eq!(write.durability.as_deref(), Some("committed"), "{write}");
    let again = a.client.write("k", "new").idempotency_key("once").send().await;
    assert_eq!(again.version, write.version, "{again}");
    assert_eq!(again.durability.as_deref(), Some("committed"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_wait_is_cancelled() {
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    no_more_is_said_than_was_waited_for(cancel).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_setting_is_taken_back() {
    let reset = "ALTER SYSTEM RESET synchronous_standby_names;SELECT pg_reload_conf()";
    no_more_is_said_than_was_waited_for(reset).await;
}
