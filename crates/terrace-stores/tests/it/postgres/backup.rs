//! What a backup asks of a database: a moment without writers, and what it sees then.

use std::time::Duration;

use terrace_core::{ErrorKind, Runtime, StoreExt};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresBackup, PostgresOptions};

use super::rights::{DatabaseRole, role};
use super::{connect, key, session, value, within};

async fn opened(url: &str) -> PostgresBackup {
    let options =
        PostgresOptions { connect_timeout: Duration::from_secs(30), ..PostgresOptions::new(url) };
    PostgresBackup::open(options, &Runtime::system()).await.expect("a backup")
}

/// Until a writer waits for the records' table.
async fn until_one_waits(hand: &tokio_postgres::Client) {
    const WAITS: &str = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted \
         AND relation = 'records'::regclass AND mode = 'RowExclusiveLock')";
    let end = within(Duration::from_secs(30));
    while !hand.query_one(WAITS, &[]).await.expect("locks").get::<_, bool>(0) {
        assert!(!end.passed(Runtime::system().now()), "no writer waits");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn writers_wait_while_they_are_held_and_what_they_write_is_not_seen() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let hand = session(&url).await;
    store.put(key("a"), value("before")).await.expect("a put");
    let backup = opened(&url).await;
    assert!(backup.hold(Duration::from_secs(1)).await.expect("an answer"));
    let writer = tokio::spawn(async move { store.put(key("a"), value("after")).await });
    until_one_waits(&hand).await;
    backup.pin().await.expect("a snapshot");
    let at = backup.mark("marker").await.expect("a marker");
    assert!(at.contains('/'), "{at} is a place in the log");
    assert!(!writer.is_finished());
    backup.release().await.expect("writers go on");
    writer.await.expect("a task").expect("it was not refused");
    let pinned = backup.contents("a").await.expect("contents");
    assert_eq!((pinned.rows, pinned.asked.as_deref()), (1, Some("before")));
    let options = PostgresOptions::new(&url);
    let now = PostgresBackup::contents_of(options, "a", &Runtime::system()).await;
    let now = now.expect("contents");
    assert_eq!((now.rows, now.asked.as_deref()), (1, Some("after")));
    assert_ne!(now.sha256, pinned.sha256);
}

/// The marker comes after what is under way, and the lock is asked for so long and no longer.
#[tokio::test]
async fn a_writer_that_stays_is_not_waited_for_without_end() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let hand = session(&url).await;
    let backup = opened(&url).await;
    hand.batch_execute("BEGIN; INSERT INTO records (key, value) VALUES ('x', '1')")
        .await
        .expect("a row");
    assert!(!backup.hold(Duration::from_millis(100)).await.expect("an answer"));
    backup.release().await.expect("nothing is held");
    store.put(key("a"), value("1")).await.expect("others write");
    hand.batch_execute("COMMIT").await.expect("it ends");
    assert!(backup.hold(Duration::from_secs(1)).await.expect("an answer"));
    backup.pin().await.expect("a snapshot");
    backup.release().await.expect("writers go on");
    assert_eq!(backup.contents("x").await.expect("contents").rows, 2);
}

/// A try that came to nothing after it had pinned; the next one's marker is later than that.
#[tokio::test]
async fn what_is_pinned_again_is_what_is_read() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let backup = opened(&url).await;
    backup.pin().await.expect("a snapshot");
    store.put(key("a"), value("between")).await.expect("a put");
    backup.pin().await.expect("another one");
    let contents = backup.contents("a").await.expect("contents");
    assert_eq!(contents.asked.as_deref(), Some("between"));
}

