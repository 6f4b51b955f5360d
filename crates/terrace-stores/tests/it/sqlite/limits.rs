//! Full queues, full disks, passed deadlines, closed stores.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{
    Deadline, ErrorKind, Runtime, Status, Store, StoreExt, Value, Write, WriteOptions,
};
use terrace_stores::sqlite::{Connections, SqliteOptions, SqliteStore};

use super::{Database, Hands, background, inspected, occupied, waiting};

fn within(time: Duration) -> WriteOptions {
    let deadline = Deadline::at(Runtime::system().now() + time);
    WriteOptions { deadline, ..WriteOptions::default() }
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    for connections in [Connections::default(), Connections::PerRequest] {
        let database = Database::new();
        let options = SqliteOptions { max_queued_writes: 3, connections, ..database.options() };
        let store = database.open_with(options);
        let other = database.by_hand();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let put = |name: &'static str| {
            let store = Arc::clone(&store);
            background(async move { store.put(key(name), value("x")).await })
        };
        let first = occupied(&store).await;
        let more = [put("b"), put("c")];
        inspected(&store, |tree| waiting(tree) == 3).await;
        let error = store.put(key("d"), value("x")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        assert!(error.wait().is_some());
        other.execute_batch("COMMIT").unwrap();
        first.await.unwrap().unwrap();
        for put in more {
            put.await.unwrap().unwrap();
        }
        assert!(store.get(&key("d")).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_write_given_up_before_it_was_taken_changes_nothing() {
    let database = Database::new();
    let store = database.open();
    let other = database.by_hand();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let batch = vec![Write::put(key("late"), value("x"))];
    let error = store.write(batch, &within(Duration::from_millis(20))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    other.execute_batch("COMMIT").unwrap();
    store.put(key("next"), value("x")).await.unwrap();
    assert!(store.get(&key("late")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_write_given_up_while_it_is_applied_is_unknown() {
    let database = Database::new();
    let hands = Hands::new();
    let store = SqliteStore::open(database.options(), hands.runtime()).unwrap();
    hands.set(|state| state.held = true);
    let batch = vec![Write::put(key("late"), value("x"))];
    let error = store.write(batch, &within(Duration::from_millis(50))).await.unwrap_err();
    assert_eq!(hands.asked(), 1, "the writer has taken it");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    hands.set(|state| state.held = false);
    store.put(key("next"), value("x")).await.unwrap();
    assert!(store.get(&key("late")).await.unwrap().is_some(), "here it was applied");
}

#[tokio::test]
async fn a_lock_that_is_not_given_back_is_an_error_with_a_bound() {
    let database = Database::new();
    let busy_timeout = Duration::from_millis(20);
    let store = database.open_with(SqliteOptions { busy_timeout, ..database.options() });
    let other = database.by_hand();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.put(key("a"), value("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("another program"), "{error}");
    assert!(store.get(&key("a")).await.unwrap().is_none(), "readers go on");
    other.execute_batch("COMMIT").unwrap();
    store.put(key("a"), value("x")).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_nothing_else() {
    let database = Database::new();
    let options = SqliteOptions { max_file_bytes: Some(1024 * 1024), ..database.options() };
    let store = database.open_with(options);
    let big = Value::new("x".repeat(300 * 1024)).unwrap();
    let mut written = 0;
    let error = loop {
        match store.put(key(format!("big{written}")), big.clone()).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("disk is full"), "{error}");
    assert!(written >= 2);
    assert!(store.get(&key(format!("big{written}"))).await.unwrap().is_none());
    let tree = store.inspect().await;
    assert_eq!(tree.status, Status::Degraded);
    assert!(tree.note.contains("disk is full"), "{tree:?}");
    // A batch that does not fit is refused whole.
    let batch = vec![Write::put(key("small"), value("x")), Write::put(key("large"), big.clone())];
    assert!(store.write(batch, &WriteOptions::default()).await.is_err());
    assert!(store.get(&key("small")).await.unwrap().is_none());
    // Reads and deletes go on, and deletes make room.
    assert!(store.get(&key("big0")).await.unwrap().is_some());
    store.delete(key("big0")).await.unwrap();
    store.put(key("again"), big).await.unwrap();
    assert_eq!(store.inspect().await.status, Status::Healthy);
}

#[tokio::test]
async fn closed_is_closed_for_every_call_and_finishes_what_was_accepted() {
    let database = Database::new();
    let store = database.open();
    let other = database.by_hand();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let first = occupied(&store).await;
    let writers: Vec<_> = (0..20)
        .map(|number| {
            let store = Arc::clone(&store);
            background(async move { store.put(key(format!("k{number}")), value("x")).await })
        })
        .collect();
    inspected(&store, |tree| waiting(tree) == 21).await;
    let closing = {
        let store = Arc::clone(&store);
        background(async move { store.close().await })
    };
    let tree = inspected(&store, |tree| tree.status == Status::Down).await;
    assert_eq!(tree.note, "closed");
    other.execute_batch("COMMIT").unwrap();
    first.await.unwrap().unwrap();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    closing.await.unwrap().unwrap();
    let error = store.put(key("a"), Value::new("x").unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
