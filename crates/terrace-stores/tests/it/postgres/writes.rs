//! Writers against each other.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::{
    ErrorKind, Idempotency, Outcome, Precondition, Runtime, Store, StoreExt, Version, Write,
    WriteOptions,
};
use terrace_stores::postgres::{ConnectionSource, PoolOptions};

use super::{key, store, value};

/// Batches of every kind over the same ten keys, in every order: nobody fails, and no version is
/// given twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_writers_of_ten_keys_do_not_lock_each_other_out() {
    let pool = PoolOptions {
        min: 8,
        max: 16,
        acquire_timeout: Duration::from_secs(60),
        ..PoolOptions::default()
    };
    let store = Arc::new(store(ConnectionSource::Pooled(pool)).await);
    let runtime = Runtime::seeded(3);
    let writers = (0..1000).map(|writer: u64| {
        let store = Arc::clone(&store);
        let random = (runtime.random(), runtime.random());
        async move {
            let batch = (0..6).map(|place| {
                let seed = random.0 >> (8 * place);
                let key = key(&format!("k{}", seed % 10));
                let seed = random.1 >> (8 * place);
                match if writer.is_multiple_of(2) { 9 } else { seed % 5 } {
                    0 => Write::delete(key),
                    1 => Write::put(key, value("absent")).when(Precondition::Absent),
                    2 => {
                        let version = Precondition::Version(Version::new(seed % 100));
                        Write::put(key, value("version")).when(version)
                    }
                    _ => Write::put(key, value("put")),
                }
            });
            let batch = batch.collect::<Vec<_>>();
            store.write(batch, &WriteOptions::default()).await.expect("a write")
        }
    });
    let mut seen = HashSet::new();
    for receipt in join_all(writers).await.into_iter().flatten() {
        if receipt.outcome.is_applied() {
            assert!(seen.insert(receipt.version), "a version was given twice");
        }
    }
    let all = terrace_core::Scan::prefix("");
    let page = store.scan(&all, &Default::default()).await.expect("a scan");
    assert!(page.records.iter().all(|record| seen.contains(&record.version)));
}

/// New records of the same keys, in both orders at once: the unique index makes writers wait for
/// each other where there is no row to lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_of_many_creates_a_record() {
    let store = Arc::new(store(ConnectionSource::pooled(8, 8)).await);
    for round in 0..10 {
        let (one, two) = (key(&format!("a{round}")), key(&format!("b{round}")));
        let batches = (0..8).map(|writer| {
            let mut pair = vec![one.clone(), two.clone()];
            if writer % 2 == 0 {
                pair.reverse();
            }
            let put = |key| Write::put(key, value("1")).when(Precondition::Absent);
            let store = Arc::clone(&store);
            async move {
                let batch = pair.into_iter().map(put).collect();
                store.write(batch, &WriteOptions::default()).await.expect("a write")
            }
        });
        let receipts = join_all(batches).await.into_iter().flatten();
        let created = receipts.filter(|receipt| receipt.outcome == Outcome::Created).count();
        assert_eq!(created, 2);
    }
}

#[tokio::test]
async fn a_put_knows_whether_it_created() {
    let store = store(ConnectionSource::pooled(1, 1)).await;
    let mut before = None;
    for (write, expected) in [
        (Write::put(key("a"), value("1")), Outcome::Created),
        (Write::put(key("a"), value("2")), Outcome::Replaced),
        (Write::delete(key("a")), Outcome::Deleted),
        (Write::delete(key("a")), Outcome::Absent),
        (Write::put(key("a"), value("3")), Outcome::Created),
        (Write::put(key("a"), value("4")).when(Precondition::Absent), Outcome::PreconditionFailed),
        (Write::put(key("a"), value("5")), Outcome::Replaced),
    ] {
        assert_eq!(store.write_one(write).await.expect("a write").outcome, expected);
        let record = store.get(&key("a")).await.expect("a read");
        if expected == Outcome::Created {
            let record = record.clone().expect("a record");
            assert_eq!(record.created_at, record.updated_at);
            assert!(before.is_none_or(|before| record.created_at > before), "it starts anew");
            before = Some(record.created_at);
        } else if let Some(record) = record {
            assert!(Some(record.created_at) == before && record.updated_at >= record.created_at);
        }
    }
}

/// Superseded puts have versions of their own, in their order.
#[tokio::test]
async fn a_key_put_many_times_in_a_batch_has_rising_versions() {
    let store = store(ConnectionSource::pooled(1, 1)).await;
    store.put(key("b"), value("0")).await.expect("a put");
    let puts = ["a", "b", "a", "c", "a", "b"];
    let batch = puts.iter().enumerate();
    let batch = batch.map(|(place, name)| Write::put(key(name), value(&place.to_string())));
    let receipts = store.write(batch.collect(), &WriteOptions::default()).await.expect("a write");
    let outcomes = receipts.iter().map(|receipt| receipt.outcome).collect::<Vec<_>>();
    use Outcome::{Created, Replaced};
    assert_eq!(outcomes, [Created, Replaced, Replaced, Created, Replaced, Replaced]);
    for name in ["a", "b"] {
        let own = puts.iter().zip(&receipts).filter(|(put, _)| **put == name);
        let versions = own.map(|(_, receipt)| receipt.version).collect::<Vec<_>>();
        assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
        let read = store.get(&key(name)).await.expect("a read").expect("a record");
        assert_eq!(Some(&read.version), versions.last());
    }
}

