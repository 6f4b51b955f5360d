//! Overload, simulated: how much a store of fixed capacity answers in time while more and more is asked of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use terrace_core::testkit::key;
use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Origin, Page, Read, ReadOptions,
    Receipt, Result, Runtime, Scan, Store, Write, WriteOptions,
};
use terrace_layers::{
    CircuitBreaker, CircuitBreakerOptions, ConcurrencyLimit, ConcurrencyLimitOptions, Retry,
    RetryOptions, Timeout, TimeoutOptions,
};
use tokio::sync::{Semaphore, oneshot};

const MS: Duration = Duration::from_millis(1);
/// How long a call of the engine takes, give or take half.
const WORK: Duration = Duration::from_millis(20);
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(1);
const SECONDS: u32 = 10;
/// A batch of a flusher.
const ROWS: u32 = 1000;

/// Works on so many calls at once, in order of arrival, and does not hear that a caller has gone: as a
/// database does.
#[derive(Debug)]
struct Engine {
    places: Arc<Semaphore>,
    runtime: Runtime,
}

impl Engine {
    async fn work(&self, time: Duration) -> Result<()> {
        let (told, done) = oneshot::channel();
        let (places, runtime) = (Arc::clone(&self.places), self.runtime.clone());
        let work = async move {
            let _place = places.acquire_owned().await;
            runtime.sleep(runtime.jitter(time, 0.5)).await;
            let _gone = told.send(());
        };
        self.runtime.spawn("engine", work).detach();
        done.await.map_err(|_| Error::new(ErrorKind::Internal, "the engine is gone"))
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("engine")
    }
}

impl Store for Engine {
    fn read<'a>(&'a self, _: &'a [Key], _: &'a ReadOptions) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async { self.work(WORK).await.map(|()| Vec::new()) })
    }

    /// Fifty rows in the time of one, at least that.
    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        _: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        let time = WORK * u32::try_from(batch.len().div_ceil(50)).expect("a few");
        Box::pin(async move { self.work(time).await.map(|()| Vec::new()) })
    }

    /// As long as five reads.
    fn scan<'a>(&'a self, _: &'a Scan, _: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        let page = || Page {
            records: Vec::new(),
            next: None,
            origin: Origin::PRIMARY,
            age: Duration::ZERO,
            token: Default::default(),
        };
        Box::pin(async move { self.work(5 * WORK).await.map(|()| page()) })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { Inspection::new("engine") })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// What stands around the limit.
#[derive(Clone, Copy, Debug)]
enum Around {
    /// A deadline, as at levels 2 to 9.
    Alone,
    /// That, and what level 10 has over each shard.
    Guarded,
}

const BOTH: [Around; 2] = [Around::Alone, Around::Guarded];

/// An engine behind this limit or none.
fn stack(
    around: Around,
    places: usize,
    limit: Option<&ConcurrencyLimitOptions>,
    runtime: &Runtime,
) -> Arc<dyn Store> {
    let on = || runtime.clone();
    let mut store: Arc<dyn Store> =
        Arc::new(Engine { places: Arc::new(Semaphore::new(places)), runtime: on() });
    if let Some(options) = limit {
        store = Arc::new(ConcurrencyLimit::new(store, options, on()));
    }
    if let Around::Guarded = around {
        store = Arc::new(CircuitBreaker::new(store, CircuitBreakerOptions::default(), on()));
        store = Arc::new(Retry::new(store, RetryOptions::default(), on()));
    }
    let options = TimeoutOptions {
        read: PATIENCE,
        scan: PATIENCE,
        write: 30 * PATIENCE,
        grace: Duration::ZERO,
    };
    Arc::new(Timeout::new(store, options, on()))
}

/// Answers in time for each second, while so many calls a second arrive, whatever becomes of the earlier ones.
async fn goodput(store: Arc<dyn Store>, rate: u32, runtime: &Runtime) -> u32 {
    let good = Arc::new(AtomicU32::new(0));
    let keys = Arc::new([key("a")]);
    for _ in 0..SECONDS * 100 {
        for _ in 0..rate / 100 {
            let (store, good, keys) = (Arc::clone(&store), Arc::clone(&good), Arc::clone(&keys));
            let deadline = Deadline::at(runtime.now() + PATIENCE);
            let call = async move {
                let how = ReadOptions { deadline, ..ReadOptions::default() };
                good.fetch_add(store.read(&*keys, &how).await.is_ok().into(), Relaxed);
            };
            runtime.spawn("client", call).detach();
        }
        runtime.sleep(10 * MS).await;
    }
    runtime.sleep(2 * PATIENCE).await;
    good.load(Relaxed) / SECONDS
}

/// Reads a second.
fn capacity(places: usize) -> u32 {
    u32::try_from(places).expect("a few") * 1000 / 20
}

/// What is answered at 0.5, 1, 2 and 3 times what the engine can do, of 100 that it can.
async fn ramp(
    around: Around,
    places: usize,
    limit: Option<&ConcurrencyLimitOptions>,
    runtime: &Runtime,
) -> [u32; 4] {
    let capacity = capacity(places);
    let mut answered = [0; 4];
    for (percent, answered) in [50, 100, 200, 300].into_iter().zip(&mut answered) {
        let store = stack(around, places, limit, runtime);
        *answered = goodput(store, capacity * percent / 100, runtime).await * 100 / capacity;
    }
    answered
}

