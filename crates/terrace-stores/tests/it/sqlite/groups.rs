//! Group commit: many callers, few commits, and no caller pays for another.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{ErrorKind, Idempotency, Runtime, Store, StoreExt, Write, WriteOptions};

use super::{Database, Hands, background, inspected, occupied, waiting};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_wait_together_share_a_commit() {
    let database = Database::new();
    let store = database.open();
    // The writer waits for this lock while the others queue.
    let other = database.by_hand();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let first = occupied(&store).await;
    let writers: Vec<_> = (0..200)
        .map(|number| {
            let store = Arc::clone(&store);
            background(async move { store.put(key(format!("k{number}")), value("x")).await })
        })
        .collect();
    inspected(&store, |tree| waiting(tree) == 201).await;
    other.execute_batch("COMMIT").unwrap();
    first.await.unwrap().unwrap();
    let mut versions = Vec::new();
    for writer in writers {
        versions.push(writer.await.unwrap().unwrap().version);
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 200);
    let tree = store.inspect().await;
    assert_eq!(tree.number("writes"), Some(201));
    // All others joined the first, or formed the next group.
    assert!(tree.number("commits").unwrap() <= 2, "{tree:#?}");
}

/// A trigger that somebody added refuses one of the callers, as mildly or as rudely as SQL can.
async fn one_is_refused(how: &str) {
    let database = Database::new();
    let store = database.open();
    let other = database.by_hand();
    other
        .execute_batch(&format!(
            "CREATE TRIGGER rude AFTER INSERT ON records WHEN NEW.key = 'bad'
             BEGIN SELECT RAISE({how}, 'no'); END; BEGIN IMMEDIATE"
        ))
        .unwrap();
    let first = occupied(&store).await;
    let names = ["a", "b", "bad", "c", "d"];
    let writers: Vec<_> = names
        .into_iter()
        .map(|name| {
            let store = Arc::clone(&store);
            background(async move {
                let batch = [format!("before {name}"), name.to_owned(), format!("after {name}")];
                let batch = batch.map(|name| Write::put(key(name), value("x"))).to_vec();
                store.write(batch, &WriteOptions::default()).await
            })
        })
        .collect();
    inspected(&store, |tree| waiting(tree) == 6).await;
    other.execute_batch("COMMIT").unwrap();
    first.await.unwrap().unwrap();
    for (name, writer) in names.into_iter().zip(writers) {
        let answer = writer.await.unwrap();
        assert_eq!(answer.is_ok(), name != "bad", "{name}: {answer:?}");
        if let Err(error) = answer {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        for name in [format!("before {name}"), name.to_owned(), format!("after {name}")] {
            let there = store.get(&key(&name)).await.unwrap().is_some();
            assert_eq!(there, !name.contains("bad"), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_batch_leaves_its_neighbours_alone() {
    one_is_refused("ABORT").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_ends_the_transaction_leaves_its_neighbours_alone() {
    one_is_refused("ROLLBACK").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_dropped_futures_are_whole() {
    let database = Database::new();
    let store = database.open();
    let runtime = Runtime::seeded(7);
    for round in 0..300 {
        let pair = ["left", "right"].map(|side| key(format!("{side}{round}")));
        let batch = pair.map(|key| Write::put(key, value("x"))).to_vec();
        let options = WriteOptions::default();
        let mut write = store.write(batch, &options);
        for _ in 0..runtime.random() % 64 {
            let once = std::future::poll_fn(|context| Poll::Ready(write.as_mut().poll(context)));
            if once.await.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    store.close().await.unwrap();
    let uneven: i64 = database
        .by_hand()
        .query_row(
            "SELECT count(*) FROM records a WHERE NOT EXISTS (SELECT 1 FROM records b WHERE b.key =
             iif(a.key LIKE 'left%', 'right' || substr(a.key, 5), 'left' || substr(a.key, 6)))",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(uneven, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_panics_leaves_nobody_waiting_and_goes_on() {
    let database = Database::new();
    let hands = Hands::new();
    let runtime = hands.runtime();
    let store = terrace_stores::SqliteStore::open(database.options(), runtime.clone()).unwrap();
    store.put(key("a"), value("1")).await.unwrap();
    hands.set(|state| state.deadly = true);
    let error = store.put(key("a"), value("2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    hands.set(|state| state.deadly = false);
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value.as_str(), "1");
    store.put(key("a"), value("3")).await.unwrap();
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value.as_str(), "3");
    let told = runtime.failures();
    assert!(told.len() == 1 && told[0].note.contains("\"sqlite-writer\""), "{told:?}");
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_repeated_request_is_remembered_for_a_day_and_across_a_restart() {
    let database = Database::new();
    let hands = Hands::new();
    let open = || terrace_stores::SqliteStore::open(database.options(), hands.runtime()).unwrap();
    let request = |name: &str| WriteOptions {
        idempotency: Some(Arc::new(Idempotency::new(name, [1; 32]).unwrap())),
        ..WriteOptions::default()
    };
    let batch = || vec![Write::put(key("a"), value("1"))];
    let store = open();
    let first = store.write(batch(), &request("r")).await.unwrap();
    store.close().await.unwrap();
    let store = open();
    assert_eq!(store.write(batch(), &request("r")).await.unwrap(), first);
    hands.set(|state| state.ahead = Duration::from_secs(24 * 60 * 60 + 1));
    assert_ne!(store.write(batch(), &request("r")).await.unwrap(), first);
    // Old results go as new ones come.
    hands.set(|state| state.ahead = Duration::from_secs(3 * 24 * 60 * 60));
    store.write(batch(), &request("s")).await.unwrap();
    let kept: i64 = database
        .by_hand()
        .query_row("SELECT count(*) FROM idempotency", [], |row| row.get(0))
        .unwrap();
    assert_eq!(kept, 1);
}

/// A write that finds nothing to change has seen what left nothing to change.
#[tokio::test]
async fn who_changes_nothing_has_a_token_of_what_it_saw() {
    let database = Database::new();
    let store = database.open();
    store.put(key("a"), value("1")).await.unwrap();
    let delete = store.delete(key("a")).await.unwrap();
    let again = store.delete(key("a")).await.unwrap();
    assert_eq!(again.token, delete.token);
}
