//! Records cached in memory: the far cache when embedded, and what a near cache keeps them in.

mod notices;
mod slot;
mod stripes;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::BoxStream;
use quick_cache::sync::Cache as Slots;
use quick_cache::{DefaultHashBuilder, OptionsBuilder};

use crate::{
    BoxFuture, Budget, Cache, Inspection, Invalidations, Key, Lease, Lookup, Notice, Offer,
    PartKind, Result, Runtime, Unit, Version,
};
use notices::Notices;
use slot::{Content, Evicted, Guard, OnEvict, Slot, Weigh};
use stripes::Stripes;

/// Limits and lifetimes of a [`MemoryCache`].
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryCacheOptions {
    /// The most memory that entries may take: keys, values and what it costs to keep them.
    /// 64 MiB; less than 64 KiB counts as 64 KiB. A value of more than about a tenth of it may be
    /// refused.
    pub max_bytes: u64,
    /// The most entries, when their number has to be limited as well. None.
    pub max_entries: Option<u64>,
    /// How long a record is kept. 300 s.
    pub ttl: Duration,
    /// How long the knowledge that there is no record is kept. 30 s.
    pub missing_ttl: Duration,
    /// How long a write keeps older fills out; longer than the slowest load. 60 s.
    pub tombstone_ttl: Duration,
    /// By which share lifetimes differ from each other, so that what was filled together does not
    /// expire together. 0.1, which is ± 10 %.
    pub jitter: f64,
}

impl Default for MemoryCacheOptions {
    fn default() -> Self {
        Self {
            max_bytes: 64 * 1024 * 1024,
            max_entries: None,
            ttl: Duration::from_secs(300),
            missing_ttl: Duration::from_secs(30),
            tombstone_ttl: Duration::from_secs(60),
            jitter: 0.1,
        }
    }
}

/// A [`Cache`] in memory, bounded by bytes, evicted by S3-FIFO (Yang et al., "FIFO queues are all
/// you need for cache eviction", SOSP 2023; here as in the crate `quick_cache`).
///
/// **Rules.** A key belongs to one of 4096 stripes. A lease is the number of its stripe's latest
/// invalidation and the number of the latest [`forget_all`](Self::forget_all). The stripe's lock
/// makes "check the lease, then insert" one step and "count up, then leave a tombstone" another;
/// lookups take no such lock. A tombstone that is evicted before its time lives on as a floor of
/// its whole stripe, so a full cache refuses a few fills but stores nothing old.
///
/// The methods of its own are synchronous; those of [`Cache`] are ready at once. It also carries
/// the [`Invalidations`] between the stacks of one process that share it.
///
/// ```
/// # use terrace_core::{Key, Lookup, MemoryCache, MemoryCacheOptions, Runtime};
/// let cache = MemoryCache::new(MemoryCacheOptions::default(), Runtime::system());
/// assert!(matches!(cache.lookup(&Key::new("a")?), Lookup::Miss(_)));
/// # Ok::<(), terrace_core::Error>(())
/// ```
pub struct MemoryCache {
    slots: Slots<Key, Slot, Weigh, DefaultHashBuilder, OnEvict>,
    stripes: Arc<Stripes>,
    notices: Arc<Notices>,
    counts: Counts,
    options: MemoryCacheOptions,
    runtime: Runtime,
    started: Instant,
    #[cfg(feature = "mutants")]
    ignores_leases: bool,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    fills: AtomicU64,
    refused: AtomicU64,
    invalidations: AtomicU64,
}

impl MemoryCache {
    const LEAST_BYTES: u64 = 64 * 1024;

    /// An empty cache on this runtime's clock.
    pub fn new(options: MemoryCacheOptions, runtime: Runtime) -> Self {
        let max_bytes = options.max_bytes.max(Self::LEAST_BYTES);
        let options = MemoryCacheOptions { max_bytes, ..options };
        let started = runtime.now();
        let stripes = Arc::new(Stripes::new(runtime.clone(), started));
        let weigh = Weigh::new(options.max_bytes, options.max_entries);
        let expected = (options.max_bytes / Weigh::TYPICAL)
            .min(options.max_entries.unwrap_or(u64::MAX))
            .max(1);
        let built = OptionsBuilder::new()
            .estimated_items_capacity(usize::try_from(expected).unwrap_or(usize::MAX))
            .weight_capacity(options.max_bytes)
            .build();
        #[expect(clippy::expect_used, reason = "both options that `build` asks for are set above")]
        let slots = Slots::with_options(
            built.expect("capacities are set"),
            weigh,
            DefaultHashBuilder::default(),
            OnEvict::new(Arc::clone(&stripes)),
        );
        Self {
            slots,
            stripes,
            notices: Arc::new(Notices::new(runtime.clone())),
            counts: Counts::default(),
            options,
            runtime,
            started,
            #[cfg(feature = "mutants")]
            ignores_leases: false,
        }
    }

