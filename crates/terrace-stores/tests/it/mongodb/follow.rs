//! A collection that follows a change log.

use terrace_core::testkit::{key, value};
use terrace_core::{Batch, Checkpoint, LogPosition, Logged, Record, Runtime, StoreExt, Version};
use terrace_lab::testing;

use super::connect;

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
    Logged { position: at(version.get()), key, version, record, ancestry: None }
}

fn batch(from: &Checkpoint, changes: Vec<Logged>) -> Batch {
    let to = from.at(changes.last().unwrap().position);
    Batch { from: from.clone(), to, changes, ..Batch::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_followed_has_its_origins_versions_and_is_applied_once() {
    let url = testing::fresh_documents();
    let documents = connect(&url).await;
    let (store, follower) = documents.summaries();
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
    assert!(store.put(key("u1"), value("{}")).await.is_err(), "the ledger owns them");
    follower.begin_anew("log-2").await.unwrap();
    assert_eq!(store.get(&key("u1")).await.unwrap(), None);
    let anew = batch(&Checkpoint::beginning("log-2"), vec![change("u1", 1, Some("{}"))]);
    assert!(follower.apply(&anew).await.unwrap());
    assert_eq!(store.get(&key("u1")).await.unwrap().unwrap().version, Version::new(1));
    assert!(documents.get(&key("u1")).await.unwrap().is_some());
    store.close().await.unwrap();
    assert!(store.get(&key("u1")).await.is_err());
    assert!(documents.get(&key("u1")).await.unwrap().is_some(), "its store is another one");
}

/// A person may have changed an account to anything; that stops no other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_document_is_followed_as_it_is() {
    let documents = connect(&testing::fresh_documents()).await;
    let (store, follower) = documents.summaries();
    follower.begin_anew("log").await.unwrap();
    let mut from = Checkpoint::beginning("log");
    let texts = ["{}", r#"{"a": 1}"#, "no JSON", "", "{}"];
    for (number, text) in texts.into_iter().enumerate() {
        let version = number as u64 + 1;
        let batch = batch(&from, vec![change("u", version, Some(text))]);
        assert!(follower.apply(&batch).await.unwrap());
        let record = store.get(&key("u")).await.unwrap().unwrap();
        assert_eq!((record.value.as_str(), record.version.get()), (text, version));
        from = batch.to;
    }
}
