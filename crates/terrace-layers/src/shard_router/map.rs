//! The map: which shard has which slot, as of one look at all shards.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use terrace_core::{Durations, Generations, Key, Runtime, SLOTS, ShardState, Slot, Store};

use super::Partitioner;

/// Nobody has the slot: it is on its way, or its shard has not been reached yet.
const NOBODY: u16 = u16::MAX;

/// A shard under one epoch of its own.
#[derive(Debug)]
pub(super) struct View {
    pub(super) number: u16,
    pub(super) epoch: u64,
    /// Its records under this epoch.
    pub(super) store: Arc<dyn Store>,
    pub(super) generations: Arc<dyn Generations>,
    pub(super) tally: Arc<Tally>,
}

/// What went to a shard, over all of its epochs.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    /// How long its calls took, also those that failed.
    pub(super) times: Durations,
    runtime: Runtime,
}

impl Tally {
    pub(super) fn new(runtime: Runtime) -> Self {
        let (reads, writes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { reads, writes, times: Durations::default(), runtime }
    }

    /// Times a call.
    pub(super) async fn time<T>(&self, call: impl Future<Output = T>) -> T {
        let begun = self.runtime.now();
        let answer = call.await;
        self.times.record(self.runtime.now().saturating_duration_since(begun));
        answer
    }
}

/// All shards, and the owner of each slot.
pub(super) struct ShardMap {
    partitioner: Arc<dyn Partitioner>,
    owners: Box<[u16]>,
    /// Who had the slots last that nobody has now.
    last: Box<[u16]>,
    views: BTreeMap<u16, View>,
    /// Whether every member was reached at least once, so that a slot without an owner is on its way.
    pub(super) whole: bool,
    /// Since when there has been a slot that nobody has.
    incomplete_since: Option<Instant>,
    /// Grows with every map of this instance.
    pub(super) generation: u64,
}

impl ShardMap {
    /// Where two claim a slot, one of them was looked at before it gave it up: the lower epoch.
    pub(super) fn new(
        partitioner: Arc<dyn Partitioner>,
        states: &[ShardState],
        views: BTreeMap<u16, View>,
        whole: bool,
        generation: u64,
    ) -> Self {
        let mut states = states.iter().collect::<Vec<_>>();
        states.sort_by_key(|state| state.epoch);
        let mut owners = vec![NOBODY; usize::from(SLOTS)].into_boxed_slice();
        for state in states {
            state.owned.iter().for_each(|slot| owners[slot.index()] = state.number);
        }
        let last = owners.clone();
        let incomplete_since = None;
        Self { partitioner, owners, last, views, whole, incomplete_since, generation }
    }

    /// The same, and it remembers who had what is on its way.
    pub(super) fn after(mut self, before: Option<&Self>, now: Instant) -> Self {
        if !self.is_complete() {
            let since = before.and_then(|map| map.incomplete_since);
            self.incomplete_since = since.or(Some(now));
        }
        for (last, known) in self.last.iter_mut().zip(before.iter().flat_map(|map| &map.last)) {
            if *last == NOBODY {
                *last = *known;
            }
        }
        self
    }

    /// The number of the shard that has a key, or had it before it went on its way.
    pub(super) fn home(&self, key: &Key) -> Option<u16> {
        Some(self.last[self.slot(key).index()]).filter(|owner| *owner != NOBODY)
    }

    /// The slot of a key.
    pub(super) fn slot(&self, key: &Key) -> Slot {
        self.partitioner.slot(key)
    }

    /// The number of the shard that has a key, if one has.
    pub(super) fn owner(&self, key: &Key) -> Option<u16> {
        self.owner_of(self.slot(key))
    }

    /// The number of the shard that has a slot, if one has.
    fn owner_of(&self, slot: Slot) -> Option<u16> {
        Some(self.owners[slot.index()]).filter(|owner| *owner != NOBODY)
    }

    /// The shard that has a slot, if one has.
    pub(super) fn view_at(&self, slot: Slot) -> Option<&View> {
        self.views.get(&self.owner_of(slot)?)
    }

    /// The shard that has a key, if one has.
    pub(super) fn view(&self, key: &Key) -> Option<&View> {
        self.views.get(&self.owner(key)?)
    }

    /// The shard of this number.
    pub(super) fn view_of(&self, number: u16) -> Option<&View> {
        self.views.get(&number)
    }

    /// The shard that has all of the keys, if one has.
    pub(super) fn sole(&self, keys: &[Key]) -> Option<&View> {
        let (first, rest) = keys.split_first()?;
        let owner = self.owner(first)?;
        let same = rest.iter().all(|key| self.owner(key) == Some(owner));
        self.views.get(&owner).filter(|_| same)
    }

    /// All shards, by number.
    pub(super) fn views(&self) -> impl Iterator<Item = &View> {
        self.views.values()
    }

    /// For how long there has been a slot that nobody has.
    pub(super) fn incomplete_for(&self, now: Instant) -> Duration {
        let since = self.incomplete_since;
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Whether every slot has an owner.
    pub(super) fn is_complete(&self) -> bool {
        !self.owners.contains(&NOBODY)
    }

    /// How many slots a shard has; of `None`, how many nobody has.
    pub(super) fn slots_of(&self, number: Option<u16>) -> usize {
        let number = number.unwrap_or(NOBODY);
        self.owners.iter().filter(|owner| **owner == number).count()
    }
}

impl fmt::Debug for ShardMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epochs = self.views.values().map(|view| (view.number, view.epoch));
        f.debug_map().entries(epochs).finish()
    }
}
