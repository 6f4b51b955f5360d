//! Databases that are regions.

mod drawing;

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use terrace_core::testkit::{Fixture, Regions, StoreFixture};
use terrace_core::{
    Ancestry, Batch, Checkpoint, ErrorKind, Follower, LogPosition, Logged, Position, RegionStore,
    Runtime, Store as _, StoreExt as _, Version, Write, WriteOptions,
};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{connect, key, session, value, within};

async fn region(url: &str, number: u8) -> PostgresStore {
    let options = PostgresOptions {
        source: ConnectionSource::pooled(1, 8),
        connect_timeout: Duration::from_secs(30),
        region: Some(Regions::options(number)),
        ..PostgresOptions::new(url)
    };
    PostgresStore::connect(options, Runtime::system()).await.expect("a store")
}

/// Sets the clock of a region so far ahead of the server's.
async fn set_clock(url: &str, ahead: SignedDuration) {
    let text = format!(
        "CREATE OR REPLACE FUNCTION terrace_clock() RETURNS bigint LANGUAGE sql VOLATILE AS \
         $$ SELECT ((date_part('epoch', clock_timestamp()) * 1000)::bigint - 1577836800000 + ({})) \
           << 13 $$",
        ahead.as_millis()
    );
    session(url).await.batch_execute(&text).await.expect("another clock");
}

async fn regions() -> Fixture<Regions> {
    regions_at().await.0
}

/// Three regions, and where they are.
async fn regions_at() -> (Fixture<Regions>, [String; 3]) {
    let urls = [1, 2, 3].map(|_| testing::fresh_database());
    let stores = [
        Arc::new(region(&urls[0], 1).await) as Arc<dyn RegionStore>,
        Arc::new(region(&urls[1], 2).await),
        Arc::new(region(&urls[2], 3).await),
    ];
    let known = urls.clone();
    let set_clock = Box::new(move |at: usize, ahead| {
        let url = known[at].clone();
        Box::pin(async move { set_clock(&url, ahead).await }) as _
    });
    (Fixture::new(Arc::new(Regions { stores, set_clock })), urls)
}

terrace_core::region_contract!(regions);

mod one_region {
    use super::*;

    async fn a_region() -> StoreFixture {
        StoreFixture::new(Arc::new(region(&testing::fresh_database(), 1).await))
    }

    terrace_core::store_contract!(a_region);
}

pub(super) async fn logged(store: &PostgresStore) -> Vec<Logged> {
    let log = store.own_log();
    let head = log.head().await.expect("a head");
    let (mut all, mut position) = (Vec::new(), LogPosition::default());
    while position < head {
        let part = log.after(position, 1000).await.expect("a log");
        if part.position == position {
            log.wait(position, within(Duration::from_millis(20))).await.expect("a wait");
        }
        position = part.position;
        all.extend(part.changes);
    }
    all
}

fn replaced(change: &Logged) -> Version {
    match change.ancestry.as_deref() {
        Some(Ancestry::Change { replaced, .. }) => *replaced,
        other => panic!("a change of a region: {other:?}"),
    }
}

#[tokio::test]
async fn a_database_stays_the_region_that_it_is() {
    let url = testing::fresh_database();
    let store = region(&url, 1).await;
    let version = store.put(key("a"), value("1")).await.expect("a write").version;
    let mut renamed = Regions::options(1);
    renamed.name = "elsewhere".parse().expect("a name");
    for other in [Some(Regions::options(2)), Some(renamed), None] {
        let options = PostgresOptions { region: other, ..PostgresOptions::new(&url) };
        let refused = PostgresStore::connect(options, Runtime::system()).await;
        assert_eq!(refused.expect_err("another region").kind(), ErrorKind::InvalidInput);
    }
    let again = region(&url, 1).await;
    assert_eq!(again.get(&key("a")).await.expect("a read").expect("a record").version, version);
    assert!(again.put(key("a"), value("2")).await.expect("a write").version > version);
}

#[tokio::test]
async fn a_database_that_becomes_a_region_has_versions_of_it() {
    let url = testing::fresh_database();
    let plain = connect(&url, ConnectionSource::pooled(1, 2)).await;
    for name in ["a", "b", "c"] {
        plain.put(key(name), value("1")).await.expect("a write");
    }
    plain.delete(key("b")).await.expect("a deletion");
    plain.close().await.expect("an end");
    let store = region(&url, 2).await;
    let log = logged(&store).await;
    let keys = log.iter().map(|change| change.key.as_str()).collect::<Vec<_>>();
    assert_eq!(keys, ["a", "c", "b"], "in the order of their versions");
    for change in &log {
        assert_eq!(change.version.region(), Some(store.region().id));
    }
    let record = store.get(&key("c")).await.expect("a read").expect("a record");
    assert_eq!((record.version, record.value.as_str()), (log[1].version, "1"));
    assert!(store.put(key("b"), value("2")).await.expect("a write").version > log[2].version);
}

