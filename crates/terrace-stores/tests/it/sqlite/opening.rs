//! What is opened, what is refused, and what is found again.

use terrace_core::read_model::Projection;
use terrace_core::testkit::{key, value};
use terrace_core::{Durability, ErrorKind, ReadModel as _, Runtime, Status, Store, StoreExt};
use terrace_stores::sqlite::{SqliteOptions, SqliteStore, Synchronous};
use terrace_stores::{SqliteJournal, SqliteJournalOptions, SqliteReadModel};

use super::{Database, inspected};

fn refusal(options: SqliteOptions) -> terrace_core::Error {
    SqliteStore::open(options, Runtime::system()).unwrap_err()
}

#[tokio::test]
async fn records_and_versions_go_on_after_a_restart() {
    let database = Database::new();
    let store = database.open();
    assert_eq!(store.to_string(), "sqlite");
    let first = store.put(key("a"), value("1")).await.unwrap();
    store.close().await.unwrap();
    let log = database.path().with_extension("sqlite-wal");
    assert!(!log.exists(), "a closed database is one file");

    let store = database.open();
    let record = store.get(&key("a")).await.unwrap().unwrap();
    assert_eq!((record.value.as_str(), record.version), ("1", first.version));
    let second = store.put(key("a"), value("2")).await.unwrap();
    assert!(second.version > first.version);
    let position = |receipt: &terrace_core::Receipt| receipt.token.marks().next().map(|it| it.1);
    assert!(position(&second) > position(&first));
    // Dropped without a close: what was acknowledged is there.
    drop(store);
    let record = database.open().get(&key("a")).await.unwrap().unwrap();
    assert_eq!(record.value.as_str(), "2");
}

#[tokio::test]
async fn two_stores_on_one_file_see_one_order() {
    let database = Database::new();
    let (one, two) = (database.open(), database.open());
    let mut last = one.put(key("a"), value("0")).await.unwrap().version;
    for round in 0..10 {
        for store in [&two, &one] {
            let version = store.put(key("a"), value(round.to_string())).await.unwrap().version;
            assert!(version > last);
            last = version;
        }
    }
    assert_eq!(two.get(&key("a")).await.unwrap().unwrap().version, last);
}

#[test]
fn many_may_open_a_new_file_at_once() {
    for _ in 0..10 {
        let database = Database::new();
        let barrier = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    drop(database.open());
                });
            }
        });
    }
}

#[test]
fn a_database_of_a_newer_terrace_is_refused() {
    let database = Database::new();
    drop(database.open());
    database.by_hand().pragma_update(None, "user_version", 99).unwrap();
    let error = refusal(database.options());
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("newer Terrace"), "{error}");
}

#[test]
fn a_database_of_another_program_is_refused_and_left_alone() {
    let database = Database::new();
    database.by_hand().execute_batch("CREATE TABLE songs (title)").unwrap();
    let before = std::fs::read(database.path()).unwrap();
    let error = refusal(database.options());
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("another program"), "{error}");
    assert!(std::fs::read(database.path()).unwrap() == before);
}

/// Other programs have tables of these names, too.
#[test]
fn no_file_of_another_program_becomes_a_read_model_or_a_journal() {
    let database = Database::new();
    let foreign = "CREATE TABLE activity (minute, what); CREATE TABLE records (key, value);
        CREATE TABLE projection (name, source); CREATE TABLE meta (name, value);
        INSERT INTO activity VALUES (1, 'x')";
    database.by_hand().execute_batch(foreign).unwrap();
    let before = std::fs::read(database.path()).unwrap();
    let journal = SqliteJournalOptions::new(database.path());
    for refused in [
        SqliteReadModel::open(database.options(), Runtime::system()).map(drop),
        SqliteJournal::open(journal, Runtime::system()).map(drop),
        SqliteStore::open(database.options(), Runtime::system()).map(drop),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.message().contains("a file of its own"), "{error}");
        assert!(std::fs::read(database.path()).unwrap() == before, "it is left alone");
    }
}

