//! One record: written, read, replaced, deleted.

use std::sync::Arc;

use crate::testkit::{key, value};
use crate::{Key, Outcome, Record, Store, StoreExt, Value, Version};

async fn existing(store: &dyn Store, key: &Key) -> Record {
    store.get(key).await.expect("a read").expect("a record")
}

/// A key that was never written answers no record, no version and no error.
pub async fn a_missing_key_has_no_record(store: Arc<dyn Store>) {
    let missing = key("never written");
    let read = store.get_read(&missing, &Default::default()).await.expect("a read");
    assert_eq!((read.record, read.version), (None, Version::NONE));
    // Asked again it may come from a cache, and is the same.
    let read = store.get_read(&missing, &Default::default()).await.expect("a read");
    assert_eq!((read.record, read.version), (None, Version::NONE));
    let receipt = store.delete(missing).await.expect("a delete");
    assert_eq!((receipt.outcome, receipt.version), (Outcome::Absent, Version::NONE));
}

/// A put creates, the next replaces; the version grows and `created_at` stays.
pub async fn a_record_is_read_back_and_replaced(store: Arc<dyn Store>) {
    let key = key("user:1");
    let first = store.put(key.clone(), value("one")).await.expect("a put");
    assert_eq!(first.outcome, Outcome::Created);
    let one = existing(&*store, &key).await;
    assert_eq!((one.value.as_str(), one.version), ("one", first.version));
    assert_eq!(one.created_at, one.updated_at);

    let second = store.put(key.clone(), value("two")).await.expect("a put");
    assert_eq!(second.outcome, Outcome::Replaced);
    assert!(second.version > first.version);
    let two = existing(&*store, &key).await;
    assert_eq!((two.value.as_str(), two.version), ("two", second.version));
    assert_eq!(two.created_at, one.created_at);
    assert!(two.updated_at >= one.updated_at);

    // The same value again is a write like any other.
    let third = store.put(key.clone(), value("two")).await.expect("a put");
    assert_eq!(third.outcome, Outcome::Replaced);
    assert!(third.version > second.version);
}

/// A delete takes a version of its own, and a record that comes back is newer than its deletion.
pub async fn a_deleted_record_is_gone_and_comes_back_newer(store: Arc<dyn Store>) {
    let key = key("phoenix");
    let put = store.put(key.clone(), value("ash")).await.expect("a put");
    let born = existing(&*store, &key).await.created_at;
    let delete = store.delete(key.clone()).await.expect("a delete");
    assert_eq!(delete.outcome, Outcome::Deleted);
    assert!(delete.version > put.version);
    assert_eq!(store.get(&key).await.expect("a read"), None);

    let again = store.delete(key.clone()).await.expect("a delete");
    assert_eq!((again.outcome, again.version), (Outcome::Absent, Version::NONE));

    let back = store.put(key.clone(), value("bird")).await.expect("a put");
    assert_eq!(back.outcome, Outcome::Created);
    assert!(back.version > delete.version);
    let record = existing(&*store, &key).await;
    assert_eq!((record.value.as_str(), record.version), ("bird", back.version));
    assert!(record.created_at >= born);
    assert_eq!(record.created_at, record.updated_at);
}

/// Keys that people confuse are different keys, and the longest ones fit.
pub async fn keys_of_every_kind_are_kept_apart(store: Arc<dyn Store>) {
    let longest = "😀".repeat(Key::MAX_CHARS);
    let names = [
        "a",
        "A",
        "a ",
        " a",
        "a/b",
        "a%2Fb",
        "a\\b",
        "a'b",
        "a\"b",
        "a;b",
        "a\nb",
        "a_b",
        "a%b",
        "ä",
        "a\u{308}",
        "ключ",
        "鍵",
        "مفتاح",
        "👩‍👩‍👧",
        "null",
        "NULL",
        "0",
        "00",
        "{}",
        "{a}",
        "a*",
        "\u{1}",
        "\u{7f}",
        "\u{feff}a",
        "\u{10ffff}",
        &longest,
    ];
    for (index, name) in names.iter().enumerate() {
        let receipt = store.put(key(name), value(index.to_string())).await.expect("a put");
        assert_eq!(receipt.outcome, Outcome::Created, "{name:?} is another key");
    }
    for (index, name) in names.iter().enumerate() {
        let record = existing(&*store, &key(name)).await;
        assert_eq!(record.key.as_str(), *name);
        assert_eq!(record.value.as_str(), index.to_string(), "{name:?}");
    }
}

/// Values of 0 bytes to 1 MiB come back as they went in.
pub async fn values_from_empty_to_a_mebibyte_are_kept(store: Arc<dyn Store>) {
    let big = "x".repeat(Value::MAX_BYTES);
    let wide = "鍵".repeat(1000);
    for (name, text) in [("empty", ""), ("wide", &wide), ("line", "a\r\n\t\"b\"\\"), ("big", &big)]
    {
        store.put(key(name), value(text)).await.expect("a put");
        for _ in 0..2 {
            let record = existing(&*store, &key(name)).await;
            assert!(record.value.as_str() == text, "{name} comes back whole");
        }
    }
}
