//! Whether the cache is believed: what a lost invalidation does before its write is answered, and when
//! the generation is looked at.

use std::cell::Cell;

use terrace_core::{ErrorKind, Generation, Receipt, Result, Status};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn restless() -> CacheAsideOptions {
    CacheAsideOptions { rest: Duration::ZERO, ..CacheAsideOptions::default() }
}

/// One instance over a database and a cache that others share.
struct Instance {
    store: CacheAside,
    hand: Hand,
    cut: Arc<Cuttable>,
    generations: Arc<ScriptedGenerations>,
}

fn instance(cache: &Arc<MemoryCache>, database: &ScriptedGenerations) -> Instance {
    let (inner, hand) = Scripted::new();
    let cut = Cuttable::new(cache.clone());
    let generations = Arc::new(database.instance());
    let store = aside(inner, cut.clone(), generations.clone(), restless());
    Instance { store, hand, cut, generations }
}

fn alone() -> Instance {
    instance(&memory_cache(), &ScriptedGenerations::default())
}

/// Lets everything run that can.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

impl Instance {
    /// Writes; the database takes it at this version.
    async fn put(&mut self, key: &Key, version: u64) -> Result<Receipt> {
        let (written, ()) = tokio::join!(self.store.put(key.clone(), value("x")), async {
            self.hand.write().await.applied(version);
        });
        written
    }

