//! What people do to the tables beside the store.

use terrace_core::{
    Change, ErrorKind, Outcome, Position, ReadOptions, StoreExt, Token, Version, Write,
};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;

use super::{connect, key, session, value};

#[tokio::test]
async fn rows_made_by_hand_are_records() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let hand = session(&url).await;
    hand.batch_execute("INSERT INTO records (key, value) VALUES ('a', '1')").await.expect("a row");
    let read = store.get(&key("a")).await.expect("a read").expect("a record");
    assert_eq!(read.value.as_str(), "1");
    assert!(read.version > Version::NONE);
    let receipt = store.put(key("a"), value("2")).await.expect("a put");
    assert_eq!(receipt.outcome, Outcome::Replaced);
    assert!(receipt.version > read.version);
    let record = store.get(&key("a")).await.expect("a read").expect("a record");
    assert_eq!(record.created_at, read.created_at);
    assert!(record.updated_at > read.updated_at);
}

#[tokio::test]
async fn versions_rise_across_deletes_and_truncation_by_hand() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let hand = session(&url).await;
    let mut last = Version::NONE;
    for command in [
        "SELECT 1",
        "DELETE FROM records",
        "TRUNCATE records",
        "TRUNCATE records RESTART IDENTITY",
        "UPDATE records SET version = nextval('records_version')",
    ] {
        hand.batch_execute(command).await.expect("a command");
        for _ in 0..3 {
            let receipt = store.put(key("a"), value("1")).await.expect("a put");
            assert!(receipt.version > last, "after {command}");
            last = receipt.version;
        }
    }
}

/// The server refuses a prepared plan whose result would have other types; once prepared again it
/// goes on, and no caller sees it.
#[tokio::test]
async fn a_changed_table_is_prepared_for_again() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(2, 2)).await;
    let hand = session(&url).await;
    let scan = terrace_core::Scan::prefix("");
    for (round, command) in [
        "SELECT 1",
        "ALTER TABLE records ALTER value TYPE varchar",
        "ALTER TABLE records ADD COLUMN note text",
        "ALTER TABLE records ALTER value TYPE text",
    ]
    .iter()
    .enumerate()
    {
        hand.batch_execute(command).await.expect(command);
        for _ in 0..4 {
            store.put(key("a"), value(&round.to_string())).await.expect(command);
            let read = store.get(&key("a")).await.expect(command).expect("a record");
            assert_eq!(read.value.as_str(), round.to_string());
            let how = ReadOptions::default();
            let page = terrace_core::Store::scan(&store, &scan, &how).await.expect(command);
            assert_eq!(page.records.len(), 1);
            let delete = Write { change: Change::Delete, ..Write::delete(key("b")) };
            assert_eq!(store.write_one(delete).await.expect(command).outcome, Outcome::Absent);
        }
    }
    hand.batch_execute("DROP TABLE records").await.expect("no table");
    let error = store.get(&key("a")).await.expect_err("no table");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("restart Terrace"), "{error}");
}

/// A token of what a backup does not hold is not answered with something older.
#[tokio::test]
async fn a_database_behind_the_token_does_not_answer() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 2)).await;
    let seen = store.put(key("a"), value("1")).await.expect("a put");
    let later = store.put(key("b"), value("1")).await.expect("a put");
    let how = ReadOptions { token: Some(later.token.clone()), ..ReadOptions::default() };
    let read = store.get_read(&key("a"), &how).await.expect("a read");
    assert_eq!(read.version, seen.version);

    let beyond = Token::of(store.history(), Position::new(u64::MAX >> 1));
    let how = ReadOptions { token: Some(beyond), ..ReadOptions::default() };
    let error = store.get_read(&key("a"), &how).await.expect_err("behind");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(store.get(&key("a")).await.expect("a read").is_some(), "no token, no question");
    let elsewhere = Token::of("another", Position::new(9));
    let how = ReadOptions { token: Some(elsewhere), ..ReadOptions::default() };
    assert!(store.get_read(&key("a"), &how).await.is_ok(), "not this database's token");
}

#[tokio::test]
async fn a_constraint_of_the_table_refuses_the_batch_as_input() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    let hand = session(&url).await;
    let check = "ALTER TABLE records ADD CHECK (value <> 'bad'), ADD UNIQUE (value)";
    hand.batch_execute(check).await.expect("a constraint");
    for bad in [
        vec![Write::put(key("a"), value("1")), Write::put(key("b"), value("bad"))],
        vec![Write::put(key("a"), value("bad")), Write::delete(key("x"))],
        vec![Write::put(key("a"), value("1")), Write::put(key("b"), value("1"))],
        vec![
            Write::put(key("a"), value("1")),
            Write::put(key("b"), value("1")),
            Write::delete(key("c")),
        ],
    ] {
        let how = terrace_core::WriteOptions::default();
        let error = terrace_core::Store::write(&store, bad, &how).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(!error.message().contains("constraint \""), "no text of the driver");
        let line = error.to_string();
        assert!(line.contains("constraint records_value_"), "the log names the constraint: {line}");
        assert!(
            !line.contains("bad") && !line.contains("(1") && !line.contains("DETAIL"),
            "{line}"
        );
        assert!(!line.contains('\n'), "one line: {line}");
        assert_eq!(store.get(&key("a")).await.expect("a read"), None, "nothing was applied");
    }
}

/// Rows that come with versions, as by COPY or from a backup of the data alone.
#[tokio::test]
async fn versions_rise_above_those_that_rows_came_with() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    let hand = session(&url).await;
    let rows = "INSERT INTO records (key, value, version, deleted) VALUES \
                ('a', '1', 5000, false), ('b', '1', 6000, false), ('c', '', 7000, true)";
    hand.batch_execute(rows).await.expect("rows");
    for (name, old) in [("a", 5000), ("b", 6000), ("c", 7000)] {
        let put = store.put(key(name), value("2")).await.expect("a put");
        assert!(put.version > Version::new(old), "{name}: {}", put.version);
        let delete = store.delete(key(name)).await.expect("a delete");
        assert!(delete.version > put.version, "{name}: {}", delete.version);
        let again = store.put(key(name), value("3")).await.expect("a put");
        assert!(again.version > delete.version, "{name}: {}", again.version);
    }
    let highest = store.get(&key("c")).await.expect("a read").expect("a record").version;
    // From a start on, every key is above, so a token of one is no riddle to another.
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    let new = store.put(key("new"), value("1")).await.expect("a put");
    assert!(new.version > highest, "{} {highest}", new.version);
}

/// A put is committed when its answer comes; an answer that cannot be read is no refusal.
#[tokio::test]
async fn a_put_whose_answer_cannot_be_read_is_in_doubt() {
    let url = testing::fresh_database();
    let store = connect(&url, ConnectionSource::pooled(1, 1)).await;
    let hand = session(&url).await;
    hand.batch_execute("ALTER TABLE records ALTER version TYPE int").await.expect("a change");
    // The table is written anew, so another history begins, with versions that no int can hold.
    store.put(key("a"), value("1")).await.expect_err("a version beyond an int");
    hand.batch_execute("SELECT setval('records_version', 10)").await.expect("a low version");
    let error = store.put(key("a"), value("1")).await.expect_err("unreadable");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    let stored = hand.query("SELECT 1 FROM records WHERE key = 'a'", &[]).await.expect("a row");
    assert_eq!(stored.len(), 1, "it was applied");
    hand.batch_execute(
        "ALTER TABLE records ALTER version TYPE bigint; \
         CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER skip BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION skip()",
    )
    .await
    .expect("a trigger");
    let error = store.put(key("b"), value("1")).await.expect_err("no answer");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
}
