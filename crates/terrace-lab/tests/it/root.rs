//! As root, servers run under an unprivileged account. Without root there is nothing to see.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use terrace_lab::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};

use crate::client::sql;

fn is_root(directory: &tempfile::TempDir) -> bool {
    directory.path().metadata().expect("a directory").uid() == 0
}

#[tokio::test]
async fn servers_do_not_run_as_root() {
    let directory = tempfile::tempdir().expect("a directory");
    if !is_root(&directory) {
        return;
    }
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("a reachable one");
    let options = RedisOptions::new(directory.path().join("redis"));
    let server = RedisServer::start(options).await.expect("a server");
    let process = format!("/proc/{}", server.pid().expect("a process"));
    if let Ok(process) = fs::metadata(process) {
        assert_ne!(process.uid(), 0);
        assert_eq!(process.uid(), server.directory().metadata().expect("its home").uid());
    }
}

#[tokio::test]
async fn a_directory_out_of_reach_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    if !is_root(&directory) {
        return;
    }
    // As /root: nobody else may enter.
    fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).expect("a closed one");
    let asked = directory.path().join("postgres");
    let options = PostgresOptions { temporary: true, ..PostgresOptions::new(&asked) };
    let server = PostgresServer::start(options).await.expect("a server");
    assert!(server.directory().starts_with("/var/lib/terrace-lab"));
    assert!(!asked.exists());
    assert_eq!(sql(&server.url(), "select 1").as_deref(), Ok("1"));
    let moved = server.directory().to_owned();
    drop(server);
    assert_eq!(fs::read_dir(&moved).map_or(0, Iterator::count), 0, "nothing is left");
    let _gone_already = fs::remove_dir(moved);
}
