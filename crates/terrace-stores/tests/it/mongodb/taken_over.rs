//! Collections that another program has filled.

use std::time::Duration;

use mongodb::bson::{Bson, DateTime, Document, doc};
use terrace_core::testkit::{key, value};
use terrace_core::{
    Documents, ErrorKind, Json, Page, Precondition, ReadOptions, Runtime, Scan, Selection, Store,
    StoreExt, Value, Version, Write,
};
use terrace_lab::testing;
use terrace_stores::{MongoDocuments, MongoOptions};

use super::{by_hand, connect};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_key_and_data_are_documents() {
    let url = testing::fresh_documents();
    let rows = by_hand(&url).await.collection::<Document>("documents");
    let date = DateTime::from_millis(1_577_836_800_000);
    let theirs = doc! { "b": 1_i32, "a": 1.0, "at": date, "id": { "n": [2_i64] } };
    rows.insert_one(doc! { "key": "theirs", "data": theirs }).await.unwrap();
    let before = Runtime::system().wall();

    let store = connect(&url).await;
    let record = store.get(&key("theirs")).await.unwrap().unwrap();
    assert_eq!(
        record.value.as_str(),
        r#"{"b":1,"a":1.0,"at":"2020-01-01T00:00:00Z","id":{"n":[2]}}"#
    );
    assert_eq!(record.version, Version::new(1));
    // An ObjectId has whole seconds.
    assert!(before.duration_since(record.created_at).as_secs().abs() < 60);
    assert_eq!(store.count().await.unwrap(), 1);

    let write = Write::put(key("theirs"), value(r#"{"a":2}"#));
    let refused = write.clone().when(Precondition::Version(Version::new(2)));
    assert!(!store.write_one(refused).await.unwrap().outcome.is_applied());
    let receipt = store.write_one(write.when(Precondition::Version(Version::new(1)))).await;
    assert!(receipt.unwrap().version > Version::new(1));
    let row = rows.find_one(doc! { "key": "theirs" }).await.unwrap().unwrap();
    assert!(matches!(
        row.get_document("data").unwrap().get("a"),
        Some(Bson::Int64(2) | Bson::Int32(2))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_rows_of_a_key_are_refused_by_name() {
    let url = testing::fresh_documents();
    let rows = by_hand(&url).await.collection::<Document>("documents");
    for name in ["once", "twice", "twice"] {
        rows.insert_one(doc! { "key": name, "data": {} }).await.unwrap();
    }
    let refused = MongoDocuments::connect(MongoOptions::new(&url), Runtime::system()).await;
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("\"twice\""), "{error}");
    let many = vec![doc! { "key": "later" }, doc! { "key": "later" }];
    let summaries = rows.client().default_database().unwrap().collection::<Document>("summaries");
    summaries.insert_many(many).await.unwrap();
    rows.delete_one(doc! { "key": "twice" }).await.unwrap();
    let store = connect(&url).await;
    assert_eq!(store.count().await.unwrap(), 2);
    // What is found out at a call is not the caller's fault.
    let error = store.summaries().0.get(&key("later")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("\"later\""), "{error}");
}

/// What the walk does, without its wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_indexes_what_is_not_and_removes_what_is_old() {
    let url = testing::fresh_documents();
    let database = by_hand(&url).await;
    let rows = database.collection::<Document>("documents");
    rows.insert_one(doc! { "key": "theirs", "data": { "t": "Found later" } }).await.unwrap();
    let old = doc! {
        "key": "gone", "data": null, "deleted": true, "version": 5_i64, "updated_at": 1_000_i64,
    };
    rows.insert_one(old).await.unwrap();
    let claims = database.collection::<Document>("terrace_idempotency");
    claims.insert_one(doc! { "_id": "old", "at": 1_000_i64 }).await.unwrap();
    let options =
        MongoOptions { tombstones_kept_for: Duration::from_secs(60), ..MongoOptions::new(&url) };
    let store = MongoDocuments::connect(options, Runtime::system()).await.unwrap();
    store.put(key("fresh"), value("{}")).await.unwrap();
    store.delete(key("fresh")).await.unwrap();
    let found = async || {
        let what = Selection::words("later found").unwrap();
        let page = store.select(&what, &Scan::prefix(""), &Default::default()).await.unwrap();
        page.records.len()
    };
    assert_eq!(found().await, 0);
    store.tidy().await.unwrap();
    assert_eq!(found().await, 1);
    assert_eq!(store.get(&key("theirs")).await.unwrap().unwrap().version, Version::new(1));
    let left = async |filter: Document| rows.count_documents(filter).await.unwrap();
    assert_eq!(left(doc! { "key": "gone" }).await, 0);
    assert_eq!(left(doc! { "key": "fresh" }).await, 1, "it is not old yet");
    assert_eq!(claims.count_documents(doc! {}).await.unwrap(), 0);
}

/// One that another program has put there stops no list; who asks for it is told what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_left_out_of_lists() {
    let url = testing::fresh_documents();
    let rows = by_hand(&url).await.collection::<Document>("documents");
    let theirs = [
        doc! { "key": "a", "data": { "t": "word" } },
        doc! { "key": "huge", "data": { "t": "x".repeat(Value::MAX_BYTES) } },
        doc! { "key": "", "data": { "t": "word" } },
        doc! { "key": "k".repeat(300), "data": { "t": "word" } },
        doc! { "key": "list", "data": [1, 2] },
        doc! { "key": "z", "data": { "t": "word" } },
    ];
    rows.insert_many(theirs).await.unwrap();
    let store = connect(&url).await;
    let keys = |page: Page| page.records.iter().map(|it| it.key.to_string()).collect::<Vec<_>>();
    let how = ReadOptions::default();
    let page = store.scan(&Scan::prefix(""), &how).await.unwrap();
    assert_eq!(keys(page), ["a", "z"]);
    let what = Selection::field("t", Json::Text("word".into())).unwrap();
    let page = store.select(&what, &Scan::prefix(""), &how).await.unwrap();
    assert_eq!(keys(page), ["a", "z"]);
    assert_eq!(store.inspect().await.number("unreadable_documents"), Some(6));

    for name in ["huge", "list"] {
        let error = store.get(&key(name)).await.unwrap_err();
        assert!(error.message().contains("write it anew or delete it"), "{error}");
        store.put(key(name), value("{}")).await.unwrap();
        assert!(store.get(&key(name)).await.unwrap().is_some());
    }
}
