//! Connections: how many, how long, and never in doubt.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{
    ErrorKind, Inspection, ReadOptions, Runtime, Status, Store, StoreExt, WriteOptions,
};
use terrace_lab::testing;
use terrace_stores::postgres::{ConnectionSource, PoolOptions};
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{connect, key, session, value, within};

async fn pool_of(store: &PostgresStore) -> Inspection {
    store.inspect().await.find("pool").expect("a pool").clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_answers_overloaded_by_the_acquire_deadline() {
    let url = testing::fresh_database();
    let pool = PoolOptions {
        min: 1,
        max: 1,
        acquire_timeout: Duration::from_millis(300),
        ..PoolOptions::default()
    };
    let options =
        PostgresOptions { source: ConnectionSource::Pooled(pool), ..PostgresOptions::new(&url) };
    let runtime = Runtime::system();
    let store = Arc::new(PostgresStore::connect(options, runtime.clone()).await.expect("a store"));
    store.put(key("a"), value("0")).await.expect("a put");
    let mut hand = session(&url).await;
    let lock = hand.transaction().await.expect("a transaction");
    lock.execute("SELECT 1 FROM records WHERE key = 'a' FOR UPDATE", &[]).await.expect("a lock");
    let writer = Arc::clone(&store);
    let stuck = tokio::task::spawn(async move { writer.put(key("a"), value("1")).await });
    while pool_of(&store).await.number("pool_available") != Some(0) {
        tokio::task::yield_now().await;
    }
    for (deadline, bound) in [(10_000, 300), (100, 100)] {
        let start = runtime.now();
        let how = ReadOptions::strong(within(Duration::from_millis(deadline)));
        let error = store.get_read(&key("b"), &how).await.expect_err("no connection");
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        assert!(error.wait().is_some());
        let took = runtime.now() - start;
        let latest = Duration::from_millis(bound + 250);
        assert!(took >= Duration::from_millis(bound) && took < latest, "{took:?}");
    }
    // The health of a moment ago is remembered for half a second.
    let busy = async {
        while store.inspect().await.status != Status::Degraded {
            tokio::task::yield_now().await;
        }
    };
    let busy = runtime.within(within(Duration::from_secs(3)), busy).await;
    assert!(busy.is_some(), "busy is not down");
    lock.rollback().await.expect("a rollback");
    stuck.await.expect("a task").expect("the write goes on");
    assert!(pool_of(&store).await.number("usage_ms") > Some(500));
}

/// Sessions of the store, as the server sees them.
async fn sessions(hand: &tokio_postgres::Client) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity \
               WHERE application_name = 'terrace' AND datname = current_database() ORDER BY pid";
    let rows = hand.query(sql, &[]).await.expect("sessions");
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn dead_connections_are_not_handed_out_and_are_replaced_unasked() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(2, 4)).await;
    let hand = session(&url).await;
    store.put(key("a"), value("1")).await.expect("a put");
    for _ in 0..5 {
        for pid in sessions(&hand).await {
            hand.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.expect("terminated");
        }
        store.get(&key("a")).await.expect("a read").expect("a record");
    }
    for pid in sessions(&hand).await {
        hand.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.expect("terminated");
    }
    while sessions(&hand).await.len() < 2 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn old_connections_are_replaced_by_new_ones() {
    let url = testing::fresh_database();
    let pool = PoolOptions {
        min: 1,
        max: 2,
        max_lifetime: Duration::from_millis(500),
        ..PoolOptions::default()
    };
    let options =
        PostgresOptions { source: ConnectionSource::Pooled(pool), ..PostgresOptions::new(&url) };
    let store = PostgresStore::connect(options, Runtime::system()).await.expect("a store");
    let hand = session(&url).await;
    let first = sessions(&hand).await;
    // One session looks at the history for as long as the store is there.
    while sessions(&hand).await.iter().filter(|pid| first.contains(pid)).count() > 1 {
        tokio::task::yield_now().await;
    }
    store.put(key("a"), value("1")).await.expect("a put");
}

#[tokio::test]
async fn a_connection_for_each_request_leaves_only_the_one_that_looks() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::PerRequest { limit: 2 }).await;
    let hand = session(&url).await;
    for round in 0..4 {
        store.put(key("a"), value(&round.to_string())).await.expect("a put");
        store.get(&key("a")).await.expect("a read").expect("a record");
    }
    // One session looks at the history.
    while sessions(&hand).await.len() > 1 {
        tokio::task::yield_now().await;
    }
    let receipts = store.write(Vec::new(), &WriteOptions::default()).await.expect("no work");
    assert!(receipts.is_empty() && sessions(&hand).await.len() <= 1);
    let pool = pool_of(&store).await;
    assert_eq!(pool.number("requests_waiting"), Some(0));
}
