//! Answers reads from this process's memory, which a feed of invalidations keeps true.

mod feed;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{
    BoxFuture, Consistency, Entry, Generations, Inspection, Invalidations, Key, Lease, Lookup,
    MemoryCache, MemoryCacheOptions, Offer, Origin, Page, Read, ReadOptions, Receipt, Result,
    Runtime, Scan, Status, Store, Task, Unit, Version, Write, WriteOptions,
};
use tokio::sync::watch;

use crate::cache_aside::{is_young, written};
use feed::Feed;

/// How much [`NearCache`] keeps, for how long, and how long it believes a silent feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearCacheOptions {
    /// The most memory that entries may take, overhead included. 64 MiB.
    pub max_bytes: u64,
    /// The most entries, when their number has to be limited as well. None.
    pub max_entries: Option<u64>,
    /// How long a record is kept, ± 10 %. 30 s.
    pub ttl: Duration,
    /// How long the knowledge that there is no record is kept, ± 10 %. 5 s.
    pub missing_ttl: Duration,
    /// How long the feed may be silent before nothing is answered from memory: the longest time for
    /// which a lost message can go unnoticed. Must be longer than the feed's heartbeat. 2 s.
    pub heartbeat_bound: Duration,
}

impl Default for NearCacheOptions {
    fn default() -> Self {
        Self {
            max_bytes: 64 * 1024 * 1024,
            max_entries: None,
            ttl: Duration::from_secs(30),
            missing_ttl: Duration::from_secs(5),
            heartbeat_bound: Duration::from_secs(2),
        }
    }
}

/// A layer that keeps records in this process's memory.
///
/// **What it is.** A cache of its own an instance, bounded by bytes, emptied by the numbered
/// [`Invalidations`] that all instances send each other through their far cache.
///
/// **On read.** Hits answer as [`Origin::NEAR`] at the first poll, if they are as new as the token
/// and the staleness asked for; their age is counted from the database, not from here. All others
/// go to the inner store in one batch, under leases that were taken before: what was invalidated
/// during the load is not kept. A [`Strong`] read passes through.
///
/// **On write.** Passes through; when the answer comes, its keys are emptied here before it is
/// passed on. When the outcome is unknown, or the caller goes away in between, they are kept out of
/// memory for 60 s. Other instances empty theirs when the feed tells them.
///
/// **On delete.** As on write.
///
/// **On failure.** A gap in the feed's numbers empties the memory. While the feed is disconnected,
/// or silent for longer than `heartbeat_bound`, reads pass through and fill nothing; the memory
/// begins anew with the next message.
///
/// **Defaults.** See [`NearCacheOptions`]: 64 MiB, 30 s, 5 s for missing keys, 2 s of silence.
///
/// **Where it belongs.** At the top, above the `CacheAside` over the cache that carries the feed:
/// `NearCache(CacheAside(redis, Coalesce(postgres)))`. Wrong: `CacheAside(redis, NearCache(..))`
/// fills the shared cache from one instance's memory.
///
/// **What it gives up.** A write through another instance is seen here when the feed delivers it:
/// milliseconds later, `heartbeat_bound` at the worst. A client that moves between instances sends
/// its token, or asks for a strong read.
///
/// [`Strong`]: Consistency::Strong
///
/// ```
/// # use std::sync::Arc;
/// # use terrace_core::{MemoryCache, MemoryCacheOptions, MemoryStore, Runtime};
/// # use terrace_layers::{CacheAside, CacheAsideOptions, NearCache, NearCacheOptions};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let runtime = Runtime::system();
/// let cache = Arc::new(MemoryCache::new(MemoryCacheOptions::default(), runtime.clone()));
/// let inner = Arc::new(MemoryStore::new(runtime.clone()));
/// let options = CacheAsideOptions::default();
/// let far = CacheAside::new(inner.clone(), cache.clone(), inner.clone(), options, runtime.clone());
/// let store = NearCache::new(Arc::new(far), cache, inner, NearCacheOptions::default(), runtime);
/// assert_eq!(store.to_string(), "NearCache(CacheAside(memory, memory))");
/// # }
/// ```
#[derive(Debug)]
pub struct NearCache {
    inner: Arc<dyn Store>,
    near: Arc<Near>,
    runtime: Runtime,
    /// What listens to other instances and to the databases.
    tasks: Mutex<Vec<Task>>,
}

/// What reads and the feed share; holds nothing that holds the layer.
#[derive(Debug)]
struct Near {
    memory: MemoryCache,
    generations: Arc<dyn Generations>,
    started: Instant,
    /// Nanoseconds from `started` up to which the memory may answer; 0 for not at all.
    trusted_until: AtomicU64,
    /// Why it may not.
    trouble: Mutex<&'static str>,
    /// Hits of the memory that were not as new as asked.
    too_old: AtomicU64,
    bypassed: AtomicU64,
    flushes: AtomicU64,
    gaps: AtomicU64,
}

