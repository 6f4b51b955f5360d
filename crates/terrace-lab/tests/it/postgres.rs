//! One private PostgreSQL: its life, its settings, its refusals.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;
use std::{fs, io::Read, io::Write};

use terrace_lab::{LabErrorKind, PostgresOptions, PostgresServer};

use crate::client::{parts, processes, sql};

/// A server whose data nobody reads again: it starts and ends faster.
async fn start(directory: &tempfile::TempDir) -> PostgresServer {
    let options = PostgresOptions { temporary: true, ..PostgresOptions::new(directory.path()) };
    PostgresServer::start(options).await.expect("a server")
}

#[tokio::test]
async fn data_port_and_password_stay() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = PostgresOptions::new(directory.path().join("pg"));
    let server = PostgresServer::start(options.clone()).await.expect("a server");
    let url = server.create_database("terrace_l1").await.expect("a database");
    assert_eq!(server.create_database("terrace_l1").await.expect("the same"), url);
    sql(&url, "create table t (n int); insert into t values (7)").expect("a table");

    let first = server.pid().expect("a process");
    server.restart().await.expect("a restart");
    assert_ne!(server.pid().expect("a process"), first);
    assert_eq!(sql(&url, "select n from t").as_deref(), Ok("7"));

    server.stop().await.expect("a stop");
    assert!(!server.is_running());
    assert_eq!(server.pid(), None);
    let again = PostgresServer::start(options).await.expect("a second server");
    assert_eq!(again.database_url("terrace_l1"), url);
    assert_eq!(sql(&url, "select n from t").as_deref(), Ok("7"));
}

#[tokio::test]
async fn a_crash_loses_nothing_committed() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = start(&directory).await;
    sql(&server.url(), "create table t (n int); insert into t values (1)").expect("a table");
    let postmaster = server.pid().expect("a process");
    let children = children_of(postmaster);
    assert!(!children.is_empty());

    server.kill();
    let left = processes();
    assert!(!left.iter().any(|(pid, _, state, _)| {
        *state != 'Z' && (*pid == postmaster || children.contains(pid))
    }));
    assert!(server.directory().join("data/postmaster.pid").exists(), "a crash leaves its pid file");
    server.restart().await.expect("recovery");
    assert_eq!(sql(&server.url(), "select n from t").as_deref(), Ok("1"));
}

#[tokio::test]
async fn settings_are_durable_and_the_callers_come_last() {
    let directory = tempfile::tempdir().expect("a directory");
    let value = r"it's a \ path";
    let server = PostgresServer::start(PostgresOptions {
        settings: vec![("terrace.note".into(), value.into())],
        temporary: true,
        ..PostgresOptions::new(directory.path())
    })
    .await
    .expect("a server");
    for (name, expected) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("server_encoding", "UTF8"),
        ("lc_collate", "C"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("terrace.note", value),
    ] {
        let shown = sql(&server.url(), &format!("show {name}"));
        assert_eq!(shown.as_deref(), Ok(expected), "{name}");
    }
}

#[tokio::test]
async fn the_password_is_needed_and_private() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = start(&directory).await;
    let (password, _) = parts(&server.url());
    let wrong = sql(&server.url().replace(&password, "guess"), "select 1").expect_err("a refusal");
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    let mode = fs::metadata(server.directory().join("password")).expect("a file").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    assert!(!format!("{server:?}").contains(&password));
    assert!(!processes().iter().any(|(_, _, _, command)| command.contains(&password)));
}

#[tokio::test]
async fn a_paused_server_keeps_connections_and_answers_later() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = start(&directory).await;
    server.pause();
    let postmaster = server.pid().expect("a process");
    // A child that has ended stays a zombie as long as the postmaster cannot reap it.
    let moving = processes().into_iter().find(|(pid, parent, state, _)| {
        (*pid == postmaster || *parent == postmaster) && !matches!(state, 'T' | 'Z')
    });
    assert_eq!(moving, None);

    // A request for TLS, which PostgreSQL answers with one byte.
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).expect("the kernel");
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a bound");
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).expect("a request");
    let mut answer = [0];
    let silence = stream.read_exact(&mut answer).expect_err("silence").kind();
    assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");

    server.resume();
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a bound");
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"N");
    server.pause();
    server.stop().await.expect("a paused server can be stopped");
    assert!(!server.is_running());
}

