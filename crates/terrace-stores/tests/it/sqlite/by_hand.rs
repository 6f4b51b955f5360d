//! People with a SQLite tool: rows made, changed and removed beside Terrace.

use std::time::Duration;

use terrace_core::Generations as _;
use terrace_core::testkit::{key, value};
use terrace_core::{
    ErrorKind, Outcome, Place, Precondition, ReadOptions, Scan, Sequence, Status, Store, StoreExt,
    Version, Write, WriteOptions,
};

use terrace_stores::sqlite::{Connections, SqliteOptions, SqliteStore};

use super::{Database, Hands};

#[tokio::test]
async fn a_row_needs_only_key_and_value() {
    let database = Database::new();
    let store = database.open();
    let before = store.put(key("before"), value("x")).await.unwrap();
    let other = database.by_hand();
    other.execute("INSERT INTO records (key, value) VALUES ('hand', 'made')", []).unwrap();
    let record = store.get(&key("hand")).await.unwrap().unwrap();
    assert_eq!(record.value.as_str(), "made");
    assert!(record.version > before.version);
    let reference = store.get(&key("before")).await.unwrap().unwrap();
    let age = record.created_at.duration_since(reference.created_at).abs();
    assert!(age < jiff_seconds(60), "created now, in microseconds: {record:?}");
    assert_eq!(record.created_at, record.updated_at);

    let after = store.put(key("hand"), value("taken over")).await.unwrap();
    assert_eq!(after.outcome, Outcome::Replaced);
    assert!(after.version > record.version);
}

fn jiff_seconds(seconds: i64) -> jiff::SignedDuration {
    jiff::SignedDuration::from_secs(seconds)
}

#[tokio::test]
async fn a_changed_row_has_a_new_version() {
    let database = Database::new();
    let store = database.open();
    let put = store.put(key("a"), value("1")).await.unwrap();
    database.by_hand().execute("UPDATE records SET value = '2' WHERE key = 'a'", []).unwrap();
    let record = store.get(&key("a")).await.unwrap().unwrap();
    assert_eq!(record.value.as_str(), "2");
    assert!(record.version > put.version);
}

#[tokio::test]
async fn versions_grow_though_rows_are_removed() {
    let database = Database::new();
    let store = database.open();
    let before = store.put(key("a"), value("1")).await.unwrap();
    database.by_hand().execute("DELETE FROM records", []).unwrap();
    let read = store.get_read(&key("a"), &ReadOptions::default()).await.unwrap();
    assert!(read.record.is_none() && read.version > before.version, "a trace is left");
    // The counter proves that the database has come as far as the client has seen.
    let how = ReadOptions { token: Some(before.token.clone()), ..ReadOptions::default() };
    let read = store.get_read(&key("a"), &how).await.unwrap();
    let proof = read.proof.expect("a database proves something");
    assert!(read.record.is_none() && store.admits(&proof, Some(&before.token)));
    let after = store.put(key("a"), value("2")).await.unwrap();
    assert_eq!(after.outcome, Outcome::Created);
    assert!(after.version > before.version);
}

#[tokio::test]
async fn a_row_from_elsewhere_with_a_high_version_is_passed() {
    let database = Database::new();
    let store = database.open();
    let copy = "INSERT INTO records (key, value, version) VALUES ('a', 'copied', 900)";
    database.by_hand().execute(copy, []).unwrap();
    let receipt = store.put(key("a"), value("2")).await.unwrap();
    assert!(receipt.version > Version::new(900));
}

