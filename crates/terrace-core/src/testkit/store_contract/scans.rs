//! Records in order.

use std::sync::Arc;

use crate::testkit::{key, value};
use crate::{Key, Page, ReadOptions, Scan, Store, StoreExt, Value, Write, WriteOptions};

async fn load(store: &dyn Store, names: &[&str]) {
    let batch = names.iter().map(|name| Write::put(key(name), value(name))).collect();
    store.write(batch, &WriteOptions::default()).await.expect("a write");
}

async fn all(store: &dyn Store, prefix: &str, limit: usize) -> Vec<String> {
    let mut scan = Scan { limit, ..Scan::prefix(prefix) };
    let mut names = Vec::new();
    loop {
        let page = store.scan(&scan, &ReadOptions::default()).await.expect("a scan");
        assert!(page.records.len() <= limit, "a page keeps its limit");
        names.extend(page.records.iter().map(|record| record.key.as_str().to_owned()));
        match page.next {
            Some(next) => scan.after = Some(next),
            None => return names,
        }
    }
}

/// Keys come in the order of their bytes, whatever a language thinks of it.
pub async fn a_scan_answers_byte_order_and_skips_the_deleted(store: Arc<dyn Store>) {
    let mut names = ["b", "B", "a", "ä", "z", "Z", "_", "~", "10", "9", "a b", "a-b", "鍵", "😀"];
    load(&*store, &names).await;
    store.delete(key("z")).await.expect("a delete");
    names.sort_unstable();
    let expected: Vec<_> = names.iter().filter(|name| **name != "z").collect();
    assert_eq!(
        all(&*store, "", 100).await,
        expected.iter().map(|n| n.to_string()).collect::<Vec<_>>()
    );
}

/// Pages of any size follow each other without a gap or a repeat, and the last one says so.
pub async fn a_scan_pages_through_everything_once(store: Arc<dyn Store>) {
    let names: Vec<_> = (0..25).map(|number| format!("p{number:02}")).collect();
    load(&*store, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for limit in [1, 5, 7, 25, 100] {
        assert_eq!(all(&*store, "p", limit).await, names, "pages of {limit}");
    }
    // A cursor may name a key that is gone.
    let scan = Scan { after: Some(key("p10x")), limit: 2, ..Scan::prefix("p") };
    let page = store.scan(&scan, &ReadOptions::default()).await.expect("a scan");
    let found: Vec<_> = page.records.iter().map(|record| record.key.as_str()).collect();
    assert_eq!(found, ["p11", "p12"]);
    assert_eq!(page.next, Some(key("p12")));
    assert_eq!(page.records[0].value.as_str(), "p11");
}

/// A prefix is text, not a pattern, and may end in any character.
pub async fn a_scan_takes_a_prefix_literally(store: Arc<dyn Store>) {
    let last = "\u{10ffff}";
    let names = [
        "a",
        "a%",
        "a%b",
        "a_",
        "a_b",
        "ab",
        "a\\b",
        "b",
        "aé",
        "aéz",
        last,
        "\u{10ffff}x",
        "a\u{7f}",
    ];
    load(&*store, &names).await;
    for prefix in ["a", "a%", "a_", "a\\", "aé", "aéz", "b", last, "c", "", "a\u{7f}"] {
        let mut expected: Vec<_> = names.iter().filter(|name| name.starts_with(prefix)).collect();
        expected.sort_unstable();
        let expected: Vec<String> = expected.into_iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(all(&*store, prefix, 3).await, expected, "prefix {prefix:?}");
    }
    let longest = "z".repeat(Key::MAX_CHARS);
    assert_eq!(all(&*store, &longest, 3).await, Vec::<String>::new());
}

/// A page of large values ends early, and who follows the cursors gets all of them.
pub async fn a_page_ends_where_its_values_are_many_bytes(store: Arc<dyn Store>) {
    let large = value("x".repeat(Value::MAX_BYTES));
    let names: Vec<_> = (0..20).map(|number| format!("large{number:02}")).collect();
    for name in &names {
        store.put(key(name), large.clone()).await.expect("a write");
    }
    let scan = Scan { limit: 100, ..Scan::prefix("large") };
    let page = store.scan(&scan, &ReadOptions::default()).await.expect("a scan");
    let bytes = page.records.iter().map(|record| record.value.as_str().len()).sum::<usize>();
    assert!(page.next.is_some() && bytes <= Page::MAX_BYTES + Value::MAX_BYTES, "{bytes}");
    assert_eq!(all(&*store, "large", 100).await, names);
}
