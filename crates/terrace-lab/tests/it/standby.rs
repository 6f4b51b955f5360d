//! Streaming standbys: they follow, survive, and take over.

use terrace_lab::{LabErrorKind, PostgresOptions, PostgresServer};

use crate::client::{eventually, sql};

async fn primary(directory: &tempfile::TempDir) -> PostgresServer {
    let place = directory.path().join("primary");
    let server = PostgresServer::start(options(place)).await.expect("a server");
    sql(&server.url(), "create table t (n int)").expect("a table");
    server
}

fn options(place: std::path::PathBuf) -> PostgresOptions {
    PostgresOptions { temporary: true, ..PostgresOptions::new(place) }
}

fn holds(server: &PostgresServer, rows: usize) {
    let url = server.url();
    let asked = move || sql(&url, "select count(*) from t");
    eventually("the standby has the rows", || asked() == Ok(rows.to_string()));
}

#[tokio::test]
async fn a_standby_follows_and_catches_up_after_a_crash() {
    let directory = tempfile::tempdir().expect("a directory");
    let primary = primary(&directory).await;
    let place = directory.path().join("standby");
    let standby = primary.start_standby("one", options(place)).await.expect("a standby");
    assert_ne!(standby.port(), primary.port());
    sql(&primary.url(), "insert into t values (1)").expect("a row");
    holds(&standby, 1);
    let refused = sql(&standby.url(), "insert into t values (2)").expect_err("a write");
    assert!(refused.contains("read-only"), "{refused}");

    standby.kill();
    sql(&primary.url(), "insert into t values (2); select pg_switch_wal()").expect("a row");
    standby.restart().await.expect("a restart");
    holds(&standby, 2);
    let slots = "select count(*) from pg_replication_slots where active";
    assert_eq!(sql(&primary.url(), slots).as_deref(), Ok("1"), "its log is kept");
}

#[tokio::test]
async fn a_promoted_standby_takes_over_and_is_followed() {
    let directory = tempfile::tempdir().expect("a directory");
    let primary = primary(&directory).await;
    let place = |name: &str| options(directory.path().join(name));
    let one = primary.start_standby("one", place("one")).await.expect("a standby");
    let two = primary.start_standby("two", place("two")).await.expect("a standby");
    sql(&primary.url(), "insert into t values (1)").expect("a row");
    holds(&one, 1);
    holds(&two, 1);
    primary.kill();
    one.promote().await.expect("a promotion");
    sql(&one.url(), "insert into t values (2)").expect("it takes writes");
    two.follow("two", &one).await.expect("a new primary");
    holds(&two, 2);
    // It stays what it has become.
    one.restart().await.expect("a restart");
    sql(&one.url(), "insert into t values (3)").expect("it takes writes");
}

#[tokio::test]
async fn data_of_another_primary_are_replaced_and_those_of_none_are_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let keep = |name: &str| PostgresOptions::new(directory.path().join(name));
    let first = primary(&directory).await;
    let standby = first.start_standby("one", keep("standby")).await.expect("a standby");
    standby.stop().await.expect("a stop");
    drop((standby, first));
    let second = directory.path().join("second");
    let second = PostgresServer::start(options(second)).await.expect("a server");
    let standby = second.start_standby("one", keep("standby")).await.expect("a standby");
    assert!(sql(&standby.url(), "select * from t").is_err(), "it was made anew");

    standby.promote().await.expect("a promotion");
    standby.stop().await.expect("a stop");
    drop(standby);
    let error = second.start_standby("one", keep("standby")).await.expect_err("it was promoted");
    assert_eq!(error.kind(), LabErrorKind::InvalidOption, "{error}");
}
