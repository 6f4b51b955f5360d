//! The change log: every change once, none lost to a slow transaction, woken by writers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::{
    ChangeLog, Deadline, Idempotency, LogPosition, Logged, Outcome, Receipt, Runtime, Store,
    StoreExt, Write, WriteOptions,
};
use terrace_lab::testing;
use terrace_stores::postgres::{ConnectionSource, LogBegin, PostgresLog};
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{connect, key, session, value, within};

mod waiting;

async fn logged(url: &str) -> (PostgresStore, PostgresLog) {
    let options = PostgresOptions {
        source: ConnectionSource::pooled(1, 8),
        change_log: true,
        connect_timeout: Duration::from_secs(30),
        ..PostgresOptions::new(url)
    };
    let store = PostgresStore::connect(options, Runtime::system()).await.expect("a store");
    let log = store.log().await.expect("an answer").expect("a log");
    (store, log)
}

/// What follows a position, once all that was committed can be read. Other tests of the server have
/// transactions, too, which hold the horizon back.
async fn follow(log: &PostgresLog, from: LogPosition, limit: usize) -> (Vec<Logged>, LogPosition) {
    let head = log.head().await.expect("a head");
    let (mut all, mut position) = (Vec::new(), from);
    while position < head {
        let page = log.after(position, limit).await.expect("a page");
        if page.position == position {
            log.wait(position, within(Duration::from_millis(20))).await.expect("a wait");
        }
        position = page.position;
        all.extend(page.changes);
    }
    (all, position)
}

fn told(changes: &[Logged]) -> Vec<(String, Option<String>)> {
    let text = |change: &Logged| {
        let value = change.record.as_ref().map(|record| record.value.as_str().to_owned());
        (change.key.as_str().to_owned(), value)
    };
    changes.iter().map(text).collect()
}

fn expected(changes: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    changes.iter().map(|(key, value)| (key.to_string(), value.map(str::to_owned))).collect()
}

async fn write(store: &PostgresStore, batch: Vec<Write>) -> Vec<Receipt> {
    store.write(batch, &WriteOptions::default()).await.expect("receipts")
}

#[tokio::test]
async fn each_change_is_logged_once_with_its_version() {
    let (store, log) = logged(&testing::fresh_database()).await;
    let put = |name: &str, text: &str| Write::put(key(name), value(text));
    let mut receipts = write(&store, vec![put("b", "1"), put("a", "1")]).await;
    // An upsert of old and new rows fires two triggers.
    receipts.extend(write(&store, vec![put("a", "2"), put("c", "1")]).await);
    receipts.extend(write(&store, vec![Write::delete(key("a")), put("b", "2")]).await);
    receipts.extend(write(&store, vec![Write::delete(key("missing"))]).await);
    // Changes that the batch supersedes are changes, too.
    receipts.extend(write(&store, vec![put("d", "1"), put("d", "2"), put("d", "3")]).await);
    receipts.extend(write(&store, vec![put("e", "1"), Write::delete(key("e"))]).await);
    let (changes, _) = follow(&log, LogPosition::default(), 3).await;
    let mut versions = changes.iter().map(|change| change.version).collect::<Vec<_>>();
    versions.sort_unstable();
    let mut applied = receipts
        .iter()
        .filter(|receipt| receipt.outcome.is_applied())
        .map(|receipt| receipt.version)
        .collect::<Vec<_>>();
    applied.sort_unstable();
    assert_eq!(versions, applied);
    let by_key = |name: &str| {
        let changes = changes.iter().filter(|change| change.key.as_str() == name).cloned();
        told(&changes.collect::<Vec<_>>())
    };
    assert_eq!(by_key("a"), expected(&[("a", Some("1")), ("a", Some("2")), ("a", None)]));
    assert_eq!(by_key("d"), expected(&[("d", Some("1")), ("d", Some("2")), ("d", Some("3"))]));
    assert_eq!(by_key("e"), expected(&[("e", Some("1")), ("e", None)]));
    for receipt in receipts {
        let named = receipt.event;
        let position = changes.iter().find(|change| change.version == receipt.version);
        match receipt.outcome.is_applied() {
            true => assert_eq!(named, position.map(|change| change.position)),
            false => assert_eq!((receipt.outcome, named), (Outcome::Absent, None)),
        }
    }
    let record = changes.iter().rfind(|change| change.key.as_str() == "c").expect("c");
    let stored = store.get(&key("c")).await.expect("a read");
    assert_eq!(record.record, stored, "times and all");
}

