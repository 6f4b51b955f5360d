//! The change log of a file, and files that follow one.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{Fixture, WithLog, key, value};
use terrace_core::{
    Batch, ChangeLog, Changes, Checkpoint, ErrorKind, Follower, LogPosition, PositionLost,
    ReadOptions, Runtime, Scan, Store, StoreExt, Version,
};
use terrace_stores::sqlite::{SqliteOptions, SqliteStore};

use super::{Database, Hands};

async fn logged() -> Fixture<WithLog> {
    let database = Database::new();
    let store = database.open();
    let log = Arc::new(store.change_log());
    Fixture::guarded(Arc::new(WithLog { store, log }), database)
}

terrace_core::change_log_contract!(logged);

fn open_replica(database: &Database, of: &SqliteStore) -> Arc<SqliteStore> {
    database.open_with(SqliteOptions { replica_of: Some(of.history()), ..database.options() })
}

/// Follows to the end of the log by parts of this size.
async fn follow(log: &dyn ChangeLog, follower: &dyn Follower, limit: usize) {
    loop {
        let mut from = follower.checkpoint().await.unwrap();
        if !from.is_in(&log.name()) {
            follower.begin_anew(&log.name()).await.unwrap();
            from = follower.checkpoint().await.unwrap();
        }
        let part = log.after(from.position, limit).await.unwrap();
        let more = part.more;
        assert!(follower.apply(&batch(&from, part)).await.unwrap());
        if !more {
            return;
        }
    }
}

/// A part of a log, as what is applied at this checkpoint.
fn batch(from: &Checkpoint, part: Changes) -> Batch {
    let Changes { changes, position, more } = part;
    Batch { from: from.clone(), to: from.at(position), changes, more, refused: None }
}

async fn place(follower: &dyn Follower) -> LogPosition {
    follower.checkpoint().await.unwrap().position
}

async fn all(store: &SqliteStore) -> Vec<terrace_core::Record> {
    let scan = Scan { limit: 1000, ..Scan::prefix("") };
    store.scan(&scan, &ReadOptions::default()).await.unwrap().records
}

async fn texts(log: &dyn ChangeLog, after: LogPosition) -> Vec<(String, Option<String>)> {
    let part = log.after(after, 1000).await.unwrap();
    let text = |change: terrace_core::Logged| {
        let value = change.record.map(|record| record.value.as_str().to_owned());
        (change.key.as_str().to_owned(), value)
    };
    part.changes.into_iter().map(text).collect()
}

#[tokio::test]
async fn what_people_do_to_rows_is_in_the_log() {
    let database = Database::new();
    let store = database.open();
    for name in ["a", "b", "c", "d"] {
        store.put(key(name), value("1")).await.unwrap();
    }
    let log = store.change_log();
    let other = database.by_hand();
    let some = |name: &str, text: &str| (name.to_owned(), Some(text.to_owned()));
    let gone = |name: &str| (name.to_owned(), None);
    for (command, expected) in [
        ("INSERT INTO records (key, value) VALUES ('e', '2')", vec![some("e", "2")]),
        ("INSERT INTO records (key, value, version) VALUES ('f', '2', 1)", vec![some("f", "2")]),
        ("INSERT OR REPLACE INTO records (key, value) VALUES ('a', '2')", vec![some("a", "2")]),
        ("UPDATE records SET value = '3' WHERE key = 'b'", vec![some("b", "3")]),
        ("UPDATE records SET value = '4', version = 2 WHERE key = 'b'", vec![some("b", "4")]),
        ("UPDATE records SET key = 'g' WHERE key = 'c'", vec![some("g", "1"), gone("c")]),
        ("DELETE FROM records WHERE key = 'd'", vec![gone("d")]),
        (
            "DELETE FROM records WHERE deleted = 0",
            ["a", "b", "e", "f", "g"].into_iter().map(gone).collect(),
        ),
    ] {
        let before = log.head().await.unwrap();
        other.execute(command, []).unwrap();
        let mut found = texts(&log, before).await;
        found.sort();
        let mut expected = expected;
        expected.sort();
        assert_eq!(found, expected, "{command}");
    }
    let before = log.head().await.unwrap();
    let copied = "INSERT INTO records (key, value, version) VALUES ('h', '1', 900)";
    other.execute(copied, []).unwrap();
    let after = store.put(key("i"), value("1")).await.unwrap();
    assert!(after.version > Version::new(900));
    assert_eq!(texts(&log, before).await, [some("h", "1"), some("i", "1")]);
}

