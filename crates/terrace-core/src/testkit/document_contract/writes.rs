//! Writes of documents, where batches are not atomic and versions are not of one sequence.

use std::sync::Arc;
use std::task::Poll;

use futures_util::future::join_all;

use super::{put, text};
use crate::testkit::{key, value};
use crate::{
    Documents, Idempotency, Outcome, Precondition, StoreExt, Version, Write, WriteOptions,
};

/// Each write of a key is newer than all before it, deletions included.
pub async fn versions_grow_across_deletions(store: Arc<dyn Documents>) {
    let key = key("grows");
    let mut last = Version::NONE;
    for round in 0..12 {
        let receipt = match round % 3 {
            2 => store.delete(key.clone()).await.expect("a delete"),
            _ => store.put(key.clone(), value(format!(r#"{{"n":{round}}}"#))).await.expect("a put"),
        };
        assert!(receipt.version > last, "{} after {last}", receipt.version);
        let read = store.get_read(&key, &Default::default()).await.expect("a read");
        assert_eq!(read.version, receipt.version);
        last = receipt.version;
    }
}

/// Many who write a key for the first time at once: one creates it, and nobody fails.
pub async fn first_writes_at_once_make_one_document(store: Arc<dyn Documents>) {
    let first = key("first");
    let writes = (0..64).map(|number| {
        let (store, key) = (Arc::clone(&store), first.clone());
        async move { store.put(key, value(format!(r#"{{"n":{number}}}"#))).await.expect("a put") }
    });
    let receipts = join_all(writes).await;
    let created = receipts.iter().filter(|receipt| receipt.outcome == Outcome::Created).count();
    assert_eq!(created, 1);
    let versions = receipts.iter().map(|it| it.version).collect::<std::collections::HashSet<_>>();
    assert_eq!(versions.len(), 64, "each write has its own version");
    assert_eq!(store.count().await.expect("a count"), 1);
    let only = join_all((0..16).map(|number| {
        let write = Write::put(key("only"), value(format!(r#"{{"n":{number}}}"#)));
        store.write_one(write.when(Precondition::Absent))
    }));
    let outcomes = only.await.into_iter().map(|it| it.expect("a write").outcome);
    assert_eq!(outcomes.filter(|outcome| *outcome == Outcome::Created).count(), 1);
}

/// A repeat answers what the first one did, whatever was written since, for batches, too.
pub async fn a_repeat_after_another_write_changes_nothing(store: Arc<dyn Documents>) {
    let request = |name: &str| WriteOptions {
        idempotency: Some(Arc::new(Idempotency::new(name, [7; 32]).expect("a key"))),
        ..WriteOptions::default()
    };
    put(&*store, "b", r#"{"v":0}"#).await;
    let batch = || {
        vec![
            Write::put(key("a"), value(r#"{"v":1}"#)),
            Write::put(key("b"), value(r#"{"v":1}"#)).when(Precondition::Absent),
            Write::delete(key("none")),
            Write::put(key("a"), value(r#"{"v":2}"#)),
        ]
    };
    let how = request("batch-1");
    let first = store.write(batch(), &how).await.expect("a write");
    let outcomes = first.iter().map(|it| it.outcome).collect::<Vec<_>>();
    assert_eq!(
        outcomes,
        [Outcome::Created, Outcome::PreconditionFailed, Outcome::Absent, Outcome::Replaced]
    );
    put(&*store, "a", r#"{"v":3}"#).await;
    put(&*store, "none", "{}").await;
    let again = store.write(batch(), &how).await.expect("a repeat");
    let told = |receipts: &[crate::Receipt]| {
        receipts.iter().map(|it| (it.outcome, it.version)).collect::<Vec<_>>()
    };
    assert_eq!(told(&again), told(&first));
    assert_eq!(text(&*store, &key("a")).await.as_deref(), Some(r#"{"v":3}"#));
    assert_eq!(text(&*store, &key("none")).await.as_deref(), Some("{}"));
    let other = store.write(batch(), &request("batch-2")).await.expect("another request");
    assert_eq!(other[0].outcome, Outcome::Replaced);
}

/// A caller that goes away leaves the old document or the new one, and a store that works.
pub async fn a_dropped_write_is_whole_or_not_there(store: Arc<dyn Documents>) {
    for round in 0..40_u64 {
        let key = key(format!("dropped{round}"));
        let how = WriteOptions::default();
        let batch = vec![Write::put(key.clone(), value(r#"{"v":"new"}"#))];
        {
            let mut write = std::pin::pin!(store.write(batch, &how));
            for _ in 0..round % 4 {
                let once =
                    std::future::poll_fn(|context| Poll::Ready(write.as_mut().poll(context)));
                if once.await.is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }
    for round in 0..40 {
        let key = key(format!("dropped{round}"));
        let found = text(&*store, &key).await;
        assert!(found.is_none_or(|it| it == r#"{"v":"new"}"#), "round {round}");
        // Nothing of the dropped write comes after one that is answered, unless it is refused by it.
        store.put(key.clone(), value(r#"{"v":"after"}"#)).await.expect("a put");
    }
}
