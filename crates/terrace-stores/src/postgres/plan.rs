//! What a batch of writes comes to, worked out over rows that are locked.

use std::collections::{BTreeMap, HashMap};

use terrace_core::{
    Change, Current, Decision, Outcome, Precondition, RegionId, Sequence, Timestamp, Value,
    Version, Write, decide,
};

/// The receipts of a batch, and the rows that make them true.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan<'a> {
    /// One a write, in their order; the version is that of [`terrace_core::Receipt`].
    pub(super) answers: Vec<(Outcome, Version)>,
    /// Rows that there were not.
    pub(super) insert: Rows<'a>,
    /// Rows that are locked.
    pub(super) update: Rows<'a>,
    /// Changes that a later one of the batch has superseded, in the order of the batch; `created`
    /// tells which made a record.
    pub(super) superseded: Rows<'a>,
}

/// Rows as columns, in the order of their keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rows<'a> {
    pub(super) keys: Vec<&'a str>,
    pub(super) values: Vec<&'a str>,
    pub(super) versions: Vec<i64>,
    /// The versions that these overwrite; 0 where there was no row.
    pub(super) replaced: Vec<i64>,
    pub(super) deleted: Vec<bool>,
    pub(super) applied: Vec<i64>,
    /// Whether the record came into being in this batch.
    pub(super) created: Vec<bool>,
    /// When a journal accepted the write, in milliseconds since 1970.
    pub(super) accepted: Vec<Option<i64>>,
}

/// The state of one key while the batch is gone through.
struct State<'a> {
    existed: bool,
    now: Current,
    /// What the latest change overwrote.
    replaced: Version,
    value: Option<&'a str>,
    created: bool,
    accepted: Option<i64>,
    /// Whether the latest change made the record.
    made: bool,
    changed: bool,
}

/// Goes through the batch in its order, each write over what the earlier ones left, and gives each
/// change the next of `versions`, which must be one a write, rising, and drawn under the locks; a
/// row that has a later one, which a person or another region gave it, goes on from there.
/// `locked` has every row that exists for a key of the batch. No write of a journal is applied that is
/// not after `settled`: rows of those are gone.
pub(super) fn plan<'a>(
    batch: &'a [Write],
    locked: &HashMap<&str, Current>,
    versions: &[i64],
    settled: Sequence,
    region: Option<RegionId>,
) -> Plan<'a> {
    let mut plan = Plan { answers: Vec::with_capacity(batch.len()), ..Plan::default() };
    let mut states = BTreeMap::<&str, State<'a>>::new();
    let mut drawn = versions.iter().copied();
    let mut draw = |current: &Current| {
        let number = super::read::version(drawn.next().unwrap_or_default());
        match region {
            None => Decision::successor(number, current),
            Some(_) if number > current.version => number,
            Some(region) => current.version.next_in(region, Timestamp::UNIX_EPOCH),
        }
    };
    for write in batch {
        let key = write.key.as_str();
        let state = states.entry(key).or_insert_with(|| State::of(locked.get(key), settled));
        let before = (state.now.version, state.replaced);
        let before = state.changed.then_some((before, state.value, state.made));
        let (outcome, version) = state.apply(write, &mut draw);
        plan.answers.push((outcome, version));
        if let (true, Some((versions, value, made))) = (outcome.is_applied(), before) {
            plan.superseded.push(key, value, versions, made, Sequence::NONE, None);
        }
    }
    for (key, state) in states.into_iter().filter(|(_, state)| state.changed) {
        let rows = if state.existed { &mut plan.update } else { &mut plan.insert };
        let Current { version, applied, .. } = state.now;
        let versions = (version, state.replaced);
        rows.push(key, state.value, versions, state.created, applied, state.accepted);
    }
    plan
}

impl<'a> Rows<'a> {
    /// One more row, with its version and the one that it overwrites; without a value it is the trace of
    /// a deleted record.
    fn push(
        &mut self,
        key: &'a str,
        value: Option<&'a str>,
        (version, replaced): (Version, Version),
        created: bool,
        applied: Sequence,
        accepted: Option<i64>,
    ) {
        self.keys.push(key);
        self.values.push(value.unwrap_or(""));
        self.versions.push(version.get().cast_signed());
        self.replaced.push(replaced.get().cast_signed());
        self.deleted.push(value.is_none());
        self.created.push(created);
        self.applied.push(applied.get().cast_signed());
        self.accepted.push(accepted);
    }
}

