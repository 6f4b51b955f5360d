//! Files that are regions.
#![expect(clippy::expect_used, reason = "a test's helpers fail it by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Instant;

use terrace_core::testkit::{Fixture, Regions, StoreFixture, key, value};
use terrace_core::{
    Ancestry, BoxFuture, Clock, ErrorKind, LogPosition, Logged, PositionLost, RegionStore, Rng,
    Runtime, Spawn, Store as _, StoreExt as _, Task, Timestamp, Version,
};
use terrace_stores::sqlite::{SqliteOptions, SqliteStore};

use super::Database;

/// The machine's clock, so far ahead as the test sets it.
#[derive(Debug)]
struct Skewed {
    real: Runtime,
    ahead: Mutex<jiff::SignedDuration>,
}

impl Skewed {
    fn new() -> Arc<Self> {
        Arc::new(Self { real: Runtime::system(), ahead: Mutex::default() })
    }

    fn runtime(self: &Arc<Self>) -> Runtime {
        Runtime::new(Arc::clone(self) as _, Arc::clone(self) as _, Arc::clone(self) as _)
    }
}

impl Clock for Skewed {
    fn now(&self) -> Instant {
        self.real.now()
    }

    fn wall(&self) -> Timestamp {
        self.real.wall() + *self.ahead.lock().unwrap()
    }

    fn sleep_until(&self, when: Instant) -> BoxFuture<'static, ()> {
        self.real.sleep_until(when)
    }
}

impl Rng for Skewed {
    fn next_u64(&self) -> u64 {
        self.real.random()
    }
}

impl Spawn for Skewed {
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) -> Task {
        self.real.spawn(name, work)
    }
}

fn options(database: &Database, number: u8) -> SqliteOptions {
    SqliteOptions { region: Some(Regions::options(number)), ..database.options() }
}

async fn regions() -> Fixture<Regions> {
    let all = [1, 2, 3].map(|number| {
        let (database, clock) = (Database::new(), Skewed::new());
        let store = SqliteStore::open(options(&database, number), clock.runtime()).expect("a file");
        (Arc::new(store), clock, database)
    });
    let stores = [0, 1, 2].map(|at| Arc::clone(&all[at].0) as Arc<dyn RegionStore>);
    let clocks = [0, 1, 2].map(|at| Arc::clone(&all[at].1));
    let set_clock = Box::new(move |at: usize, ahead| {
        *clocks[at].ahead.lock().expect("nobody panics") = ahead;
        Box::pin(async {}) as _
    });
    Fixture::guarded(Arc::new(Regions { stores, set_clock }), all.map(|(_, _, database)| database))
}

terrace_core::region_contract!(regions);

mod one_region {
    use super::*;

    async fn a_region() -> StoreFixture {
        let database = Database::new();
        StoreFixture::guarded(database.open_with(options(&database, 1)), database)
    }

    terrace_core::store_contract!(a_region);
}

async fn log(store: &SqliteStore) -> Vec<Logged> {
    let part = store.own_log().after(LogPosition::default(), 1000).await.expect("a log");
    part.changes
}

fn replaced(change: &Logged) -> Version {
    match change.ancestry.as_deref() {
        Some(Ancestry::Change { replaced, .. }) => *replaced,
        other => panic!("a change of a region: {other:?}"),
    }
}

#[tokio::test]
async fn a_file_stays_the_region_that_it_is() {
    let database = Database::new();
    let store = database.open_with(options(&database, 1));
    let version = store.put(key("a"), value("1")).await.unwrap().version;
    store.close().await.unwrap();
    let mut renamed = Regions::options(1);
    renamed.name = "elsewhere".parse().unwrap();
    for other in [Some(Regions::options(2)), Some(renamed), None] {
        let options = SqliteOptions { region: other, ..database.options() };
        let refused = SqliteStore::open(options, Runtime::system()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    }
    let store = database.open_with(options(&database, 1));
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().version, version);
    assert!(store.put(key("a"), value("2")).await.unwrap().version > version);
}

#[tokio::test]
async fn a_file_that_becomes_a_region_has_versions_of_it() {
    let database = Database::new();
    let store = database.open_with(SqliteOptions { change_log: true, ..database.options() });
    for name in ["a", "b", "c"] {
        store.put(key(name), value("1")).await.unwrap();
    }
    store.delete(key("b")).await.unwrap();
    store.close().await.unwrap();
    let store = database.open_with(options(&database, 2));
    let log = log(&store).await;
    let keys = log.iter().map(|change| change.key.as_str()).collect::<Vec<_>>();
    assert_eq!(keys, ["a", "c", "b"], "in the order of their versions");
    for change in &log {
        assert_eq!(change.version.region(), Some(Regions::options(2).id));
        assert_eq!(change.position.offset, change.version.get());
    }
    let record = store.get(&key("c")).await.unwrap().unwrap();
    assert_eq!((record.version, record.value.as_str()), (log[1].version, "1"));
    assert!(store.put(key("b"), value("2")).await.unwrap().version > log[2].version);
}