/// A failed transaction does not use up its key.
#[tokio::test]
async fn a_request_that_was_refused_can_be_sent_again() {
    let url = terrace_lab::testing::fresh_database();
    let store = super::connect(&url, ConnectionSource::pooled(1, 2)).await;
    let hand = super::session(&url).await;
    let how = WriteOptions {
        idempotency: Some(Arc::new(Idempotency::new("once", [1; 32]).expect("a key"))),
        ..WriteOptions::default()
    };
    let batch = || vec![Write::put(key("a"), value("1"))];
    hand.batch_execute("ALTER TABLE records ADD CONSTRAINT no CHECK (key <> 'a')").await.expect("");
    store.write(batch(), &how).await.expect_err("refused");
    hand.batch_execute("ALTER TABLE records DROP CONSTRAINT no").await.expect("");
    let first = store.write(batch(), &how).await.expect("a write");
    assert_eq!(first[0].outcome, Outcome::Created);
    let again = store.write(batch(), &how).await.expect("again");
    assert_eq!((again[0].outcome, again[0].version), (first[0].outcome, first[0].version));

    hand.batch_execute("UPDATE terrace_idempotency SET created_at = now() - interval '25 hours'")
        .await
        .expect("a day later");
    let again = store.write(batch(), &how).await.expect("a day later");
    assert_eq!(again[0].outcome, Outcome::Replaced, "a result is kept for a day");
}

/// A superseded put has a version of its own, which is drawn under the lock of the row, too: one that
/// is drawn before would come before that of a write which was committed before.
#[tokio::test]
async fn superseded_puts_come_after_what_was_committed_before_them() {
    let url = terrace_lab::testing::fresh_database();
    let store = Arc::new(super::connect(&url, ConnectionSource::pooled(1, 1)).await);
    let (watch, mut hand) = (super::session(&url).await, super::session(&url).await);
    store.put(key("a"), value("0")).await.expect("a put");
    let other = hand.transaction().await.expect("a transaction");
    other.execute("SELECT 1 FROM records WHERE key = 'a' FOR UPDATE", &[]).await.expect("a lock");
    let writer = Arc::clone(&store);
    let writing = tokio::task::spawn(async move {
        let batch = ["1", "2"].map(|text| Write::put(key("a"), value(text))).to_vec();
        writer.write(batch, &WriteOptions::default()).await
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'terrace' \
                   AND datname = current_database() AND wait_event_type = 'Lock'";
    while watch.query_one(waiting, &[]).await.expect("sessions").get::<_, i64>(0) == 0 {
        tokio::task::yield_now().await;
    }
    let update = "UPDATE records SET value = 'other', version = nextval('records_version') \
                  WHERE key = 'a' RETURNING version";
    let between = other.query_one(update, &[]).await.expect("an update").get::<_, i64>(0);
    other.commit().await.expect("a commit");
    let receipts = writing.await.expect("a task").expect("a write");
    let versions = receipts.iter().map(|it| it.version.get().cast_signed()).collect::<Vec<_>>();
    assert!(between < versions[0] && versions[0] < versions[1], "{between} {versions:?}");
}

/// A claim that BEGIN did not protect is committed without a result.
#[tokio::test]
async fn an_orphaned_claim_is_taken_over() {
    let url = terrace_lab::testing::fresh_database();
    let store = super::connect(&url, ConnectionSource::pooled(1, 1)).await;
    let orphan = "INSERT INTO terrace_idempotency (key, fingerprint) VALUES ('once', '')";
    super::session(&url).await.batch_execute(orphan).await.expect("a claim");
    let how = WriteOptions {
        idempotency: Some(Arc::new(Idempotency::new("once", [1; 32]).expect("a key"))),
        ..WriteOptions::default()
    };
    let batch = || vec![Write::put(key("a"), value("1"))];
    let first = store.write(batch(), &how).await.expect("a write");
    let again = store.write(batch(), &how).await.expect("again");
    assert_eq!((again[0].outcome, again[0].version), (first[0].outcome, first[0].version));
}

/// Whoever finds a new row of another writer in its way each time has sent nothing wrong.
#[tokio::test]
async fn races_lost_again_and_again_are_overload() {
    let url = terrace_lab::testing::fresh_database();
    let store = super::connect(&url, ConnectionSource::pooled(1, 1)).await;
    super::session(&url)
        .await
        .batch_execute(
            "CREATE SEQUENCE tries; \
             CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 PERFORM nextval('tries'); \
                 RAISE unique_violation USING DETAIL = 'Key (key)=(a) already exists.'; \
             END $$; \
             CREATE TRIGGER lose BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION lose()",
        )
        .await
        .expect("a trigger");
    let put = Write::put(key("a"), value("1")).when(Precondition::Absent);
    let error = store.write_one(put).await.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(error.wait().is_some());
    let tries = super::session(&url).await.query_one("SELECT nextval('tries')", &[]).await;
    assert_eq!(tries.expect("a row").get::<_, i64>(0), 12, "it was tried again ten times");
}