/// A table that somebody has dropped: restore the file, or move it away, as the message says.
#[tokio::test]
async fn what_is_advised_for_a_lost_table_works() {
    for table in ["records", "meta", "idempotency"] {
        let database = Database::new();
        let store = database.open();
        store.put(key("a"), value("1")).await.unwrap();
        store.close().await.unwrap();
        let backup = database.directory.path().join("backup");
        std::fs::copy(database.path(), &backup).unwrap();
        let store = database.open();
        database.by_hand().execute_batch(&format!("DROP TABLE {table}")).unwrap();
        if table != "idempotency" {
            let error = store.put(key("a"), value("2")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(error.message().contains("restore the file"), "{error}");
        }
        // Stopped first, as the message says.
        let _without_its_table = store.close().await;
        let error = refusal(database.options());
        assert!(error.message().contains("restore the file"), "{table}: {error}");
        std::fs::rename(database.path(), database.directory.path().join("lost")).unwrap();
        let store = database.open();
        assert_eq!(store.get(&key("a")).await.unwrap(), None, "it begins anew");
        store.close().await.unwrap();
        std::fs::rename(&backup, database.path()).unwrap();
        assert!(database.open().get(&key("a")).await.unwrap().is_some(), "it is as it was");
    }
}

#[tokio::test]
async fn a_log_that_was_dropped_is_begun_anew() {
    let database = Database::new();
    let options = || SqliteOptions { change_log: true, ..database.options() };
    let store = database.open_with(options());
    store.put(key("a"), value("1")).await.unwrap();
    let name = terrace_core::ChangeLog::name(&store.log().unwrap().unwrap());
    store.close().await.unwrap();
    database.by_hand().execute_batch("DROP TABLE commands").unwrap();
    let store = database.open_with(options());
    store.put(key("b"), value("1")).await.unwrap();
    let log = store.log().unwrap().unwrap();
    assert_ne!(terrace_core::ChangeLog::name(&log), name, "who followed it begins anew");
    let all = terrace_core::ChangeLog::after(&log, Default::default(), 10).await.unwrap();
    assert_eq!(all.changes.len(), 2);
}

/// What a projection has lost it makes again from the beginning of its log.
#[tokio::test]
async fn a_read_model_makes_again_what_was_dropped() {
    let database = Database::new();
    let open = || SqliteReadModel::open(database.options(), Runtime::system()).unwrap();
    for (table, begun_anew) in [
        ("records", true),
        ("parked", true),
        ("activity", true),
        ("projection", true),
        ("words", false),
    ] {
        drop(open());
        let hand = database.by_hand();
        hand.execute_batch("UPDATE projection SET source = 'a-log', epoch = 7").unwrap();
        hand.execute_batch(&format!("DROP TABLE {table}")).unwrap();
        drop(hand);
        let model = open();
        let live = model.follower(Projection::Live);
        assert_eq!(!live.checkpoint().await.unwrap().is_in("a-log"), begun_anew, "{table}");
        live.begin_anew("another").await.unwrap();
        model.read(&[key("a")], terrace_core::Budget::default()).await.unwrap();
        assert!(model.search("a", 1).await.unwrap().is_empty());
        model.close().await.unwrap();
    }
}

/// A file of an earlier Terrace says by its tables what it is.
#[test]
fn an_earlier_read_model_is_opened() {
    let database = Database::new();
    drop(SqliteReadModel::open(database.options(), Runtime::system()).unwrap());
    database.by_hand().pragma_update(None, "application_id", 0).unwrap();
    drop(SqliteReadModel::open(database.options(), Runtime::system()).unwrap());
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let database = Database::new();
    let text = "Dear diary, ".repeat(1000);
    std::fs::write(database.path(), &text).unwrap();
    let error = refusal(database.options());
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("not a SQLite database"), "{error}");
    assert!(std::fs::read_to_string(database.path()).unwrap() == text);
}

#[test]
fn a_place_that_cannot_be_written_is_refused() {
    let database = Database::new();
    // A directory stands where the file should, which holds for the superuser, too.
    std::fs::create_dir(database.path()).unwrap();
    assert_eq!(refusal(database.options()).kind(), ErrorKind::Unavailable);
    // And a file stands where its directory should.
    std::fs::write(database.directory.path().join("file"), "").unwrap();
    let below = SqliteOptions::new(database.directory.path().join("file/records.sqlite"));
    assert_eq!(refusal(below).kind(), ErrorKind::Unavailable);
    for path in ["", ":memory:"] {
        assert_eq!(refusal(SqliteOptions::new(path)).kind(), ErrorKind::InvalidInput);
    }
}

#[cfg(unix)]
#[test]
fn a_read_only_directory_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let database = Database::new();
    let locked = std::fs::Permissions::from_mode(0o500);
    std::fs::set_permissions(database.directory.path(), locked).unwrap();
    let probe = std::fs::write(database.directory.path().join("probe"), "");
    if probe.is_err() {
        let error = refusal(database.options());
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("permissions"), "{error}");
    } else {
        // The superuser may write everywhere but where the kernel itself says no.
        let error = refusal(SqliteOptions::new("/proc/terrace/records.sqlite"));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    let open = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(database.directory.path(), open).unwrap();
}

#[tokio::test]
async fn less_durable_settings_promise_less() {
    let database = Database::new();
    let store = database.open();
    let receipt = store.put(key("a"), value("1")).await.unwrap();
    assert_eq!(receipt.durability, Durability::Committed);
    store.close().await.unwrap();
    let options = SqliteOptions { synchronous: Synchronous::Normal, ..database.options() };
    let store = database.open_with(options);
    let receipt = store.put(key("a"), value("1")).await.unwrap();
    assert_eq!(receipt.durability, Durability::Accepted);
    let tree = store.inspect().await;
    assert_eq!(tree.known("synchronous").map(ToString::to_string).as_deref(), Some("normal"));
}

#[tokio::test]
async fn a_file_that_vanished_takes_no_writes() {
    let database = Database::new();
    let store = database.open();
    store.put(key("a"), value("1")).await.unwrap();
    std::fs::rename(database.path(), database.directory.path().join("moved")).unwrap();
    let error = store.put(key("a"), value("2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("moved, deleted or replaced"), "{error}");
    inspected(&store, |tree| tree.status == Status::Down).await;
}
