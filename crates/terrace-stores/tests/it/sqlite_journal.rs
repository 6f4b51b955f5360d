//! The journal in SQLite: the contract, and what a crash leaves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests")]

use std::path::Path;
use std::sync::Arc;

use terrace_core::testkit::journal_contract::{LIMITS, TAKEOVER, claim_all, request};
use terrace_core::testkit::{JournalFixture, key, value};
use terrace_core::{Append, Durability, ErrorKind, Journal, Runtime, Sequence, Settled, Write};
use terrace_stores::{SqliteJournal, SqliteJournalOptions};

fn open(path: &Path) -> SqliteJournal {
    let options = SqliteJournalOptions {
        limits: LIMITS,
        takeover: TAKEOVER,
        busy_timeout: std::time::Duration::from_secs(60),
        ..SqliteJournalOptions::new(path)
    };
    SqliteJournal::open(options, Runtime::system()).expect("a journal")
}

async fn fresh() -> JournalFixture {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(&directory.path().join("journal.sqlite"));
    JournalFixture::guarded(Arc::new(journal), directory)
}

terrace_core::journal_contract!(fresh);

fn put(name: &str) -> Append {
    request(vec![Write::put(key(name), value("1"))])
}

/// A second process finds all that is not settled, claimed or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_settled_outlives_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.sqlite");
    let journal = open(&path);
    let appended = journal.append(vec![put("a"), put("b")]).await.expect("an append");
    assert_eq!(appended.durability, Durability::Journaled);
    journal.append(vec![put("c")]).await.expect("an append");
    let claimed = claim_all(&journal).await;
    journal.settle(vec![Settled::of(&claimed[0])]).await.expect("a settlement");
    let before = journal.progress().await.expect("progress");
    // Not closed: as if the process had died. The file has no claims in it.
    let next = open(&path);
    let after = next.progress().await.expect("progress");
    assert_eq!(after, terrace_core::Progress { age: after.age, ..before });
    assert!(after.age >= before.age);
    let again = claim_all(&next).await;
    assert_eq!(again.len(), claimed.len() - 1);
    assert_eq!(again[0].first, claimed[1].first);
    let appended = next.append(vec![put("d")]).await.expect("an append");
    assert_eq!(appended.previous, before.last);
    drop(journal);
}

/// What another process puts into the file is claimed, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_of_another_process_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.sqlite");
    let (one, two) = (open(&path), open(&path));
    one.append(vec![put("a")]).await.expect("an append");
    assert_eq!(claim_all(&two).await.len(), 1);
    let peeked = one.peek(Sequence::NONE, 10).await.expect("a peek");
    assert_eq!(peeked.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_programs_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.sqlite");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(other);
    let refused = SqliteJournal::open(SqliteJournalOptions::new(&path), Runtime::system());
    assert_eq!(refused.expect_err("not ours").kind(), ErrorKind::InvalidInput);
}

/// A file that is put in the place of the open one has nothing of what would be accepted into that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_accepted_into_a_file_that_was_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.sqlite");
    let journal = open(&path);
    journal.append(vec![put("a")]).await.expect("an append");
    let backup = directory.path().join("backup.sqlite");
    std::fs::copy(&path, &backup).unwrap();
    std::fs::rename(&backup, &path).unwrap();
    let refused = journal.append(vec![put("b")]).await.expect_err("the file is another");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("put it back"), "{refused}");
    assert_eq!(journal.inspect().await.status, terrace_core::Status::Down);
}

/// A backup has not all that was accepted, so what tokens of it say is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_put_in_place_begins_a_life() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.sqlite");
    let journal = open(&path);
    let first = journal.append(vec![put("a")]).await.expect("an append");
    journal.close().await.expect("an end");
    let backup = directory.path().join("backup.sqlite");
    std::fs::copy(&path, &backup).unwrap();
    let same = open(&path);
    assert_eq!(same.append(vec![put("b")]).await.expect("an append").epoch, first.epoch);
    same.close().await.expect("an end");
    std::fs::rename(&backup, &path).unwrap();
    let restored = open(&path);
    let progress = restored.progress().await.expect("progress");
    assert!(progress.epoch > first.epoch && progress.writes == 1, "{progress:?}");
    assert_eq!(restored.end_of(first.epoch).await.expect("an answer"), None);
}
