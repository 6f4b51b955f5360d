//! A journal that has lost its newest writes and nothing else: their tokens are lost, those of what it
//! still has are not.

use terrace_lab::{FaultProxy, Persistence, RedisOptions, RedisServer};

use super::engines::redis;
use super::field::Field;
use super::replaced_memory::{password, spare, takes_over};
use super::{SLACK, WATCH, pause, until};

#[derive(Clone, Copy, Debug)]
enum Lost {
    /// Its Redis becomes a replica of a copy, and a primary again.
    FailedBack,
    /// A replica that was behind takes its place, under the same address.
    FailedOver,
    /// It is killed and starts with an older file.
    OldFile,
}

async fn tokens_of(how: Lost) {
    let field = Field::new(6).await;
    let directory = tempfile::tempdir().expect("a directory");
    let persistence = Persistence::AofAlways;
    let home = directory.path().join("journal");
    let options = RedisOptions { persistence, ..RedisOptions::new(home) };
    let journal = RedisServer::start(options).await.expect("Redis starts");
    let copy = spare(directory.path()).await;
    let proxy = FaultProxy::to_port(journal.port()).await.expect("a proxy");
    let url = proxy.url(&journal.url());
    let apart = [("JOURNAL_URL", url.as_str()), ("TERRACE_JOURNAL_FLUSHER", "apart")];
    let a = field.instance_with("a", &field.database, &apart).await;
    let b = field.instance_with("b", &field.database, &apart).await;
    let kept = a.writes("kept", "waits").await;
    let saved = directory.path().join("saved");
    match how {
        Lost::FailedBack | Lost::FailedOver => takes_over(&copy, &journal).await,
        Lost::OldFile => copied(journal.directory(), &saved),
    }
    let lost = a.writes("lost", "lost").await;
    match how {
        Lost::FailedBack => takes_over(&journal, &copy).await,
        Lost::FailedOver => {
            redis(&copy, "CONFIG SET appendonly yes\r\nCONFIG SET appendfsync always").await;
            redis(&copy, &format!("CONFIG SET requirepass {}", password(&journal))).await;
            proxy.retarget(([127, 0, 0, 1], copy.port()).into());
            journal.kill();
        }
        Lost::OldFile => {
            journal.kill();
            std::fs::remove_dir_all(journal.directory()).expect("removed");
            copied(&saved, journal.directory());
            journal.restart().await.expect("Redis starts again");
        }
    }
    // Later sequences than those that were lost.
    for name in ["one", "two"] {
        until("it takes writes", async || a.client.write(name, "x").send().await.is_acknowledged())
            .await;
    }
    // A server that goes on running is looked at twice a second.
    pause(WATCH + SLACK).await;
    for instance in [&a, &b] {
        let read = instance.client.read("lost").after(&lost).send().await;
        assert_eq!(read.status, 503, "{how:?}: {read}");
    }
    // What it still has is applied, and its token good, where it is known how far that goes.
    let inside = [("JOURNAL_URL", url.as_str())];
    let c = field.instance_with("c", &field.database, &inside).await;
    for instance in [&a, &b, &c] {
        let reads = async || {
            let read = instance.client.read("kept").after(&kept).send().await;
            let unknown = matches!(how, Lost::FailedBack) && read.status == 503;
            read.found.as_deref() == Some("waits") || unknown
        };
        until("what was kept is read", reads).await;
    }
}

fn copied(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.expect("cp runs").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_journal_that_failed_back() {
    tokens_of(Lost::FailedBack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_journal_whose_replica_took_over() {
    tokens_of(Lost::FailedOver).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_journal_with_an_older_file() {
    tokens_of(Lost::OldFile).await;
}
