//! Which collection it is, and what caches may believe.

use std::sync::Arc;

use mongodb::bson::{Document, doc};
use terrace_core::testkit::{key, value};
use terrace_core::{ErrorKind, Generations, ReadOptions, Store, StoreExt};
use terrace_lab::testing;
use terrace_stores::MongoDocuments;

use super::{by_hand, connect};

fn generations(store: &MongoDocuments) -> Arc<dyn Generations> {
    store.generations()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_have_one_history_and_hear_of_each_others_generation() {
    let url = testing::fresh_documents();
    let (one, other) = (connect(&url).await, connect(&url).await);
    let (here, there) = (generations(&one), generations(&other));
    assert!(here.history().is_some());
    assert_eq!(here.history(), there.history());

    one.put(key("a"), value("{}")).await.unwrap();
    let proof = other.get_read(&key("a"), &Default::default()).await.unwrap().proof.unwrap();
    assert!(there.admits(&proof, None));
    here.raise(&[key("a")]).await.unwrap();
    assert!(!here.admits(&proof, None), "what was cached before");
    there.look().await.unwrap();
    assert!(!there.admits(&proof, None));
    let fresh = other.get_read(&key("a"), &Default::default()).await.unwrap().proof.unwrap();
    assert!(here.admits(&fresh, None) && there.admits(&fresh, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_goes_past_caches_and_no_answer_takes_it_back() {
    let store = connect(&testing::fresh_documents()).await;
    store.put(key("other"), value("{}")).await.unwrap();
    let receipt = store.put(key("a"), value("{}")).await.unwrap();
    let how = ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() };
    let read = store.get_read(&key("other"), &how).await.unwrap();
    let proof = read.proof.unwrap();
    assert!(!generations(&store).admits(&proof, Some(&receipt.token)));
    for (history, position) in receipt.token.marks() {
        assert!(read.token.position(history) >= Some(position));
    }
}

/// As after a restore into another database: the data and the name of the history are there, and what is
/// kept beside the name is of the original.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_begins_a_history_of_its_own() {
    let url = testing::fresh_documents();
    let store = connect(&url).await;
    let receipt = store.put(key("a"), value("{}")).await.unwrap();
    let before = store.get_read(&key("a"), &Default::default()).await.unwrap();
    let name = generations(&store).history().unwrap();

    let metas = by_hand(&url).await.collection::<Document>("terrace_meta");
    let of_another = doc! { "$set": { "identity": "another collection" } };
    metas.update_one(doc! { "_id": "history:documents" }, of_another).await.unwrap();
    generations(&store).look().await.unwrap();
    let renamed = generations(&store).history().unwrap();
    assert_ne!(renamed, name);
    assert!(renamed.contains("-of-"), "{renamed} is kin to {name}");
    assert!(!generations(&store).admits(&before.proof.unwrap(), None));
    let how = ReadOptions { token: Some(receipt.token), ..ReadOptions::default() };
    let error = store.get_read(&key("a"), &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("earlier life"), "{error}");
    assert_eq!(connect(&url).await.generations().history(), Some(renamed));
    store.close().await.unwrap();
}