/// Who follows knows a new record by its times, as the log has no other word for it to give.
#[tokio::test]
async fn a_change_has_two_equal_times_where_the_log_calls_it_a_creation() {
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    let put = |name: &str| Write::put(key(name), value("v"));
    write(&store, vec![put("a"), put("a"), put("a"), put("b"), Write::delete(key("b"))]).await;
    write(&store, vec![put("a"), put("a"), put("b"), put("b"), put("b")]).await;
    let (mut changes, _) = follow(&log, LogPosition::default(), 100).await;
    changes.sort_unstable_by_key(|change| change.version);
    let told = changes.iter().map(|change| match &change.record {
        None => "RecordDeleted",
        Some(record) if record.created_at == record.updated_at => "RecordCreated",
        Some(_) => "RecordUpdated",
    });
    let types = "SELECT string_agg(type, ' ' ORDER BY version) FROM commands";
    let types = session(&url).await.query_one(types, &[]).await.expect("types");
    assert_eq!(told.collect::<Vec<_>>().join(" "), types.get::<_, &str>(0));
}

#[tokio::test]
async fn what_people_change_is_logged() {
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    let hand = session(&url).await;
    let mut position = LogPosition::default();
    for (command, changes) in [
        ("INSERT INTO records (key, value) VALUES ('a', '1'), ('b', '1')", vec!["a=1", "b=1"]),
        ("UPDATE records SET value = '2' WHERE key = 'a'", vec!["a=2"]),
        (
            "UPDATE records SET value = '3', version = nextval('records_version')",
            vec!["a=3", "b=3"],
        ),
        ("UPDATE records SET key = 'c' WHERE key = 'a'", vec!["a", "c=3"]),
        ("UPDATE records SET deleted = true WHERE key = 'c'", vec!["c"]),
        ("DELETE FROM records", vec!["b"]),
        (
            "COPY records (key, value) FROM PROGRAM 'printf ''x\\t1\\ny\\t1\\n'''",
            vec!["x=1", "y=1"],
        ),
        ("DELETE FROM records WHERE key = 'x'", vec!["x"]),
        ("TRUNCATE records", vec!["y"]),
        ("BEGIN; INSERT INTO records (key, value) VALUES ('z', '1'); ROLLBACK", vec![]),
    ] {
        hand.batch_execute(command).await.expect(command);
        let (found, end) = follow(&log, position, 100).await;
        let mut found = found
            .iter()
            .map(|change| match &change.record {
                Some(record) => format!("{}={}", change.key.as_str(), record.value.as_str()),
                None => change.key.as_str().to_owned(),
            })
            .collect::<Vec<_>>();
        found.sort();
        assert_eq!(found, changes, "{command}");
        position = end;
    }
    let again = store.put(key("y"), value("2")).await.expect("a put");
    let (found, _) = follow(&log, position, 100).await;
    assert_eq!(found[0].version, again.version, "past that of the deletion");
}

