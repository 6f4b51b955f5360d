//! What a cache that fails, hangs or comes back does to reads and writes.

use std::fmt;

use terrace_core::{
    BoxFuture, Error, ErrorKind, Inspection, Page, Read, Receipt, Result, Scan, Status,
    WriteOptions,
};

use super::*;

/// Without a rest, so that every call tries the cache.
fn restless() -> CacheAsideOptions {
    CacheAsideOptions { rest: Duration::ZERO, ..CacheAsideOptions::default() }
}

struct Stack {
    store: CacheAside,
    cut: Arc<Cuttable>,
    cache: Arc<MemoryCache>,
}

fn stack(options: CacheAsideOptions) -> Stack {
    let cache = memory_cache();
    let cut = Cuttable::new(cache.clone());
    Stack { store: over(Arc::default(), cut.clone(), options), cut, cache }
}

impl Stack {
    async fn put(&self, key: &Key, text: &str) {
        self.store.put(key.clone(), value(text)).await.unwrap();
    }

    async fn read(&self, key: &Key) -> (String, Origin) {
        let read = self.store.get_read(key, &ReadOptions::default()).await.unwrap();
        (read.record.unwrap().value.as_str().to_owned(), read.origin)
    }

    /// How often the generation was raised for want of the cache.
    async fn raises(&self) -> u64 {
        self.store.inspect().await.number("raises").unwrap()
    }
}

fn is(text: &str, origin: Origin) -> (String, Origin) {
    (text.to_owned(), origin)
}

/// A write is acknowledged while the cache is cut off; the cache comes back with the old entry.
/// Answers what is read then.
async fn read_after_a_lost_invalidation(flaw: Option<CacheFlaw>) -> (String, Origin) {
    let mut stack = stack(restless());
    if let Some(flaw) = flaw {
        let cache = Arc::new(BrokenCache::new(stack.cut.clone(), flaw));
        stack.store = over(Arc::default(), cache, restless());
    }
    let key = key("a");
    stack.put(&key, "old").await;
    stack.read(&key).await;
    stack.cut.set(Mode::Down);
    stack.put(&key, "new").await;
    stack.cut.set(Mode::Up);
    stack.read(&key).await
}

