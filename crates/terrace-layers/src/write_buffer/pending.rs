//! The writes that wait, by key.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use terrace_core::{Change, Key, Scan, Sequence, Timestamp, Value, Write};

/// The latest write of a key that is not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) sequence: Sequence,
    /// `None` for a delete.
    pub(super) value: Option<Value>,
    /// Whether the record came into being after a delete that waits, too: what is below is another.
    pub(super) reborn: bool,
}

impl Waiting {
    /// When it was accepted.
    pub(super) fn at(&self) -> Timestamp {
        let millis = i64::try_from(self.sequence.millis()).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }
}

/// What waits: the latest write of each key, and the order in which writes will be settled.
#[derive(Debug, Default)]
pub(super) struct Pending {
    keys: BTreeMap<Key, Waiting>,
    order: VecDeque<(Sequence, Key)>,
}

impl Pending {
    /// Adds a write, unless a later one of its key waits already.
    pub(super) fn add(&mut self, sequence: Sequence, write: &Write) {
        let value = match &write.change {
            Change::Put(value) => Some(value.clone()),
            Change::Delete => None,
        };
        let fresh = Waiting { sequence, value, reborn: false };
        match self.keys.entry(write.key.clone()) {
            Entry::Vacant(place) => {
                place.insert(fresh);
            }
            Entry::Occupied(before) if before.get().sequence >= sequence => return,
            Entry::Occupied(mut before) => {
                let before = before.get_mut();
                let reborn = before.value.is_none() || before.reborn;
                *before = Waiting { reborn, ..fresh };
            }
        }
        // Appends come in order; what was looked up elsewhere may come late.
        let place = match self.order.back() {
            Some((last, _)) if *last > sequence => {
                self.order.partition_point(|(other, _)| *other < sequence)
            }
            _ => self.order.len(),
        };
        self.order.insert(place, (sequence, write.key.clone()));
    }

    /// Forgets what is settled: each write by its own sequence, so that a later one stays.
    pub(super) fn forget(&mut self, applied: Sequence) {
        while let Some((sequence, _)) = self.order.front() {
            if *sequence > applied {
                break;
            }
            let Some((sequence, key)) = self.order.pop_front() else { break };
            if self.keys.get(&key).is_some_and(|waiting| waiting.sequence == sequence) {
                self.keys.remove(&key);
            }
        }
        if self.order.is_empty() {
            // The room of a large backlog is given back.
            self.order = VecDeque::new();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Waiting> {
        self.keys.get(key)
    }

    /// What waits within a scan, and in order no more than it can show: `limit` puts and the
    /// deletes between them.
    pub(super) fn within(&self, scan: &Scan) -> Vec<(Key, Waiting)> {
        let from = match &scan.after {
            Some(after) if after.as_str() >= scan.prefix.as_str() => Bound::Excluded(after.clone()),
            _ => match Key::new(&scan.prefix) {
                Ok(prefix) => Bound::Included(prefix),
                Err(_) => Bound::Unbounded,
            },
        };
        let mut puts = 0;
        let mut found = Vec::new();
        for (key, waiting) in self.keys.range((from, Bound::Unbounded)) {
            // A limit above what the inner page may reach; deletes do not count against it.
            if !key.as_str().starts_with(&scan.prefix) || puts > scan.limit {
                break;
            }
            puts += usize::from(waiting.value.is_some());
            found.push((key.clone(), waiting.clone()));
        }
        found
    }
}
