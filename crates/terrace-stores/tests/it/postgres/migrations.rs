//! The tables at the start.

use futures_util::future::join_all;
use terrace_core::{ErrorKind, Runtime, StoreExt};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{connect, key, session, value};

fn options(url: &str, schema: &str) -> PostgresOptions {
    PostgresOptions {
        schema: schema.to_owned(),
        source: ConnectionSource::pooled(0, 2),
        connect_timeout: std::time::Duration::from_secs(30),
        ..PostgresOptions::new(url)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_instances_start_at_once_on_an_empty_database() {
    let url = testing::fresh_database();
    let starts =
        (0..20).map(|_| PostgresStore::connect(options(&url, "terrace_l5"), Runtime::system()));
    let stores = join_all(starts).await.into_iter().collect::<Result<Vec<_>, _>>();
    let stores = stores.expect("every instance starts");
    let receipt = stores[0].put(key("a"), value("1")).await.expect("a put");
    for store in &stores {
        let read = store.get_read(&key("a"), &Default::default()).await.expect("a read");
        assert_eq!(read.token, receipt.token, "all know the database by one name");
    }
    let other = PostgresStore::connect(options(&url, "public"), Runtime::system()).await;
    let other = other.expect("another schema");
    assert_eq!(other.get(&key("a")).await.expect("a read"), None, "schemas are apart");
}

#[tokio::test]
async fn newer_tables_are_refused_and_known_ones_need_no_rights() {
    let url = testing::fresh_database();
    drop(connect(&url, ConnectionSource::pooled(0, 1)).await);
    let hand = session(&url).await;
    hand.batch_execute("UPDATE meta SET value = '999' WHERE name = 'schema'").await.expect("meta");
    let error = PostgresStore::connect(options(&url, "public"), Runtime::system()).await;
    let error = error.expect_err("newer");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("newer Terrace"), "{error}");
}

#[tokio::test]
async fn a_table_of_records_that_was_there_is_taken_over() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    hand.batch_execute(
        "CREATE TABLE records (key varchar(255) PRIMARY KEY, value text, \
             created_at timestamp DEFAULT current_timestamp, \
             updated_at timestamp DEFAULT current_timestamp); \
         INSERT INTO records (key, value, created_at) \
             VALUES ('b', '1', '2020-01-02 03:04:05'), ('a', '2', NULL)",
    )
    .await
    .expect("an old table");
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    let old = store.get(&key("b")).await.expect("a read").expect("a record");
    assert_eq!(old.created_at.to_string(), "2020-01-02T03:04:05Z");
    let new = store.put(key("a"), value("3")).await.expect("a put");
    assert!(new.version > old.version);
    store.delete(key("b")).await.expect("a delete");
    drop(connect(&url, ConnectionSource::pooled(1, 1)).await);
}

#[tokio::test]
async fn a_table_that_cannot_be_used_is_refused_and_left_alone() {
    for table in [
        "CREATE TABLE records (id serial, name text)",
        "CREATE TABLE records (key text, value text)",
        "CREATE TABLE records (key text PRIMARY KEY, value jsonb)",
        "CREATE TABLE records (key text PRIMARY KEY, value text, owner int NOT NULL)",
        "CREATE TABLE records (key text PRIMARY KEY, value text); INSERT INTO records VALUES ('')",
    ] {
        let url = testing::fresh_database();
        let hand = session(&url).await;
        hand.batch_execute(table).await.expect(table);
        let error = PostgresStore::connect(options(&url, "public"), Runtime::system()).await;
        let error = error.expect_err(table);
        assert!(error.message().contains("another schema") || table.contains("('')"), "{error}");
        let left = hand.query_one("SELECT to_regclass('meta') IS NULL", &[]).await.expect("a row");
        assert!(left.get::<_, bool>(0), "nothing was made");
    }
}