    /// A broken variant for tests that prove that they would notice: orders fills by version, but
    /// takes them under any lease.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn without_leases(mut self) -> Self {
        self.ignores_leases = true;
        self
    }

    /// The limits and lifetimes.
    pub fn options(&self) -> &MemoryCacheOptions {
        &self.options
    }

    /// Looks one key up. See [`Cache::get`].
    pub fn lookup(&self, key: &Key) -> Lookup {
        self.lookup_at(key, self.runtime.now())
    }

    /// As [`MemoryCache::lookup`], for callers that have just read the clock.
    pub fn lookup_at(&self, key: &Key, now: Instant) -> Lookup {
        let at = self.nanos(now);
        let slot = self.slots.get(key);
        let version = slot.as_ref().map_or(Version::NONE, |slot| slot.guard.floor_at(at));
        match slot.and_then(|slot| slot.content) {
            Some(content) if content.is_live(at, self.stripes.epoch()) => {
                self.counts.hits.fetch_add(1, Ordering::Relaxed);
                return Lookup::Hit(content.into_entry(at));
            }
            _ => {}
        }
        self.counts.misses.fetch_add(1, Ordering::Relaxed);
        let lease = self.stripes.lease(key);
        // Looked at after the slot: a tombstone that was evicted in between is in one of them.
        match version.max(self.stripes.floor(key, at)) {
            Version::NONE => Lookup::Miss(lease),
            version => Lookup::Written { lease, version },
        }
    }

    /// The lease that a miss of this key would answer now.
    pub fn lease_now(&self, key: &Key) -> Lease {
        self.stripes.lease(key)
    }

    /// Takes an offer or refuses it; answers whether it was taken. See [`Cache::fill`].
    pub fn offer(&self, offer: Offer) -> bool {
        let taken = self.try_offer(offer);
        let count = if taken { &self.counts.fills } else { &self.counts.refused };
        count.fetch_add(1, Ordering::Relaxed);
        taken
    }

    /// Leaves tombstones for keys that have been written, and tells nobody. See
    /// [`Cache::invalidate`].
    pub fn written(&self, written: &[(Key, Version)]) {
        for (key, version) in written {
            self.leave_tombstone(key, *version);
        }
        self.counts.invalidations.fetch_add(written.len() as u64, Ordering::Relaxed);
    }

    /// Forgets all entries and voids all leases, and tells nobody; tombstones stay.
    pub fn forget_all(&self) {
        // From here on every entry is a miss, and what was loaded before is refused or never hit.
        self.stripes.next_epoch();
        let now = self.now();
        self.slots.retain(|_, slot| slot.guard.holds_at(now));
        let epoch = self.stripes.epoch();
        for (key, _) in self.slots.iter() {
            let _stripe = self.stripes.lock(&key);
            let Some(slot) = self.slots.peek(&key) else { continue };
            if slot.content.is_some_and(|content| content.epoch != epoch) {
                self.insert(key.clone(), Slot { content: None, guard: slot.guard });
            }
        }
    }

    fn try_offer(&self, offer: Offer) -> bool {
        #[cfg(feature = "mutants")]
        let offer = match self.ignores_leases {
            true => Offer { lease: self.stripes.lease(&offer.key), ..offer },
            false => offer,
        };
        let Offer { key, lease, entry } = offer;
        let lifetime =
            if entry.record.is_some() { self.options.ttl } else { self.options.missing_ttl };
        let lifetime = self.runtime.jitter(lifetime, self.options.jitter);
        let now = self.now();
        let version = entry.version;
        let epoch = Stripes::epoch_of(lease);
        // The map and the record share one copy of the key.
        let key = entry.record.as_ref().map_or(key, |record| record.key.clone());
        let content = Content::new(entry, now, now.saturating_add(nanos(lifetime)), epoch);
        if content.bytes > self.slots.shard_capacity() / 2 {
            return false;
        }
        let _stripe = self.stripes.lock(&key);
        if self.stripes.lease(&key) != lease {
            return false;
        }
        let slot = self.slots.peek(&key);
        let guard = slot.as_ref().map_or(Guard::NONE, |slot| slot.guard);
        let present = slot.and_then(|slot| slot.content).filter(|it| it.is_live(now, epoch));
        // The floor is read after the slot: what was evicted in between is in one of them.
        let floor = guard.floor_at(now).max(self.stripes.floor(&key, now));
        let newest = present.map_or(floor, |content| content.version.max(floor));
        if version < newest {
            return false;
        }
        self.insert(key, Slot { content: Some(content), guard });
        true
    }

    fn leave_tombstone(&self, key: &Key, version: Version) {
        let _stripe = self.stripes.lock(key);
        let now = self.now();
        let (content, guard) =
            self.slots.peek(key).map_or((None, Guard::NONE), |slot| (slot.content, slot.guard));
        let known = guard.floor_at(now);
        // What is known already (an echo of this process's own write) voids no lease: the load
        // that runs is of this version or is refused by it.
        if known < version || known == Version::UNKNOWN {
            self.stripes.void_leases(key);
        }
        let until = now.saturating_add(nanos(self.options.tombstone_ttl));
        let guard = guard.after(version, now, until);
        // An entry as new as the write stays; the guard beside it still keeps older fills out when
        // the entry has expired.
        let content =
            content.filter(|it| it.version >= version && it.is_live(now, self.stripes.epoch()));
        self.insert(key.clone(), Slot { content, guard });
    }

    /// The caller holds the lock of the key's stripe.
    fn insert(&self, key: Key, slot: Slot) {
        let mut evicted = Evicted::by(key.clone());
        self.slots.insert_with_lifecycle(key, slot, &mut evicted);
    }

    fn now(&self) -> u64 {
        self.nanos(self.runtime.now())
    }

    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.started))
    }
}

