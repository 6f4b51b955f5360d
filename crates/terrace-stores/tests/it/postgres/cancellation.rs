//! Futures that are dropped at any point.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use terrace_core::{
    ErrorKind, Idempotency, Precondition, ReadOptions, Runtime, Store, StoreExt, Write,
    WriteOptions,
};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;

use super::{connect, key, session, value, within};

/// Batches that set two keys to one value, dropped after a random time: the two are always equal, and
/// no session stays in a transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_writes_leave_no_half_and_no_open_transaction() {
    let url = testing::fresh_database();
    let store = Arc::new(connect(&url, ConnectionSource::pooled(2, 4)).await);
    let hand = session(&url).await;
    let runtime = Runtime::seeded(5);
    let how = WriteOptions::default();
    let mut dropped = 0;
    for round in 0..60 {
        let writes = (0..4).map(|writer| {
            let text = format!("{round}-{writer}");
            let kind = runtime.random() % 4;
            let pair = ["a", "b"].map(|name| Write::put(key(name), value(&text)));
            let mut batch = pair.to_vec();
            let mut how = how.clone();
            match kind {
                0 => batch.push(Write::put(key("c"), value("x")).when(Precondition::Absent)),
                1 => batch.insert(0, Write::put(key("b"), value("superseded"))),
                2 => {
                    let request = Idempotency::new(&text, [0; 32]).expect("a key");
                    how.idempotency = Some(Arc::new(request));
                }
                _ => {}
            }
            let (store, runtime) = (Arc::clone(&store), runtime.clone());
            let time = Duration::from_micros(runtime.random() % 4000);
            async move {
                let write = store.write(batch, &how);
                let left = select(write, runtime.sleep(time)).await;
                matches!(left, Either::Right(_))
            }
        });
        let left = join_all(writes).await;
        dropped += left.into_iter().filter(|left| *left).count();
        let both = [key("a"), key("b")];
        let reads = store.read(&both, &ReadOptions::default()).await.expect("a read");
        let values = reads.iter().map(|read| read.record.as_ref().map(|it| it.value.as_str()));
        let values = values.collect::<Vec<_>>();
        assert_eq!(values[0], values[1], "a batch is applied whole or not at all");
    }
    assert!(dropped > 20, "the test must drop writes: {dropped}");
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'terrace' \
                AND datname = current_database() AND state <> 'idle'";
    while hand.query_one(open, &[]).await.expect("sessions").get::<_, i64>(0) > 0 {
        tokio::task::yield_now().await;
    }
    let receipt = store.put(key("a"), value("last")).await.expect("a put");
    assert_eq!(store.get(&key("a")).await.unwrap().expect("a record").version, receipt.version);
}

/// A write behind a lock: its deadline passes while the statement runs, so nobody knows; the server is
/// told to stop, and the connection is not used again.
#[tokio::test]
async fn a_write_past_its_deadline_is_in_doubt_and_its_connection_gone() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    store.put(key("a"), value("0")).await.expect("a put");
    let (watch, mut hand) = (session(&url).await, session(&url).await);
    let lock = hand.transaction().await.expect("a transaction");
    lock.execute("SELECT 1 FROM records WHERE key = 'a' FOR UPDATE", &[]).await.expect("a lock");
    let how =
        WriteOptions { deadline: within(Duration::from_millis(200)), ..WriteOptions::default() };
    let put = vec![Write::put(key("a"), value("1"))];
    let error = store.write(put, &how).await.expect_err("locked");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    store.get(&key("a")).await.expect("a read on another connection");
    let how =
        WriteOptions { deadline: within(Duration::from_millis(200)), ..WriteOptions::default() };
    let put = vec![Write::put(key("a"), value("2")).when(Precondition::Absent)];
    let error = store.write(put, &how).await.expect_err("locked");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "its COMMIT had not left: {error}");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'terrace' \
                   AND datname = current_database() AND state = 'active'";
    while watch.query_one(waiting, &[]).await.expect("sessions").get::<_, i64>(0) > 0 {
        tokio::task::yield_now().await;
    }
    lock.rollback().await.expect("a rollback");
    let record = store.get(&key("a")).await.expect("a read").expect("a record");
    assert_eq!(record.value.as_str(), "0", "the server stopped what was given up");
}