#[tokio::test]
async fn a_replica_is_its_primary_row_by_row() {
    let (one, other) = (Database::new(), Database::new());
    let primary = one.open();
    for number in 0..50 {
        primary.put(key(format!("k{}", number % 17)), value(number.to_string())).await.unwrap();
    }
    let deleted = primary.delete(key("k3")).await.unwrap();
    let replica = open_replica(&other, &primary);
    let follower = replica.follower("primary");
    follow(&primary.change_log(), &follower, 4).await;
    assert_eq!(all(&replica).await, all(&primary).await);
    let read = replica.get_read(&key("k3"), &ReadOptions::default()).await.unwrap();
    assert_eq!((read.record, read.version), (None, deleted.version));

    let refused = replica.put(key("a"), value("1")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    // What it has from its primary it keeps, and goes on from there.
    drop((follower, replica));
    let replica = open_replica(&other, &primary);
    let follower = replica.follower("primary");
    assert_eq!(place(&follower).await, primary.change_log().head().await.unwrap());
    primary.put(key("k3"), value("back")).await.unwrap();
    follow(&primary.change_log(), &follower, 4).await;
    assert_eq!(all(&replica).await, all(&primary).await);
}

/// In the middle of a compacted log a replica has later changes without earlier ones: it must not
/// claim that it has come to their position.
#[tokio::test]
async fn a_replica_proves_nothing_in_the_middle_of_the_log() {
    let (one, other) = (Database::new(), Database::new());
    let primary = one.open();
    primary.put(key("k"), value("old")).await.unwrap();
    let replica = open_replica(&other, &primary);
    let (log, follower) = (primary.change_log(), replica.follower("primary"));
    follow(&log, &follower, 10).await;
    let seen = primary.put(key("k"), value("new")).await.unwrap();
    primary.put(key("j"), value("x")).await.unwrap();
    primary.put(key("k"), value("newest")).await.unwrap();

    let from = follower.checkpoint().await.unwrap();
    let part = log.after(from.position, 1).await.unwrap();
    assert!(part.more && part.changes[0].key == key("j"), "{part:?}");
    assert!(follower.apply(&batch(&from, part.clone())).await.unwrap());
    assert_eq!(place(&follower).await, part.position);
    assert!(part.position.offset >= seen.version.get());
    let how = ReadOptions { token: Some(seen.token), ..ReadOptions::default() };
    let error = replica.get_read(&key("k"), &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "it would be `old`");
    follow(&log, &follower, 1).await;
    let read = replica.get_read(&key("k"), &how).await.unwrap();
    assert_eq!(read.record.unwrap().value.as_str(), "newest");
}

#[tokio::test]
async fn changes_apply_once_and_only_forward() {
    let (one, other) = (Database::new(), Database::new());
    let primary = one.open();
    primary.put(key("a"), value("1")).await.unwrap();
    let replica = open_replica(&other, &primary);
    let (log, follower) = (primary.change_log(), replica.follower("primary"));
    let first = log.after(LogPosition::default(), 10).await.unwrap();
    primary.put(key("a"), value("2")).await.unwrap();
    let second = log.after(first.position, 10).await.unwrap();
    follower.begin_anew(&log.name()).await.unwrap();
    let start = follower.checkpoint().await.unwrap();
    let (end, then) = (second.position, start.at(first.position));
    let (first, second) = (batch(&start, first), batch(&then, second));
    assert!(!follower.apply(&second).await.unwrap(), "it has not come there");
    assert!(follower.apply(&first).await.unwrap());
    assert!(follower.apply(&second).await.unwrap());
    assert!(!follower.apply(&first).await.unwrap(), "it is further");
    assert_eq!(place(&follower).await, end);
    assert_eq!(all(&replica).await[0].value.as_str(), "2");
}

/// A shard that takes keys over keeps their versions, and its own go on past them.
#[tokio::test]
async fn a_database_of_its_own_can_follow_another() {
    let (one, other) = (Database::new(), Database::new());
    let (source, target) = (one.open(), other.open());
    for number in 0..9 {
        source.put(key(format!("s{number}")), value("source")).await.unwrap();
    }
    target.put(key("t"), value("target")).await.unwrap();
    let before = target.put(key("s0"), value("older here")).await.unwrap();
    follow(&source.change_log(), &target.follower("source"), 2).await;
    let moved = target.get(&key("s8")).await.unwrap().unwrap();
    assert_eq!(Some(moved), source.get(&key("s8")).await.unwrap());
    assert_eq!(target.get(&key("s0")).await.unwrap().unwrap().version, before.version);
    let log = target.change_log();
    let head = log.head().await.unwrap();
    let after = target.put(key("s1"), value("target")).await.unwrap();
    assert!(after.version.get() > head.offset.max(9));
    assert_eq!(texts(&log, head).await, [("s1".to_owned(), Some("target".to_owned()))]);
    // Forgetting the place forgets no record of a database of its own.
    let follower = target.follower("source");
    follower.begin_anew("log").await.unwrap();
    assert_eq!(place(&follower).await, LogPosition::default());
    assert_eq!(all(&target).await.len(), 10);
}

#[tokio::test]
async fn who_missed_a_tombstone_begins_anew() {
    let (one, other) = (Database::new(), Database::new());
    let hands = Hands::new();
    let primary = SqliteStore::open(one.options(), hands.runtime()).unwrap();
    for name in ["a", "b", "c"] {
        primary.put(key(name), value("1")).await.unwrap();
    }
    let replica = open_replica(&other, &primary);
    let (log, follower) = (primary.change_log(), replica.follower("primary"));
    follow(&log, &follower, 10).await;
    primary.delete(key("a")).await.unwrap();
    hands.set(|state| state.ahead = Duration::from_secs(8 * 24 * 60 * 60));
    primary.delete(key("b")).await.unwrap();
    let error = log.after(place(&follower).await, 10).await.unwrap_err();
    assert!(PositionLost::caused(&error), "{error}");

    follower.begin_anew(&log.name()).await.unwrap();
    assert_eq!(all(&replica).await, []);
    // A copy that has begun goes on, though the floor is above its first positions.
    let log = primary.change_log();
    follow(&log, &follower, 1).await;
    assert_eq!(all(&replica).await, all(&primary).await);
    // Another handle cannot know that.
    let stray = primary.change_log().after(LogPosition { epoch: 0, offset: 1 }, 10).await;
    assert!(PositionLost::caused(&stray.unwrap_err()));
}

#[tokio::test]
async fn a_primary_of_another_time_is_noticed() {
    let (one, other) = (Database::new(), Database::new());
    let primary = one.open();
    primary.put(key("a"), value("1")).await.unwrap();
    let log = primary.change_log();
    let beyond = LogPosition { epoch: 0, offset: 99 };
    assert!(PositionLost::caused(&log.after(beyond, 10).await.unwrap_err()));
    let replica = open_replica(&other, &primary);
    follow(&log, &replica.follower("primary"), 10).await;
    drop(replica);
    // Another primary took its place: what was copied from the first is nobody's.
    let third = Database::new();
    let another = third.open();
    let replica = open_replica(&other, &another);
    assert_eq!(all(&replica).await, []);
    let place = replica.follower("primary").checkpoint().await.unwrap();
    assert_eq!(place, Checkpoint::default());
    // A database of its own is not made a replica.
    let own = SqliteOptions { replica_of: Some(primary.history()), ..third.options() };
    drop(another);
    let error = SqliteStore::open(own, Runtime::system()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_wait_sees_other_processes() {
    let database = Database::new();
    let store = database.open();
    let log = store.change_log();
    let head = log.head().await.unwrap();
    let waits = async { log.wait(head, terrace_core::Deadline::NEVER).await.unwrap() };
    let writes = async {
        let row = "INSERT INTO records (key, value) VALUES ('a', '1')";
        database.by_hand().execute(row, []).unwrap();
    };
    tokio::join!(waits, writes);
    let Changes { changes, .. } = log.after(head, 10).await.unwrap();
    assert_eq!(changes.len(), 1);
}
