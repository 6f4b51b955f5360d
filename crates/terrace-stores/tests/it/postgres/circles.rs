//! A put makes new rows and locks old ones in the order of their keys; a transaction locks old ones before
//! it makes new ones. So each may hold what the other waits for.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::Regions;
use terrace_core::{
    Batch, Checkpoint, Precondition, RegionStore, Runtime, Store, StoreExt, Write, WriteOptions,
};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{key, session, value};

/// With time enough for the server to find the circle.
async fn patient(url: &str, region: Option<u8>) -> Arc<PostgresStore> {
    let options = PostgresOptions {
        source: ConnectionSource::pooled(1, 8),
        connect_timeout: Duration::from_secs(30),
        statement_timeout: Duration::from_secs(60),
        lock_timeout: Duration::from_secs(60),
        region: region.map(Regions::options),
        ..PostgresOptions::new(url)
    };
    Arc::new(PostgresStore::connect(options, Runtime::system()).await.expect("a store"))
}

/// Runs `transaction`, which locks `z` and makes `a`, while a put of `a`, `m` and `z` has made `a` and waits
/// for `m`; and then lets that go on. Answers how many circles the server had to break.
async fn meet(
    url: &str,
    store: Arc<PostgresStore>,
    transaction: impl Future<Output = ()> + Send + 'static,
) -> i64 {
    let (holder, hand) = (session(url).await, session(url).await);
    for name in ["m", "z"] {
        store.put(key(name), value("old")).await.expect("a write");
    }
    let wait_for = async |waiting: i64| {
        let count = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN \
             (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
        while hand.query_one(count, &[]).await.expect("locks").get::<_, i64>(0) < waiting {}
    };
    let hold = "BEGIN; SELECT 1 FROM records WHERE key = 'm' FOR UPDATE";
    holder.batch_execute(hold).await.expect("a lock");
    let putting = Arc::clone(&store);
    let put = tokio::spawn(async move {
        let batch = ["a", "m", "z"].map(|name| Write::put(key(name), value("put")));
        putting.write(batch.to_vec(), &WriteOptions::default()).await.expect("puts");
    });
    wait_for(1).await;
    let transaction = tokio::spawn(transaction);
    wait_for(2).await;
    holder.batch_execute("COMMIT").await.expect("the end of the lock");
    put.await.expect("it is written");
    transaction.await.expect("it is done");
    store.close().await.expect("an end");
    broken_circles(url).await
}

/// How many circles the server has broken by ending one of those who waited.
pub(super) async fn broken_circles(url: &str) -> i64 {
    let hand = session(url).await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'terrace' \
                AND datname = current_database()";
    // A session tells what it met when it ends, or a second after its last statement.
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while hand.query_one(open, &[]).await.expect("sessions").get::<_, i64>(0) > 0
        && tokio::time::Instant::now() < until
    {
        tokio::task::yield_now().await;
    }
    let circles = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    hand.query_one(circles, &[]).await.expect("statistics").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conditional_batch_gives_way_to_a_put() {
    let url = testing::fresh_database();
    let store = patient(&url, None).await;
    let writer = Arc::clone(&store);
    let conditional = async move {
        let made = Write::put(key("a"), value("made")).when(Precondition::Absent);
        let batch = vec![made, Write::put(key("z"), value("changed"))];
        writer.write(batch, &WriteOptions::default()).await.expect("a batch");
    };
    assert_eq!(meet(&url, store, conditional).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_of_another_region_gives_way_to_a_put() {
    let urls = [testing::fresh_database(), testing::fresh_database()];
    let (origin, store) = (patient(&urls[0], Some(1)).await, patient(&urls[1], Some(2)).await);
    for name in ["a", "z"] {
        origin.put(key(name), value("elsewhere")).await.expect("a write");
    }
    let (log, changes) = (origin.own_log(), super::region::logged(&origin).await);
    let follower = store.follower_of(origin.region().id);
    follower.begin_anew(&log.name()).await.expect("a beginning");
    let from = follower.checkpoint().await.expect("a place");
    let to = Checkpoint::beginning(log.name().as_ref()).at(changes[1].position);
    let batch = Batch { from, to, changes, ..Batch::default() };
    let merge = async move { assert!(follower.apply(&batch).await.expect("a batch")) };
    assert_eq!(meet(&urls[1], store, merge).await, 0);
}