impl<'a> State<'a> {
    fn of(row: Option<&Current>, settled: Sequence) -> Self {
        let (existed, now) = (row.is_some(), row.copied().unwrap_or_default());
        let now = Current { applied: now.applied.max(settled), ..now };
        Self {
            existed,
            now,
            replaced: Version::NONE,
            value: None,
            created: false,
            accepted: None,
            made: false,
            changed: false,
        }
    }

    fn apply(
        &mut self,
        write: &'a Write,
        draw: &mut impl FnMut(&Current) -> Version,
    ) -> (Outcome, Version) {
        let decision = match decide(write, &self.now) {
            Ok(decision) => decision,
            Err(answer) => return answer,
        };
        let version = draw(&self.now);
        self.replaced = self.now.version;
        self.value = decision.value.map(Value::as_str);
        self.now = Current { version, live: self.value.is_some(), applied: decision.applied };
        self.accepted = decision.accepted.map(Timestamp::as_millisecond);
        self.made = decision.outcome == Outcome::Created;
        self.created |= self.made;
        self.changed = true;
        decision.answer(version)
    }
}

/// A batch of nothing but writes of a journal, ready for one statement, in the order of its keys.
/// `None` when the batch has anything else, or a key twice.
#[derive(Debug, Default)]
pub(super) struct Placed<'a> {
    pub(super) keys: Vec<&'a str>,
    pub(super) values: Vec<&'a str>,
    pub(super) sequences: Vec<i64>,
    pub(super) deleted: Vec<bool>,
    /// For each row its write.
    pub(super) writes: Vec<usize>,
}

impl<'a> Placed<'a> {
    pub(super) fn of(batch: &'a [Write]) -> Option<Self> {
        let all = |write: &Write| matches!(write.precondition, Precondition::After(_));
        if !batch.iter().all(all) {
            return None;
        }
        let mut placed = Self { writes: (0..batch.len()).collect(), ..Self::default() };
        placed.writes.sort_unstable_by_key(|&write| batch[write].key.as_str());
        for &index in &placed.writes {
            let write = &batch[index];
            let (key, Precondition::After(place)) = (write.key.as_str(), write.precondition) else {
                return None;
            };
            if placed.keys.last() == Some(&key) {
                return None;
            }
            let value = match &write.change {
                Change::Put(value) => Some(value.as_str()),
                Change::Delete => None,
            };
            placed.keys.push(key);
            placed.values.push(value.unwrap_or_default());
            placed.sequences.push(place.sequence.get().cast_signed());
            placed.deleted.push(value.is_none());
        }
        Some(placed)
    }
}

/// A batch of nothing but unconditional puts, ready for one statement: the last put of each key, in
/// the order of the keys. `None` when the batch has anything else.
pub(super) struct Puts<'a> {
    pub(super) keys: Vec<&'a str>,
    pub(super) values: Vec<&'a str>,
    /// For each write its row, and whether it is the first and the last of its key.
    pub(super) places: Vec<Place>,
    /// How many writes are not the last of their key.
    pub(super) superseded: usize,
}

/// Where a write of [`Puts`] went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) first: bool,
    pub(super) last: bool,
}

impl<'a> Puts<'a> {
    pub(super) fn of(batch: &'a [Write]) -> Option<Self> {
        let mut order = Vec::with_capacity(batch.len());
        for (index, write) in batch.iter().enumerate() {
            match (&write.change, write.precondition) {
                (Change::Put(value), Precondition::None) => {
                    order.push((write.key.as_str(), index, value.as_str()));
                }
                _ => return None,
            }
        }
        order.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        let mut puts = Self {
            keys: Vec::with_capacity(order.len()),
            values: Vec::with_capacity(order.len()),
            places: vec![Place { row: 0, first: false, last: false }; order.len()],
            superseded: 0,
        };
        for (position, &(key, index, value)) in order.iter().enumerate() {
            let first = position == 0 || order[position - 1].0 != key;
            let last = order.get(position + 1).is_none_or(|next| next.0 != key);
            puts.places[index] = Place { row: puts.keys.len(), first, last };
            if last {
                puts.keys.push(key);
                puts.values.push(value);
            } else {
                puts.superseded += 1;
            }
        }
        Some(puts)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
