//! Read models on their engines: one suite for both, over the change log of the same engine.

#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "everything here is a test")]

mod search;
mod suite;

use std::sync::Arc;

use terrace_core::testkit::{key, value};
use terrace_core::{ChangeLog, ReadModel, Runtime, Store, StoreExt};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{
    PostgresOptions, PostgresReadModel, PostgresStore, SqliteOptions, SqliteReadModel, SqliteStore,
};

/// A command side and an empty read model that follows it.
struct Sides {
    store: Arc<dyn Store>,
    log: Arc<dyn ChangeLog>,
    model: Arc<dyn ReadModel>,
    /// Makes the read model refuse the value `poison`, or take it again.
    refuse: Box<dyn Fn(bool) + Send + Sync>,
    _directory: Option<tempfile::TempDir>,
}

async fn postgres() -> Sides {
    postgres_at(testing::fresh_database()).await
}

async fn postgres_at(url: String) -> Sides {
    let options = |schema: &str| PostgresOptions {
        source: ConnectionSource::pooled(1, 8),
        schema: schema.to_owned(),
        connect_timeout: std::time::Duration::from_secs(30),
        change_log: schema == "public",
        ..PostgresOptions::new(url.clone())
    };
    let store = PostgresStore::connect(options("public"), Runtime::system()).await.expect("it");
    let log = store.log().await.expect("an answer").expect("a log");
    let model = PostgresReadModel::connect(options("side"), Runtime::system()).await.expect("it");
    let refuse = move |refused: bool| {
        let url = url.clone();
        // A constraint that a person adds, on a thread of its own: the suite's runtime waits.
        let changed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let hand = crate::postgres::session(&url).await;
                let change = match refused {
                    true => "ADD CONSTRAINT no_poison CHECK (value <> 'poison')",
                    false => "DROP CONSTRAINT no_poison",
                };
                hand.batch_execute(&format!("ALTER TABLE side.records {change}")).await
            })
        });
        changed.join().expect("no panic").expect("a change");
    };
    Sides {
        store: Arc::new(store),
        log: Arc::new(log),
        model: Arc::new(model),
        refuse: Box::new(refuse),
        _directory: None,
    }
}

async fn sqlite() -> Sides {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("commands.sqlite");
    let options = SqliteOptions { change_log: true, ..SqliteOptions::new(path) };
    let store = SqliteStore::open(options, Runtime::system()).expect("a store");
    let log = store.log().expect("an answer").expect("a log");
    let read = directory.path().join("read.sqlite");
    let model = SqliteReadModel::open(SqliteOptions::new(&read), Runtime::system()).expect("it");
    let refuse = move |refused: bool| {
        let hand = rusqlite::Connection::open(&read).expect("a connection");
        hand.busy_timeout(std::time::Duration::from_secs(30)).expect("a timeout");
        let change = match refused {
            true => {
                "CREATE TRIGGER no_poison BEFORE INSERT ON records WHEN NEW.value = 'poison'
                 BEGIN SELECT RAISE(ABORT, 'no poison'); END"
            }
            false => "DROP TRIGGER no_poison",
        };
        hand.execute_batch(change).expect("a change");
    };
    Sides {
        store: Arc::new(store),
        log: Arc::new(log),
        model: Arc::new(model),
        refuse: Box::new(refuse),
        _directory: Some(directory),
    }
}

macro_rules! on {
    ($engine:ident: $($test:ident),*) => {
        mod $engine {
            $(#[tokio::test]
            async fn $test() {
                super::suite::$test(super::$engine().await).await;
            })*
        }
    };
}

macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod on_postgres_and_sqlite {
            use super::{postgres, sqlite, suite};
            on!(postgres: $($test),*);
            on!(sqlite: $($test),*);
        }
    };
}

on_both!(
    what_is_written_is_projected_with_its_counts,
    what_begins_anew_is_whole_at_the_end_of_its_log,
    a_batch_is_applied_from_its_checkpoint_alone,
    the_highest_version_counts_wherever_it_stands,
    a_refused_change_stops_its_key_until_it_is_retried,
    a_rebuild_finds_no_difference_and_keeps_reads,
    a_rebuild_finds_what_was_changed_by_hand,
    words_are_found_and_times_told,
    another_log_begins_anew,
    a_position_beyond_the_log_is_lost,
    a_finished_rebuild_leaves_nothing_to_swap,
);