fn keeps_its_goodput(answered: [u32; 4]) -> bool {
    let peak = answered.into_iter().max().expect("four of them");
    answered[2..].iter().all(|good| good * 100 >= peak * 80)
}

#[tokio::test(start_paused = true)]
async fn at_three_times_the_capacity_four_fifths_of_the_peak_are_answered_in_time() {
    let limit = ConcurrencyLimitOptions::default();
    for (around, seeds) in [(Around::Alone, 1), (Around::Guarded, 3)] {
        for seed in 1..=seeds {
            for places in [4, 20, 40] {
                let runtime = Runtime::seeded(seed);
                let answered = ramp(around, places, Some(&limit), &runtime).await;
                let kept = keeps_its_goodput(answered);
                assert!(kept, "{around:?}, seed {seed}, {places} places: {answered:?}");
            }
        }
    }
}

/// Without a limit the engine works for callers who have gone. With one whose queue is as patient as its
/// callers it does so nearly as much: who has a turn at last has no time left.
#[tokio::test(start_paused = true)]
async fn without_a_limit_or_with_a_patient_queue_it_is_not_so() {
    let runtime = Runtime::seeded(1);
    let (least, most, max_wait) = (64, 64, Duration::MAX);
    let patient = ConcurrencyLimitOptions { least, most, max_wait, ..Default::default() };
    for around in BOTH {
        for limit in [None, Some(&patient)] {
            let answered = ramp(around, 20, limit, &runtime).await;
            assert!(!keeps_its_goodput(answered), "{around:?}, {limit:?}: {answered:?}");
        }
    }
}

/// How often something went well, and how often it did not.
#[derive(Debug, Default)]
struct Outcomes {
    good: AtomicU32,
    bad: AtomicU32,
}

impl Outcomes {
    fn add<T>(&self, outcome: &Result<T>) {
        let count = if outcome.is_ok() { &self.good } else { &self.bad };
        count.fetch_add(1, Relaxed);
    }

    fn good(&self) -> u32 {
        self.good.load(Relaxed)
    }
}

/// Batches of a flusher, one after the other as long as it is not dropped.
async fn flush(store: Arc<dyn Store>, outcomes: Arc<Outcomes>, on: Runtime) {
    loop {
        let deadline = Deadline::at(on.now() + 30 * PATIENCE);
        let how = WriteOptions { deadline, background: true, ..WriteOptions::default() };
        let batch = (0..ROWS).map(|_| Write::delete(key("a"))).collect();
        outcomes.add(&store.write(batch, &how).await);
    }
}

/// Lists at a steady rate.
async fn list(store: Arc<dyn Store>, outcomes: Arc<Outcomes>, on: Runtime) {
    loop {
        let (store, outcomes) = (Arc::clone(&store), Arc::clone(&outcomes));
        let call = async move {
            let how = ReadOptions::default();
            outcomes.add(&store.scan(&Scan::prefix(""), &how).await);
        };
        on.spawn("list", call).detach();
        on.sleep(10 * MS).await;
    }
}

/// What is answered of reads, in percent of what the engine can do, with lists and a flusher beside them.
async fn mixed(percent: u32) -> (u32, Arc<Outcomes>, Arc<Outcomes>) {
    const PLACES: usize = 40;
    let (runtime, limit) = (Runtime::seeded(1), ConcurrencyLimitOptions::default());
    let store = stack(Around::Alone, PLACES, Some(&limit), &runtime);
    let (flushed, listed) = (Arc::<Outcomes>::default(), Arc::<Outcomes>::default());
    let flusher = flush(Arc::clone(&store), Arc::clone(&flushed), runtime.clone());
    let lists = list(Arc::clone(&store), Arc::clone(&listed), runtime.clone());
    let rate = capacity(PLACES) * percent / 100;
    let reads = tokio::select! {
        reads = goodput(store, rate, &runtime) => reads,
        () = async { tokio::join!(flusher, lists).0 } => unreachable!("they do not end"),
    };
    (reads * 100 / capacity(PLACES), flushed, listed)
}

/// Batches that take longer than a read do not lower the limit of the reads, and are never refused.
#[tokio::test(start_paused = true)]
async fn lists_are_refused_before_reads_and_the_batches_of_a_flusher_never_are() {
    // One batch takes 0.4 s, so some 30 of them fit into the time; those of an engine in need take longer.
    let (reads, flushed, listed) = mixed(50).await;
    assert!(reads >= 45 && flushed.good() >= 20, "{reads} %, {flushed:?}");
    assert_eq!(listed.bad.load(Relaxed), 0, "there is room for all");
    let (reads, flushed, listed) = mixed(300).await;
    assert!(reads >= 70, "{reads} %");
    assert!(flushed.good() >= 10 && flushed.bad.load(Relaxed) == 0, "{flushed:?}");
    let (good, bad) = (listed.good(), listed.bad.load(Relaxed));
    assert!(bad > 4 * good, "{good} lists, {bad} refused");
}
