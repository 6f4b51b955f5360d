//! Overload, simulated: how much a store of fixed capacity answers in time while more and more is asked of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use terrace_core::testkit::key;
use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Page, Read, ReadOptions, Receipt,
    Result, Runtime, Scan, Store, Write, WriteOptions,
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

/// Works on so many calls at once, in order of arrival, and does not hear that a caller has gone: as a
/// database does.
#[derive(Debug)]
struct Engine {
    places: Arc<Semaphore>,
    runtime: Runtime,
}

impl Engine {
    async fn work(&self) -> Result<()> {
        let (told, done) = oneshot::channel();
        let (places, runtime) = (Arc::clone(&self.places), self.runtime.clone());
        let work = async move {
            let _place = places.acquire_owned().await;
            runtime.sleep(runtime.jitter(WORK, 0.5)).await;
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
        Box::pin(async { self.work().await.map(|()| Vec::new()) })
    }

    fn write<'a>(
        &'a self,
        _: Vec<Write>,
        _: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async { self.work().await.map(|()| Vec::new()) })
    }

    fn scan<'a>(&'a self, _: &'a Scan, _: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async { Err(Error::new(ErrorKind::Internal, "nobody lists")) })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { Inspection::new("engine") })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// As level 10 has it over a shard, with this limit or none.
fn stack(
    places: usize,
    limit: Option<ConcurrencyLimitOptions>,
    runtime: &Runtime,
) -> Arc<dyn Store> {
    let on = || runtime.clone();
    let mut store: Arc<dyn Store> =
        Arc::new(Engine { places: Arc::new(Semaphore::new(places)), runtime: on() });
    if let Some(options) = limit {
        store = Arc::new(ConcurrencyLimit::new(store, options, on()));
    }
    let store = CircuitBreaker::new(store, CircuitBreakerOptions::default(), on());
    let store = Retry::new(Arc::new(store), RetryOptions::default(), on());
    let options = TimeoutOptions { read: PATIENCE, grace: Duration::ZERO, ..Default::default() };
    Arc::new(Timeout::new(Arc::new(store), options, on()))
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

/// What is answered at 0.5, 1, 2 and 3 times what the engine can do, of 100 that it can.
async fn ramp(
    places: usize,
    limit: &Option<ConcurrencyLimitOptions>,
    runtime: &Runtime,
) -> [u32; 4] {
    // In a second.
    let capacity = u32::try_from(places).expect("a few") * 1000 / 20;
    let mut answered = [0; 4];
    for (percent, answered) in [50, 100, 200, 300].into_iter().zip(&mut answered) {
        let store = stack(places, limit.clone(), runtime);
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
    for seed in 1..=3 {
        for places in [4, 20, 40] {
            let runtime = Runtime::seeded(seed);
            let limit = Some(ConcurrencyLimitOptions::adaptive());
            let answered = ramp(places, &limit, &runtime).await;
            eprintln!("{places}: {answered:?}");
            assert!(keeps_its_goodput(answered), "seed {seed}, {places} places: {answered:?}");
        }
    }
}

/// Without a limit the engine works for callers who have gone. With one whose queue is as patient as its
/// callers it does so nearly as much: who has a turn at last has no time left.
#[tokio::test(start_paused = true)]
async fn without_a_limit_or_with_a_patient_queue_it_is_not_so() {
    let runtime = Runtime::seeded(1);
    for limit in [None, Some(ConcurrencyLimitOptions::default())] {
        let answered = ramp(20, &limit, &runtime).await;
        assert!(!keeps_its_goodput(answered), "{limit:?}: {answered:?}");
    }
}