#[tokio::test]
async fn what_people_change_is_of_the_region_and_says_what_it_replaced() {
    let url = testing::fresh_database();
    let store = region(&url, 3).await;
    let first = store.put(key("a"), value("1")).await.expect("a write").version;
    let gone = store.put(key("gone"), value("1")).await.expect("a write").version;
    let hand = session(&url).await;
    for text in [
        "UPDATE records SET value = '2' WHERE key = 'a'",
        "UPDATE records SET value = '3', version = nextval('records_version') WHERE key = 'a'",
        "INSERT INTO records (key, value) VALUES ('b', '1')",
        "DELETE FROM records WHERE key = 'gone'",
        "UPDATE records SET key = 'd' WHERE key = 'b'",
    ] {
        hand.batch_execute(text).await.expect(text);
    }
    let all = logged(&store).await;
    let mut last = Version::NONE;
    for change in &all {
        assert_eq!(change.version.region(), Some(store.region().id), "{change:?}");
        last = last.max(change.version);
    }
    let of = |name: &str| {
        let mut all = all.iter().filter(|it| it.key.as_str() == name).collect::<Vec<_>>();
        all.sort_by_key(|change| change.version);
        all
    };
    let [_, second, third] = of("a")[..] else { panic!("three changes: {all:?}") };
    assert_eq!((replaced(second), replaced(third)), (first, second.version));
    let [_, removed] = of("gone")[..] else { panic!("two changes: {all:?}") };
    assert_eq!((replaced(removed), &removed.record), (gone, &None));
    let [made, renamed] = of("b")[..] else { panic!("two changes: {all:?}") };
    assert_eq!((replaced(renamed), &renamed.record), (made.version, &None));
    assert_eq!(of("d").len(), 1);
    assert!(store.put(key("a"), value("4")).await.expect("a write").version > last);
}

/// Other regions merge what a batch has superseded, too, and so must hear of it.
#[tokio::test]
async fn each_change_of_a_batch_says_what_it_replaced() {
    let store = region(&testing::fresh_database(), 1).await;
    let put = |text| Write::put(key("a"), value(text));
    let batch = vec![put("1"), put("2"), Write::delete(key("a")), put("3")];
    let done = store.write(batch, &WriteOptions::default()).await.expect("a batch");
    let again = store.write(vec![put("4"), put("5")], &WriteOptions::default()).await.expect("two");
    let versions = done.iter().chain(&again).map(|receipt| receipt.version).collect::<Vec<_>>();
    let log = logged(&store).await;
    assert_eq!(log.iter().map(|change| change.version).collect::<Vec<_>>(), versions);
    let before = [&[Version::NONE], &versions[..5]].concat();
    assert_eq!(log.iter().map(replaced).collect::<Vec<_>>(), before);
}

#[tokio::test]
async fn a_log_that_was_lost_begins_anew_with_what_is_of_the_region() {
    let fixture = regions().await;
    let theirs = &fixture.subject.stores[0];
    theirs.put(key("theirs"), value("1")).await.expect("a write");
    let url = testing::fresh_database();
    let store = region(&url, 2).await;
    store.put(key("mine"), value("1")).await.expect("a write");
    store
        .merge_rows(theirs.rows(&Default::default(), 10).await.expect("rows"))
        .await
        .expect("rows");
    let name = store.own_log().name();
    store.close().await.expect("an end");
    session(&url).await.batch_execute("DROP TABLE commands").await.expect("a loss");
    let store = region(&url, 2).await;
    assert_ne!(store.own_log().name(), name);
    store.put(key("mine"), value("2")).await.expect("a write");
    let keys = logged(&store).await.into_iter().map(|change| change.key.to_string());
    assert_eq!(keys.collect::<Vec<_>>(), ["mine", "mine"]);
}

