//! Requests that are repeated after a crash at any point.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::{Collection, Database};
use terrace_core::testkit::{key, value};
use terrace_core::{
    Deadline, ErrorKind, Idempotency, Outcome, Receipt, Runtime, Store, StoreExt, Version, Write,
    WriteOptions,
};
use terrace_lab::testing;
use terrace_stores::MongoDocuments;

use super::{by_hand, connect};

fn request() -> WriteOptions {
    let idempotency = Some(Arc::new(Idempotency::new("order-1", [3; 32]).unwrap()));
    WriteOptions { idempotency, ..WriteOptions::default() }
}

fn batch() -> Vec<Write> {
    let put = |name: &str| Write::put(key(name), value(r#"{"by":"request"}"#));
    vec![put("a"), put("b"), Write::delete(key("a"))]
}

fn told(receipts: &[Receipt]) -> Vec<(Outcome, Version)> {
    receipts.iter().map(|it| (it.outcome, it.version)).collect()
}

async fn setting() -> (Arc<MongoDocuments>, Database) {
    let url = testing::fresh_documents();
    (connect(&url).await, by_hand(&url).await)
}

fn claims(database: &Database) -> Collection<Document> {
    database.collection("terrace_idempotency")
}

/// What a process leaves that dies before it keeps the result.
async fn without_a_result(database: &Database) {
    let lost = doc! { "$set": { "result": null, "until": 0_i64 } };
    let claim = claims(database).update_one(doc! { "_id": "order-1" }, lost).await.unwrap();
    assert_eq!(claim.matched_count, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_before_the_result_is_kept_applies_nothing_twice() {
    let (store, database) = setting().await;
    let first = store.write(batch(), &request()).await.unwrap();
    without_a_result(&database).await;
    // Others have written since.
    let newer = store.put(key("b"), value(r#"{"by":"another"}"#)).await.unwrap();
    let again = store.write(batch(), &request()).await.unwrap();
    assert_eq!(told(&again), told(&first));
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
    assert_eq!(store.get(&key("b")).await.unwrap().unwrap().version, newer.version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_two_writes_applies_the_rest_alone() {
    let (store, database) = setting().await;
    let first = store.write(batch(), &request()).await.unwrap();
    without_a_result(&database).await;
    // The second document was not written any more.
    database.collection::<Document>("documents").delete_one(doc! { "key": "b" }).await.unwrap();
    let again = store.write(batch(), &request()).await.unwrap();
    assert_eq!((told(&again)[0], told(&again)[2]), (told(&first)[0], told(&first)[2]));
    assert_eq!(again[1].outcome, Outcome::Created);
    assert!(again[1].version > first[1].version, "newer though its row was removed");
    assert_eq!(told(&store.write(batch(), &request()).await.unwrap()), told(&again));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_waits_for_who_holds_the_claim() {
    let (store, database) = setting().await;
    store.write(batch(), &request()).await.unwrap();
    let kept = claims(&database).find_one(doc! { "_id": "order-1" }).await.unwrap().unwrap();
    let far = i64::MAX / 2;
    let held = doc! { "$set": { "result": null, "until": far } };
    claims(&database).update_one(doc! { "_id": "order-1" }, held).await.unwrap();
    let soon = Deadline::at(Runtime::system().now() + Duration::from_millis(200));
    let how = WriteOptions { deadline: soon, ..request() };
    let error = store.write(batch(), &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");

    let (waits, how) = (Arc::clone(&store), request());
    let waiting = async { waits.write(batch(), &how).await.unwrap() };
    let ends = async {
        let result = doc! { "$set": { "result": kept.get_str("result").unwrap() } };
        claims(&database).update_one(doc! { "_id": "order-1" }, result).await.unwrap();
    };
    let (receipts, ()) = tokio::join!(waiting, ends);
    assert_eq!(receipts[0].outcome, Outcome::Created);
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_remembers_few_requests() {
    let (store, database) = setting().await;
    for number in 0..40 {
        let name = format!("order-{number}");
        let idempotency = Some(Arc::new(Idempotency::new(&name, [3; 32]).unwrap()));
        let how = WriteOptions { idempotency, ..WriteOptions::default() };
        let write = Write::put(key("a"), value(format!(r#"{{"n":{number}}}"#)));
        store.write(vec![write], &how).await.unwrap();
    }
    let rows = database.collection::<Document>("documents");
    let row = rows.find_one(doc! { "key": "a" }).await.unwrap().unwrap();
    let noted = row.get_array("requests").unwrap();
    assert_eq!(noted.len(), 32);
    let last = noted[31].as_document().unwrap();
    assert_eq!(last.get_str("request").unwrap(), "0:order-39");
}