    /// What is answered, and from where; the database has this version.
    async fn read(&mut self, key: &Key, version: u64) -> (u64, Origin) {
        let (how, said) = (ReadOptions::default(), self.generations.said());
        let read = self.store.get_read(key, &how);
        let read = tokio::select! {
            biased;
            read = read => read,
            () = async {
                let call = self.hand.read().await;
                call.found_under(&said, &[(key.as_str(), "x", version)]);
                std::future::pending().await
            } => unreachable!(),
        };
        let read = read.unwrap();
        (read.version.get(), read.origin)
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_not_told_is_answered_after_the_raise() {
    let mut it = alone();
    let (key, answered) = (key("a"), Cell::new(false));
    it.read(&key, 1).await;
    it.cut.set(Mode::Down);
    it.generations.hold_raises(true);
    let write = async {
        it.store.put(key.clone(), value("x")).await.unwrap();
        answered.set(true);
    };
    let raise = async {
        it.hand.write().await.applied(2);
        it.generations.until_raises(1).await;
        settle().await;
        assert!(!answered.get(), "others still believe the old entry");
        it.generations.hold_raises(false);
    };
    tokio::join!(write, raise);
    assert_eq!(it.generations.said().generation, Generation::new(1));
    it.cut.set(Mode::Up);
    assert_eq!(it.read(&key, 2).await, (2, Origin::PRIMARY));
    assert_eq!(it.read(&key, 2).await, (2, Origin::FAR));
    // One that was told raises nothing.
    it.put(&key, 3).await.unwrap();
    assert_eq!(it.generations.raises(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_nobody_could_be_told_of_is_unknown_and_the_cache_is_bypassed() {
    let mut it = alone();
    let key = key("a");
    it.read(&key, 1).await;
    it.cut.set(Mode::Down);
    it.generations.fail(true);
    let error = it.put(&key, 2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    it.cut.set(Mode::Up);
    assert_eq!(it.store.inspect().await.status, Status::Degraded);
    assert_eq!(it.read(&key, 2).await, (2, Origin::PRIMARY));
    // A raise that is under way, and one that failed, are none.
    it.generations.hold_raises(true);
    it.generations.until_raises(2).await;
    assert_eq!(it.read(&key, 2).await, (2, Origin::PRIMARY));
    it.generations.hold_raises(false);
    settle().await;
    assert_eq!(it.read(&key, 2).await, (2, Origin::PRIMARY));

    it.generations.fail(false);
    while it.generations.said().generation == Generation::default() {
        sleep(SECOND).await;
    }
    settle().await;
    assert_eq!(it.store.inspect().await.status, Status::Healthy);
    assert_eq!(it.read(&key, 2).await, (2, Origin::PRIMARY), "of an older generation");
    assert_eq!(it.read(&key, 2).await, (2, Origin::FAR));
}

/// A debt that is made while another is paid is no less a debt.
#[tokio::test(start_paused = true)]
async fn every_write_that_nobody_could_be_told_of_is_paid_for() {
    let mut it = alone();
    let key = key("a");
    it.cut.set(Mode::Down);
    it.generations.fail(true);
    it.put(&key, 1).await.unwrap_err();
    it.generations.fail(false);
    it.generations.hold_raises(true);
    it.generations.until_raises(2).await;
    // Given up by the writer when it has waited for long enough.
    let late = it.put(&key, 2).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::OutcomeUnknown);
    it.generations.hold_raises(false);
    let clock = Runtime::system();
    let until = clock.now() + 60 * SECOND;
    while it.store.inspect().await.note.contains("could not be told") {
        assert!(clock.now() < until);
        sleep(SECOND).await;
    }
    assert!(it.generations.said().generation.get() >= 1);
}

/// What the second of two instances answers, more than a second after the first could not tell the
/// cache of its write.
async fn read_by_another(flaw: Option<CacheFlaw>) -> (u64, Origin) {
    let (cache, database) = (memory_cache(), ScriptedGenerations::default());
    let (mut one, mut two) = (instance(&cache, &database), instance(&cache, &database));
    if let Some(flaw) = flaw {
        let (inner, hand) = Scripted::new();
        let broken = Arc::new(BrokenCache::new(one.cut.clone(), flaw));
        one.store = aside(inner, broken, one.generations.clone(), restless());
        one.hand = hand;
    }
    let key = key("a");
    assert_eq!(two.read(&key, 1).await, (1, Origin::PRIMARY));
    assert_eq!(two.read(&key, 1).await, (1, Origin::FAR));
    one.cut.set(Mode::Down);
    one.put(&key, 2).await.unwrap();
    // It has looked a moment ago: the second in which it may be stale.
    assert_eq!(two.read(&key, 2).await, (1, Origin::FAR));
    sleep(SECOND + Duration::from_millis(1)).await;
    two.read(&key, 2).await
}

#[tokio::test(start_paused = true)]
async fn an_entry_of_an_older_generation_is_not_served_by_another_instance() {
    assert_eq!(read_by_another(None).await, (2, Origin::PRIMARY));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_forgets_is_caught_by_another() {
    assert_eq!(read_by_another(Some(CacheFlaw::HidesFailures)).await, (1, Origin::FAR));
}

/// A load from before the raise may end after it, in an instance that has not heard.
#[tokio::test(start_paused = true)]
async fn what_another_fills_under_an_older_generation_is_not_served() {
    let (cache, database) = (memory_cache(), ScriptedGenerations::default());
    let (mut one, mut two) = (instance(&cache, &database), instance(&cache, &database));
    let key = key("a");
    let before = database.said();
    let (old, ()) = tokio::join!(two.store.get(&key), async {
        let held = two.hand.read().await;
        one.cut.set(Mode::Down);
        one.put(&key, 2).await.unwrap();
        held.found_under(&before, &[("a", "x", 1)]);
    });
    assert!(old.unwrap().is_some(), "it began before the write");
    assert_eq!(cached(&cache, &key), Some(1));
    one.cut.set(Mode::Up);
    assert_eq!(one.read(&key, 2).await, (2, Origin::PRIMARY));
    assert_eq!(cached(&cache, &key), Some(2));
}

/// A clone on the same cache, a restore, a failover: the name tells.
#[tokio::test(start_paused = true)]
async fn an_entry_of_another_history_is_not_served() {
    let (cache, database) = (memory_cache(), ScriptedGenerations::default());
    let (mut one, mut two) = (instance(&cache, &database), instance(&cache, &database));
    let key = key("a");
    one.read(&key, 5).await;
    assert_eq!(two.read(&key, 5).await, (5, Origin::FAR));
    database.change(|standing| {
        let before = std::mem::replace(&mut standing.history, "another.1".into());
        standing.past.push(before);
    });
    sleep(2 * SECOND).await;
    assert_eq!(two.read(&key, 9).await, (9, Origin::PRIMARY));
    // Neither does the one that knows the old history alone serve what is of the new one.
    let clone = ScriptedGenerations::default();
    let mut clone = instance(&cache, &clone);
    assert_eq!(clone.read(&key, 5).await, (5, Origin::PRIMARY));
}

/// How the cache was out of reach.
#[derive(Clone, Copy, Debug)]
enum Away {
    Interrupted,
    Failed,
}

#[tokio::test(start_paused = true)]
async fn after_the_cache_was_out_of_reach_a_hit_in_hand_waits_for_a_look() {
    for away in [Away::Interrupted, Away::Failed] {
        let mut it = alone();
        let (key, answered) = (key("a"), Cell::new(false));
        it.read(&key, 1).await;
        assert_eq!(it.read(&key, 1).await, (1, Origin::FAR));
        // Meanwhile another instance raises, for it could not tell the cache either.
        it.generations.change(|standing| standing.generation = Generation::new(1));
        match away {
            Away::Interrupted => it.cut.interrupt(),
            Away::Failed => {
                it.cut.set(Mode::Silent);
                assert_eq!(it.read(&key, 1).await, (1, Origin::PRIMARY));
                it.cut.set(Mode::Up);
            }
        }
        it.generations.hold_looks(true);
        let (how, before) = (ReadOptions::default(), it.generations.looks());
        // The first of them looks, for all.
        let read = async {
            let reads = join_all([(); 3].map(|()| it.store.get_read(&key, &how))).await;
            answered.set(true);
            reads
        };
        let look = async {
            it.generations.until_looks(before + 1).await;
            settle().await;
            assert!(!answered.get() && it.hand.try_next().is_none(), "{away:?}");
            it.generations.hold_looks(false);
            for _ in 0..3 {
                let said = it.generations.said();
                it.hand.read().await.found_under(&said, &[("a", "x", 2)]);
            }
        };
        let (reads, ()) = tokio::join!(read, look);
        assert!(reads.into_iter().all(|read| read.unwrap().version == Version::new(2)));
        assert_eq!(it.generations.looks(), before + 1, "{away:?}");
        assert_eq!(it.read(&key, 2).await, (2, Origin::FAR));
    }
}

/// The reader that looks for all may go away; then nobody has looked.
#[tokio::test(start_paused = true)]
async fn a_look_that_was_given_up_is_none() {
    let mut it = alone();
    let key = key("a");
    it.read(&key, 1).await;
    sleep(2 * SECOND).await;
    it.generations.change(|standing| standing.generation = Generation::new(1));
    it.generations.hold_looks(true);
    let (how, before) = (ReadOptions::default(), it.generations.looks());
    tokio::select! {
        _ = it.store.get_read(&key, &how) => panic!("the look is held"),
        () = it.generations.until_looks(before + 1) => {}
    }
    it.generations.hold_looks(false);
    assert_eq!(it.read(&key, 2).await, (2, Origin::PRIMARY));
}

/// Without traffic nobody looks; the first hit after a second does.
#[tokio::test(start_paused = true)]
async fn a_look_counts_for_a_second() {
    let mut it = alone();
    let key = key("a");
    it.read(&key, 1).await;
    it.read(&key, 1).await;
    let looks = it.generations.looks();
    for _ in 0..10 {
        assert_eq!(it.read(&key, 1).await, (1, Origin::FAR));
    }
    assert_eq!(it.generations.looks(), looks, "it was looked at a moment ago");
    sleep(SECOND + Duration::from_millis(1)).await;
    assert_eq!(it.read(&key, 1).await, (1, Origin::FAR));
    assert_eq!(it.generations.looks(), looks + 1);
}

/// Nobody can know more then; and no read waits for longer than for the cache.
#[tokio::test(start_paused = true)]
async fn a_database_that_cannot_be_looked_at_leaves_the_cache_as_it_is() {
    let mut it = alone();
    let key = key("a");
    it.read(&key, 1).await;
    it.generations.fail(true);
    it.cut.interrupt();
    assert_eq!(it.read(&key, 1).await, (1, Origin::FAR));
    it.generations.hold_looks(true);
    it.cut.interrupt();
    let begun = Runtime::system().now();
    assert_eq!(it.read(&key, 1).await, (1, Origin::FAR));
    assert_eq!(Runtime::system().now() - begun, SECOND, "it is waited for once");
    // Once it can be reached again, it is looked at within a second.
    it.generations.hold_looks(false);
    it.generations.fail(false);
    it.generations.change(|standing| standing.generation = Generation::new(1));
    sleep(SECOND).await;
    assert_eq!(it.read(&key, 2).await, (2, Origin::PRIMARY));
}
