//! Documents in a file: the contract, and what people do to the file by hand.

use std::sync::Arc;

use terrace_core::testkit::{DocumentsFixture, key, value};
use terrace_core::{Documents, Runtime, Scan, Selection, Store, StoreExt};
use terrace_stores::SqliteDocuments;

use super::Database;

fn open(database: &Database) -> Arc<SqliteDocuments> {
    Arc::new(SqliteDocuments::open(database.options(), Runtime::system()).unwrap())
}

async fn in_a_file() -> DocumentsFixture {
    let database = Database::new();
    DocumentsFixture::guarded(open(&database), database)
}

terrace_core::document_contract!(in_a_file);

async fn found(documents: &SqliteDocuments, words: &str) -> Vec<String> {
    let (what, scan) = (Selection::words(words).unwrap(), Scan::prefix(""));
    let page = documents.select(&what, &scan, &Default::default()).await.unwrap();
    page.records.iter().map(|record| record.key.as_str().to_owned()).collect()
}

#[tokio::test]
async fn what_a_hand_changes_is_found_at_once_and_indexed_at_the_next_start() {
    let database = Database::new();
    let documents = open(&database);
    for name in ["changed", "renamed", "removed"] {
        documents.put(key(name), value(r#"{"t":"before"}"#)).await.unwrap();
    }
    let hand = database.by_hand();
    hand.execute_batch(
        r#"UPDATE records SET value = '{"t": "by hand"}' WHERE key = 'changed';
           UPDATE records SET key = 'new' WHERE key = 'renamed';
           DELETE FROM records WHERE key = 'removed';
           INSERT INTO records (key, value) VALUES ('inserted', '{"t": "by hand"}');"#,
    )
    .unwrap();
    let waiting = || {
        let count = "SELECT count(*) FROM unindexed JOIN records USING (key) WHERE deleted = 0";
        hand.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(waiting(), 3);
    assert_eq!(found(&documents, "hand").await, ["changed", "inserted"]);
    assert_eq!(found(&documents, "before").await, ["new"]);
    assert_eq!(documents.count().await.unwrap(), 3);
    documents.put(key("changed"), value(r#"{"t":"after"}"#)).await.unwrap();
    assert_eq!((found(&documents, "hand").await, waiting()), (vec!["inserted".to_owned()], 2));
    documents.close().await.unwrap();

    let documents = open(&database);
    assert_eq!(waiting(), 0);
    assert_eq!(found(&documents, "hand").await, ["inserted"]);
    assert_eq!(found(&documents, "before").await, ["new"]);
}

#[tokio::test]
async fn what_is_no_object_is_refused_from_a_hand_too() {
    let database = Database::new();
    let documents = open(&database);
    let hand = database.by_hand();
    for text in ["1", "[]", "x", ""] {
        let insert = "INSERT INTO records (key, value) VALUES ('a', ?1)";
        let error = hand.execute(insert, [text]).unwrap_err();
        assert!(error.to_string().contains("JSON object"), "{text}: {error}");
    }
    documents.put(key("a"), value("{}")).await.unwrap();
    assert!(hand.execute("UPDATE records SET value = '[]'", []).is_err());
    assert_eq!(documents.count().await.unwrap(), 1);
}

#[tokio::test]
async fn a_file_of_records_becomes_one_of_documents() {
    let database = Database::new();
    let records = database.open();
    records.put(key("a"), value(r#"{"t":"old"}"#)).await.unwrap();
    records.put(key("b"), value("no document")).await.unwrap();
    records.close().await.unwrap();
    let documents = open(&database);
    assert_eq!(found(&documents, "old").await, ["a"]);
    assert_eq!(found(&documents, "document").await, Vec::<String>::new());
}