impl NearCache {
    /// A load that took longer fills nothing: the tombstone that would have refused it may be gone.
    const MAX_LOAD: Duration = Duration::from_secs(30);

    /// Keeps what `inner` answers, as long as `feed` and the `generations` of the databases of `inner`
    /// say nothing else. Begins to keep when the feed is connected.
    pub fn new(
        inner: Arc<dyn Store>,
        feed: Arc<dyn Invalidations>,
        generations: Arc<dyn Generations>,
        options: NearCacheOptions,
        runtime: Runtime,
    ) -> Self {
        let memory = Self::memory(&options, &runtime);
        Self::over(memory, inner, (feed, generations), &options, runtime)
    }

    /// A broken variant for tests that prove that they would notice: fills without a lease.
    #[cfg(feature = "mutants")]
    pub fn without_leases(
        inner: Arc<dyn Store>,
        feed: Arc<dyn Invalidations>,
        generations: Arc<dyn Generations>,
        options: NearCacheOptions,
        runtime: Runtime,
    ) -> Self {
        let memory = Self::memory(&options, &runtime).without_leases();
        Self::over(memory, inner, (feed, generations), &options, runtime)
    }

    fn memory(options: &NearCacheOptions, runtime: &Runtime) -> MemoryCache {
        let options = MemoryCacheOptions {
            max_bytes: options.max_bytes,
            max_entries: options.max_entries,
            ttl: options.ttl,
            missing_ttl: options.missing_ttl,
            ..MemoryCacheOptions::default()
        };
        MemoryCache::new(options, runtime.clone())
    }

    fn over(
        memory: MemoryCache,
        inner: Arc<dyn Store>,
        (feed, generations): (Arc<dyn Invalidations>, Arc<dyn Generations>),
        options: &NearCacheOptions,
        runtime: Runtime,
    ) -> Self {
        let near = Arc::new(Near {
            memory,
            generations,
            started: runtime.now(),
            trusted_until: AtomicU64::new(0),
            trouble: Mutex::new("the feed of invalidations is not connected yet"),
            too_old: AtomicU64::new(0),
            bypassed: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
        });
        let (listens, forgets) = (Arc::clone(&near), Arc::clone(&near));
        let changes = near.generations.changes();
        let (clock, bound) = (runtime.clone(), options.heartbeat_bound);
        let tasks = vec![
            runtime.keep("near-cache feed", move || {
                // Of what was missed since the last subscription nothing tells.
                listens.distrust("the feed of invalidations is not connected yet");
                Feed::new(Arc::clone(&listens), clock.clone(), bound).listen(feed.subscribe())
            }),
            // Started again, it hears of all that was raised since the first start.
            runtime.keep("near-cache generations", move || {
                forget_generations(Arc::clone(&forgets), changes.clone())
            }),
        ];
        Self { inner, near, runtime, tasks: Mutex::new(tasks) }
    }

    /// Forgets everything that this instance has in memory.
    pub fn clear(&self) {
        self.near.memory.forget_all();
    }

    async fn answer(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>> {
        let now = self.runtime.now();
        how.deadline.check(now)?;
        if how.consistency == Consistency::Strong {
            return self.inner.read(keys, how).await;
        }
        if !self.near.is_trusted(now) {
            self.near.bypassed.fetch_add(keys.len() as u64, Ordering::Relaxed);
            return self.inner.read(keys, how).await;
        }
        let mut hits = Vec::with_capacity(keys.len());
        for key in keys {
            match self.near.lookup(key, how, now) {
                Ok(read) => hits.push(read),
                // Boxed, so that the future of a hit stays small.
                Err(lease) => return Box::pin(self.load(keys, how, hits, lease, now)).await,
            }
        }
        how.after(&hits)?;
        Ok(hits)
    }

    /// Goes on from the first miss.
    async fn load(
        &self,
        keys: &[Key],
        how: &ReadOptions,
        hits: Vec<Read>,
        lease: Lease,
        begun: Instant,
    ) -> Result<Vec<Read>> {
        let rest = &keys[hits.len() + 1..];
        let mut found: Vec<_> = hits.into_iter().map(Ok).collect();
        found.push(Err(lease));
        found.extend(rest.iter().map(|key| self.near.lookup(key, how, begun)));
        let missing: Vec<Key> = keys
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_err())
            .map(|(key, _)| key.clone())
            .collect();
        let rest = how.after(found.iter().flatten())?;
        let loaded = self.inner.read(&missing, &rest).await?;
        let in_time = self.runtime.now() - begun <= Self::MAX_LOAD;
        let mut loaded = missing.into_iter().zip(loaded);
        let mut answers = Vec::with_capacity(keys.len());
        for found in found {
            let read = match found {
                Ok(read) => read,
                Err(lease) => {
                    // Fewer answers than asked break the contract; the caller notices.
                    let Some((key, read)) = loaded.next() else { break };
                    if in_time {
                        self.near.keep(key, lease, &read);
                    }
                    read
                }
            };
            answers.push(read);
        }
        Ok(answers)
    }

