//! Databases that cannot be used, or only read: each says so at the start, with what to do.

use terrace_core::{Error, ErrorKind, Runtime, Store as _, StoreExt as _};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresReadModel, PostgresShard, PostgresStore};

use super::{connect, key, session, value};

/// The name of the database in a URL, and the URL of another on the same server.
fn beside(url: &str, name: &str) -> (String, String) {
    let (server, own) = url.rsplit_once('/').expect("a path");
    (own.to_owned(), format!("{server}/{name}"))
}

/// How each kind of store is refused.
async fn refusals(url: &str) -> Vec<Error> {
    let options = || PostgresOptions::new(url);
    let runtime = Runtime::system;
    let refused = [
        PostgresStore::connect(options(), runtime()).await.map(drop),
        PostgresShard::connect(options(), runtime()).await.map(drop),
        PostgresReadModel::connect(options(), runtime()).await.map(drop),
        PostgresStore::report(options(), runtime()).await.map(drop),
        match PostgresStore::member(options(), runtime()) {
            Ok(member) => member.get(&key("a")).await.map(drop),
            Err(error) => Err(error),
        },
    ];
    refused.map(|refused| refused.expect_err(url)).into()
}

/// Keys and values are Unicode: elsewhere some could not be stored, and L6 would accept them first.
#[tokio::test]
async fn a_database_of_another_encoding_is_refused_with_what_to_do() {
    let fresh = testing::fresh_database();
    let hand = session(&fresh).await;
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("{}_{}", beside(&fresh, "").0, encoding.to_lowercase());
        let create = format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' \
             TEMPLATE template0"
        );
        hand.batch_execute(&create).await.expect("a database");
        let (_, url) = beside(&fresh, &name);
        for error in refusals(&url).await {
            // What is wrong with the server is no mistake of a request.
            let of_a_request = error.to_string().contains(" during read");
            let kind = match of_a_request {
                true => ErrorKind::Unavailable,
                false => ErrorKind::InvalidInput,
            };
            assert_eq!(error.kind(), kind, "{error}");
            let message = error.message();
            assert!(message.contains(encoding) && message.contains("createdb"), "{error}");
        }
        // The advice.
        let create = format!("CREATE DATABASE {name}_8 ENCODING 'UTF8' TEMPLATE template0");
        hand.batch_execute(&create).await.expect("a database");
        let (_, url) = beside(&fresh, &format!("{name}_8"));
        let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
        store.put(key("日本"), value("日本")).await.expect("a put");
    }
}

/// It may be a maintenance, or a disk that is full: reads go on.
#[tokio::test]
async fn a_database_that_is_read_only_by_default_is_read_and_says_why_it_takes_no_writes() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    store.put(key("a"), value("1")).await.expect("a put");
    store.close().await.expect("closed");
    let hand = session(&url).await;
    let (name, empty) = (beside(&url, "").0, testing::fresh_database());
    for name in [&name, &beside(&empty, "").0] {
        let command = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
        hand.batch_execute(&command).await.expect("read-only");
    }
    for source in [ConnectionSource::pooled(1, 1), ConnectionSource::per_request()] {
        let store = connect(&url, source).await;
        let read = store.get(&key("a")).await.expect("a read").expect("a record");
        assert_eq!(read.value.as_str(), "1");
        let error = store.put(key("a"), value("2")).await.expect_err("read-only");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let message = error.message();
        assert!(message.contains("default_transaction_read_only"), "{error}");
        assert!(!message.contains("primary"), "{error}");
        store.close().await.expect("closed");
    }
    let error = PostgresStore::connect(PostgresOptions::new(&empty), Runtime::system()).await;
    let error = error.expect_err("its tables cannot be made");
    assert!(error.message().contains("default_transaction_read_only"), "{error}");
    // The advice: no restart is needed.
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    let command = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
    hand.batch_execute(&command).await.expect("writable");
    let first = store.put(key("a"), value("3")).await;
    if first.is_err() {
        store.put(key("a"), value("3")).await.expect("a put");
    }
}

#[tokio::test]
async fn what_a_url_asks_for_is_honoured_or_refused_by_name() {
    let url = testing::fresh_database();
    let store = async |more: &str| {
        let options = PostgresOptions {
            source: ConnectionSource::pooled(1, 1),
            ..PostgresOptions::new(format!("{url}?{more}"))
        };
        PostgresStore::connect(options, Runtime::system()).await
    };
    for (more, name) in [
        ("gssencmode=disable", "gssencmode"),
        ("sslmode=prefer&sslcert=%2Fx", "sslcert"),
        ("options=-c%20search_path%3Dother", "search_path"),
        ("options=--statement-timeout%3D1", "statement_timeout"),
        ("options=-c%20no_such_setting%3D1", "no_such_setting"),
        ("options=-e", "-e"),
    ] {
        let error = store(more).await.expect_err(more);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.message().contains(name), "{more}: {error}");
    }
    let weak = store("options=-c%20synchronous_commit%3Doff%20--work_mem=7MB").await;
    let weak = weak.expect("known settings");
    let receipt = weak.put(key("a"), value("1")).await.expect("a put");
    assert_eq!(receipt.durability, terrace_core::Durability::Accepted, "it is in force");
    let mine = store("application_name=mine&connect_timeout=30&keepalives=0").await;
    let mine = mine.expect("known parameters");
    mine.put(key("a"), value("1")).await.expect("a put");
    let seen = "SELECT count(*) FROM pg_stat_activity \
                WHERE application_name = 'mine' AND datname = current_database()";
    let seen = session(&url).await.query_one(seen, &[]).await.expect("a count");
    assert!(seen.get::<_, i64>(0) > 0, "the name of the URL");
}
