//! Leases: who may still fill what.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use quick_cache::DefaultHashBuilder;

use super::nanos;
use super::slot::Guard;
use crate::{Key, Lease, Runtime, Version};

/// The locks and counts that decide on fills. A stripe stands for about 1/4096 of the keys: keys
/// that share one void each other's leases, which costs a refused fill and nothing else.
#[derive(Debug)]
pub(super) struct Stripes {
    hasher: DefaultHashBuilder,
    stripes: Box<[Stripe]>,
    /// Counts how often everything was forgotten.
    epoch: AtomicU32,
    evictions: AtomicU64,
    runtime: Runtime,
    started: Instant,
}

#[derive(Debug)]
struct Stripe {
    /// Counts invalidations; changed only under the lock.
    generation: AtomicU32,
    lock: Mutex<()>,
    /// What remains of tombstones that were evicted before their time. A lock of its own, because
    /// evictions happen while another stripe is locked; nothing is locked after it.
    floor: Mutex<Guard>,
}

impl Stripes {
    const COUNT: usize = 4096;

    pub(super) fn new(runtime: Runtime, started: Instant) -> Self {
        let stripe = |_| Stripe {
            generation: AtomicU32::new(0),
            lock: Mutex::new(()),
            floor: Mutex::new(Guard::NONE),
        };
        Self {
            hasher: DefaultHashBuilder::default(),
            stripes: (0..Self::COUNT).map(stripe).collect(),
            epoch: AtomicU32::new(0),
            evictions: AtomicU64::new(0),
            runtime,
            started,
        }
    }

    fn stripe(&self, key: &Key) -> &Stripe {
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits are used")]
        let hash = self.hasher.hash_one(key) as usize;
        &self.stripes[hash % Self::COUNT]
    }

    /// Makes what follows one step for this key. The guarded data is whole at all times, so a panic
    /// under the lock means nothing.
    pub(super) fn lock(&self, key: &Key) -> MutexGuard<'_, ()> {
        self.stripe(key).lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease of a miss now. Wraps around after 2^32 invalidations of one stripe, which no load
    /// lasts long enough to see.
    pub(super) fn lease(&self, key: &Key) -> Lease {
        let generation = self.stripe(key).generation.load(Ordering::Acquire);
        Lease(u64::from(self.epoch()) << 32 | u64::from(generation))
    }

    /// The caller holds the lock of the key's stripe.
    pub(super) fn void_leases(&self, key: &Key) {
        self.stripe(key).generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn epoch_of(lease: Lease) -> u32 {
        (lease.0 >> 32) as u32
    }

    pub(super) fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// What a fill must reach at least, on account of evicted tombstones.
    pub(super) fn floor(&self, key: &Key, now: u64) -> Version {
        self.floor_lock(key).floor_at(now)
    }

    /// Counts an eviction and keeps what its tombstone still has to do.
    pub(super) fn evicted(&self, key: &Key, guard: Guard) {
        self.evictions.fetch_add(1, Ordering::Relaxed);
        // Most entries have no guard, and then the clock need not be read.
        if !guard.holds_at(0) {
            return;
        }
        let now = nanos(self.runtime.now().saturating_duration_since(self.started));
        if guard.holds_at(now) {
            let mut floor = self.floor_lock(key);
            *floor = floor.and(guard, now);
        }
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    fn floor_lock(&self, key: &Key) -> MutexGuard<'_, Guard> {
        self.stripe(key).floor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
