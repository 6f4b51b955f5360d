//! What is kept under one key, what it weighs, and what happens when it is evicted.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::{Lifecycle, Weighter};

use super::stripes::Stripes;
use crate::{Entry, Key, Proof, Record, Version};

/// What is known of one key. Times are nanoseconds since the cache began.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) content: Option<Content>,
    pub(super) guard: Guard,
}

/// An [`Entry`] that was taken.
#[derive(Clone, Debug)]
pub(super) struct Content {
    record: Option<Record>,
    pub(super) version: Version,
    proof: Proof,
    /// Its age when it was put in.
    age: Duration,
    put_in: u64,
    expires: u64,
    /// Entries of an earlier epoch have been forgotten.
    pub(super) epoch: u32,
    pub(super) bytes: u64,
}

/// A tombstone: fills older than this are refused for a while. Stands beside a newer entry, too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    floor: Version,
    until: u64,
    /// Until then every fill is refused: a write of unknown outcome may still come. Kept apart from
    /// the floor, so that later writes do not prolong the doubt.
    doubt_until: u64,
}

impl Content {
    pub(super) fn new(entry: Entry, now: u64, expires: u64, epoch: u32) -> Self {
        let value = entry.record.as_ref().map_or(0, |record| record.value.as_str().len());
        let bytes = (value + entry.proof.history.len()) as u64;
        let Entry { record, version, proof, age } = entry;
        Self { record, version, proof, age, put_in: now, expires, epoch, bytes }
    }

    pub(super) fn is_live(&self, now: u64, epoch: u32) -> bool {
        now < self.expires && self.epoch == epoch
    }

    pub(super) fn into_entry(self, now: u64) -> Entry {
        let age = self.age + Duration::from_nanos(now.saturating_sub(self.put_in));
        Entry { record: self.record, version: self.version, proof: self.proof, age }
    }
}

impl Guard {
    pub(super) const NONE: Self = Self { floor: Version::NONE, until: 0, doubt_until: 0 };

    pub(super) fn holds_at(self, now: u64) -> bool {
        now < self.until.max(self.doubt_until)
    }

    /// What a fill must reach at least.
    pub(super) fn floor_at(self, now: u64) -> Version {
        if now < self.doubt_until {
            Version::UNKNOWN
        } else if now < self.until {
            self.floor
        } else {
            Version::NONE
        }
    }

    /// This guard after a write at `version`, which it remembers up to `until`.
    pub(super) fn after(self, version: Version, now: u64, until: u64) -> Self {
        if version == Version::UNKNOWN {
            return Self { doubt_until: until, ..self };
        }
        let floor = if now < self.until { self.floor.max(version) } else { version };
        Self { floor, until, ..self }
    }

    /// What both refuse.
    pub(super) fn and(self, other: Self, now: u64) -> Self {
        let floor = |guard: Self| if now < guard.until { guard.floor } else { Version::NONE };
        Self {
            floor: floor(self).max(floor(other)),
            until: self.until.max(other.until),
            doubt_until: self.doubt_until.max(other.doubt_until),
        }
    }
}

/// Weighs slots in bytes.
#[derive(Clone, Debug)]
pub(super) struct Weigh {
    /// What the smallest slot weighs, so that no more than so many fit.
    least: u64,
}

impl Weigh {
    /// A slot in the map and in the list, both of which grow by doubling, and two counts a text.
    const OVERHEAD: u64 = (2 * (size_of::<Key>() + size_of::<Slot>() + 24) + 4 * 16) as u64;
    /// What an entry of a short key and a short value weighs.
    pub(super) const TYPICAL: u64 = Self::OVERHEAD + 64;

    pub(super) fn new(max_bytes: u64, max_entries: Option<u64>) -> Self {
        // Nothing may weigh as much as the whole cache, or it would never be taken.
        let share = |most: u64| max_bytes / most.max(1);
        Self { least: max_entries.map_or(0, share).min(max_bytes / 10 * 9) }
    }

    pub(super) fn bytes(key: &Key, slot: &Slot) -> u64 {
        let content = slot.content.as_ref().map_or(0, |content| content.bytes);
        Self::OVERHEAD + key.as_str().len() as u64 + content
    }
}

impl Weighter<Key, Slot> for Weigh {
    fn weight(&self, key: &Key, slot: &Slot) -> u64 {
        Self::bytes(key, slot).max(self.least)
    }
}

/// Turns tombstones that are evicted before their time into floors of their stripes.
#[derive(Clone, Debug)]
pub(super) struct OnEvict {
    stripes: Arc<Stripes>,
}

/// What one insertion pushed out; dropped after the map's lock is free.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    inserted: Option<Key>,
    slots: [Option<Slot>; 2],
}

impl Evicted {
    /// Pushed out by the insertion of this key.
    pub(super) fn by(inserted: Key) -> Self {
        Self { inserted: Some(inserted), slots: [None, None] }
    }
}

impl OnEvict {
    pub(super) fn new(stripes: Arc<Stripes>) -> Self {
        Self { stripes }
    }
}

impl Lifecycle<Key, Slot> for OnEvict {
    type RequestState = Evicted;

    /// Runs under the map's lock, so whoever no longer finds the tombstone finds the floor.
    fn on_evict(&self, evicted: &mut Evicted, key: Key, slot: Slot) {
        // The former slot of the inserted key was replaced, not evicted.
        if evicted.inserted.as_ref() != Some(&key) {
            self.stripes.evicted(&key, slot.guard);
        }
        if let Some(room) = evicted.slots.iter_mut().find(|room| room.is_none()) {
            *room = Some(slot);
        }
    }
}
