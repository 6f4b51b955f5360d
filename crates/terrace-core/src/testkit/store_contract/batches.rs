//! Many keys at once.

use std::collections::HashSet;
use std::sync::Arc;

use crate::testkit::{key, value};
use crate::{
    Budget, Consistency, ErrorKind, Outcome, ReadOptions, Store, StoreExt, Value, Version, Write,
    WriteOptions,
};

/// Answers stand in the order of the keys, a key asked twice is answered twice.
pub async fn answers_come_in_the_order_asked(store: Arc<dyn Store>) {
    let batch = vec![Write::put(key("b"), value("2")), Write::put(key("a"), value("1"))];
    let receipts = store.write(batch, &WriteOptions::default()).await.expect("a write");
    assert_eq!(receipts.len(), 2);

    let keys = ["b", "missing", "a", "b"].map(key);
    for _ in 0..2 {
        let reads = store.read(&keys, &ReadOptions::default()).await.expect("a read");
        let values: Vec<_> = reads
            .iter()
            .map(|read| read.record.as_ref().map(|record| record.value.as_str()))
            .collect();
        assert_eq!(values, [Some("2"), None, Some("1"), Some("2")]);
        assert_eq!(reads[0].version, receipts[0].version);
        assert_eq!(reads[2].version, receipts[1].version);
    }
}

/// Nothing asked, nothing answered.
pub async fn no_keys_and_no_writes_are_no_work(store: Arc<dyn Store>) {
    assert_eq!(store.read(&[], &ReadOptions::default()).await.expect("a read"), []);
    assert_eq!(store.write(vec![], &WriteOptions::default()).await.expect("a write"), []);
}

/// Within a batch the writes of one key happen in their order, each with its own version.
pub async fn a_batch_may_write_a_key_many_times(store: Arc<dyn Store>) {
    let (a, b) = (key("a"), key("b"));
    let batch = vec![
        Write::put(a.clone(), value("1")),
        Write::put(b.clone(), value("x")),
        Write::put(a.clone(), value("2")),
        Write::delete(a.clone()),
        Write::delete(a.clone()),
        Write::put(a.clone(), value("3")),
        Write::put(a.clone(), value("4")),
    ];
    let receipts = store.write(batch, &WriteOptions::default()).await.expect("a write");
    let outcomes: Vec<_> = receipts.iter().map(|receipt| receipt.outcome).collect();
    assert_eq!(
        outcomes,
        [
            Outcome::Created,
            Outcome::Created,
            Outcome::Replaced,
            Outcome::Deleted,
            Outcome::Absent,
            Outcome::Created,
            Outcome::Replaced,
        ]
    );
    assert_eq!(receipts[4].version, Version::NONE);
    let of_a: Vec<_> = [0, 2, 3, 5, 6].iter().map(|&index| receipts[index].version).collect();
    assert!(of_a.windows(2).all(|pair| pair[0] < pair[1]), "{of_a:?} grows");

    let record = store.get(&a).await.expect("a read").expect("a record");
    assert_eq!((record.value.as_str(), record.version), ("4", receipts[6].version));
    assert_eq!(store.get(&b).await.expect("a read").expect("a record").value.as_str(), "x");
}

/// A thousand keys are written and read in one call each.
pub async fn a_batch_of_a_thousand_is_one_batch(store: Arc<dyn Store>) {
    let keys: Vec<_> = (0..1000).rev().map(|number| key(format!("k{number:04}"))).collect();
    let batch = keys.iter().map(|key| Write::put(key.clone(), value(key.as_str()))).collect();
    let receipts = store.write(batch, &WriteOptions::default()).await.expect("a write");
    // Each database draws its own.
    let versions: HashSet<_> = receipts.iter().map(|it| (it.origin, it.version)).collect();
    assert_eq!(versions.len(), 1000, "each write has its own version");

    let reads = store.read(&keys, &ReadOptions::default()).await.expect("a read");
    for ((key, read), receipt) in keys.iter().zip(&reads).zip(&receipts) {
        let record = read.record.as_ref().expect("a record");
        assert_eq!((&record.key, record.value.as_str()), (key, key.as_str()));
        assert_eq!(record.version, receipt.version);
    }
}

/// More values than the budget holds are refused; a key that is asked for alone never is.
pub async fn a_read_stops_at_its_budget(store: Arc<dyn Store>) {
    let large = value("x".repeat(Value::MAX_BYTES));
    let keys: Vec<_> = (0..5).map(|number| key(format!("large{number}"))).collect();
    for key in &keys {
        store.put(key.clone(), large.clone()).await.expect("a write");
    }
    let within = |mebibytes| {
        let budget = Budget::bytes(mebibytes * Value::MAX_BYTES);
        ReadOptions { consistency: Consistency::Strong, budget, ..ReadOptions::default() }
    };
    // Twice: what the first reads have left in caches counts, too.
    for consistency in [Consistency::Strong, Consistency::Default, Consistency::Default] {
        let how = |mebibytes| ReadOptions { consistency, ..within(mebibytes) };
        let error = store.read(&keys, &how(4)).await.expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("fewer keys"), "{error}");
        for (count, mebibytes) in [(5, 5), (4, 4), (1, 0)] {
            let reads = store.read(&keys[..count], &how(mebibytes)).await.expect("a read");
            assert!(reads.iter().all(|read| read.record.is_some()), "{count}");
        }
    }
    let many: Vec<_> = (0..200).map(|number| key(format!("none{number}"))).collect();
    assert_eq!(store.read(&many, &within(1)).await.expect("a read").len(), 200);
}
