//! Two instances on one collection, which know nothing of each other.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;
use mongodb::bson::{Document, doc};
use terrace_core::testkit::{key, value};
use terrace_core::{Documents, Idempotency, Outcome, Store, StoreExt, Write, WriteOptions};
use terrace_lab::testing;

use super::{by_hand, connect};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_writes_of_two_instances_make_one_document() {
    let url = testing::fresh_documents();
    let stores = [connect(&url).await, connect(&url).await];
    let writes = (0..64).map(|number| {
        let store = &stores[number % 2];
        store.put(key("first"), value(format!(r#"{{"n":{number}}}"#)))
    });
    let receipts = join_all(writes).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    let created = receipts.iter().filter(|receipt| receipt.outcome == Outcome::Created).count();
    let versions = receipts.iter().map(|receipt| receipt.version).collect::<HashSet<_>>();
    assert_eq!((created, versions.len()), (1, 64));
    assert_eq!(stores[0].count().await.unwrap(), 1);
    let newest = receipts.iter().map(|receipt| receipt.version).max().unwrap();
    assert_eq!(stores[1].get(&key("first")).await.unwrap().unwrap().version, newest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_of_two_instances_are_not_lost() {
    let url = testing::fresh_documents();
    let stores = [connect(&url).await, connect(&url).await];
    let counter = key("counter");
    stores[0].put(counter.clone(), value(r#"{"n":0}"#)).await.unwrap();
    let workers = (0..8).map(|number| {
        let (store, counter) = (Arc::clone(&stores[number % 2]), counter.clone());
        async move {
            let mut done = 0;
            while done < 5 {
                let record = store.get(&counter).await.unwrap().unwrap();
                let text = record.value.as_str().trim_matches(|it: char| !it.is_ascii_digit());
                let next = text.parse::<u64>().unwrap() + 1;
                let next = value(format!(r#"{{"n":{next}}}"#));
                let put = store.put_if(counter.clone(), next, record.version).await;
                done += u32::from(put.unwrap());
            }
        }
    });
    join_all(workers).await;
    let record = stores[0].get(&counter).await.unwrap().unwrap();
    assert_eq!(record.value.as_str(), r#"{"n":40}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_two_instances_get_at_once_is_applied_once() {
    let url = testing::fresh_documents();
    let stores = [connect(&url).await, connect(&url).await];
    let idempotency = Some(Arc::new(Idempotency::new("order-1", [1; 32]).unwrap()));
    let how = WriteOptions { idempotency, ..WriteOptions::default() };
    let batch = || vec![Write::put(key("a"), value("{}")), Write::delete(key("a"))];
    let all = join_all((0..8).map(|number| stores[number % 2].write(batch(), &how))).await;
    let told = all.into_iter().map(|receipts| {
        receipts.unwrap().iter().map(|it| (it.outcome, it.version)).collect::<Vec<_>>()
    });
    let told = told.collect::<Vec<_>>();
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    assert_eq!((told[0][0].0, told[0][1].0), (Outcome::Created, Outcome::Deleted));
}

/// A collection that is dropped under the store comes back with its unique index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_collection_is_made_again_with_its_indexes() {
    let url = testing::fresh_documents();
    let store = connect(&url).await;
    store.put(key("a"), value("{}")).await.unwrap();
    let rows = by_hand(&url).await.collection::<Document>("documents");
    rows.drop().await.unwrap();
    store.put(key("a"), value("{}")).await.unwrap();
    let metas = by_hand(&url).await.collection::<Document>("terrace_meta");
    // A server that tells no UUID shows the change in no other way.
    let other = doc! { "$set": { "identity": "the dropped one" } };
    metas.update_one(doc! { "_id": "history:documents" }, other).await.unwrap();
    store.generations().look().await.unwrap();
    assert!(rows.insert_one(doc! { "key": "a" }).await.is_err(), "the unique index is there");
}