/// Rows may be brought with versions of their own, as from a dump or another installation. Of each key what
/// comes later is newer all the same, in the log and in the records.
#[tokio::test]
async fn what_people_bring_is_newer_than_what_was_there() {
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    let hand = session(&url).await;
    let put = async |text: &str| {
        store.put(key("a"), value(text)).await.expect("a put");
    };
    put("1").await;
    let saved = "CREATE TABLE saved AS SELECT * FROM records";
    hand.batch_execute(saved).await.expect("a copy");
    put("2").await;
    let back = "INSERT INTO records SELECT * FROM saved";
    let far = "INSERT INTO records (key, value, version) VALUES ('a', 'far', 1000000)";
    for commands in
        [["TRUNCATE records", back], ["DELETE FROM records", back], ["TRUNCATE records", far]]
    {
        for command in commands {
            hand.batch_execute(command).await.expect(command);
        }
    }
    hand.batch_execute("UPDATE records SET key = 'b'").await.expect("another key");
    put("3").await;
    hand.batch_execute("DELETE FROM records").await.expect("an end");
    put("4").await;
    let (found, _) = follow(&log, LogPosition::default(), 100).await;
    let of_key = found.iter().filter(|change| change.key.as_str() == "a");
    let versions = of_key.map(|change| change.version).collect::<Vec<_>>();
    assert!(versions.is_sorted_by(|one, two| one < two) && versions.len() == 12, "{found:?}");
    let stored = store.get(&key("a")).await.expect("a read").expect("a record");
    assert_eq!(versions.last(), Some(&stored.version));
}

/// A log that an earlier Terrace has made is given what it lacks, and goes on.
#[tokio::test]
async fn an_earlier_log_is_completed_where_it_is() {
    const EARLIER: &str = "DROP TRIGGER commands_0_brought ON records; \
        DROP FUNCTION commands_brought(), commands_version_after(bigint); \
        DROP SEQUENCE commands_gone_through; \
        CREATE OR REPLACE FUNCTION commands_gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
          INSERT INTO commands (version, type, key, value, created_at, time) \
          SELECT nextval('records_version'), 'RecordDeleted', key, NULL, created_at, now() \
          FROM gone WHERE NOT deleted; RETURN NULL; END $$";
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    let name = log.name();
    store.put(key("a"), value("1")).await.expect("a put");
    store.close().await.expect("an end");
    let hand = session(&url).await;
    hand.batch_execute(EARLIER).await.expect("what there was");
    let (store, log) = logged(&url).await;
    assert_eq!(log.name(), name, "it goes on");
    let far = "INSERT INTO records (key, value, version) VALUES ('b', 'far', 1000000)";
    for command in [far, "DELETE FROM records", far] {
        hand.batch_execute(command).await.expect(command);
    }
    let (found, _) = follow(&log, LogPosition::default(), 100).await;
    let of_key = found.iter().filter(|change| change.key.as_str() == "b");
    let versions = of_key.map(|change| change.version).collect::<Vec<_>>();
    assert!(versions.is_sorted_by(|one, two| one < two) && versions.len() == 3, "{found:?}");
    drop(store);
}

/// A transaction draws its number, a faster one draws a later number and commits first.
async fn slow_and_fast(log: &PostgresLog, store: &PostgresStore, url: &str) -> Vec<String> {
    let slow = session(url).await;
    slow.batch_execute("BEGIN; INSERT INTO records (key, value) VALUES ('slow', '1')")
        .await
        .expect("a transaction");
    store.put(key("fast"), value("1")).await.expect("a put");
    let before = log.after(LogPosition::default(), 100).await.expect("a page");
    slow.batch_execute("COMMIT").await.expect("a commit");
    let (after, _) = follow(log, before.position, 100).await;
    let changes = before.changes.iter().chain(&after);
    changes.map(|change| change.key.as_str().to_owned()).collect()
}

#[tokio::test]
async fn a_slow_transaction_with_a_small_number_is_not_lost() {
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    assert_eq!(slow_and_fast(&log, &store, &url).await, ["slow", "fast"]);
}

#[cfg(feature = "mutants")]
#[tokio::test]
async fn reading_past_the_last_number_loses_the_slow_transaction() {
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    let log = log.by_last_number();
    let slow = session(&url).await;
    slow.batch_execute("BEGIN; INSERT INTO records (key, value) VALUES ('slow', '1')")
        .await
        .expect("a transaction");
    store.put(key("fast"), value("1")).await.expect("a put");
    let before = log.after(LogPosition::default(), 100).await.expect("a page");
    slow.batch_execute("COMMIT").await.expect("a commit");
    let after = log.after(before.position, 100).await.expect("a page");
    assert_eq!(told(&before.changes), expected(&[("fast", Some("1"))]));
    assert!(after.changes.is_empty(), "the mutant has lost `slow`: the test above would be red");
}

