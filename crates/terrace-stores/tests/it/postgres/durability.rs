//! How safe a write is said to be, where the sessions of one store differ in that.

use std::sync::Arc;

use terrace_core::{
    Durability, Generations as _, Idempotency, Store as _, StoreExt as _, Write, WriteOptions,
};
use terrace_lab::testing;
use terrace_stores::PostgresStore;
use terrace_stores::postgres::ConnectionSource;
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
