//! What is in a document.

use std::sync::Arc;

use super::{put, text};
use crate::testkit::{key, value};
use crate::{Documents, ErrorKind, Json, StoreExt};

/// The same bytes: names in their order, and the kinds of numbers.
pub async fn documents_come_back_as_they_were_written(store: Arc<dyn Documents>) {
    let deep = format!(
        "{{\"a\":{}1{}}}",
        "[".repeat(Json::MAX_DEPTH - 1),
        "]".repeat(Json::MAX_DEPTH - 1)
    );
    let texts = [
        "{}",
        r#"{"b":1,"a":2,"":3,"B":4}"#,
        r#"{"z":{"y":1,"x":{"w":[{"v":1,"u":2}]}}}"#,
        r#"{"i":1,"f":1.0,"z":0,"nz":-0.0,"n":-1,"e":1e+300,"t":5e-324,"d":0.1}"#,
        r#"{"past":9007199254740993,"least":-9223372036854775808,"most":9223372036854775807}"#,
        r#"{"near":9007199254740993.0,"whole":1e16,"small":1e-7}"#,
        r#"{"n":null,"t":true,"f":false,"l":[null,[],[[]],{},""]}"#,
        r#"{"nul":"\u0000","line":"\n\t\"\\/","wide":"é鍵😀\u007f"}"#,
        &deep,
    ];
    for (number, written) in texts.iter().enumerate() {
        // Every float has one text; this is the writer's.
        let written = Json::parse(written).expect("JSON").to_string();
        let key = key(format!("text{number}"));
        store.put(key.clone(), value(&written)).await.expect("a put");
        assert_eq!(text(&*store, &key).await.as_deref(), Some(written.as_str()));
        // Also over what was there before.
        store.put(key.clone(), value(r#"{"a":{"b":1}}"#)).await.expect("a put");
        store.put(key.clone(), value(&written)).await.expect("a put");
        assert_eq!(text(&*store, &key).await.as_deref(), Some(written.as_str()));
    }
}

/// Names that an engine, a query or a driver reads as something of its own are plain data.
pub async fn names_that_mean_something_elsewhere_are_plain(store: Arc<dyn Documents>) {
    let texts = [
        r#"{"$oid":"507f1f77bcf86cd799439011"}"#,
        r#"{"x":{"$oid":"507f1f77bcf86cd799439011"},"y":{"$numberLong":"5"}}"#,
        r#"{"$set":{"a":1},"$inc":2,"$where":"1"}"#,
        r#"{"a.b":1,"a":{"b":2,"c.d":[{"e.f":3}]},".":4,"..":5}"#,
        r#"{"":"empty","x":{"":{"":0}}}"#,
        r#"{"_id":1,"key":2,"data":3,"version":4,"deleted":true,"words":["x"],"value":5}"#,
        r#"{"$":1,"$$":2,"a$b":3,"0":4,"1":[5]}"#,
        r#"{"$.a":1,"\"":2,"'":3,"\\":4,"[0]":5,"é":6}"#,
    ];
    for (number, written) in texts.iter().enumerate() {
        let name = format!("names{number}");
        put(&*store, &name, written).await;
        put(&*store, &name, written).await;
        assert_eq!(text(&*store, &key(&name)).await.as_deref(), Some(*written));
    }
}

/// What one engine could not keep, none takes.
pub async fn what_no_engine_keeps_is_refused(store: Arc<dyn Documents>) {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(Json::MAX_DEPTH), "]".repeat(Json::MAX_DEPTH));
    let refused = [
        "",
        "x",
        "1",
        "[]",
        "null",
        r#"{"a": 1}"#,
        r#"{"a":1"#,
        r#"{"a":1,"a":2}"#,
        r#"{"a":9223372036854775808}"#,
        r#"{"a":1e400}"#,
        r#"{"a\u0000":1}"#,
        &deep,
    ];
    put(&*store, "kept", r#"{"a":1}"#).await;
    for text in refused {
        let error = store.put(key("kept"), value(text)).await.expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}: {error}");
    }
    assert_eq!(text(&*store, &key("kept")).await.as_deref(), Some(r#"{"a":1}"#));
    assert_eq!(store.count().await.expect("a count"), 1);
}
