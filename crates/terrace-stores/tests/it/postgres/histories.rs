//! Which database it is: clones, restores, tables made again; and what a generation does.

use std::time::Duration;

use terrace_core::history::{lineage, lost};
use terrace_core::{Generations as _, Position, ReadOptions, Store as _, StoreExt as _};
use terrace_core::{Proof, Runtime, Version};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{key, session, value};

async fn open(url: &str) -> PostgresStore {
    let options =
        PostgresOptions { source: ConnectionSource::pooled(1, 2), ..PostgresOptions::new(url) };
    PostgresStore::connect(options, Runtime::system()).await.expect("a store")
}

async fn proof(store: &PostgresStore) -> Proof {
    let read = store.get_read(&key("a"), &ReadOptions::default()).await.expect("a read");
    read.proof.expect("a database proves something")
}

/// The name of the database in a URL, and the URL of another on the same server.
fn beside(url: &str, name: &str) -> (String, String) {
    let (server, rest) = url.rsplit_once('/').expect("a path");
    let (own, tail) =
        rest.split_once('?').map_or((rest, String::new()), |(own, tail)| (own, format!("?{tail}")));
    (own.to_owned(), format!("{server}/{name}{tail}"))
}

/// Writes into a clone what it would find if identities were copied with the data.
const FORGED: &str = "UPDATE terrace_history SET identity = concat_ws('/', \
       (SELECT system_identifier FROM pg_control_system()), \
       (SELECT oid FROM pg_database WHERE datname = current_database()), \
       pg_relation_filenode('records'), left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)) \
     WHERE identity IS NOT NULL";

#[tokio::test]
async fn a_clone_is_another_database_and_its_original_stays_what_it_is() {
    let url = testing::fresh_database();
    let original = open(&url).await;
    let receipt = original.put(key("a"), value("1")).await.expect("a write");
    let history = original.history();
    original.close().await.expect("a close");
    let name = format!("clone_{}", std::process::id());
    let (own, clone_url) = beside(&url, &name);
    let (_, hand_url) = beside(&url, "postgres");
    let hand = session(&hand_url).await;
    let create = format!("CREATE DATABASE {name} TEMPLATE {own}");
    while hand.batch_execute(&create).await.is_err() {}

    // Where the name alone is believed, the clone passes for its original.
    let copied = format!("copied_{}", std::process::id());
    let (_, copied_url) = beside(&url, &copied);
    let create = format!("CREATE DATABASE {copied} TEMPLATE {own}");
    while hand.batch_execute(&create).await.is_err() {}
    session(&copied_url).await.batch_execute(FORGED).await.expect("a forged identity");
    let mutant = open(&copied_url).await;
    assert_eq!(mutant.history(), history);
    let asks = ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() };
    assert!(mutant.get_read(&key("a"), &asks).await.is_ok(), "satisfied by another database");
    mutant.close().await.expect("a close");
    hand.batch_execute(&format!("DROP DATABASE {copied} WITH (FORCE)")).await.expect("a drop");

    let clone = open(&clone_url).await;
    assert_ne!(lineage(&clone.history()), lineage(&history), "a lineage of its own");
    let asks = ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() };
    assert_eq!(clone.get_read(&key("a"), &asks).await.expect_err("not its token"), lost());
    assert!(clone.get(&key("a")).await.expect("a read").is_some());
    let written = clone.put(key("a"), value("2")).await.expect("a write");
    assert!(written.version > Version::new(1 << 40), "above all that the original gives out");
    let again = open(&url).await;
    assert_eq!(again.history(), history);
    assert_eq!(again.get_read(&key("a"), &asks).await.expect("a read").version, receipt.version);
    clone.close().await.expect("a close");
    hand.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.expect("a drop");
}

/// The connections live through it, and answer nothing under the old name.
#[tokio::test]
async fn a_table_that_is_restored_under_a_running_store_begins_a_history() {
    let url = testing::fresh_database();
    let store = open(&url).await;
    store.put(key("a"), value("kept")).await.expect("a write");
    let hand = session(&url).await;
    let dump = "CREATE TABLE kept AS SELECT * FROM records; \
         CREATE TABLE kept_sequence AS SELECT last_value FROM records_version";
    hand.batch_execute(dump).await.expect("a dump");
    let lost_write = store.put(key("a"), value("lost")).await.expect("a write");
    let (before, before_name) = (proof(&store).await, store.history());
    let restore = "BEGIN; CREATE TABLE again (LIKE records INCLUDING ALL); \
         INSERT INTO again SELECT * FROM kept; DROP TABLE records; \
         ALTER TABLE again RENAME TO records; \
         SELECT setval('records_version', last_value) FROM kept_sequence; COMMIT";
    hand.batch_execute(restore).await.expect("a restore");
    let read = store.get_read(&key("a"), &ReadOptions::default()).await.expect("a read");
    assert_eq!(read.record.as_ref().expect("a record").value.as_str(), "kept");
    let after = read.proof.expect("a database proves something");
    assert_ne!(after.history, before_name);
    let asks = ReadOptions { token: Some(lost_write.token), ..ReadOptions::default() };
    assert_eq!(store.get_read(&key("a"), &asks).await.expect_err("a lost token"), lost());
    let lost_version = lost_write.version;
    let held = store.put_if(key("a"), value("blind"), lost_version).await.expect("a write");
    assert!(!held, "a version of lost content");
    let next = store.put(key("a"), value("new")).await.expect("a write");
    assert!(next.version > lost_version);
    assert!(!store.admits(&before, None) && store.admits(&after, None));
}

