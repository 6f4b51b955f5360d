//! Two instances with everything going wrong, as a seed decides.
//!
//! Tasks read and write a few keys through two whole stacks over one cache and one database. The
//! database loses replies, the caches fail, the feeds lose messages and connections, generations
//! cannot be looked at or raised. Two things must hold: through the instance that acknowledged a write
//! no later read is older; and when the faults are over, both instances answer what the database has.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::{self, BoxStream};
use terrace_core::testkit::{
    BrokenCache, BrokenStore, CacheFlaw, FaultRates, FaultyCache, FaultyGenerations, FaultyStore,
    StoreFlaw,
};
use terrace_core::{Cache, Task};

use super::*;

const KEYS: usize = 3;
const TASKS: u64 = 8;
const STEPS: u64 = 60;

/// Which of the layers is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Sound,
    NaiveCache,
    InvalidatingFirst,
    Forgetting,
    WithoutNumbers,
}

/// One instance, and what it has acknowledged of each key.
struct Instance {
    store: NearCache,
    acknowledged: Mutex<[u64; KEYS]>,
    /// Looks at the generations as a store does by itself.
    _looks: Task,
}

/// A feed that loses messages and connections.
#[derive(Debug)]
struct FaultyFeed {
    inner: Arc<dyn Invalidations>,
    runtime: Runtime,
}

impl Invalidations for FaultyFeed {
    fn subscribe(&self) -> BoxStream<'static, Notice> {
        let start = (self.inner.subscribe(), Arc::clone(&self.inner), self.runtime.clone());
        stream::unfold(start, |(mut notices, inner, runtime)| async move {
            loop {
                let notice = notices.next().await?;
                if notice == Notice::Connected {
                    return Some((notice, (notices, inner, runtime)));
                }
                match runtime.random() % 100 {
                    0..30 => {}
                    30..32 => {
                        runtime.sleep(Duration::from_millis(runtime.random() % 50)).await;
                        return Some((Notice::Disconnected, (inner.subscribe(), inner, runtime)));
                    }
                    _ => return Some((notice, (notices, inner, runtime))),
                }
            }
        })
        .boxed()
    }
}

fn rates(unknown: u64) -> FaultRates {
    let longest = Duration::from_millis(5);
    FaultRates { delay: 500, error: 60, unknown, reply_lost: 30, longest }
}

async fn build(
    variant: Variant,
    cache: &Arc<MemoryCache>,
    naive: &Arc<BrokenCache>,
    database: &Arc<MemoryStore>,
    runtime: &Runtime,
) -> Instance {
    let generations = FaultyGenerations::new(database.clone(), rates(0), runtime.clone());
    let generations = Arc::new(generations.await.unwrap());
    let database = FaultyStore::new(database.clone(), rates(10), runtime.clone());
    let kept: Arc<dyn Cache> = match variant {
        Variant::NaiveCache => Arc::clone(naive) as _,
        _ => cache.clone(),
    };
    let faulty = FaultyCache::new(kept, rates(0), runtime.clone());
    let options = CacheAsideOptions { rest: Duration::from_millis(2), ..Default::default() };
    let (database, faulty): (Arc<dyn Store>, Arc<dyn Cache>) =
        (Arc::new(database), Arc::new(faulty));
    let (database, faulty) = match variant {
        Variant::InvalidatingFirst => {
            let flaw = StoreFlaw::InvalidatesFirst(faulty.clone());
            let deaf = BrokenCache::new(faulty, CacheFlaw::IgnoresInvalidations);
            (Arc::new(BrokenStore::new(database, flaw)) as _, Arc::new(deaf) as _)
        }
        Variant::Forgetting => {
            (database, Arc::new(BrokenCache::new(faulty, CacheFlaw::HidesFailures)) as _)
        }
        _ => (database, faulty),
    };
    let far = CacheAside::new(database, faulty, generations.clone(), options, runtime.clone());
    let make: Make = match variant {
        Variant::WithoutNumbers => without_gaps,
        _ => NearCache::new,
    };
    let feed = FaultyFeed { inner: cache.clone(), runtime: runtime.clone() };
    let options = NearCacheOptions::default();
    let (far, feed) = (Arc::new(far), Arc::new(feed));
    let store = make(far, feed, generations.clone(), options, runtime.clone());
    let looks = runtime.spawn("looks", look_now_and_then(generations, runtime.clone()));
    Instance { store, acknowledged: Mutex::default(), _looks: looks }
}

