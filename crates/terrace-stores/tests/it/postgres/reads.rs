//! Answers that are large.

use std::collections::HashSet;

use terrace_core::{Key, ReadOptions, Scan, Store, Value};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;

use super::{connect, key, session};

#[tokio::test]
async fn a_key_that_is_asked_for_many_times_is_read_once() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    let row = "INSERT INTO records (key, value) VALUES ('a', repeat('x', 1048576)), ('b', '')";
    session(&url).await.batch_execute(row).await.expect("rows");
    let mut keys = vec![key("a"); 300];
    keys.extend([key("none"), key("b"), key("none"), key("b"), key("a")]);
    let reads = store.read(&keys, &ReadOptions::default()).await.expect("a read");
    let values = reads.iter().map(|read| read.record.as_ref().map(|it| it.value.as_str()));
    let values = values.collect::<Vec<_>>();
    assert_eq!(values[300..304], [None, Some(""), None, Some("")]);
    for (key, read) in keys.iter().zip(&reads) {
        assert!(read.record.as_ref().is_none_or(|record| record.key == *key));
    }
    let large = values.into_iter().flatten().filter(|value| value.len() == Value::MAX_BYTES);
    let places = large.map(str::as_ptr).collect::<Vec<_>>();
    assert_eq!(places.len(), 301);
    assert_eq!(places.into_iter().collect::<HashSet<_>>().len(), 1, "one copy for all");
}

#[tokio::test]
async fn a_page_of_large_values_ends_early_and_the_next_goes_on() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    let rows = "INSERT INTO records (key, value) \
                SELECT 'k' || 100 + i, repeat('x', 1048576) FROM generate_series(1, 40) AS i";
    session(&url).await.batch_execute(rows).await.expect("rows");
    for (prefix, limit, expected) in [
        ("k", 1000, vec![16, 16, 8]),
        ("k", 16, vec![16, 16, 8]),
        ("k", 15, vec![15, 15, 10]),
        ("k12", 1000, vec![10]),
    ] {
        let mut scan = Scan { limit, ..Scan::prefix(prefix) };
        let (mut sizes, mut keys) = (Vec::new(), Vec::<Key>::new());
        loop {
            let page = store.scan(&scan, &ReadOptions::default()).await.expect("a page");
            sizes.push(page.records.len());
            keys.extend(page.records.into_iter().map(|record| record.key));
            match page.next {
                Some(next) => scan.after = Some(next),
                None => break,
            }
        }
        assert_eq!(sizes, expected, "{prefix} {limit}");
        assert!(keys.is_sorted_by(|a, b| a < b), "no key twice");
    }
    session(&url).await.batch_execute("DELETE FROM records WHERE key > 'k116'").await.expect("16");
    let scan = Scan { limit: 1000, ..Scan::prefix("") };
    let page = store.scan(&scan, &ReadOptions::default()).await.expect("a page");
    assert_eq!((page.records.len(), page.next), (16, None), "a full page that is the last");
}
