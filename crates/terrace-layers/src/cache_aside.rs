//! Answers reads from a shared cache, which writes empty after their commit.

mod far;
mod reads;
mod trust;
mod writes;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Cache, Deadline, Error, ErrorKind, Generations, Inspection, Key, Page, Read,
    ReadOptions, Receipt, Result, Runtime, Scan, Status, Store, Version, Write, WriteOptions,
};
use tokio::sync::watch;

use far::Far;
pub(crate) use reads::is_young;
use trust::Trust;
pub(crate) use writes::written;

/// How long [`CacheAside`] waits for its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheAsideOptions {
    /// How long a lookup and an invalidation may take before the cache counts as failing. Lookups
    /// share timers, so that one may get up to an eighth less. 250 ms.
    pub cache_timeout: Duration,
    /// How long a failing cache is left alone before one read tries it; up to five times as long while
    /// that fails, too. 200 ms.
    pub rest: Duration,
    /// How long the answer of a miss may wait until the cache has taken it, so that the next read
    /// of the same client is a hit. 50 ms; what takes longer is given up.
    pub fill_wait: Duration,
    /// How long a load may take, and how old its answer may be, to be offered to the cache; must be well below the lifetime of the
    /// cache's tombstones (60 s). 30 s.
    pub max_load: Duration,
    /// Whether the store below may answer from replicas: then a load that is older than the key's
    /// tombstone in the cache, or of an older generation, is done again by a
    /// [`Strong`](terrace_core::Consistency::Strong) read, so that a read after an acknowledged
    /// write is not older here either. `false`.
    pub over_replicas: bool,
}

impl Default for CacheAsideOptions {
    fn default() -> Self {
        Self {
            cache_timeout: Duration::from_millis(250),
            rest: Duration::from_millis(200),
            fill_wait: Duration::from_millis(50),
            max_load: Duration::from_secs(30),
            over_replicas: false,
        }
    }
}

/// A layer that keeps a shared [`Cache`] beside its inner store.
///
/// **What it is.** Cache-aside that cannot be filled with something old: entries are ordered by the
/// record's version, fills need a lease from before the load (see [`terrace_core::cache`]), and an
/// entry is believed only under the history and the generation that are in force (see
/// [`terrace_core::history`]).
///
/// **On read.** Asks the cache for all keys in one call. Hits answer as [`Origin::FAR`] with their
/// age, if they are as young as asked and prove what the token asks for. All others are loaded from
/// the inner store in one batch, answered, and offered to the cache; the answer waits for that, up to
/// `fill_wait`, so that what follows a miss is a hit. A [`Strong`] read goes past the cache and
/// does not fill it. Knowing that there is no record is cached, too.
///
/// **On write.** Writes to the inner store, then invalidates the applied keys at their new
/// versions, and answers when that was delivered. Where it could not be, the generation is raised
/// before the answer: nobody believes from then on what was cached before. Both run in a task of their
/// own, so a caller that goes away between commit and invalidation changes nothing. When nobody knows
/// whether a write was applied, its keys stay out of the cache until a tombstone expires, and the
/// store raises the generation once the write cannot come any more.
///
/// **On delete.** As on write; the tombstone has the version of the deletion.
///
/// **On failure.** A cache that fails or is too slow is left alone for `rest`: reads go to the
/// inner store and never fail for its sake. Put a `ConcurrencyLimit` below, or a dead cache lets
/// all of its load through. After it was out of reach, and after a second in which nobody looked, the
/// generation is looked at before the next hit is believed. A write that could neither be told to the
/// cache nor raise the generation answers [`ErrorKind::OutcomeUnknown`]; this instance reads past the
/// cache until the generation was raised.
///
/// **Defaults.** See [`CacheAsideOptions`]: 250 ms a cache call, 50 ms a fill, loads up to 30 s.
///
/// **Where it belongs.** Above whatever commits, below whatever is nearer to the client:
/// `NearCache(CacheAside(redis, Coalesce(postgres)))`. Wrong: `Coalesce(CacheAside(..))` makes hits
/// wait for misses; two of them over one cache with a `WriteBuffer` in between would invalidate
/// before the commit.
///
/// **What it gives up.** While a write is between its commit and its acknowledgement, one reader
/// may see the new record and a later one still the old. Lists (`scan`) are not cached. An instance that
/// reaches the cache while the writer cannot may answer the old record for up to a second; one that
/// reaches neither the database nor the writer, until the entry expires. While a transaction that writes
/// stays open anywhere on the database's server, no entry proves a token of a later write, and reads
/// with such tokens go to the database.
///
/// [`Origin::FAR`]: terrace_core::Origin::FAR
/// [`Strong`]: terrace_core::Consistency::Strong
///
/// ```
/// # use std::sync::Arc;
/// # use terrace_core::{Key, MemoryCache, MemoryCacheOptions, MemoryStore, Origin, ReadOptions};
/// # use terrace_core::{Runtime, StoreExt, Value};
/// # use terrace_layers::{CacheAside, CacheAsideOptions};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> terrace_core::Result<()> {
/// let runtime = Runtime::system();
/// let cache = Arc::new(MemoryCache::new(MemoryCacheOptions::default(), runtime.clone()));
/// let inner = Arc::new(MemoryStore::new(runtime.clone()));
/// let generations = inner.clone();
/// let store = CacheAside::new(inner, cache, generations, CacheAsideOptions::default(), runtime);
/// assert_eq!(store.to_string(), "CacheAside(memory, memory)");
///
/// let key = Key::new("a")?;
/// store.put(key.clone(), Value::new("1")?).await?;
/// let origins = [
///     store.get_read(&key, &ReadOptions::default()).await?.origin,
///     store.get_read(&key, &ReadOptions::default()).await?.origin,
/// ];
/// assert_eq!(origins, [Origin::PRIMARY, Origin::FAR]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct CacheAside {
    shared: Arc<Shared>,
}

