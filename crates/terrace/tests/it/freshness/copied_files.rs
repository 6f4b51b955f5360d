//! A copy of the files of the embedded mode, made while nobody served them.

use std::path::Path;

use terrace_core::Runtime;
use terrace_prove::{Client, History};

use super::until;
use crate::program::{Program, Stores};

async fn serve(name: &str, level: u8, files: &Path, history: &History) -> (Program, Client) {
    let environment = [("TERRACE_LOG_LEVEL", "error")];
    let program = Program::serve_with(level, &Stores::Embedded(files), &[], &environment).await;
    let client = Client::new(name, program.url(), history);
    (program, client)
}

/// What the original was told after the copy was made is lost to the copy, whatever answers there.
async fn tokens_of_the_original_are_refused(level: u8) {
    let directory = tempfile::tempdir().expect("a directory");
    let (files, copied) = (directory.path().join("files"), directory.path().join("copied"));
    let history = History::start(Runtime::system());
    let (program, client) = serve("original", level, &files, &history).await;
    assert!(client.write("k", "old").wait().send().await.is_acknowledged());
    until("it is everywhere", async || client.read("k").send().await.found.is_some()).await;
    assert!(program.terminate().await.success());
    let copy = std::process::Command::new("cp").arg("-a").args([&files, &copied]).status();
    assert!(copy.expect("cp").success());
    let (original, client) = serve("original", level, &files, &history).await;
    let new = client.write("k", "new").wait().send().await;
    assert!(new.is_acknowledged(), "{new}");
    let (copy, client) = serve("copy", level, &copied, &history).await;
    let far = |origin: Option<&str>| origin.is_some_and(|it| it != "primary");
    if level == 3 {
        let what = "a replica of the copy answers";
        until(what, async || {
            // A key that is not in the cache.
            let key = format!("other {}", history.operations().len());
            far(client.read(&key).send().await.origin.as_deref())
        })
        .await;
    }
    for _ in 0..3 {
        let read = client.read("k").after(&new).send().await;
        assert_eq!(read.status, 503, "a token of what the copy never had: {read}");
        let read = client.read("k").send().await;
        assert_eq!(read.found.as_deref(), Some("old"), "{read}");
    }
    assert!(original.terminate().await.success() && copy.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_the_original_are_refused_at_level_3() {
    tokens_of_the_original_are_refused(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_the_original_are_refused_at_level_5() {
    tokens_of_the_original_are_refused(5).await;
}

/// The same backup is put in place twice: the second time nothing tells of what was done since the first.
async fn a_backup_put_in_place_twice(level: u8) {
    let directory = tempfile::tempdir().expect("a directory");
    let (files, backup) = (directory.path().join("files"), directory.path().join("backup"));
    let history = History::start(Runtime::system());
    let (program, client) = serve("first", level, &files, &history).await;
    assert!(client.write("k", "kept").wait().send().await.is_acknowledged());
    assert!(program.terminate().await.success());
    std::fs::rename(&files, &backup).expect("a backup");
    let mut lost = Vec::new();
    for life in ["second", "third"] {
        let _there_is_none_at_first = std::fs::remove_dir_all(&files);
        let copy = std::process::Command::new("cp").arg("-a").args([&backup, &files]).status();
        assert!(copy.expect("cp").success());
        let (program, client) = serve(life, level, &files, &history).await;
        until("it shows the backup", async || {
            client.read("k").send().await.found.as_deref() == Some("kept")
        })
        .await;
        for token in &lost {
            let read = client.read("k").after(token).send().await;
            assert_eq!(read.status, 503, "a token of what is lost was satisfied: {read}");
        }
        let write = client.write("k", life).wait().send().await;
        assert!(write.is_acknowledged(), "{write}");
        lost.push(write);
        assert!(program.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_put_in_place_twice_at_level_1() {
    a_backup_put_in_place_twice(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_put_in_place_twice_at_level_3() {
    a_backup_put_in_place_twice(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_put_in_place_twice_at_level_7() {
    a_backup_put_in_place_twice(7).await;
}
