//! Writes that apply only if.

use std::sync::Arc;

use crate::testkit::{key, value};
use crate::{Outcome, Precondition, Store, StoreExt, Version, Write, WriteOptions};

/// `Absent` holds for a key never written and for a deleted one.
pub async fn absent_holds_only_without_a_record(store: Arc<dyn Store>) {
    let key = key("lock");
    let take = |text: &str| Write::put(key.clone(), value(text)).when(Precondition::Absent);

    let first = store.write_one(take("mine")).await.expect("a write");
    assert_eq!(first.outcome, Outcome::Created);
    let second = store.write_one(take("theirs")).await.expect("a write");
    assert_eq!((second.outcome, second.version), (Outcome::PreconditionFailed, first.version));
    assert_eq!(store.get(&key).await.expect("a read").expect("a record").value.as_str(), "mine");

    store.delete(key.clone()).await.expect("a delete");
    let third = store.write_one(take("theirs")).await.expect("a write");
    assert_eq!(third.outcome, Outcome::Created);
    assert!(third.version > first.version);
    let delete = Write::delete(key.clone()).when(Precondition::Absent);
    let refused = store.write_one(delete).await.expect("a write");
    assert_eq!(refused.outcome, Outcome::PreconditionFailed);
}

/// A version holds only while it is the record's; without a record no version holds.
pub async fn a_version_holds_only_while_it_is_current(store: Arc<dyn Store>) {
    let key = key("document");
    let put = |text: &str, version| {
        Write::put(key.clone(), value(text)).when(Precondition::Version(version))
    };
    let nothing = store.write_one(put("a", Version::new(1))).await.expect("a write");
    assert_eq!((nothing.outcome, nothing.version), (Outcome::PreconditionFailed, Version::NONE));
    let never = store.write_one(put("a", Version::NONE)).await.expect("a write");
    assert_eq!(never.outcome, Outcome::PreconditionFailed, "no record has no version");

    let first = store.put(key.clone(), value("b")).await.expect("a put");
    let second = store.write_one(put("c", first.version)).await.expect("a write");
    assert_eq!(second.outcome, Outcome::Replaced);
    let stale = store.write_one(put("d", first.version)).await.expect("a write");
    assert_eq!((stale.outcome, stale.version), (Outcome::PreconditionFailed, second.version));
    assert_eq!(store.get(&key).await.expect("a read").expect("a record").value.as_str(), "c");

    let delete = |version| Write::delete(key.clone()).when(Precondition::Version(version));
    let stale = store.write_one(delete(first.version)).await.expect("a write");
    assert_eq!(stale.outcome, Outcome::PreconditionFailed);
    let deleted = store.write_one(delete(second.version)).await.expect("a write");
    assert_eq!(deleted.outcome, Outcome::Deleted);
    let gone = store.write_one(put("e", deleted.version)).await.expect("a write");
    assert_eq!((gone.outcome, gone.version), (Outcome::PreconditionFailed, Version::NONE));
}

/// The other writes of a batch are applied, also those of the same key.
pub async fn a_failed_precondition_stops_no_other_write(store: Arc<dyn Store>) {
    let (a, b) = (key("a"), key("b"));
    let old = store.put(a.clone(), value("0")).await.expect("a put").version;
    let batch = vec![
        Write::put(b.clone(), value("1")),
        Write::put(a.clone(), value("no")).when(Precondition::Absent),
        Write::put(a.clone(), value("1")).when(Precondition::Version(old)),
        Write::put(a.clone(), value("no")).when(Precondition::Version(old)),
        Write::put(a.clone(), value("2")),
    ];
    let receipts = store.write(batch, &WriteOptions::default()).await.expect("a write");
    let outcomes: Vec<_> = receipts.iter().map(|receipt| receipt.outcome).collect();
    assert_eq!(
        outcomes,
        [
            Outcome::Created,
            Outcome::PreconditionFailed,
            Outcome::Replaced,
            Outcome::PreconditionFailed,
            Outcome::Replaced,
        ]
    );
    assert_eq!(receipts[1].version, old);
    assert_eq!(receipts[3].version, receipts[2].version);
    assert_eq!(store.get(&a).await.expect("a read").expect("a record").value.as_str(), "2");
    assert_eq!(store.get(&b).await.expect("a read").expect("a record").value.as_str(), "1");
}