#[tokio::test]
async fn a_database_behind_the_token_does_not_answer() {
    let database = Database::new();
    let store = database.open();
    store.put(key("a"), value("1")).await.unwrap();
    let seen = store.put(key("b"), value("1")).await.unwrap();
    // As if the file came from yesterday's backup.
    database
        .by_hand()
        .execute_batch("DELETE FROM records; DELETE FROM records; UPDATE meta SET value = 1 WHERE name = 'version'")
        .unwrap();
    let how = ReadOptions { token: Some(seen.token), ..ReadOptions::default() };
    let error = store.get_read(&key("a"), &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let error = store.scan(&Scan::prefix(""), &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(store.get(&key("a")).await.unwrap().is_none(), "without a token it does");
}

#[tokio::test]
async fn a_row_that_no_record_can_be_is_corrupt() {
    let database = Database::new();
    let store = database.open();
    let other = database.by_hand();
    other.execute("INSERT INTO records (key, value) VALUES ('a', 'x' || char(0))", []).unwrap();
    assert_eq!(store.get(&key("a")).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(other.execute("INSERT INTO records (key, value) VALUES ('', 'x')", []).is_err());
    // The store goes on.
    store.put(key("a"), value("good again")).await.unwrap();
    assert!(store.get(&key("a")).await.unwrap().is_some());
}

#[tokio::test]
async fn tombstones_stay_a_week_and_are_collected_by_later_deletes() {
    let database = Database::new();
    let hands = Hands::new();
    let store = terrace_stores::SqliteStore::open(database.options(), hands.runtime()).unwrap();
    let delete = async |name: &str| {
        store.put(key(name), value("x")).await.unwrap();
        store.delete(key(name)).await.unwrap()
    };
    let rows = || {
        let count = "SELECT count(*) FROM records WHERE deleted = 1 AND value = ''";
        database.by_hand().query_row(count, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let old = delete("a").await;
    delete("b").await;
    assert_eq!(rows(), 2);
    let tombstone = store.get_read(&key("a"), &ReadOptions::default()).await.unwrap();
    assert_eq!((tombstone.record, tombstone.version), (None, old.version));
    hands.set(|state| state.ahead = Duration::from_secs(8 * 24 * 60 * 60));
    delete("c").await;
    assert_eq!(rows(), 1);
    assert!(store.put(key("a"), value("back")).await.unwrap().version > old.version);
}

/// A flusher that was taken for dead comes back after everything about the key is gone.
#[tokio::test]
async fn a_write_that_a_journal_has_settled_comes_too_late_for_ever() {
    let database = Database::new();
    let store = database.open();
    let write = async |write: Write, sequence, settled| {
        let (sequence, settled) = (Sequence::new(sequence), Sequence::new(settled));
        let write = write.when(Precondition::After(Place { sequence, settled }));
        store.write(vec![write], &WriteOptions::default()).await.unwrap()[0].outcome
    };
    let rows = || {
        let count = "SELECT count(*) FROM records WHERE deleted = 1";
        database.by_hand().query_row(count, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    write(Write::delete(key("a")), 500, 0).await;
    write(Write::delete(key("b")), 501, 499).await;
    assert_eq!(rows(), 2, "an older write of `a` may wait");
    write(Write::delete(key("c")), 502, 500).await;
    assert_eq!(rows(), 2, "`a` is gone, `b` and `c` are not settled");
    let late = write(Write::put(key("a"), value("late")), 499, 498).await;
    assert_eq!(late, Outcome::PreconditionFailed);
    assert_eq!(write(Write::put(key("a"), value("new")), 503, 500).await, Outcome::Created);
    assert_eq!(store.furthest().unwrap(), Sequence::new(503));
}

#[tokio::test]
async fn the_error_of_a_list_names_the_row() {
    let database = Database::new();
    let store = database.open();
    store.put(key("good"), value("x")).await.unwrap();
    let hand = database.by_hand();
    for number in [0, -7, i64::MAX, 1 << 53] {
        hand.execute("INSERT INTO records (key, value) VALUES ('hand', 'v')", []).unwrap();
        hand.execute("UPDATE records SET version = ?1 WHERE key = 'hand'", [number]).unwrap();
        let listed = store.scan(&Scan::prefix(""), &ReadOptions::default()).await;
        let error = listed.expect_err("no version");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.message().contains("\"hand\""), "{number}: {error}");
        let error = store.get(&key("hand")).await.expect_err("no version");
        assert!(error.message().contains("\"hand\""), "{number}: {error}");
        // Whoever writes it anew mends it.
        let mended = store.put(key("hand"), value("x")).await.unwrap();
        let record = store.get(&key("hand")).await.unwrap().unwrap();
        assert_eq!((mended.outcome, mended.version), (Outcome::Replaced, record.version));
        store.delete(key("hand")).await.unwrap();
        hand.execute("DELETE FROM records WHERE key = 'hand'", []).unwrap();
    }
}

#[tokio::test]
async fn a_row_with_the_highest_version_stops_no_other() {
    for change_log in [false, true] {
        let database = Database::new();
        let options = || SqliteOptions { change_log, ..database.options() };
        let store = database.open_with(options());
        let before = store.put(key("a"), value("1")).await.unwrap();
        let hand = database.by_hand();
        let insert = "INSERT INTO records (key, value, version) VALUES ('highest', 'v', ?1)";
        hand.execute(insert, [i64::MAX]).unwrap();
        let mut last = before.version;
        let mut puts = async |store: &SqliteStore| {
            let receipt = store.put(key("a"), value("2")).await.unwrap();
            assert!(receipt.version > last && receipt.version.get() < 1 << 40);
            last = receipt.version;
        };
        puts(&store).await;
        hand.execute("INSERT INTO records (key, value) VALUES ('hand', 'v')", []).unwrap();
        hand.execute("UPDATE records SET value = 'w' WHERE key = 'hand'", []).unwrap();
        hand.execute("DELETE FROM records WHERE key = 'hand'", []).unwrap();
        puts(&store).await;
        store.close().await.unwrap();
        let store = database.open_with(options());
        puts(&store).await;
        let mended = store.put(key("highest"), value("x")).await.unwrap();
        let record = store.get(&key("highest")).await.unwrap().unwrap();
        assert_eq!((mended.outcome, mended.version), (Outcome::Replaced, record.version));
    }
}

#[tokio::test]
async fn health_follows_what_requests_meet() {
    for connections in [Connections::PerRequest, Connections::default()] {
        let database = Database::new();
        let options = SqliteOptions { change_log: true, connections, ..database.options() };
        let store = database.open_with(options);
        store.put(key("a"), value("1")).await.unwrap();
        assert_eq!(store.inspect().await.status, Status::Healthy);
        let hand = database.by_hand();
        hand.execute("ALTER TABLE commands RENAME TO gone", []).unwrap();
        hand.execute("CREATE TRIGGER x AFTER INSERT ON records BEGIN DELETE FROM nowhere; END", [])
            .unwrap();
        assert_eq!(store.inspect().await.status, Status::Degraded);
        let error = store.put(key("b"), value("1")).await.expect_err("no table");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(store.get(&key("a")).await.is_ok());
        hand.execute("DROP TABLE records", []).unwrap();
        let error = store.get(&key("a")).await.expect_err("no table");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(store.inspect().await.status, Status::Down);
    }
}