/// What reads and detached writes share.
#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Store>,
    generations: Arc<dyn Generations>,
    far: Far,
    trust: Trust,
    options: CacheAsideOptions,
    runtime: Runtime,
    hits: AtomicU64,
    misses: AtomicU64,
    bypassed: AtomicU64,
    /// Writes that have begun and not ended; `close` waits for them.
    writing: watch::Sender<usize>,
    closed: AtomicBool,
}

impl CacheAside {
    /// Keeps `cache` beside `inner`; `generations` are those of the databases of `inner`.
    pub fn new(
        inner: Arc<dyn Store>,
        cache: Arc<dyn Cache>,
        generations: Arc<dyn Generations>,
        options: CacheAsideOptions,
        runtime: Runtime,
    ) -> Self {
        let shared = Shared {
            inner,
            generations,
            far: Far::new(cache, options.cache_timeout, options.rest, runtime.clone()),
            trust: Trust::default(),
            options,
            runtime,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            bypassed: AtomicU64::new(0),
            writing: watch::Sender::new(0),
            closed: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Does what writes these keys in another way than by [`Store::write`], and tells the cache: an
    /// append to what is read here, or changes of another database that are applied. `versions` are
    /// the keys' versions by the answer. Everything else is as on a write.
    ///
    /// # Errors
    /// Of `work`, and as of a write.
    pub async fn tell_of<T: Send + 'static>(
        &self,
        keys: Vec<Key>,
        work: BoxFuture<'static, Result<T>>,
        versions: fn(&T) -> Vec<(Key, Version)>,
    ) -> Result<T> {
        let written = move |keys: &[Key], result: &Result<T>| match result {
            Ok(answer) => versions(answer),
            Err(error) => writes::doubtful(keys, error),
        };
        writes::run(&self.shared, keys, work, Box::new(written)).await
    }

    /// Forgets everything that is cached, for every instance that shares the cache.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the cache cannot be reached; nothing was forgotten.
    pub async fn clear(&self) -> Result<()> {
        self.shared.far.clear().await
    }
}

impl Shared {
    fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "the store is closed"));
        }
        Ok(())
    }

    async fn inspect(&self) -> Inspection {
        let (inner, cache) = tokio::join!(self.inner.inspect(), self.far.inspect());
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let tree = Inspection::new("cache-aside")
            .fact("cache_timeout", self.options.cache_timeout)
            .counter("hits", count(&self.hits))
            .counter("misses", count(&self.misses))
            .counter("bypassed", count(&self.bypassed))
            .counter("raises", count(&self.trust.raises));
        let tree = self.far.breaker().show(tree);
        let tree = if self.trust.is_owed() {
            let note = "a write could not be told to the cache, which is bypassed until the database \
                        has said so to all instances";
            tree.status(Status::Degraded, note)
        } else if self.far.is_resting() {
            let note = "the cache does not answer; reads go to the store below until it does";
            tree.status(Status::Degraded, note)
        } else {
            tree
        };
        tree.needs(inner).helped_by(cache)
    }

    async fn close(self: &Arc<Self>) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let deadline = Deadline::at(self.runtime.now() + self.options.max_load);
        let mut writing = self.writing.subscribe();
        let _ = self.runtime.within(deadline, writing.wait_for(|writing| *writing == 0)).await;
        let told = self.settle_debt().await;
        let cache = self.far.close().await;
        self.inner.close().await?;
        told.and(cache)
    }
}

impl fmt::Display for CacheAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheAside({}, {})", self.shared.far, self.shared.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for CacheAside {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.shared.read(keys, how))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(writes::write(&self.shared, batch, how))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.shared.scan(scan, how))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(self.shared.inspect())
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.shared.close())
    }
}
