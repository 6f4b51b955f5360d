//! Writes of a journal: each is applied once, and none over a later one.

use std::sync::Arc;

use crate::testkit::{key, value};
use crate::{
    Key, Outcome, Place, Precondition, Sequence, Store, StoreExt, Version, Write, WriteOptions,
};

fn after(write: Write, sequence: u64) -> Write {
    let place = Place { sequence: Sequence::new(sequence), settled: Sequence::NONE };
    write.when(Precondition::After(place))
}

fn put(key: &Key, text: &str, sequence: u64) -> Write {
    after(Write::put(key.clone(), value(text)), sequence)
}

async fn apply(store: &dyn Store, writes: Vec<Write>) -> Vec<(Outcome, Version)> {
    let receipts = store.write(writes, &WriteOptions::default()).await.expect("a write");
    receipts.iter().map(|receipt| (receipt.outcome, receipt.version)).collect()
}

async fn text(store: &dyn Store, key: &Key) -> Option<String> {
    store.get(key).await.expect("a read").map(|record| record.value.as_str().to_owned())
}

/// A repeat and an older one change nothing; a write that is not of the journal keeps the place.
pub async fn a_place_is_applied_once_and_never_over_a_later_one(store: Arc<dyn Store>) {
    let key = key("placed");
    let first = apply(&*store, vec![put(&key, "5", 5)]).await[0];
    assert_eq!(first.0, Outcome::Created);
    for late in [4, 5] {
        let refused = apply(&*store, vec![put(&key, "late", late)]).await[0];
        assert_eq!(refused, (Outcome::PreconditionFailed, first.1));
    }
    let second = apply(&*store, vec![put(&key, "6", 6)]).await[0];
    assert_eq!(second.0, Outcome::Replaced);
    assert!(second.1 > first.1);
    let direct = store.put(key.clone(), value("direct")).await.expect("a put");
    assert!(direct.version > second.1);
    let refused = apply(&*store, vec![put(&key, "late", 6)]).await[0];
    assert_eq!(refused, (Outcome::PreconditionFailed, direct.version));
    assert_eq!(text(&*store, &key).await.as_deref(), Some("direct"));
    let record = store.get(&key).await.expect("a read").expect("a record");
    assert_eq!(apply(&*store, vec![put(&key, "7", 7)]).await[0].0, Outcome::Replaced);
    let later = store.get(&key).await.expect("a read").expect("a record");
    assert_eq!(later.created_at, record.created_at);
}

/// A delete keeps its place, also where there was no record, so that an older put stays out.
pub async fn a_placed_delete_keeps_older_puts_out(store: Arc<dyn Store>) {
    let (there, never) = (key("there"), key("never"));
    apply(&*store, vec![put(&there, "1", 1)]).await;
    let delete = |key: &Key, sequence| after(Write::delete(key.clone()), sequence);
    let done = apply(&*store, vec![delete(&there, 3), delete(&never, 4)]).await;
    assert_eq!((done[0].0, done[1].0), (Outcome::Deleted, Outcome::Absent));
    assert!(done[0].1 > Version::NONE);
    assert_eq!(done[1].1, Version::NONE);
    let late = apply(&*store, vec![put(&there, "late", 2), put(&never, "late", 4)]).await;
    assert_eq!(late, [(Outcome::PreconditionFailed, Version::NONE); 2]);
    assert_eq!(text(&*store, &there).await, None);
    assert_eq!(text(&*store, &never).await, None);
    let again = apply(&*store, vec![delete(&there, 5), put(&never, "5", 5)]).await;
    assert_eq!((again[0].0, again[1].0), (Outcome::Absent, Outcome::Created));
    assert_eq!(apply(&*store, vec![put(&there, "6", 6)]).await[0].0, Outcome::Created);
    // A write beside the journal does not move the place, nor does its tombstone.
    store.delete(there.clone()).await.expect("a delete");
    assert_eq!(apply(&*store, vec![put(&there, "6", 6)]).await[0].0, Outcome::PreconditionFailed);
}

/// A batch may place a key several times, in any order, beside writes of other kinds.
pub async fn places_of_one_batch_are_gone_through_in_order(store: Arc<dyn Store>) {
    let (a, b, c) = (key("a"), key("b"), key("c"));
    let batch = vec![
        put(&b, "2", 2),
        put(&a, "1", 1),
        put(&b, "1", 1),
        after(Write::delete(a.clone()), 3),
        put(&a, "4", 4),
    ];
    let done = apply(&*store, batch).await;
    let outcomes: Vec<_> = done.iter().map(|(outcome, _)| *outcome).collect();
    assert_eq!(
        outcomes,
        [
            Outcome::Created,
            Outcome::Created,
            Outcome::PreconditionFailed,
            Outcome::Deleted,
            Outcome::Created,
        ]
    );
    assert_eq!(text(&*store, &a).await.as_deref(), Some("4"));
    assert_eq!(text(&*store, &b).await.as_deref(), Some("2"));
    let mixed = vec![
        put(&a, "5", 5),
        Write::put(c.clone(), value("direct")),
        Write::put(b.clone(), value("no")).when(Precondition::Absent),
        put(&a, "late", 4),
    ];
    let done = apply(&*store, mixed).await;
    let outcomes: Vec<_> = done.iter().map(|(outcome, _)| *outcome).collect();
    assert_eq!(
        outcomes,
        [
            Outcome::Replaced,
            Outcome::Created,
            Outcome::PreconditionFailed,
            Outcome::PreconditionFailed,
        ]
    );
    let many = (0..600).map(|n| put(&key(format!("many{n}")), "x", 9)).collect();
    assert!(apply(&*store, many).await.iter().all(|(outcome, _)| *outcome == Outcome::Created));
    let again = (0..600).map(|n| put(&key(format!("many{n}")), "y", 8 + n % 3)).collect();
    for (n, (outcome, _)) in apply(&*store, again).await.into_iter().enumerate() {
        let applied = n % 3 == 2;
        assert_eq!(outcome.is_applied(), applied, "{n}");
        let wanted = if applied { "y" } else { "x" };
        let found = text(&*store, &key(format!("many{n}"))).await;
        assert_eq!(found.as_deref(), Some(wanted));
    }
}

/// A write of a journal has the time at which that accepted it, so that a record looks the same before
/// and after it is applied.
pub async fn a_place_has_the_time_of_its_acceptance(store: Arc<dyn Store>) {
    let key = key("timed");
    let at = |seconds: i64| {
        let time = crate::Timestamp::from_second(1_700_000_000 + seconds).expect("a time");
        (time, Sequence::at(time).get())
    };
    let ((first, one), (second, two)) = (at(0), at(5));
    apply(&*store, vec![put(&key, "1", one)]).await;
    let record = store.get(&key).await.expect("a read").expect("a record");
    assert_eq!((record.created_at, record.updated_at), (first, first));
    apply(&*store, vec![put(&key, "2", two)]).await;
    let record = store.get(&key).await.expect("a read").expect("a record");
    assert_eq!((record.created_at, record.updated_at), (first, second));
    // What is deleted and put in one batch is another record.
    let ((_, three), (fourth, four)) = (at(7), at(9));
    let delete = after(Write::delete(key.clone()), three);
    apply(&*store, vec![delete, put(&key, "4", four)]).await;
    let record = store.get(&key).await.expect("a read").expect("a record");
    assert_eq!((record.created_at, record.updated_at), (fourth, fourth));
}