#[tokio::test]
async fn one_instance_has_the_lease_until_its_session_ends() {
    let url = testing::fresh_database();
    let origin = Regions::options(2).id;
    let (one, two) = (region(&url, 1).await, region(&url, 1).await);
    let lease = |store: &PostgresStore| store.lease(origin).expect("a lease");
    let (first, second) = (lease(&one), lease(&two));
    let long = Duration::from_secs(600);
    assert!(first.hold(long).await.expect("an answer"));
    assert!(!second.hold(long).await.expect("an answer"));
    assert!(first.hold(long).await.expect("an answer"), "it keeps it");
    one.close().await.expect("an end");
    while !second.hold(long).await.expect("an answer") {
        tokio::task::yield_now().await;
    }
}

/// Whatever stops the effect, the place in the log is that of the effect.
async fn refuses_and_goes_on(
    origin: &PostgresStore,
    url: &str,
    follower: &dyn Follower,
) -> Option<String> {
    let session = session(url).await;
    origin.put(key("a"), value("1")).await.expect("a write");
    let log = origin.own_log();
    let changes = logged(origin).await;
    let begin = Checkpoint::beginning(log.name().as_ref());
    follower.begin_anew(&begin.log).await.expect("a beginning");
    let from = follower.checkpoint().await.expect("a place");
    let to = begin.at(changes[0].position);
    let batch = Batch { from, to, changes, ..Batch::default() };
    let refuse = "ALTER TABLE records ADD CONSTRAINT is_full CHECK (value <> '1')";
    session.batch_execute(refuse).await.expect("a constraint");
    follower.apply(&batch).await.expect_err("what cannot be written");
    session.batch_execute("ALTER TABLE records DROP CONSTRAINT is_full").await.expect("none");
    follower.apply(&batch).await.expect("an answer");
    let read = session.query_opt("SELECT value FROM records WHERE key = 'a'", &[]).await;
    read.expect("a read").map(|row| row.get(0))
}

#[tokio::test]
async fn the_position_commits_with_the_effect() {
    let urls = [testing::fresh_database(), testing::fresh_database()];
    let (origin, store) = (region(&urls[0], 1).await, region(&urls[1], 2).await);
    let follower = store.follower_of(origin.region().id);
    let text = refuses_and_goes_on(&origin, &urls[1], &*follower).await;
    assert_eq!(text.as_deref(), Some("1"));
}

#[cfg(feature = "mutants")]
#[tokio::test]
async fn a_position_that_commits_apart_is_caught() {
    let urls = [testing::fresh_database(), testing::fresh_database()];
    let (origin, store) = (region(&urls[0], 1).await, region(&urls[1], 2).await);
    let follower = store.follower_with_position_apart(origin.region().id);
    assert_eq!(
        refuses_and_goes_on(&origin, &urls[1], &*follower).await,
        None,
        "the change is lost"
    );
}

/// Transactions do not end in the order of their numbers. What a slow one brings may be seen by clients
/// whose token lies before a fast one that checkpoints have already told of.
#[tokio::test]
async fn checkpoints_speak_for_no_transaction_that_is_under_way() {
    let urls = [testing::fresh_database(), testing::fresh_database()];
    let (origin, store) = (region(&urls[0], 1).await, region(&urls[1], 2).await);
    origin.put(key("a"), value("1")).await.expect("a write");
    let mut session = session(&urls[1]).await;
    let slow = session.transaction().await.expect("a transaction");
    let begin = "INSERT INTO terrace_followed VALUES (3, '{}') RETURNING moved::text::bigint";
    let slow_number = slow.query_one(begin, &[]).await.expect("a checkpoint").get::<_, i64>(0);
    let log = origin.own_log();
    let follower = store.follower_of(origin.region().id);
    follower.begin_anew(&log.name()).await.expect("a beginning");
    let from = follower.checkpoint().await.expect("a place");
    let changes = logged(&origin).await;
    let to = Checkpoint::beginning(log.name().as_ref()).at(changes[0].position);
    let batch = Batch { from, to, changes, ..Batch::default() };
    assert!(follower.apply(&batch).await.expect("a batch"));

    let number = |position: Position| position.get() & ((1 << 48) - 1);
    let seen = store.checkpoints().await.expect("checkpoints");
    let token = seen.token.marks().map(|(_, position)| number(position)).max().expect("a mark");
    assert!(token > slow_number.unsigned_abs(), "what was applied is asked for");
    assert!(number(seen.through) < slow_number.unsigned_abs(), "{seen:?}");
    slow.rollback().await.expect("an end");
    // Transactions of other tests on this server may be under way for a moment more.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let seen = store.checkpoints().await.expect("checkpoints");
        if number(seen.through) >= token {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "{seen:?}");
        tokio::task::yield_now().await;
    }
}