/// Nanoseconds; 584 years at most.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for MemoryCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCache")
            .field("options", &self.options)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for MemoryCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

#[deny(clippy::missing_trait_methods)]
impl Cache for MemoryCache {
    fn get<'a>(
        &'a self,
        keys: &'a [Key],
        mut budget: Budget,
    ) -> BoxFuture<'a, Result<Vec<Lookup>>> {
        Box::pin(async move {
            let now = self.runtime.now();
            let lookup = |key| match self.lookup_at(key, now) {
                Lookup::Hit(entry) if budget.spend(entry.value_bytes()).is_err() => {
                    Lookup::Written { lease: self.lease_now(key), version: entry.version }
                }
                lookup => lookup,
            };
            Ok(keys.iter().map(lookup).collect())
        })
    }

    fn lease(&self, key: &Key) -> Option<Lease> {
        Some(self.lease_now(key))
    }

    fn fill(&self, offers: Vec<Offer>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            for offer in offers {
                self.offer(offer);
            }
            Ok(())
        })
    }

    fn invalidate<'a>(&'a self, written: &'a [(Key, Version)]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.written(written);
            // Told only now: whoever hears of it and asks again must not find the old entry.
            self.notices.written(written);
            Ok(())
        })
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.forget_all();
            self.notices.cleared();
            Ok(())
        })
    }

    fn interruptions(&self) -> u64 {
        0
    }

    fn whole_for(&self) -> Duration {
        self.runtime.now().saturating_duration_since(self.started)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let (now, epoch) = (self.now(), self.stripes.epoch());
            let (keys, bytes) = (Cell::new(0), Cell::new(0));
            // Whoever counts them may as well drop what has expired.
            self.slots.retain(|key, slot| {
                let is_entry = slot.content.as_ref().is_some_and(|it| it.is_live(now, epoch));
                let is_kept = is_entry || slot.guard.holds_at(now);
                keys.set(keys.get() + u64::from(is_entry));
                bytes.set(bytes.get() + if is_kept { Weigh::bytes(key, slot) } else { 0 });
                is_kept
            });
            let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
            Inspection::of(PartKind::Cache, "memory-cache")
                .fact("ttl", self.options.ttl)
                .fact("missing_ttl", self.options.missing_ttl)
                .counter("hits", count(&self.counts.hits))
                .counter("misses", count(&self.counts.misses))
                .counter("fills", count(&self.counts.fills))
                .counter("refused", count(&self.counts.refused))
                .counter("invalidations", count(&self.counts.invalidations))
                .counter("evictions", self.stripes.evictions())
                .gauge("keys", keys.get(), Unit::Count)
                .gauge("bytes", bytes.get(), Unit::Bytes)
                .gauge("max_bytes", self.options.max_bytes, Unit::Bytes)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        // Nothing runs in the background, and other stacks may go on with it.
        Box::pin(async { Ok(()) })
    }
}

impl Invalidations for MemoryCache {
    fn subscribe(&self) -> BoxStream<'static, Notice> {
        Arc::clone(&self.notices).subscribe()
    }
}
