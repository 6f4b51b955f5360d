//! A collection that follows a change log.

use mongodb::bson::{Document, doc};
use terrace_core::testkit::{key, value};
use terrace_core::{
    Batch, Checkpoint, LogPosition, Logged, Record, Runtime, Scan, StoreExt, Version,
};
use terrace_lab::{Direction, FaultProxy, testing};

use super::{by_hand, connect};

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
    assert_eq!(Checkpoint { beginning: 0, ..start.clone() }, Checkpoint::beginning("log-1"));

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
    let anew = follower.checkpoint().await.unwrap();
    assert!(!anew.goes_on_from(&second.to));
    let anew = batch(&anew, vec![change("u1", 1, Some("{}"))]);
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
    let mut from = follower.checkpoint().await.unwrap();
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

/// One of two instances that begin anew at once is held up after it has read the checkpoint; the other one
/// begins, and follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_overtaken_when_it_begins_anew_takes_nothing_from_the_other() {
    let url = testing::fresh_documents();
    let proxy = FaultProxy::to_port(testing::mongo().port()).await.unwrap();
    let (slow, other) = (connect(&proxy.url(&url)).await, connect(&url).await);
    let ((_, slow), (store, other)) = (slow.summaries(), other.summaries());
    slow.begin_anew("log-1").await.unwrap();
    let mut overtaken = false;
    for number in 0..20 {
        let held = proxy.evidence().held_bytes;
        proxy.hold(Direction::Responses);
        let beginning = async { slow.begin_anew("log-2").await };
        let meanwhile = async {
            while proxy.evidence().held_bytes == held {
                tokio::task::yield_now().await;
            }
            other.begin_anew("log-2").await.unwrap();
            let from = other.checkpoint().await.unwrap();
            let batch = batch(&from, vec![change("u", 1, Some(r#"{"sum":1}"#))]);
            assert!(other.apply(&batch).await.unwrap());
            proxy.pass();
            batch.to
        };
        let (begun, checkpoint) = tokio::join!(beginning, meanwhile);
        if begun.is_err() {
            assert_eq!(other.checkpoint().await.unwrap(), checkpoint, "round {number}");
            assert!(store.get(&key("u")).await.unwrap().is_some(), "round {number}");
            overtaken = true;
            break;
        }
        // What was held up first was something else.
    }
    assert!(overtaken, "it was never held up between the checkpoint and the rows");
}

/// An instance that was stopped in the middle of a batch goes on after another one has begun anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_an_older_beginning_does_not_count() {
    let url = testing::fresh_documents();
    let (store, follower) = connect(&url).await.summaries();
    follower.begin_anew("log-1").await.unwrap();
    let old = follower.checkpoint().await.unwrap();
    assert!(follower.apply(&batch(&old, vec![change("u", 9, Some("{}"))])).await.unwrap());
    let rows = by_hand(&url).await.collection::<Document>("summaries");
    let row = rows.find_one(doc! { "key": "u" }).await.unwrap().unwrap();
    follower.begin_anew("log-1").await.unwrap();
    assert_eq!(rows.count_documents(doc! {}).await.unwrap(), 0);
    rows.insert_one(row).await.unwrap();
    assert_eq!(store.get(&key("u")).await.unwrap(), None);
    assert_eq!(store.scan(&Scan::prefix(""), &Default::default()).await.unwrap().records, []);

    let from = follower.checkpoint().await.unwrap();
    assert!(!follower.apply(&batch(&old, vec![change("u", 9, None)])).await.unwrap());
    let newer = batch(&from, vec![change("u", 1, Some(r#"{"sum":1}"#))]);
    assert!(follower.apply(&newer).await.unwrap());
    assert_eq!(store.get(&key("u")).await.unwrap().unwrap().version, Version::new(1));
}