#[tokio::test]
async fn ctrl_c_in_a_terminal_does_not_reach_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = start(&directory).await;
    let pid = server.pid().expect("a process").to_string();
    let group = Command::new("ps").args(["-o", "pgid=", "-p", &pid]).output().expect("ps").stdout;
    assert_eq!(String::from_utf8_lossy(&group).trim(), pid, "it leads a group of its own");
}

#[tokio::test]
async fn restarts_at_once_take_turns() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = start(&directory).await;
    let (one, two) = tokio::join!(server.restart(), server.restart());
    one.expect("a restart");
    two.expect("a restart");
    assert_eq!(sql(&server.url(), "select 1").as_deref(), Ok("1"));
}

#[tokio::test]
async fn a_second_starter_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = PostgresOptions::new(directory.path());
    let server = PostgresServer::start(options.clone()).await.expect("a server");
    let error = PostgresServer::start(options).await.expect_err("a refusal");
    assert_eq!(error.kind(), LabErrorKind::DirectoryInUse);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert_eq!(sql(&server.url(), "select 1").as_deref(), Ok("1"));
}

#[tokio::test]
async fn a_taken_port_is_refused_or_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = PostgresOptions::new(directory.path());
    let server = PostgresServer::start(options.clone()).await.expect("a server");
    let port = server.port();
    server.stop().await.expect("a stop");

    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port");
    let asked = PostgresOptions { port: Some(port), ..options.clone() };
    let error = PostgresServer::start(asked).await.expect_err("a refusal");
    assert_eq!(error.kind(), LabErrorKind::PortTaken);
    assert!(error.to_string().contains(&port.to_string()), "{error}");
    let error = server.restart().await.expect_err("its URL must stay true");
    assert_eq!(error.kind(), LabErrorKind::PortTaken);

    let moved = PostgresServer::start(options).await.expect("another port");
    assert_ne!(moved.port(), port);
    assert_eq!(sql(&moved.url(), "select 1").as_deref(), Ok("1"));
    drop(other);
}

#[tokio::test]
async fn a_bad_setting_shows_the_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = PostgresOptions {
        settings: vec![("no_such_setting".into(), "1".into())],
        ..PostgresOptions::new(directory.path())
    };
    let error = PostgresServer::start(options).await.expect_err("a refusal");
    assert_eq!(error.kind(), LabErrorKind::StartFailed);
    assert!(error.to_string().contains(r#"parameter "no_such_setting""#), "{error}");
    // Nothing of the failure stays in the way.
    let options = PostgresOptions::new(directory.path());
    PostgresServer::start(options).await.expect("a server without it");
}

#[tokio::test]
async fn data_of_another_version_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("data")).expect("a folder");
    fs::write(directory.path().join("data/PG_VERSION"), "9\n").expect("a file");
    let error = PostgresServer::start(PostgresOptions::new(directory.path())).await;
    let error = error.expect_err("a refusal");
    assert_eq!(error.kind(), LabErrorKind::VersionMismatch);
    let text = error.to_string();
    assert!(text.contains("data of PostgreSQL 9, this machine has PostgreSQL 1"), "{text}");
    assert!(text.contains("next: install PostgreSQL 9, or remove"), "{text}");
}

#[tokio::test]
async fn an_interrupted_first_start_is_made_good() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(directory.path().join("data.draft/base")).expect("a half made directory");
    let server = start(&directory).await;
    assert_eq!(sql(&server.url(), "select 1").as_deref(), Ok("1"));
}

fn children_of(parent: u32) -> Vec<u32> {
    processes().into_iter().filter(|one| one.1 == parent).map(|one| one.0).collect()
}
