//! Writes of which nobody knows whether they were applied, and when they cannot come any more.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use terrace_core::testkit::{key, value};
use terrace_core::{
    Deadline, ErrorKind, Generations, Proof, ReadOptions, Result, Runtime, Store, StoreExt, Write,
    WriteOptions,
};
use terrace_lab::{Direction, FaultProxy, testing};
use terrace_stores::MongoDocuments;

use super::{by_hand, connect};

/// Puts, and waits so long.
async fn put_within(store: &MongoDocuments, name: &str, within: Duration) -> Result<()> {
    let deadline = Deadline::at(Runtime::system().now() + within);
    let how = WriteOptions { deadline, ..WriteOptions::default() };
    store.write(vec![Write::put(key(name), value(r#"{"v":"late"}"#))], &how).await.map(drop)
}

async fn proof(store: &MongoDocuments, name: &str) -> Proof {
    let read = store.get_read(&key(name), &ReadOptions::default()).await;
    read.unwrap().proof.unwrap()
}

/// Waits until what was cached with this proof is not believed any more.
async fn until_disbelieved(generations: &dyn Generations, proof: &Proof) {
    let runtime = Runtime::system();
    let began = runtime.now();
    while generations.admits(proof, None) {
        assert!(runtime.now() - began < Duration::from_secs(30), "the doubt has no end");
        runtime.sleep(Duration::from_millis(20)).await;
    }
}

/// The caller has gone when the write arrives: what was cached before is not believed any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_lands_late_raises_the_generation() {
    let url = testing::fresh_documents();
    let proxy = FaultProxy::to_port(testing::mongo().port()).await.unwrap();
    let store = connect(&proxy.url(&url)).await;
    connect(&url).await.put(key("a"), value(r#"{"v":0}"#)).await.unwrap();
    let before = proof(&store, "a").await;
    proxy.only(b"update");
    proxy.hold(Direction::Requests);
    let error = put_within(&store, "a", Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(store.generations().admits(&before, None), "it may still come");
    proxy.pass();
    until_disbelieved(&*store.generations(), &before).await;
    let record = store.get(&key("a")).await.unwrap().unwrap();
    assert_eq!(record.value.as_str(), r#"{"v":"late"}"#);
}

/// The connection is lost, and what was sent on it may lie somewhere. Once the doubt ends it is never
/// applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_in_doubt_is_fenced_off_and_the_generation_raised() {
    let url = testing::fresh_documents();
    let proxy = FaultProxy::to_port(testing::mongo().port()).await.unwrap();
    let store = connect(&proxy.url(&url)).await;
    connect(&url).await.put(key("old"), value(r#"{"v":0}"#)).await.unwrap();
    let rows = by_hand(&url).await.collection::<Document>("documents");
    let was = rows.find_one(doc! { "key": "old" }).await.unwrap().unwrap();
    for (name, command) in [("old", "update"), ("new", "insert")] {
        let before = proof(&store, name).await;
        proxy.only(command.as_bytes());
        proxy.hold(Direction::Requests);
        let held = proxy.evidence().held_bytes;
        let cut = async {
            while proxy.evidence().held_bytes == held {
                tokio::task::yield_now().await;
            }
            proxy.reset();
        };
        let (put, ()) = tokio::join!(put_within(&store, name, Duration::from_secs(10)), cut);
        assert_eq!(put.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        proxy.pass();
        until_disbelieved(&*store.generations(), &before).await;
    }
    // What was sent, as late as can be.
    let late = doc! { "$set": { "data": { "v": "late" } } };
    let version = was.get("version").unwrap();
    let condition = doc! { "key": "old", "version": version };
    assert_eq!(rows.update_one(condition, late).await.unwrap().matched_count, 0);
    assert!(rows.insert_one(doc! { "key": "new", "data": {} }).await.is_err());
    let record = store.get(&key("old")).await.unwrap().unwrap();
    assert_eq!(record.value.as_str(), r#"{"v":0}"#);
    assert_eq!(store.get(&key("new")).await.unwrap(), None);
    assert!(store.put(key("new"), value("{}")).await.unwrap().outcome.is_applied());
}
