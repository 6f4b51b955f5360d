//! What is found by its content.

use std::sync::Arc;
use std::time::Duration;

use super::{page, put, selected};
use crate::testkit::{key, value};
use crate::{
    Deadline, Documents, ErrorKind, Json, ReadOptions, Runtime, Scan, Selection, StoreExt, Write,
    WriteOptions,
};

fn field(name: &str, value: Json) -> Selection {
    Selection::field(name, value).expect("a field")
}

fn words(text: &str) -> Selection {
    Selection::words(text).expect("words")
}

/// Numbers count by what they are worth, lists by what they hold, and no boolean is a number.
pub async fn a_field_is_found_by_its_value(store: Arc<dyn Documents>) {
    for (name, text) in [
        ("bool", r#"{"n":true}"#),
        ("float", r#"{"n":1.0}"#),
        ("integer", r#"{"n":1,"z":null}"#),
        ("large", r#"{"n":9007199254740993}"#),
        ("list", r#"{"n":["1",1,true],"z":[0,null]}"#),
        ("nested", r#"{"m":{"n":1},"n":{"n":1}}"#),
        ("other", r#"{"n":2.5,"é'\" $":"x"}"#),
        ("text", r#"{"n":"1"}"#),
    ] {
        put(&*store, name, text).await;
    }
    put(&*store, "gone", r#"{"n":1}"#).await;
    store.delete(key("gone")).await.expect("a delete");
    for (what, names) in [
        (field("n", Json::Integer(1)), &["float", "integer", "list"][..]),
        (field("n", Json::Float(1.0)), &["float", "integer", "list"]),
        (field("n", Json::Float(2.5)), &["other"]),
        (field("n", Json::Integer(9_007_199_254_740_993)), &["large"]),
        (field("n", Json::Float(9_007_199_254_740_992.0)), &[]),
        (field("n", Json::Text("1".into())), &["list", "text"]),
        (field("n", Json::Bool(true)), &["bool", "list"]),
        (field("n", Json::Bool(false)), &[]),
        (field("z", Json::Null), &["integer", "list"]),
        (field("none", Json::Null), &[]),
        (field("é'\" $", Json::Text("x".into())), &["other"]),
    ] {
        assert_eq!(selected(&store, &what).await, names, "{what:?}");
    }
}

/// All words must be there, in any place of what the document holds now.
pub async fn words_are_found_in_the_latest_content(store: Arc<dyn Documents>) {
    put(&*store, "a", r#"{"title":"Blue Moon","tags":["night",{"n":42}]}"#).await;
    put(&*store, "b", r#"{"title":"blue-sky, 4.5","moon":"name only"}"#).await;
    put(&*store, "c", r#"{"title":"GRÖSSE"}"#).await;
    let found = async |text: &str| selected(&store, &words(text)).await;
    assert_eq!(found("blue").await, ["a", "b"]);
    assert_eq!(found("MOON, blue").await, ["a"]);
    assert_eq!(found("42 night").await, ["a"]);
    assert_eq!(found("4").await, ["b"]);
    assert_eq!(found("größe").await, Vec::<String>::new());
    assert_eq!(found("grösse").await, ["c"]);
    assert_eq!(found("title").await, Vec::<String>::new(), "names are no words");
    put(&*store, "a", r#"{"title":"red moon"}"#).await;
    assert_eq!(found("blue").await, ["b"]);
    assert_eq!(found("moon red").await, ["a"]);
    store.delete(key("a")).await.expect("a delete");
    assert_eq!(found("moon").await, Vec::<String>::new());
    put(&*store, "a", r#"{"t":"blue"}"#).await;
    assert_eq!(found("blue").await, ["a", "b"]);
}

/// Pages of any size follow each other without a gap or a repeat, within a prefix, too.
pub async fn selections_are_paged_and_take_a_prefix(store: Arc<dyn Documents>) {
    let text = |number: u32| {
        let kind = if number.is_multiple_of(3) { "odd" } else { "even" };
        value(format!(r#"{{"kind":"{kind}"}}"#))
    };
    let batch = (0..40).map(|number| Write::put(key(format!("p{number:02}")), text(number)));
    store.write(batch.collect(), &WriteOptions::default()).await.expect("a write");
    let names = (0..40).filter(|number| number % 3 == 0).map(|number| format!("p{number:02}"));
    let names = names.collect::<Vec<_>>();
    for what in [words("odd"), field("kind", Json::Text("odd".into()))] {
        for limit in [1, 5, 14, 100] {
            let (mut scan, mut found) = (Scan { limit, ..Scan::prefix("p") }, Vec::new());
            loop {
                let page = page(&*store, &what, &scan).await;
                assert!(page.records.len() <= limit);
                found.extend(page.records.iter().map(|it| it.key.as_str().to_owned()));
                let Some(next) = page.next else { break };
                scan.after = Some(next);
            }
            assert_eq!(found, names, "{what:?} in pages of {limit}");
        }
        let within = Scan { after: Some(key("p12")), limit: 2, ..Scan::prefix("p1") };
        let page = page(&*store, &what, &within).await;
        let found = page.records.iter().map(|it| it.key.as_str()).collect::<Vec<_>>();
        assert_eq!((found, page.next), (vec!["p15", "p18"], None));
    }
}

/// The count is exact: no deleted document, none twice.
pub async fn every_document_is_counted_once(store: Arc<dyn Documents>) {
    assert_eq!(store.count().await.expect("a count"), 0);
    for round in 0..2 {
        for number in 0..10 {
            put(&*store, &format!("c{number}"), &format!(r#"{{"r":{round}}}"#)).await;
        }
        assert_eq!(store.count().await.expect("a count"), 10);
    }
    store.delete(key("c3")).await.expect("a delete");
    store.delete(key("c3")).await.expect("a delete");
    assert_eq!(store.count().await.expect("a count"), 9);
    put(&*store, "c3", "{}").await;
    assert_eq!(store.count().await.expect("a count"), 10);
}

/// A selection has a deadline, and sees what the token says.
pub async fn a_selection_is_asked_as_a_read_is(store: Arc<dyn Documents>) {
    let (what, scan) = (words("seen"), Scan::prefix(""));
    for round in 0..10 {
        let text = format!(r#"{{"t":"seen","n":{round}}}"#);
        let receipt = store.put(key("a"), value(&text)).await.expect("a put");
        let how = ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() };
        let page = store.select(&what, &scan, &how).await.expect("a selection");
        assert_eq!(page.records[0].value.as_str(), text);
        assert_eq!(page.records[0].version, receipt.version);
        for (history, position) in receipt.token.marks() {
            assert!(page.token.position(history) >= Some(position));
        }
    }
    let passed = Deadline::at(Runtime::system().now() - Duration::from_millis(1));
    let how = ReadOptions { deadline: passed, ..ReadOptions::default() };
    let error = store.select(&what, &scan, &how).await.expect_err("too late");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    store.close().await.expect("a close");
    let closed = store.select(&what, &scan, &ReadOptions::default()).await;
    assert_eq!(closed.expect_err("closed").kind(), ErrorKind::Unavailable);
    assert_eq!(store.count().await.expect_err("closed").kind(), ErrorKind::Unavailable);
}
