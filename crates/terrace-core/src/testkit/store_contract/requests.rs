//! What travels with a request, and the store as a whole.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::testkit::{key, value};
use crate::{
    Deadline, ErrorKind, Idempotency, Precondition, ReadOptions, Receipt, Runtime, Scan, Status,
    Store, StoreExt, Write, WriteOptions,
};

/// A repeated request answers the first result; another request under its key is refused.
pub async fn an_idempotent_request_is_applied_once(store: Arc<dyn Store>) {
    let options = |fingerprint| WriteOptions {
        idempotency: Some(Arc::new(Idempotency::new("order-1", [fingerprint; 32]).expect("a key"))),
        ..WriteOptions::default()
    };
    let order = || vec![Write::put(key("order"), value("1")).when(Precondition::Absent)];
    let first_options = options(1);
    let all = join_all((0..8).map(|_| store.write(order(), &first_options))).await;
    // A repeat may prove more: it is answered later.
    let result = |answer: &Vec<Receipt>| {
        let fields = |it: &Receipt| (it.outcome, it.version, it.durability, it.origin);
        answer.iter().map(fields).collect::<Vec<_>>()
    };
    let first = result(all[0].as_ref().expect("a write"));
    assert!(first[0].0.is_applied());
    for answer in all {
        let again = result(&answer.expect("a write"));
        assert_eq!(again, first, "every repeat answers the first result");
    }
    store.delete(key("order")).await.expect("a delete");
    let again = store.write(order(), &first_options).await.expect("a write");
    assert_eq!(result(&again), first);
    assert_eq!(store.get(&key("order")).await.expect("a read"), None, "it was not applied again");

    let reused = store.write(order(), &options(2)).await.expect_err("another request");
    assert_eq!(reused, Idempotency::reused());
    assert_eq!(store.get(&key("order")).await.expect("a read"), None);
}

/// A deadline that has passed is an error, and nothing was applied.
pub async fn a_passed_deadline_changes_nothing(store: Arc<dyn Store>) {
    let runtime = Runtime::system();
    let passed = Deadline::at(runtime.now() - Duration::from_millis(1));
    let late = key("late");
    let how = ReadOptions { deadline: passed, ..ReadOptions::strong(passed) };
    let write = WriteOptions { deadline: passed, ..WriteOptions::default() };

    let error = store.get_read(&late, &how).await.expect_err("too late");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let batch = vec![Write::put(late.clone(), value("x"))];
    let error = store.write(batch, &write).await.expect_err("too late");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let error = store.scan(&Scan::prefix(""), &how).await.expect_err("too late");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(store.get(&late).await.expect("a read"), None);
}

/// What was acknowledged is seen by a strong read, by a read with the receipt's token, and by a
/// plain read of the same instance; the token of each answer covers the receipt's.
pub async fn a_write_is_seen_by_a_strong_read_and_by_its_token(store: Arc<dyn Store>) {
    let key = key("seen");
    for round in 0..20 {
        let text = round.to_string();
        let receipt = store.put(key.clone(), value(&text)).await.expect("a put");
        let ways = [
            ReadOptions::default(),
            ReadOptions::strong(Deadline::NEVER),
            ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() },
        ];
        for how in &ways {
            let read = store.get_read(&key, how).await.expect("a read");
            assert_eq!(read.record.expect("a record").value.as_str(), text);
            assert!(!read.token.is_empty(), "an answer proves something");
            for (history, position) in receipt.token.marks() {
                let seen = read.token.position(history);
                assert!(seen >= Some(position), "an answer shows what was written");
            }
        }
    }
}

/// Closing twice is closing once; afterwards every call is refused as unavailable.
pub async fn a_closed_store_says_so(store: Arc<dyn Store>) {
    store.put(key("a"), value("1")).await.expect("a put");
    store.close().await.expect("a close");
    store.close().await.expect("a second close");
    let strong = ReadOptions::strong(Deadline::NEVER);
    let kinds = [
        store.get_read(&key("a"), &strong).await.map(drop),
        store.put(key("a"), value("2")).await.map(drop),
        store.scan(&Scan::prefix(""), &strong).await.map(drop),
    ]
    .map(|answer| answer.expect_err("closed").kind());
    assert_eq!(kinds, [ErrorKind::Unavailable; 3]);
}

/// A store that works says so, names itself, and its text form tells its structure.
pub async fn an_inspection_is_healthy_and_named(store: Arc<dyn Store>) {
    store.put(key("a"), value("1")).await.expect("a put");
    let tree = store.inspect().await;
    assert_eq!(tree.status, Status::Healthy, "{tree:#?}");
    assert!(tree.note.is_empty() && !tree.name.is_empty());
    assert!(!store.to_string().is_empty());
}
