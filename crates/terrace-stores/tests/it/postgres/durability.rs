//! How safe a write is said to be, where the sessions of one store differ in that.

use std::sync::Arc;

use terrace_core::{
    Durability, Generations as _, Idempotency, Place, Precondition, Runtime, Sequence, Store as _,
    StoreExt as _, Write, WriteOptions,
};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresStore};
use tokio_postgres::Client;

use super::{connect, key, session, value};

/// Changes a setting of the database, which counts for sessions that begin after it.
async fn set(hand: &Client, change: &str) {
    let name = "SELECT current_database()";
    let name: String = hand.query_one(name, &[]).await.expect("a name").get(0);
    hand.batch_execute(&format!("ALTER DATABASE {name} {change}")).await.expect("a setting");
}

/// Ends the session that has written, as a firewall or its age does; the one that looks stays.
async fn end_the_writer(hand: &Client) {
    let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid() \
                 AND query LIKE 'INSERT INTO records%'";
    let ended = hand.query(end, &[]).await.expect("an end");
    assert_eq!(ended.len(), 1, "one session has written");
}

async fn said(store: &PostgresStore) -> Durability {
    store.look().await.expect("a look of the session that stays");
    store.put(key("a"), value("1")).await.expect("a put").durability
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_session_says_what_its_own_commits_are() {
    let url = testing::fresh_database();
    let (store, hand) = (connect(&url, ConnectionSource::pooled(1, 1)).await, session(&url).await);
    assert_eq!(said(&store).await, Durability::Committed);
    set(&hand, "SET synchronous_commit = off").await;
    assert_eq!(said(&store).await, Durability::Committed, "not for a session that has begun");
    end_the_writer(&hand).await;
    assert_eq!(said(&store).await, Durability::Accepted);
    let request = Idempotency::new("once", [0; 32]).expect("a request");
    let how = WriteOptions { idempotency: Some(Arc::new(request)), ..WriteOptions::default() };
    for _ in 0..2 {
        let done = store.write(vec![Write::put(key("b"), value("1"))], &how).await;
        assert_eq!(done.expect("a write")[0].durability, Durability::Accepted);
    }
    assert_eq!(said(&store).await, Durability::Accepted);
    set(&hand, "RESET synchronous_commit").await;
    assert_eq!(said(&store).await, Durability::Accepted, "not for a session that has begun");
    end_the_writer(&hand).await;
    assert_eq!(said(&store).await, Durability::Committed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_for_each_request_says_what_its_own_commits_are() {
    let url = testing::fresh_database();
    let source = ConnectionSource::PerRequest { limit: 4 };
    let (store, hand) = (connect(&url, source).await, session(&url).await);
    assert_eq!(said(&store).await, Durability::Committed);
    set(&hand, "SET synchronous_commit = off").await;
    assert_eq!(said(&store).await, Durability::Accepted);
    set(&hand, "RESET synchronous_commit").await;
    assert_eq!(said(&store).await, Durability::Committed);
}

/// A journal forgets what is settled: its writes wait for the disk in every kind of transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_a_journal_is_on_disk_whatever_the_settings_are() {
    for change_log in [false, true] {
        let url = testing::fresh_database();
        let hand = session(&url).await;
        set(&hand, "SET synchronous_commit = off").await;
        let source = ConnectionSource::pooled(1, 1);
        let options = PostgresOptions { source, change_log, ..PostgresOptions::new(&url) };
        let store = PostgresStore::connect(options, Runtime::system()).await.expect("a store");
        for number in 1..20 {
            let before = "SELECT pg_current_wal_insert_lsn()::text";
            let before = hand.query_one(before, &[]).await.expect("a place").get::<_, String>(0);
            let place = Place { sequence: Sequence::new(number), settled: Sequence::NONE };
            let write = Write::put(key("a"), value("1")).when(Precondition::After(place));
            let receipt = store.write_one(write).await.expect("a write");
            assert!(receipt.outcome.is_applied());
            let flushed = format!("SELECT pg_current_wal_flush_lsn() > '{before}'");
            let flushed = hand.query_one(&flushed, &[]).await.expect("a place");
            assert!(flushed.get::<_, bool>(0), "with a log: {change_log}");
        }
    }
}