/// Beside it writers cannot be held, and it lasts for longer than anybody tries.
#[tokio::test]
async fn who_maintains_the_records_is_named() {
    let url = testing::fresh_database();
    let _store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let hand = session(&url).await;
    let backup = opened(&url).await;
    assert_eq!(backup.maintenance().await.expect("an answer"), None);
    let pid: i32 = hand.query_one("SELECT pg_backend_pid()", &[]).await.expect("a row").get(0);
    for (work, name) in [
        ("ANALYZE records", "ANALYZE"),
        ("LOCK TABLE records IN SHARE UPDATE EXCLUSIVE MODE", "maintenance"),
    ] {
        hand.batch_execute(&format!("BEGIN; {work}")).await.expect("it goes on");
        let found = backup.maintenance().await.expect("an answer");
        assert_eq!(found, Some(format!("{name} of records by pid {pid}")));
        assert!(!backup.hold(Duration::from_millis(100)).await.expect("an answer"));
        backup.release().await.expect("nothing is held");
        hand.batch_execute("COMMIT").await.expect("it ends");
    }
    assert_eq!(backup.maintenance().await.expect("an answer"), None);
}

#[tokio::test]
async fn the_log_is_kept_for_as_long_as_the_backup_is_there() {
    const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND restart_lsn IS NOT NULL";
    let url = testing::fresh_database();
    let _store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let hand = session(&url).await;
    let slot = format!("terrace_{}", url.rsplit_once('/').expect("a path").1);
    let backup = opened(&url).await;
    backup.keep_log(&slot).await.expect("a slot");
    assert_eq!(hand.query_one(SLOTS, &[&slot]).await.expect("slots").get::<_, i64>(0), 1);
    drop(backup);
    let end = within(Duration::from_secs(30));
    while hand.query_one(SLOTS, &[&slot]).await.expect("slots").get::<_, i64>(0) > 0 {
        assert!(!end.passed(Runtime::system().now()), "the slot stays");
        tokio::task::yield_now().await;
    }
}

/// Files are copied for hours, and nobody asks anything meanwhile.
#[tokio::test]
async fn a_server_that_ends_idle_sessions_lets_a_backup_be() {
    const ENDED: &str = "SELECT count(*) = 0 FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = 'bystander'";
    let url = testing::fresh_database();
    let _store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let hand = session(&url).await;
    let database = url.rsplit_once('/').expect("a path").1;
    let set = format!("ALTER DATABASE {database} SET idle_session_timeout = '500ms'");
    hand.batch_execute(&set).await.expect("a setting");
    let backup = opened(&url).await;
    let bystander = session(&url).await;
    bystander.batch_execute("SET application_name = 'bystander'").await.expect("a name");
    let end = within(Duration::from_secs(30));
    while !hand.query_one(ENDED, &[]).await.expect("sessions").get::<_, bool>(0) {
        assert!(!end.passed(Runtime::system().now()), "the bystander stays");
        tokio::task::yield_now().await;
    }
    assert!(backup.hold(Duration::from_secs(1)).await.expect("an answer"), "it was idle longer");
    backup.pin().await.expect("a snapshot");
    backup.release().await.expect("writers go on");
    backup.keep_log(&format!("idle_{database}")).await.expect("a slot");
}

#[tokio::test]
async fn a_user_without_the_rights_is_told_which() {
    let url = testing::fresh_database();
    let _store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let hand = session(&url).await;
    let DatabaseRole { name: role, url } = role(&hand, &url, "backups").await;
    let refused = PostgresBackup::open(PostgresOptions::new(&url), &Runtime::system()).await;
    let refused = refused.expect_err("it lacks rights");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    let wanted = format!("ALTER ROLE {role} REPLICATION; GRANT EXECUTE ON FUNCTION");
    assert!(refused.message().contains(&wanted), "{}", refused.message());
    let grant = format!(
        "ALTER ROLE {role} REPLICATION; \
         GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), pg_control_system() TO {role}; \
         GRANT SELECT, UPDATE ON records, terrace_history TO {role}"
    );
    hand.batch_execute(&grant).await.expect("grants");
    let backup = opened(&url).await;
    assert!(backup.hold(Duration::from_secs(1)).await.expect("an answer"));
    backup.mark("marker").await.expect("a marker");
    backup.keep_log(&format!("terrace_of_{role}")).await.expect("a slot");
}
