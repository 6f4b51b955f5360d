//! What is written to MongoDB and to SQLite is read back from both as it was.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use terrace_core::testkit::key;
use terrace_core::{Json, Key, Result, Runtime, Store, Value, Write, WriteOptions, json};
use terrace_lab::testing;
use terrace_stores::{SqliteDocuments, sqlite::SqliteOptions};

use super::connect;

fn name() -> impl Strategy<Value = String> {
    let special = ["", "_id", "$oid", "$set", "$", "a.b", ".", "0", "key", "data", "é\""];
    prop_oneof![proptest::sample::select(special.map(str::to_owned).to_vec()), "[^\\u{0}]{0,4}"]
}

fn anything() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(Json::Integer),
        (-3..4_i64).prop_map(Json::Integer),
        any::<f64>().prop_filter("finite", |it| it.is_finite()).prop_map(Json::Float),
        (-9..9_i8).prop_map(|it| Json::Float(it.into())),
        ".{0,8}".prop_map(Json::Text),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Json::List),
            object(inner)
        ]
    })
}

fn object(of: impl Strategy<Value = Json>) -> impl Strategy<Value = Json> {
    proptest::collection::vec((name(), of), 0..5).prop_map(|mut fields| {
        let mut seen = std::collections::HashSet::new();
        fields.retain(|(name, _)| seen.insert(name.clone()));
        Json::Object(fields)
    })
}

async fn round_trip(store: &dyn Store, keys: &[Key], texts: &[Value]) -> Result<Vec<String>> {
    let puts = keys.iter().zip(texts).map(|(key, text)| Write::put(key.clone(), text.clone()));
    store.write(puts.collect(), &WriteOptions::default()).await?;
    let reads = store.read(keys, &Default::default()).await?;
    Ok(reads.into_iter().map(|it| it.record.unwrap().value.as_str().to_owned()).collect())
}

#[test]
fn generated_documents_are_the_same_bytes_on_both_engines() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(directory.path().join("documents.sqlite"));
    let sqlite = SqliteDocuments::open(options, Runtime::system()).unwrap();
    let mongodb = runtime.block_on(connect(&testing::fresh_documents()));
    let keys = (0..8).map(|number| key(format!("k{number}"))).collect::<Vec<_>>();
    let documents = proptest::collection::vec(object(anything()), keys.len());
    let config = Config { failure_persistence: None, ..Config::with_cases(64) };
    let outcome = TestRunner::new(config).run(&documents, |documents| {
        let texts = documents.iter().map(|it| json::document(&it.to_string()).unwrap());
        let texts = texts.collect::<Vec<_>>();
        let written = texts.iter().map(|it| it.as_str().to_owned()).collect::<Vec<_>>();
        let both = runtime.block_on(async {
            let from_sqlite = round_trip(&sqlite, &keys, &texts).await.unwrap();
            (from_sqlite, round_trip(&*mongodb, &keys, &texts).await.unwrap())
        });
        prop_assert_eq!(&both.0, &written);
        prop_assert_eq!(&both.1, &written);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    runtime.block_on(async { mongodb.close().await.unwrap() });
}
