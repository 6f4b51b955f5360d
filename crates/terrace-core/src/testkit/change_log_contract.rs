//! The properties that every [`ChangeLog`] keeps.
//!
//! Used like [`store_contract!`](crate::store_contract), with a factory of
//! [`Fixture`](crate::testkit::Fixture)s of [`WithLog`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::testkit::{key, value};
use crate::{
    ChangeLog, Changes, Deadline, Key, LogPosition, Runtime, Scan, Store, StoreExt, Version,
};

/// Makes one test of each property of the [`ChangeLog`] contract, in a module
/// `change_log_contract`.
///
/// Takes the path of an async function without arguments that makes a fresh
/// [`Fixture`](crate::testkit::Fixture) of [`WithLog`].
#[macro_export]
macro_rules! change_log_contract {
    ($factory:path) => {
        mod change_log_contract {
            use super::*;
            $crate::each_property! { $factory, change_log_contract:
                an_empty_log_ends_at_once,
                what_was_committed_is_there_in_order,
                any_limit_comes_to_the_same_end,
                a_deletion_is_a_change,
                a_follower_goes_on_where_it_was,
                the_head_is_past_what_was_acknowledged,
                a_wait_ends_with_a_commit,
                a_follower_beside_writers_misses_nothing,
            }
        }
    };
}

/// A database and its change log.
#[derive(Debug)]
pub struct WithLog {
    /// The database.
    pub store: Arc<dyn Store>,
    /// Its log.
    pub log: Arc<dyn ChangeLog>,
}

/// A copy of a database, made from its log alone.
#[derive(Debug, Default)]
struct Copy {
    rows: BTreeMap<Key, (Version, Option<String>)>,
    position: LogPosition,
}

impl Copy {
    /// Applies a part of the log; it must go forward.
    fn apply(&mut self, part: Changes) {
        let mut last = self.position;
        for change in part.changes {
            assert!(change.position > last, "commit order: {:?} after {last:?}", change.position);
            last = change.position;
            let text = change.record.map(|record| {
                assert_eq!((&record.key, record.version), (&change.key, change.version));
                record.value.as_str().to_owned()
            });
            let row = self.rows.entry(change.key).or_default();
            assert!(change.version > row.0, "the changes of a key are in order");
            *row = (change.version, text);
        }
        assert!(part.position >= last, "the next position is past what was answered");
        self.position = part.position;
    }

    /// Follows until there is nothing more.
    async fn follow(&mut self, log: &dyn ChangeLog, limit: usize) {
        loop {
            let part = log.after(self.position, limit).await.expect("a part of the log");
            assert!(part.changes.len() <= limit);
            assert!(!part.more || !part.changes.is_empty(), "a log that goes on has something");
            let done = !part.more;
            self.apply(part);
            if done {
                return;
            }
        }
    }

    fn live(&self) -> BTreeMap<&str, &str> {
        let live = self.rows.iter().filter_map(|(key, (_, text))| Some((key, text.as_deref()?)));
        live.map(|(key, text)| (key.as_str(), text)).collect()
    }
}

async fn assert_same(store: &dyn Store, copy: &Copy) {
    let page = store.scan(&Scan { limit: 1000, ..Scan::prefix("") }, &Default::default()).await;
    let page = page.expect("a page");
    let rows = page.records.iter().map(|record| (record.key.as_str(), record.value.as_str()));
    assert_eq!(copy.live(), rows.collect());
}

/// Nothing was written, and that is no error.
pub async fn an_empty_log_ends_at_once(it: Arc<WithLog>) {
    let part = it.log.after(LogPosition::default(), 10).await.expect("a part");
    assert_eq!((part.changes, part.more), (Vec::new(), false));
    it.log.head().await.expect("a head");
}

/// A copy made from the log is the database, records and versions.
pub async fn what_was_committed_is_there_in_order(it: Arc<WithLog>) {
    for number in 0..20 {
        it.store
            .put(key(format!("k{}", number % 7)), value(number.to_string()))
            .await
            .expect("put");
    }
    let mut copy = Copy::default();
    copy.follow(&*it.log, 100).await;
    assert_same(&*it.store, &copy).await;
    for (key, (version, _)) in &copy.rows {
        assert_eq!(it.store.get(key).await.expect("read").expect("a record").version, *version);
    }
}

