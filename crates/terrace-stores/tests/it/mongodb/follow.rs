//! A collection that follows a change log.

use terrace_core::testkit::{key, value};
use terrace_core::{
    Batch, Checkpoint, Follower, LogPosition, Logged, Record, Runtime, Store, StoreExt, Version,
};
use terrace_lab::testing;
use terrace_stores::{MongoDocuments, MongoOptions};

use super::connect;

async fn summaries(url: &str) -> MongoDocuments {
    let options = MongoOptions { collection: "summaries".into(), ..MongoOptions::new(url) };
    MongoDocuments::connect(options, Runtime::system()).await.unwrap()
}

fn at(offset: u64) -> LogPosition {
    LogPosition { epoch: 0, offset }
}

/// The change with this version; a deletion without a text.
fn change(name: &str, version: u64, text: Option<&str>) -> Logged {
    let (key, version, now) = (key(name), Version::new(version), Runtime::system().wall());
    let record = text.map(|text| Record {
        key: key.clone(),
        value: value(text),
        version,
        created_at: now,
        updated_at: now,
    });
    Logged { position: at(version.get()), key, version, record }
}

fn batch(from: &Checkpoint, changes: Vec<Logged>) -> Batch {
    let to = from.at(changes.last().unwrap().position);
    Batch { from: from.clone(), to, changes, ..Batch::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_followed_has_its_origins_versions_and_is_applied_once() {
    let url = testing::fresh_documents();
    let (documents, store) = (connect(&url).await, summaries(&url).await);
    let follower = store.follower("ledger");
    assert_eq!(follower.checkpoint().await.unwrap(), Checkpoint::default());
    follower.begin_anew("log-1").await.unwrap();
    let start = follower.checkpoint().await.unwrap();
    assert_eq!(start, Checkpoint::beginning("log-1"));

    let first = batch(
        &start,
        vec![
            change("u1", 1, Some(r#"{"sum":1.0}"#)),
            change("u2", 2, Some(r#"{"sum":2}"#)),
            change("u1", 3, Some(r#"{"sum":3}"#)),
        ],
    );
    assert!(follower.apply(&first).await.unwrap());
    assert!(!follower.apply(&first).await.unwrap(), "another instance was faster");
    let record = store.get(&key("u1")).await.unwrap().unwrap();
    assert_eq!((record.version, record.value.as_str()), (Version::new(3), r#"{"sum":3}"#));

    // As after a crash between the rows and the checkpoint: the same rows come again, and newer ones.
    let second = batch(
        &first.to,
        vec![
            change("u1", 2, Some(r#"{"sum":"old"}"#)),
            change("u1", 3, Some(r#"{"sum":"again"}"#)),
            change("u2", 4, None),
            change("u2", 1, Some(r#"{"sum":"late"}"#)),
        ],
    );
    let second = Batch { to: first.to.at(at(4)), ..second };
    assert!(follower.apply(&second).await.unwrap());
    assert_eq!(store.get(&key("u1")).await.unwrap().unwrap(), record);
    assert_eq!(store.get(&key("u2")).await.unwrap(), None);
    assert_eq!(follower.checkpoint().await.unwrap(), second.to);

    // Another log has versions of its own, and nothing of the old one stays. Other collections do.
    documents.put(key("u1"), value("{}")).await.unwrap();
    follower.begin_anew("log-2").await.unwrap();
    assert_eq!(store.get(&key("u1")).await.unwrap(), None);
    let anew = batch(&Checkpoint::beginning("log-2"), vec![change("u1", 1, Some("{}"))]);
    assert!(follower.apply(&anew).await.unwrap());
    assert_eq!(store.get(&key("u1")).await.unwrap().unwrap().version, Version::new(1));
    assert!(documents.get(&key("u1")).await.unwrap().is_some());
    store.close().await.unwrap();
}