#[tokio::test]
async fn changes_at_one_position_are_never_parted() {
    let url = testing::fresh_database();
    let (_store, log) = logged(&url).await;
    let hand = session(&url).await;
    let large = "INSERT INTO records (key, value, version) \
                 SELECT 'k' || i, repeat('x', 1048576), 5000 + i / 20 FROM generate_series(1, 40) i";
    hand.batch_execute(large).await.expect("rows");
    let (changes, _) = follow(&log, LogPosition::default(), 1).await;
    assert_eq!(changes.len(), 40);
    let page = log.after(LogPosition::default(), 100).await.expect("a page");
    assert_eq!(page.changes.len(), 19, "cut by bytes where a position ends");
}

#[tokio::test]
async fn long_values_come_whole_among_short_ones() {
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    let text = |number: usize| match number % 7 {
        3 => "x".repeat(100_000 + number),
        _ => number.to_string(),
    };
    for number in 0..60 {
        let value = if number < 30 { text(number) } else { "short again".to_owned() };
        store
            .put(key(&format!("k{number}")), terrace_core::Value::new(value).expect("a value"))
            .await
            .expect("a put");
    }
    store.delete(key("k3")).await.expect("deleted");
    for limit in [1000, 10] {
        let (changes, _) = follow(&log, LogPosition::default(), limit).await;
        assert_eq!(changes.len(), 61);
        for (number, change) in changes[..30].iter().enumerate() {
            let record = change.record.as_ref().expect("a record");
            assert_eq!(record.value.as_str(), text(number));
        }
        assert!(changes[60].record.is_none(), "a deletion has no value to leave out");
    }
    // Blotted out by hand: the log says so, and does not stand still in silence.
    let hand = session(&url).await;
    let blot = "UPDATE commands SET value = NULL WHERE key = 'k10'";
    hand.batch_execute(blot).await.expect("a change");
    let error =
        log.after(LogPosition::default(), 1000).await.expect_err("a change without a value");
    assert_eq!(error.kind(), terrace_core::ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_log_is_installed_and_removed_while_the_database_is_written() {
    let url = testing::fresh_database();
    let store = Arc::new(connect(&url, ConnectionSource::pooled(1, 8)).await);
    for number in 0..10 {
        store.put(key(&format!("old{number}")), value("1")).await.expect("a put");
    }
    assert!(store.log().await.expect("an answer").is_none());
    let writing = {
        let store = Arc::clone(&store);
        async move {
            for number in 0..100 {
                store.put(key(&format!("new{number}")), value("1")).await.expect("a put");
            }
        }
    };
    let installing = async {
        let log = store.install_log(LogBegin::WithRecords).await.expect("a log");
        assert_eq!(store.install_log(LogBegin::Empty).await.expect("one").name(), log.name());
        log
    };
    let ((), log) = futures_util::future::join(writing, installing).await;
    let (changes, _) = follow(&log, LogPosition::default(), 1000).await;
    assert_eq!(changes.len(), 110);
    store.remove_log().await.expect("removed");
    assert!(log.after(LogPosition::default(), 1).await.is_err(), "who follows is told");
    store.put(key("a"), value("1")).await.expect("writes go on");
    let log = store.install_log(LogBegin::Empty).await.expect("a log");
    store.put(key("b"), value("1")).await.expect("a put");
    let (changes, _) = follow(&log, LogPosition::default(), 10).await;
    assert_eq!(told(&changes), expected(&[("b", Some("1"))]));
}

#[tokio::test]
async fn a_repeated_request_names_the_same_place() {
    let (store, log) = logged(&testing::fresh_database()).await;
    let request = Arc::new(Idempotency::new("once", [1; 32]).expect("a request"));
    let how = WriteOptions { idempotency: Some(request), ..WriteOptions::default() };
    let batch = || vec![Write::put(key("a"), value("1"))];
    let first = store.write(batch(), &how).await.expect("receipts");
    let second = store.write(batch(), &how).await.expect("receipts");
    let result = |receipt: &Receipt| (receipt.outcome, receipt.version, receipt.event);
    assert_eq!(result(&first[0]), result(&second[0]));
    let (changes, _) = follow(&log, LogPosition::default(), 10).await;
    assert_eq!(changes.len(), 1);
    assert_eq!(first[0].event, Some(changes[0].position));
}

/// A dump that is restored into another server names transactions which that server has yet to count.
#[tokio::test]
async fn a_log_of_another_server_is_begun_anew() {
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    store.put(key("a"), value("1")).await.expect("a put");
    let hand = session(&url).await;
    let ahead = "UPDATE commands SET transaction = '9000000000'::xid8";
    hand.batch_execute(ahead).await.expect("a change");
    let (_again, anew) = logged(&url).await;
    assert_ne!(anew.name(), log.name());
    let (changes, _) = follow(&anew, LogPosition::default(), 10).await;
    assert_eq!(told(&changes), expected(&[("a", Some("1"))]));
}

/// Writers of all kinds, some slow, beside a follower: it sees each acknowledged change exactly once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_of_many_writers_misses_nothing_and_repeats_nothing() {
    const WRITERS: usize = 8;
    const ROUNDS: usize = 40;
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    let store = Arc::new(store);
    let runtime = Runtime::seeded(7);
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (store, url, runtime) = (Arc::clone(&store), url.clone(), runtime.clone());
        writers.push(tokio::spawn(async move {
            let mut versions = Vec::new();
            if writer == 0 {
                let hand = session(&url).await;
                for round in 0..ROUNDS {
                    hand.batch_execute("BEGIN").await.expect("begun");
                    let put = format!(
                        "INSERT INTO records (key, value) VALUES ('slow{round}', '') \
                         RETURNING version"
                    );
                    let row = hand.query_one(&put, &[]).await.expect("a row");
                    versions.push(u64::try_from(row.get::<_, i64>(0)).expect("a version"));
                    hand.batch_execute("SELECT pg_sleep(0.01); COMMIT").await.expect("done");
                }
                return versions;
            }
            for _ in 0..ROUNDS {
                let writes = (0..=runtime.random() % 4)
                    .map(|_| Write::put(key(&format!("k{}", runtime.random() % 5)), value("v")));
                let receipts = write(&store, writes.collect()).await;
                versions.extend(receipts.iter().map(|receipt| receipt.version.get()));
            }
            versions
        }));
    }
    let (mut seen, mut position) = (HashMap::<u64, usize>::new(), LogPosition::default());
    let mut written = Vec::new();
    loop {
        let finished = writers.iter().all(|writer| writer.is_finished());
        let head = log.head().await.expect("a head");
        while position < head {
            let page = log.after(position, 16).await.expect("a page");
            assert!(page.position >= position);
            for change in &page.changes {
                assert!(change.position > position && change.position <= page.position);
                *seen.entry(change.version.get()).or_default() += 1;
            }
            if page.changes.is_empty() && page.position < head {
                let patience = within(Duration::from_millis(20));
                log.wait(page.position, patience).await.expect("a wait");
            }
            position = page.position;
        }
        if finished {
            break;
        }
        log.wait(position, Deadline::at(Runtime::system().now() + Duration::from_millis(100)))
            .await
            .expect("a wait");
    }
    for writer in writers {
        written.extend(writer.await.expect("a writer"));
    }
    written.sort_unstable();
    let mut found = seen.keys().copied().collect::<Vec<_>>();
    found.sort_unstable();
    assert_eq!(found, written);
    assert!(seen.values().all(|times| *times == 1));
}
