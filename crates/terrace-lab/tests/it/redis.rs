//! One private Redis: its life, its persistence, its refusals.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use terrace_lab::{LabErrorKind, Persistence, RedisOptions, RedisServer};

use crate::client::{parts, processes, redis, talk};

async fn start(directory: &tempfile::TempDir, persistence: Persistence) -> RedisServer {
    let options = RedisOptions { persistence, ..RedisOptions::new(directory.path().join("a b")) };
    RedisServer::start(options).await.expect("a server")
}

#[tokio::test]
async fn without_persistence_a_restart_begins_empty() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = start(&directory, Persistence::None).await;
    let url = server.url();
    redis(&url, "SET k v");
    assert_eq!(redis(&url, "EXISTS k"), ":1\r\n");
    server.restart().await.expect("a restart");
    assert_eq!(server.url(), url);
    assert_eq!(redis(&url, "EXISTS k"), ":0\r\n");
}

#[tokio::test]
async fn a_log_every_second_survives_a_stop() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = start(&directory, Persistence::AofEverySecond).await;
    redis(&server.url(), "SET k v");
    server.stop().await.expect("a stop");
    assert!(!server.is_running());
    drop(server);
    let server = start(&directory, Persistence::AofEverySecond).await;
    assert_eq!(redis(&server.url(), "GET k"), "$1\r\nv\r\n");
}

#[tokio::test]
async fn a_log_always_survives_a_crash() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = start(&directory, Persistence::AofAlways).await;
    redis(&server.url(), "SET k v");
    server.kill();
    assert_eq!(server.pid(), None);
    server.restart().await.expect("a restart");
    assert_eq!(redis(&server.url(), "GET k"), "$1\r\nv\r\n");
}

#[tokio::test]
async fn the_password_is_needed_and_private() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = start(&directory, Persistence::None).await;
    let (password, address) = parts(&server.url());
    assert!(talk(&address, "PING\r\nQUIT\r\n").starts_with("-NOAUTH"));
    for file in ["password", "redis.conf"] {
        let mode = fs::metadata(server.directory().join(file)).expect(file).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert!(!format!("{server:?}").contains(&password));
    assert!(!processes().iter().any(|(_, _, _, command)| command.contains(&password)));
}

#[tokio::test]
async fn settings_reach_the_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = RedisOptions {
        settings: vec![("maxmemory".into(), "64mb".into())],
        ..RedisOptions::new(directory.path())
    };
    let server = RedisServer::start(options.clone()).await.expect("a server");
    assert!(redis(&server.url(), "CONFIG GET maxmemory").contains("67108864"));

    let error = RedisServer::start(options).await.expect_err("a second starter");
    assert_eq!(error.kind(), LabErrorKind::DirectoryInUse);
    server.pause();
    server.resume();
    assert_eq!(redis(&server.url(), "PING"), "+PONG\r\n");
}

#[tokio::test]
async fn a_bad_setting_shows_the_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = RedisOptions {
        settings: vec![("no-such-setting".into(), "1".into())],
        ..RedisOptions::new(directory.path())
    };
    let error = RedisServer::start(options).await.expect_err("a refusal");
    assert_eq!(error.kind(), LabErrorKind::StartFailed);
    assert!(error.to_string().contains("no-such-setting"), "{error}");
}