/// Other instances read, and know of no beginning.
#[tokio::test]
async fn what_a_person_empties_is_whole_again_at_the_end_of_its_log() {
    let url = testing::fresh_database();
    let sides = postgres_at(url.clone()).await;
    for table in ["records", "terrace_projection"] {
        for name in ["a", "b", "c"] {
            sides.write(name, table).await;
        }
        sides.projector().await;
        assert!(sides.is_whole().await);
        let empty = format!("TRUNCATE side.{table}");
        crate::postgres::session(&url).await.batch_execute(&empty).await.expect("an end of all");
        assert!(!sides.is_whole().await, "{table}");
        sides.projector().await;
        assert!(sides.is_whole().await, "{table}");
    }
}

/// Whether the read model of an earlier Terrace had come to the end is not known: the next change tells.
#[tokio::test]
async fn an_earlier_read_model_is_whole_with_its_next_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("read.sqlite");
    let open = || SqliteReadModel::open(SqliteOptions::new(&path), Runtime::system()).expect("it");
    let reached = async |model: &SqliteReadModel| {
        let (_, reached) = model.scan(&terrace_core::Scan::prefix("")).await.expect("a page");
        reached.whole
    };
    let model = open();
    assert!(!reached(&model).await);
    model.close().await.expect("an end");
    let hand = rusqlite::Connection::open(&path).expect("a connection");
    let earlier = "ALTER TABLE projection DROP COLUMN whole; UPDATE projection SET source = 'log'";
    hand.execute_batch(earlier).expect("what there was");
    drop(hand);
    let model = open();
    assert!(!reached(&model).await);
    let from = terrace_core::Checkpoint::beginning("log");
    let to = from.at(terrace_core::LogPosition { epoch: 1, offset: 0 });
    let batch = suite::batch(&from, to.position, &[]);
    let live = model.follower(terrace_core::read_model::Projection::Live);
    assert!(live.apply(&batch).await.expect("applied"));
    assert!(reached(&model).await);
}

/// What people change in the file is logged, and positions only rise.
#[tokio::test]
async fn what_people_change_in_a_file_is_logged() {
    let sides = sqlite().await;
    let path = sides._directory.as_ref().expect("files").path().join("commands.sqlite");
    sides.store.put(key("a"), value("1")).await.expect("a put");
    let hand = rusqlite::Connection::open(path).expect("a connection");
    for (command, expected) in [
        ("INSERT INTO records (key, value) VALUES ('b', '1')", vec!["b=1"]),
        ("UPDATE records SET value = '2' WHERE key = 'b'", vec!["b=2"]),
        ("INSERT INTO records (key, value, version) VALUES ('c', '1', 1)", vec!["c=1"]),
        ("INSERT INTO records (key, value, version) VALUES ('d', '1', 900)", vec!["d=1"]),
        ("UPDATE records SET key = 'e' WHERE key = 'd'", vec!["d", "e=1"]),
        ("DELETE FROM records WHERE key IN ('b', 'c')", vec!["b", "c"]),
    ] {
        let from = sides.log.head().await.expect("a head");
        hand.execute_batch(command).expect(command);
        let receipt = sides.store.put(key("z"), value("1")).await.expect("a put");
        let page = sides.log.after(from, 100).await.expect("a page");
        assert!(page.changes.is_sorted_by_key(|change| change.position));
        let last = page.changes.last().expect("the put");
        assert_eq!(receipt.event, Some(last.position), "{command}");
        let mut told = page.changes[..page.changes.len() - 1]
            .iter()
            .map(|change| match &change.record {
                Some(record) => format!("{}={}", change.key.as_str(), record.value.as_str()),
                None => change.key.as_str().to_owned(),
            })
            .collect::<Vec<_>>();
        told.sort();
        assert_eq!(told, expected, "{command}");
    }
}