/// A log read one by one, by three or all at once is the same.
pub async fn any_limit_comes_to_the_same_end(it: Arc<WithLog>) {
    for number in 0..20 {
        it.store
            .put(key(format!("k{}", number % 9)), value(number.to_string()))
            .await
            .expect("put");
    }
    it.store.delete(key("k3")).await.expect("delete");
    let mut ends = Vec::new();
    for limit in [1, 3, 1000] {
        let mut copy = Copy::default();
        copy.follow(&*it.log, limit).await;
        ends.push((copy.rows, copy.position));
    }
    assert_eq!(ends[0], ends[1]);
    assert_eq!(ends[1], ends[2]);
}

/// A follower hears that a record is gone.
pub async fn a_deletion_is_a_change(it: Arc<WithLog>) {
    let mut copy = Copy::default();
    it.store.put(key("a"), value("1")).await.expect("put");
    copy.follow(&*it.log, 10).await;
    assert_eq!(copy.live().len(), 1);
    let gone = it.store.delete(key("a")).await.expect("delete");
    copy.follow(&*it.log, 10).await;
    assert_eq!(copy.rows[&key("a")], (gone.version, None));
}

/// A kept position is enough to go on.
pub async fn a_follower_goes_on_where_it_was(it: Arc<WithLog>) {
    let mut copy = Copy::default();
    for round in 0..5 {
        for number in 0..4 {
            let text = value(format!("{round}.{number}"));
            it.store.put(key(format!("k{number}")), text).await.expect("put");
        }
        copy.follow(&*it.log, 3).await;
        assert_same(&*it.store, &copy).await;
        let again = it.log.after(copy.position, 10).await.expect("a part");
        assert_eq!(again.changes, Vec::new(), "nothing comes twice");
    }
}

/// Who has followed to the head has seen what was acknowledged before.
pub async fn the_head_is_past_what_was_acknowledged(it: Arc<WithLog>) {
    let mut copy = Copy::default();
    for number in 0..10 {
        let receipt = it.store.put(key("a"), value(number.to_string())).await.expect("put");
        let head = it.log.head().await.expect("a head");
        while copy.position < head {
            let part = it.log.after(copy.position, 1).await.expect("a part");
            copy.apply(part);
        }
        assert_eq!(copy.rows[&key("a")].0, receipt.version);
    }
}

/// Whoever waits is woken by a commit.
pub async fn a_wait_ends_with_a_commit(it: Arc<WithLog>) {
    it.store.put(key("a"), value("1")).await.expect("put");
    let mut copy = Copy::default();
    copy.follow(&*it.log, 10).await;
    let runtime = Runtime::system();
    let deadline = Deadline::at(runtime.now() + Duration::from_secs(60));
    let (log, position) = (Arc::clone(&it.log), copy.position);
    let (woken, wait) = tokio::sync::oneshot::channel();
    let waits = runtime.spawn("a waiting follower", async move {
        let mut position = position;
        // It may return early.
        loop {
            log.wait(position, deadline).await.expect("a wait");
            let part = log.after(position, 10).await.expect("a part");
            position = part.position;
            if let Some(change) = part.changes.first() {
                let _ = woken.send(change.key.clone());
                return;
            }
        }
    });
    it.store.put(key("b"), value("2")).await.expect("put");
    let found = runtime.within(deadline, wait).await.expect("in time").expect("a change");
    assert_eq!(found, key("b"));
    waits.stop().await;
}

/// Whatever writers do meanwhile, the copy comes to be the database.
pub async fn a_follower_beside_writers_misses_nothing(it: Arc<WithLog>) {
    let runtime = Runtime::system();
    let writers = (0..4).map(|writer| {
        let store = Arc::clone(&it.store);
        runtime.spawn("a writer", async move {
            for number in 0..50 {
                let key = key(format!("k{}", (writer + number) % 11));
                if number % 9 == 8 {
                    store.delete(key).await.expect("delete");
                } else {
                    store.put(key, value(format!("{writer}.{number}"))).await.expect("put");
                }
            }
        })
    });
    let mut writers = writers.collect::<Vec<_>>();
    let mut copy = Copy::default();
    while let Some(mut writer) = writers.pop() {
        loop {
            copy.follow(&*it.log, 5).await;
            let soon = Deadline::at(runtime.now() + Duration::from_millis(1));
            if runtime.within(soon, &mut writer).await.is_some() {
                break;
            }
        }
    }
    copy.follow(&*it.log, 5).await;
    assert_same(&*it.store, &copy).await;
}
