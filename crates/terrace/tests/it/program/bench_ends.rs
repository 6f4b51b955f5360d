//! How a bench ends that cannot go on: before it begins, at a signal, without its server.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use super::bench::SHORT;
use super::{Program, Stores, send, terrace};

/// `terrace bench` by a shell that says first how many files it may open.
async fn limited(limit: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = terrace(&[]).as_std().get_program().to_owned();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]).arg(program);
    command.arg("bench").args(arguments).args(SHORT).current_dir(folder.path());
    let output = command.output().await.expect("it runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

#[tokio::test]
async fn fewer_open_files_than_connections_need_are_refused_before_the_run() {
    let (exit, error) = limited("-n 150", &["1", "--connections", "300"]).await;
    assert_eq!(exit, Some(2), "{error}");
    for part in ["300 connections", "150", "ulimit -n"] {
        assert!(error.contains(part), "{error:?} should say {part:?}");
    }
    assert!(!error.contains("loaded"), "{error}");
    // The soft limit is raised, for the level that is measured, too.
    let (exit, error) = limited("-Sn 150", &["1", "--connections", "300", "--repeat", "1"]).await;
    assert_eq!(exit, Some(0), "{error}");
    assert!(!error.contains("failed"), "{error}");
    let (exit, error) =
        limited("-n 15000", &["--url", "http://h:1", "--connections", "99000"]).await;
    assert!(exit == Some(2) && error.contains("99000 connections"), "{error}");
}

/// A bench of this server that has loaded its keys.
async fn loaded(
    server: &Program,
    folder: &Path,
    arguments: &[&str],
) -> (Child, Lines<BufReader<ChildStderr>>) {
    let mut command = terrace(&["bench", "--keys", "300", "--url", server.url()]);
    command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    while let Some(line) = lines.next_line().await.expect("text") {
        if line.contains("loaded") {
            break;
        }
    }
    (child, lines)
}

#[tokio::test]
async fn a_bench_whose_server_died_fails() {
    let arguments = ["--duration", "500ms", "--warmup", "1s", "--repeat", "1"];
    let folder = tempfile::tempdir().expect("a folder");
    let server = Program::serve(1, &Stores::Embedded(folder.path())).await;
    let (mut child, lines) = loaded(&server, folder.path(), &arguments).await;
    server.kill().await;
    assert_eq!(child.wait().await.expect("it ends").code(), Some(1));
    let mut error = String::new();
    lines.into_inner().read_to_string(&mut error).await.expect("text");
    assert!(error.contains("error:") && error.contains("cannot be reached"), "{error}");
}

/// Thousands of connections keep the generator busy; it hears all the same.
#[tokio::test]
async fn a_bench_ends_at_the_first_signal() {
    let arguments = ["--duration", "600s", "--warmup", "0s", "--connections", "8000"];
    let folder = tempfile::tempdir().expect("a folder");
    let server = Program::serve(1, &Stores::Embedded(folder.path())).await;
    let (mut child, _lines) = loaded(&server, folder.path(), &arguments).await;
    // It is connecting, or at work.
    while server.open_files() < 4000 {
        tokio::task::yield_now().await;
    }
    send("TERM", child.id().expect("it runs"));
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
    assert!(ended.is_ok(), "it runs on");
    assert!(server.terminate().await.success());
}