#[tokio::test]
async fn a_write_is_proved_once_all_before_it_have_ended() {
    let url = testing::fresh_database();
    let store = open(&url).await;
    store.put(key("slow"), value("1")).await.expect("a write");
    // A slower transaction with a lower number that ends later.
    let hand = session(&url).await;
    hand.batch_execute("BEGIN; UPDATE records SET value = '2', version = version + 1")
        .await
        .expect("a transaction under way");
    let receipt = store.put(key("fast"), value("1")).await.expect("a write");
    let written = receipt.token.position(&store.history()).expect("a position");
    let read = store.get_read(&key("fast"), &ReadOptions::default()).await.expect("a read");
    let shown = read.proof.as_ref().expect("a proof");
    assert!(shown.shown == written && shown.through < written, "{shown:?}");
    assert_eq!(read.token.position(&store.history()), Some(written), "what the client has seen");
    assert!(!store.admits(shown, Some(&receipt.token)), "a cache could not tell what is to come");
    let asks = ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() };
    assert!(store.get_read(&key("slow"), &asks).await.is_ok(), "the primary has all there is");
    hand.batch_execute("COMMIT").await.expect("an end");
    // Transactions of other databases of the server count, too, and end by themselves.
    while !store.admits(&proof(&store).await, Some(&receipt.token)) {}
    let beyond = terrace_core::Token::of(store.history(), Position::new(u64::MAX >> 1));
    let asks = ReadOptions { token: Some(beyond), ..ReadOptions::default() };
    assert!(store.get_read(&key("a"), &asks).await.is_err(), "more than was ever done");
}

#[tokio::test]
async fn a_raised_generation_is_seen_by_every_instance() {
    let url = testing::fresh_database();
    let (one, other) = (open(&url).await, open(&url).await);
    one.put(key("a"), value("1")).await.expect("a write");
    let before = proof(&one).await;
    assert!(other.admits(&before, None));
    one.raise(&[]).await.expect("a raise");
    assert!(!one.admits(&before, None), "at once where it was raised");
    let mut changes = other.changes();
    tokio::time::timeout(Duration::from_secs(5), changes.changed())
        .await
        .expect("soon")
        .expect("it");
    assert!(!other.admits(&before, None));
    assert!(other.admits(&proof(&other).await, None));
}

/// It may commit long after everybody has stopped to wait for it.
#[tokio::test]
async fn the_end_of_a_doubt_raises_the_generation() {
    let url = testing::fresh_database();
    let options = PostgresOptions {
        source: ConnectionSource::pooled(1, 2),
        statement_timeout: Duration::from_millis(200),
        ..PostgresOptions::new(&url)
    };
    let store = PostgresStore::connect(options, Runtime::system()).await.expect("a store");
    store.put(key("a"), value("1")).await.expect("a write");
    let before = proof(&store).await;
    let hand = session(&url).await;
    let find = "SELECT pid::text FROM pg_stat_activity WHERE application_name = 'terrace' \
         AND datname = current_database()";
    let found = hand.query(find, &[]).await.expect("its processes");
    let pids = found.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>();
    let signal = |name: &str| {
        let sent = std::process::Command::new("kill").arg(name).args(&pids).status();
        assert!(sent.expect("kill").success());
    };
    signal("-STOP");
    let unanswered = store.put(key("a"), value("2")).await.expect_err("no answer");
    assert_eq!(unanswered.kind(), terrace_core::ErrorKind::OutcomeUnknown);
    signal("-CONT");
    let mut changes = store.changes();
    while store.admits(&before, None) {
        changes.changed().await.expect("it is told");
    }
}

#[tokio::test]
async fn a_copy_that_nothing_tells_from_its_original_is_renewed_by_hand() {
    let url = testing::fresh_database();
    let store = open(&url).await;
    let receipt = store.put(key("a"), value("1")).await.expect("a write");
    let history = store.history();
    let renewed = store.renew_history().await.expect("a new lineage");
    assert_ne!(lineage(&renewed), lineage(&history));
    let asks = ReadOptions { token: Some(receipt.token), ..ReadOptions::default() };
    assert_eq!(store.get_read(&key("a"), &asks).await.expect_err("a token of before"), lost());
}