#[tokio::test(start_paused = true)]
async fn what_was_cached_before_a_lost_invalidation_is_not_believed() {
    let read = read_after_a_lost_invalidation(None).await;
    assert_eq!(read, is("new", Origin::PRIMARY));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_invalidation_is_caught() {
    let read = read_after_a_lost_invalidation(Some(CacheFlaw::HidesFailures)).await;
    assert_eq!(read, is("old", Origin::FAR));
}

#[tokio::test(start_paused = true)]
async fn a_lost_invalidation_is_made_good_at_once() {
    let stack = stack(restless());
    let key = key("a");
    stack.put(&key, "old").await;
    stack.read(&key).await;
    stack.cut.set(Mode::Down);
    stack.put(&key, "new").await;
    assert_eq!(stack.raises().await, 1);
    assert_eq!(stack.read(&key).await, is("new", Origin::PRIMARY));
    sleep(Duration::from_secs(60)).await;

    stack.cut.set(Mode::Up);
    assert!(cached(&stack.cache, &key).is_some(), "the old entry is still there");
    assert_eq!(stack.read(&key).await, is("new", Origin::PRIMARY));
    assert_eq!(stack.read(&key).await, is("new", Origin::FAR));
    assert_eq!(stack.store.inspect().await.status, Status::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_load_under_way_when_an_invalidation_is_lost_fills_nothing() {
    let cache = memory_cache();
    let cut = Cuttable::new(cache.clone());
    let (store, mut hand, _) = scripted_over(cut.clone(), restless());
    let key = key("a");
    let (read, ()) = tokio::join!(store.get(&key), async {
        let held = hand.read().await;
        cut.set(Mode::Down);
        let (receipt, ()) = tokio::join!(store.put(key.clone(), value("2")), async {
            hand.write().await.applied(2);
        });
        receipt.unwrap();
        cut.set(Mode::Up);
        held.found(&[("a", "1", 1)]);
    });
    assert_eq!(read.unwrap().unwrap().version, Version::new(1));
    assert_eq!(cached(&cache, &key), None);
}

#[tokio::test(start_paused = true)]
async fn a_silent_cache_costs_a_bounded_wait_and_then_none() {
    let stack = stack(CacheAsideOptions::default());
    let key = key("a");
    stack.put(&key, "old").await;
    stack.cut.set(Mode::Silent);
    let clock = Runtime::system();
    let begun = clock.now();
    assert_eq!(stack.read(&key).await, is("old", Origin::PRIMARY));
    assert_eq!(clock.now() - begun, Duration::from_millis(250));
    for _ in 0..100 {
        assert_eq!(stack.read(&key).await.1, Origin::PRIMARY);
    }
    assert_eq!(clock.now() - begun, Duration::from_millis(250), "no read waits for it again");
    stack.put(&key, "new").await;
    assert_eq!(clock.now() - begun, Duration::from_millis(500), "a write tells it all the same");
    assert_eq!(stack.raises().await, 1);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_decides_which_read_asks_the_cache() {
    let stack = stack(CacheAsideOptions::default());
    let key = key("a");
    stack.put(&key, "1").await;
    stack.read(&key).await;
    stack.cut.set(Mode::Silent);
    assert_eq!(stack.read(&key).await, is("1", Origin::PRIMARY));
    stack.cut.set(Mode::Up);
    assert_eq!(stack.read(&key).await.1, Origin::PRIMARY, "it is left alone");
    assert_eq!(stack.store.inspect().await.status, Status::Degraded);
    sleep(CacheAsideOptions::default().rest * 2).await;
    stack.cut.set(Mode::Silent);
    let reads = tokio::join!(stack.read(&key), stack.read(&key));
    assert_eq!((reads.0.1, reads.1.1), (Origin::PRIMARY, Origin::PRIMARY));
    let tree = stack.store.inspect().await;
    let figure = |name| tree.number(name).unwrap();
    assert_eq!(figure("breaker_opened"), 1);
    assert_eq!(figure("breaker_probes"), 1, "one of the two");
    assert_eq!(figure("breaker_refused"), 2);
    sleep(CacheAsideOptions::default().rest * 5).await;
    stack.cut.set(Mode::Up);
    stack.read(&key).await;
    assert_eq!(stack.read(&key).await.1, Origin::FAR);
    assert_eq!(stack.store.inspect().await.status, Status::Healthy);
}

#[tokio::test(start_paused = true)]
async fn lookups_that_begin_close_together_wait_no_longer_than_the_first() {
    let stack = stack(restless());
    let key = key("a");
    stack.put(&key, "1").await;
    stack.cut.set(Mode::Silent);
    let clock = Runtime::system();
    let begun = clock.now();
    let ends = join_all([0, 20, 40, 300].map(async |late| {
        sleep(Duration::from_millis(late)).await;
        assert_eq!(stack.read(&key).await, is("1", Origin::PRIMARY));
        (clock.now() - begun).as_millis()
    }));
    assert_eq!(ends.await, [250, 250, 290, 550]);
}

#[tokio::test(start_paused = true)]
async fn a_read_in_a_hurry_does_not_wait_for_a_silent_cache_past_its_deadline() {
    let stack = stack(CacheAsideOptions::default());
    let key = key("a");
    stack.put(&key, "1").await;
    stack.cut.set(Mode::Silent);
    let clock = Runtime::system();
    let begun = clock.now();
    let deadline = Deadline::at(begun + Duration::from_millis(100));
    let how = ReadOptions { deadline, ..ReadOptions::default() };
    // Whatever the store below makes of a deadline that has passed.
    let _ = stack.store.get_read(&key, &how).await;
    assert_eq!(clock.now() - begun, Duration::from_millis(100));
    stack.cut.set(Mode::Up);
    stack.read(&key).await;
    assert_eq!(stack.read(&key).await.1, Origin::FAR, "that said nothing of the cache's health");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_does_not_cut_an_invalidation_short() {
    let stack = stack(CacheAsideOptions::default());
    stack.cut.set(Mode::Silent);
    let clock = Runtime::system();
    let begun = clock.now();
    let deadline = Deadline::at(begun + Duration::from_millis(100));
    let how = WriteOptions { deadline, ..WriteOptions::default() };
    stack.store.write(vec![Write::put(key("a"), value("1"))], &how).await.unwrap();
    let timeout = CacheAsideOptions::default().cache_timeout;
    assert_eq!(clock.now() - begun, timeout, "the receipt waits for the cache or its timeout");
    assert_eq!(stack.raises().await, 1);
}

#[tokio::test(start_paused = true)]
async fn however_many_invalidations_were_lost_nothing_old_is_believed() {
    let stack = stack(restless());
    let keys: Vec<_> = (0..5).map(|number| key(format!("key{number}"))).collect();
    for key in &keys {
        stack.put(key, "old").await;
        stack.read(key).await;
    }
    stack.cut.set(Mode::Down);
    for key in &keys[..3] {
        stack.put(key, "new").await;
    }
    stack.cut.set(Mode::Up);
    for (index, key) in keys.iter().enumerate() {
        let text = if index < 3 { "new" } else { "old" };
        assert_eq!(stack.read(key).await, is(text, Origin::PRIMARY), "of an older generation");
        assert_eq!(stack.read(key).await, is(text, Origin::FAR));
    }
}

#[tokio::test(start_paused = true)]
async fn closing_raises_what_is_owed_or_says_that_it_could_not() {
    for works in [true, false] {
        let cut = Cuttable::new(memory_cache());
        let (store, mut hand, generations) = scripted_over(cut.clone(), restless());
        cut.set(Mode::Down);
        generations.fail(true);
        let key = key("a");
        let (written, ()) = tokio::join!(store.put(key.clone(), value("new")), async {
            hand.write().await.applied(2);
        });
        assert_eq!(written.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        generations.fail(!works);
        let closed = store.close().await;
        assert_eq!(closed.is_ok(), works, "{closed:?}");
        assert_eq!(generations.said().generation.get(), u64::from(works));
        assert!(store.get(&key).await.is_err());
    }
}

/// The background may be at it already; closing does not take its try for a success.
#[tokio::test(start_paused = true)]
async fn closing_does_not_rely_on_a_raise_that_is_under_way() {
    let cut = Cuttable::new(memory_cache());
    let (store, mut hand, generations) = scripted_over(cut.clone(), restless());
    cut.set(Mode::Down);
    generations.fail(true);
    let (written, ()) = tokio::join!(store.put(key("a"), value("new")), async {
        hand.write().await.applied(2);
    });
    assert_eq!(written.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    generations.hold_raises(true);
    generations.until_raises(2).await;
    let (closed, ()) = tokio::join!(store.close(), async {
        tokio::task::yield_now().await;
        generations.hold_raises(false);
    });
    assert!(closed.is_err());
}

/// A store whose writes panic.
#[derive(Debug)]
struct Panicking(Arc<MemoryStore>);

impl fmt::Display for Panicking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("panicking")
    }
}

impl Store for Panicking {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        self.0.read(keys, how)
    }

    fn write<'a>(
        &'a self,
        _: Vec<Write>,
        _: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async { panic!("this panic belongs to the test") })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.0.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.0.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.0.close()
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_panics_is_of_unknown_outcome() {
    let cache = memory_cache();
    let generations = Arc::<MemoryStore>::default();
    let inner = Arc::new(Panicking(generations.clone()));
    let store = aside(inner, cache.clone(), generations, CacheAsideOptions::default());
    let key = key("a");
    store.get(&key).await.unwrap();
    assert_eq!(cached(&cache, &key), Some(0));
    let error = store.put(key.clone(), value("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    let read = store.get_read(&key, &ReadOptions::default()).await.unwrap();
    assert_eq!(read.origin, Origin::PRIMARY);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(store.inspect().await.status, Status::Healthy);
    store.get(&key).await.unwrap();
    assert_eq!(cached(&cache, &key), None, "the write may still come");
}

#[tokio::test(start_paused = true)]
async fn a_write_past_the_store_is_told_also_when_its_outcome_is_unknown() {
    let (inner, cache) = (Arc::<MemoryStore>::default(), memory_cache());
    let store = over(inner.clone(), cache.clone(), CacheAsideOptions::default());
    let (key, past) = (key("a"), inner.clone());
    store.put(key.clone(), value("old")).await.unwrap();
    store.get(&key).await.unwrap();
    let (written, name) = (value("new"), key.clone());
    let work = async move { Ok((name.clone(), past.put(name, written).await?.version)) };
    let told = store.tell_of(vec![key.clone()], Box::pin(work), |done| vec![done.clone()]).await;
    assert_eq!(cached(&cache, &key), None, "{told:?}");
    let read = store.get(&key).await.unwrap().unwrap();
    assert_eq!((read.value.as_str(), cached(&cache, &key)), ("new", Some(read.version.get())));
    let lost = Error::new(ErrorKind::OutcomeUnknown, "the connection is gone");
    let work = Box::pin(async move { Err::<(), _>(lost) });
    store.tell_of(vec![key.clone()], work, |()| Vec::new()).await.unwrap_err();
    store.get(&key).await.unwrap();
    assert_eq!(cached(&cache, &key), None, "the write may still come");
}
