//! A copy of a file at a moment that is chosen, while it is written.

use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{ErrorKind, Runtime, StoreExt};
use terrace_stores::SqliteBackup;

use super::Database;

#[tokio::test]
async fn a_copy_is_of_the_moment_in_which_writers_were_held() {
    let (database, runtime) = (Database::new(), Runtime::system());
    let store = database.open();
    store.put(key("a"), value("before")).await.unwrap();
    let backup = SqliteBackup::open(&database.path()).unwrap();
    assert!(backup.hold(Duration::from_secs(10), &runtime).await.unwrap());
    let hand = database.by_hand();
    hand.busy_timeout(Duration::ZERO).unwrap();
    hand.execute_batch("BEGIN IMMEDIATE").unwrap_err();
    let writing = std::sync::Arc::clone(&store);
    #[expect(clippy::disallowed_methods, reason = "a test owns its tasks by their handles")]
    let writer = tokio::spawn(async move { writing.put(key("a"), value("after")).await });
    backup.pin().unwrap();
    assert!(!writer.is_finished());
    backup.release().unwrap();
    writer.await.unwrap().unwrap();
    // What was written meanwhile is no part of it, though it is there when the copy is made.
    let copy = database.directory.path().join("copy.sqlite");
    let contents = backup.copy(&copy, "a").unwrap();
    assert_eq!((contents.rows, contents.asked.as_deref()), (1, Some("before")));
    assert_eq!(SqliteBackup::contents_of(&copy, "a").unwrap(), contents);
    let now = SqliteBackup::contents_of(&database.path(), "a").unwrap();
    assert_eq!(now.asked.as_deref(), Some("after"));
    assert_ne!(now.sha256, contents.sha256);
}

#[tokio::test]
async fn a_writer_that_stays_is_not_waited_for_without_end() {
    let (database, runtime) = (Database::new(), Runtime::system());
    let store = database.open();
    store.put(key("a"), value("1")).await.unwrap();
    let backup = SqliteBackup::open(&database.path()).unwrap();
    let hand = database.by_hand();
    hand.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(!backup.hold(Duration::from_millis(20), &runtime).await.unwrap());
    backup.release().unwrap();
    hand.execute_batch("ROLLBACK").unwrap();
    assert!(backup.hold(Duration::from_secs(10), &runtime).await.unwrap());
    backup.release().unwrap();
    store.put(key("a"), value("2")).await.unwrap();
}

#[test]
fn a_file_that_is_not_there_is_not_made() {
    let database = Database::new();
    let refused = SqliteBackup::open(&database.path()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert!(!database.path().exists());
}