async fn look_now_and_then(generations: Arc<dyn Generations>, runtime: Runtime) {
    loop {
        runtime.sleep(Duration::from_secs(1)).await;
        let _ = generations.look().await;
    }
}

/// Reads and writes at random; answers the first violation.
async fn client(instances: [Arc<Instance>; 2], runtime: Runtime) -> Result<(), String> {
    for _ in 0..STEPS {
        let draw = runtime.random();
        let instance = &instances[(draw & 1) as usize];
        let index = (draw >> 8) as usize % KEYS;
        let key = key(format!("key{index}"));
        if draw >> 16 & 3 == 0 {
            let written = match draw >> 20 & 7 {
                0 => instance.store.delete(key).await,
                _ => instance.store.put(key, value(draw.to_string())).await,
            };
            if let Ok(receipt) = written
                && receipt.outcome.is_applied()
            {
                let mut acknowledged = instance.acknowledged.lock().unwrap();
                acknowledged[index] = acknowledged[index].max(receipt.version.get());
            }
        } else {
            let floor = instance.acknowledged.lock().unwrap()[index];
            if let Ok(read) = instance.store.get_read(&key, &ReadOptions::default()).await
                && read.version.get() < floor
            {
                let (version, origin) = (read.version, read.origin);
                return Err(format!(
                    "{key} at version {version} from {origin:?} after {floor} was acknowledged"
                ));
            }
        }
        runtime.sleep(Duration::from_micros(runtime.random() % 3000)).await;
    }
    Ok(())
}

async fn converges(instance: &Instance, database: &MemoryStore) -> Result<(), String> {
    let is_owed = async || {
        let tree = instance.store.inspect().await;
        tree.find("cache-aside").unwrap().note.contains("could not be told")
    };
    while is_owed().await {
        sleep(Duration::from_millis(100)).await;
    }
    // Silence is noticed within two seconds, a gap at the next heartbeat.
    sleep(Duration::from_secs(4)).await;
    for index in 0..KEYS {
        let key = key(format!("key{index}"));
        let truth = database.get(&key).await.unwrap();
        let read = loop {
            if let Ok(read) = instance.store.get_read(&key, &ReadOptions::default()).await {
                break read;
            }
        };
        if read.record != truth {
            let (version, origin) = (read.version, read.origin);
            return Err(format!("{key} is still at version {version} from {origin:?} in the end"));
        }
    }
    Ok(())
}

async fn run(variant: Variant, seed: u64, hits: &AtomicU64) -> Result<(), String> {
    let runtime = Runtime::seeded(seed);
    let cache = MemoryCache::new(Default::default(), runtime.clone());
    let (cache, database) = (Arc::new(cache), Arc::new(MemoryStore::new(runtime.clone())));
    let naive = Arc::new(BrokenCache::new(cache.clone(), CacheFlaw::Naive));
    let build = async || Arc::new(build(variant, &cache, &naive, &database, &runtime).await);
    let instances = [build().await, build().await];
    let clients = (0..TASKS).map(|_| client(instances.clone(), runtime.clone()));
    try_join_all(clients).await?;
    for instance in &instances {
        converges(instance, &database).await?;
        hits.fetch_add(figure(&instance.store, "hits").await, Ordering::Relaxed);
    }
    Ok(())
}

/// Runs seeds until one shows a violation.
fn first_violation(variant: Variant, seeds: std::ops::Range<u64>) -> Option<String> {
    let hits = AtomicU64::new(0);
    for seed in seeds.clone() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        if let Err(violation) = runtime.block_on(run(variant, seed, &hits)) {
            return Some(format!("seed {seed}: {violation}"));
        }
    }
    let (hits, runs) = (hits.into_inner(), seeds.end - seeds.start);
    assert!(hits > 10 * runs, "only {hits} near hits in {runs} runs show nothing");
    None
}

#[test]
fn an_acknowledged_write_is_seen_whatever_fails() {
    assert_eq!(first_violation(Variant::Sound, 0..200), None);
}

#[test]
fn every_broken_variant_is_caught() {
    for variant in [
        Variant::NaiveCache,
        Variant::InvalidatingFirst,
        Variant::Forgetting,
        Variant::WithoutNumbers,
    ] {
        let violation = first_violation(variant, 0..200);
        println!("{variant:?}: {violation:?}");
        assert!(violation.is_some(), "{variant:?} was not caught");
    }
}