#[tokio::test]
async fn what_people_change_is_of_the_region_and_says_what_it_replaced() {
    let database = Database::new();
    let store = database.open_with(options(&database, 3));
    let first = store.put(key("a"), value("1")).await.unwrap().version;
    let gone = store.put(key("gone"), value("1")).await.unwrap().version;
    let hand = database.by_hand();
    hand.execute_batch(
        "UPDATE records SET value = '2' WHERE key = 'a';
         INSERT INTO records (key, value) VALUES ('b', '1');
         INSERT INTO records (key, value, version) VALUES ('c', '1', 9000000000000000);
         DELETE FROM records WHERE key = 'gone';
         UPDATE records SET key = 'd' WHERE key = 'b';",
    )
    .unwrap();
    let all = log(&store).await;
    let mut last = Version::NONE;
    for change in &all {
        assert_eq!(change.version.region(), Some(Regions::options(3).id), "{change:?}");
        assert!(change.version > last);
        last = change.version;
    }
    let of =
        |name: &str| all.iter().filter(|change| change.key.as_str() == name).collect::<Vec<_>>();
    let [_, changed] = of("a")[..] else { panic!("two changes: {all:?}") };
    assert_eq!(replaced(changed), first);
    let [_, removed] = of("gone")[..] else { panic!("two changes: {all:?}") };
    assert_eq!((replaced(removed), &removed.record), (gone, &None));
    let [made, renamed] = of("b")[..] else { panic!("two changes: {all:?}") };
    assert_eq!((replaced(renamed), &renamed.record), (made.version, &None));
    assert_eq!((of("c").len(), of("d").len()), (1, 1));
    assert!(store.put(key("a"), value("3")).await.unwrap().version > last);
}

#[tokio::test]
async fn what_other_regions_have_brought_is_seen_by_what_people_change() {
    let regions = regions().await;
    let [one, two, _] = &regions.subject.stores;
    one.put(key("a"), value("1")).await.unwrap();
    let rows = one.rows(&Default::default(), 10).await.unwrap();
    let database = Database::new();
    let store = database.open_with(options(&database, 3));
    store.merge_rows(rows).await.unwrap();
    database.by_hand().execute("UPDATE records SET value = '2' WHERE key = 'a'", []).unwrap();
    let version = store.get(&key("a")).await.unwrap().unwrap().version;
    store.put(key("a"), value("3")).await.unwrap();
    assert_eq!(log(&store).await.iter().map(replaced).max(), Some(version));
    two.merge_rows(store.rows(&Default::default(), 10).await.unwrap()).await.unwrap();
    one.merge_rows(two.rows(&Default::default(), 10).await.unwrap()).await.unwrap();
    for region in [one, two] {
        assert_eq!(region.get(&key("a")).await.unwrap().unwrap().value.as_str(), "3");
        assert_eq!(region.conflicts(None, 10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_log_that_was_lost_begins_anew_with_what_is_of_the_region() {
    let fixture = regions().await;
    let database = Database::new();
    let store = database.open_with(options(&database, 2));
    store.put(key("mine"), value("1")).await.unwrap();
    let theirs = &fixture.subject.stores[0];
    theirs.put(key("theirs"), value("1")).await.unwrap();
    let rows = theirs.rows(&Default::default(), 10).await.unwrap();
    store.merge_rows(rows).await.unwrap();
    let name = store.own_log().name();
    store.close().await.unwrap();
    database.by_hand().execute_batch("DROP TABLE commands").unwrap();
    let store = database.open_with(options(&database, 2));
    assert_ne!(store.own_log().name(), name);
    store.put(key("mine"), value("2")).await.unwrap();
    let keys = log(&store).await.into_iter().map(|change| change.key.to_string());
    assert_eq!(keys.collect::<Vec<_>>(), ["mine", "mine"]);
}

/// Two instances, as two processes would be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_of_a_region_draw_no_version_twice() {
    let database = Database::new();
    let stores = [1, 2].map(|_| database.open_with(options(&database, 4)));
    let write = async |store: &SqliteStore| {
        let mut versions = Vec::new();
        for round in 0..100 {
            let receipt = store.put(key(format!("k{}", round % 3)), value("1")).await.unwrap();
            versions.push(receipt.version);
        }
        assert!(versions.is_sorted_by(|a, b| a < b));
        versions
    };
    let (one, two) = tokio::join!(write(&stores[0]), write(&stores[1]));
    let all = one.into_iter().chain(two).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(all.len(), 200);
}

/// The copy draws no version that the original has drawn, and has another log.
#[tokio::test]
async fn a_copy_of_a_region_has_another_log() {
    let database = Database::new();
    let store = database.open_with(options(&database, 1));
    let version = store.put(key("a"), value("1")).await.unwrap().version;
    let name = store.own_log().name();
    store.close().await.unwrap();
    let copy = Database::new();
    std::fs::copy(database.path(), copy.path()).unwrap();
    let copy_store = copy.open_with(options(&copy, 1));
    assert_ne!(copy_store.own_log().name(), name);
    let next = copy_store.put(key("a"), value("2")).await.unwrap().version;
    assert!(next > version && next.time().duration_since(version.time()).as_secs() < 60);
}

/// The file is the same, and so is all that it says of itself; what is written next lies beyond all that was
/// lost.
#[tokio::test]
async fn a_backup_that_overwrites_the_file_in_place_is_told_from_what_was_followed() {
    let database = Database::new();
    let store = database.open_with(options(&database, 1));
    store.put(key("a"), value("1")).await.unwrap();
    let kept = store.own_log().head().await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let backup = database.path().with_extension("backup");
    std::fs::copy(database.path(), &backup).unwrap();
    let store = database.open_with(options(&database, 1));
    let name = store.own_log().name();
    store.put(key("b"), value("1")).await.unwrap();
    let followed = store.own_log().head().await.unwrap();
    assert_eq!(store.own_log().after(followed, 10).await.unwrap().changes, []);
    store.close().await.unwrap();
    drop(store);
    std::fs::copy(&backup, database.path()).unwrap();
    let store = database.open_with(options(&database, 1));
    assert_eq!(store.own_log().name(), name, "nothing in the file tells");
    store.put(key("c"), value("1")).await.unwrap();
    let lost = store.own_log().after(followed, 10).await.unwrap_err();
    assert!(PositionLost::caused(&lost), "{lost}");
    let rest = store.own_log().after(kept, 10).await.unwrap();
    assert_eq!(rest.changes.iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), ["c"]);
}