    async fn pass_on(&self, batch: Vec<Write>, how: &WriteOptions) -> Result<Vec<Receipt>> {
        let keys = batch.iter().map(|write| write.key.clone()).collect();
        let mut doubt = Doubt { near: &self.near, keys };
        let result = self.inner.write(batch, how).await;
        self.near.memory.written(&written(&doubt.keys, &result));
        doubt.keys.clear();
        result
    }
}

/// Forgets everything with each new generation or history: entries and leases from before count for
/// nothing. So a hit needs no look at them.
async fn forget_generations(near: Arc<Near>, mut changes: watch::Receiver<u64>) -> Result<()> {
    while changes.changed().await.is_ok() {
        near.flush();
    }
    Ok(())
}

/// A write that has begun; its keys are in doubt when it is dropped before its end.
struct Doubt<'a> {
    near: &'a Near,
    keys: Vec<Key>,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        let keys = self.keys.drain(..).map(|key| (key, Version::UNKNOWN));
        self.near.memory.written(&keys.collect::<Vec<_>>());
    }
}

impl Near {
    fn lookup(&self, key: &Key, how: &ReadOptions, now: Instant) -> Result<Read, Lease> {
        match self.memory.lookup_at(key, now) {
            Lookup::Hit(entry) if self.satisfies(&entry, how) => {
                let Entry { record, version, proof, age } = entry;
                let token = proof.token();
                let proof = Some(proof);
                Ok(Read { record, version, origin: Origin::NEAR, age, token, proof })
            }
            Lookup::Hit(_) => {
                self.too_old.fetch_add(1, Ordering::Relaxed);
                Err(self.memory.lease_now(key))
            }
            Lookup::Miss(lease) | Lookup::Written { lease, .. } => Err(lease),
        }
    }

    /// Whether an entry is as young as asked, and proves what the token asks for. Entries of an earlier
    /// generation are gone: see [`forget_generations`].
    fn satisfies(&self, entry: &Entry, how: &ReadOptions) -> bool {
        let asked = how.token.as_ref();
        is_young(entry.age, how)
            && (asked.is_none() || self.generations.admits(&entry.proof, asked))
    }

    fn keep(&self, key: Key, lease: Lease, read: &Read) {
        let Some(proof) = read.proof.clone() else { return };
        // As from a replica that has not come to the latest raise: nothing would make it forgotten.
        if !self.generations.admits(&proof, None) {
            return;
        }
        let entry =
            Entry { record: read.record.clone(), version: read.version, proof, age: read.age };
        self.memory.offer(Offer { key, lease, entry });
    }

    fn is_trusted(&self, now: Instant) -> bool {
        self.nanos(now) < self.trusted_until.load(Ordering::Acquire)
    }

    fn nanos(&self, now: Instant) -> u64 {
        let time = now.saturating_duration_since(self.started);
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }

    fn trouble(&self) -> &'static str {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn inspect(&self, now: Instant, inner: Inspection) -> Inspection {
        let memory = terrace_core::Cache::inspect(&self.memory).await;
        let figure = |name| memory.number(name).unwrap_or_default();
        let too_old = self.too_old.load(Ordering::Relaxed);
        let tree = Inspection::new("near-cache")
            .fact("ttl", self.memory.options().ttl)
            .counter("hits", figure("hits").saturating_sub(too_old))
            .counter("misses", figure("misses") + too_old)
            .counter("bypassed", self.bypassed.load(Ordering::Relaxed))
            .counter("evictions", figure("evictions"))
            .counter("flushes", self.flushes.load(Ordering::Relaxed))
            .counter("gaps", self.gaps.load(Ordering::Relaxed))
            .gauge("keys", figure("keys"), Unit::Count)
            .gauge("bytes", figure("bytes"), Unit::Bytes)
            .gauge("max_bytes", figure("max_bytes"), Unit::Bytes);
        let tree = match self.memory.options().max_entries {
            Some(most) => tree.gauge("max_keys", most, Unit::Count),
            None => tree,
        };
        let tree = match self.is_trusted(now) {
            true => tree,
            false => {
                let note = format!("{}; reads pass through until it is heard", self.trouble());
                tree.status(Status::Degraded, note)
            }
        };
        tree.needs(inner)
    }
}

impl fmt::Display for NearCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NearCache({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for NearCache {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.answer(keys, how))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.pass_on(batch, how))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.inner.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async {
            let inner = self.inner.inspect().await;
            self.near.inspect(self.runtime.now(), inner).await
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let tasks =
                std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            for task in tasks {
                task.stop().await;
            }
            // From here on the inner store answers, that it is closed.
            self.near.distrust("the store is closed");
            self.inner.close().await
        })
    }
}
