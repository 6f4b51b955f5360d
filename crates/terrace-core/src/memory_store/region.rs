//! What a store in memory keeps beyond its records when it is one of several regions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{Done, MemoryStore, Row, State};
use crate::region::digest_of;
use crate::shard::RequestResult;
use crate::testkit::memory_shard::{deserialized, serialized};
use crate::{
    Ancestry, Batch, Checkpoint, Checkpoints, Conflict, Idempotency, Key, KeyRange, KeyState,
    LogPosition, Logged, RangeDigest, RegionId, RegionOptions, Result, Seen, Sequence, Version,
};

/// Everything that a region has and another store has not.
#[derive(Debug)]
pub(super) struct RegionPart {
    options: RegionOptions,
    /// How far its clock is ahead of the runtime's.
    ahead: SignedDuration,
    keys: BTreeMap<Key, KeyState>,
    log: Vec<Logged>,
    conflicts: BTreeMap<(Key, Version), Conflict>,
    checkpoints: BTreeMap<RegionId, Checkpoint>,
    /// The horizon up to which deleted records were forgotten.
    collected: Version,
}

impl RegionPart {
    pub(super) fn next(&self, latest: u64, wall: Timestamp) -> u64 {
        Version::new(latest).next_in(self.options.id, wall + self.ahead).get()
    }

    /// All that is known of a key, beside its record.
    fn row_of(&self, key: &Key) -> Ancestry {
        let mut state = self.keys.get(key).cloned().unwrap_or_default();
        state.seen.add(self.collected);
        let all = (key.clone(), Version::NONE)..=(key.clone(), Version::UNKNOWN);
        Ancestry::Row {
            seen: state.seen,
            lost: self.conflicts.range(all).map(|(_, conflict)| conflict.clone()).collect(),
            awaited: state.awaited.into_iter().collect(),
        }
    }
}

impl State {
    /// How many changes the log has.
    pub(super) fn logged(&self) -> usize {
        self.region.as_ref().map_or(0, |region| region.log.len())
    }

    /// Logs a change of this region, before its row is there.
    pub(super) fn log(&mut self, key: &Key, row: &Row) {
        let Some(region) = &mut self.region else { return };
        let replaced = self.rows.get(key).map_or(region.collected, |old| old.version);
        let state = region.keys.entry(key.clone()).or_default();
        *state = state.after(row.version, row.value.is_none(), replaced);
        region.log.push(Logged {
            position: LogPosition { epoch: 0, offset: row.version.get() },
            key: key.clone(),
            version: row.version,
            record: row.record(key),
            ancestry: Some(Arc::new(Ancestry::Change { replaced, request: None })),
        });
    }

    /// Lets the result of a request travel with its first change.
    pub(super) fn log_request(&mut self, request: &Idempotency, done: &Done, logged: usize) {
        let change = self.region.as_mut().and_then(|region| region.log.get_mut(logged));
        let Some(change) = change else { return };
        let Some(Ancestry::Change { replaced, .. }) = change.ancestry.as_deref() else { return };
        let request = RequestResult {
            key: request.key().to_owned(),
            fingerprint: done.fingerprint.to_vec(),
            result: serialized(&done.receipts),
            at_micros: 0,
        };
        let ancestry = Ancestry::Change { replaced: *replaced, request: Some(request) };
        change.ancestry = Some(Arc::new(ancestry));
    }

    fn merge(&mut self, change: &Logged, wall: Timestamp) {
        let Some(region) = &mut self.region else { return };
        let mut before = region.keys.get(&change.key).cloned().unwrap_or_default();
        before.seen.add(region.collected);
        let after = before.with(change);
        for gone in before.lost.difference(&after.lost) {
            region.conflicts.remove(&(change.key.clone(), *gone));
        }
        let here = self.rows.get(&change.key);
        let here = here.and_then(|row| row.value.as_ref()).map(digest_of);
        for &loser in after.lost.difference(&before.lost) {
            let digest = if loser == before.version { Some(here) } else { None };
            let conflict = Conflict::noticed(change, loser, after.version, digest, wall);
            region.conflicts.insert((change.key.clone(), loser), conflict);
        }
        if after.version != before.version {
            let times = change.record.as_ref().map(|it| (it.created_at, it.updated_at));
            let (created_at, updated_at) = times.unwrap_or((wall, wall));
            let value = change.record.as_ref().map(|record| record.value.clone());
            let (version, applied) = (change.version, Sequence::NONE);
            let row = Row { value, version, created_at, updated_at, applied };
            self.rows.insert(change.key.clone(), row);
        }
        region.keys.insert(change.key.clone(), after);
    }
}

impl MemoryStore {
    pub(crate) fn become_region(&self, options: RegionOptions) {
        self.state().region = Some(RegionPart {
            options,
            ahead: SignedDuration::ZERO,
            keys: BTreeMap::new(),
            log: Vec::new(),
            conflicts: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            collected: Version::NONE,
        });
    }

    fn region<T: Default>(&self, work: impl FnOnce(&mut RegionPart) -> T) -> T {
        self.state().region.as_mut().map(work).unwrap_or_default()
    }

    pub(crate) fn set_ahead(&self, ahead: SignedDuration) {
        self.region(|region| region.ahead = ahead);
    }

    /// The name of the history in force, whether or not it was heard of.
    pub(crate) fn name_now(&self) -> Arc<str> {
        self.state().standing().history
    }

    pub(crate) fn log_after(&self, position: LogPosition) -> Vec<Logged> {
        self.region(|region| {
            let after = region.log.iter().filter(|change| change.position > position);
            after.filter(|change| !region.options.stays(change.key.as_str())).cloned().collect()
        })
    }

    pub(crate) fn has_logged(&self, position: LogPosition) -> bool {
        self.region(|region| region.log.iter().any(|change| change.position == position))
    }

    pub(crate) fn checkpoint(&self, origin: RegionId) -> Checkpoint {
        self.region(|region| region.checkpoints.get(&origin).cloned().unwrap_or_default())
    }

    pub(crate) fn set_checkpoint(&self, origin: RegionId, checkpoint: Option<Checkpoint>) {
        self.region(|region| match checkpoint {
            Some(checkpoint) => drop(region.checkpoints.insert(origin, checkpoint)),
            None => drop(region.checkpoints.remove(&origin)),
        });
    }

    pub(crate) fn checkpoints(&self) -> Checkpoints {
        let state = self.state();
        let origins = state.region.iter().flat_map(|it| it.checkpoints.clone()).collect();
        let token = state.token();
        let through = token.marks().map(|(_, position)| position).max().unwrap_or_default();
        Checkpoints { origins, token, through }
    }

    /// Applies a batch if the origin's checkpoint is where it begins; without one, always.
    pub(crate) fn merge_batch(&self, origin: Option<RegionId>, batch: &Batch) -> Result<bool> {
        let (wall, now) = (self.runtime.wall(), self.runtime.now());
        let mut state = self.open("follow")?;
        let state = &mut *state;
        let Some(region) = &mut state.region else { return Ok(false) };
        let newest = batch.changes.iter().map(|change| change.version).max().unwrap_or_default();
        let collected = Seen::collected(&batch.changes);
        region.options.check_clock(newest, wall + region.ahead)?;
        if let Some(origin) = origin {
            let known = region.checkpoints.entry(origin).or_default();
            if *known != batch.from {
                return Ok(false);
            }
            *known = batch.to.clone();
            region.collected = region.collected.max(collected);
        }
        for change in &batch.changes {
            state.merge(change, wall);
            if let Some(Ancestry::Change { request: Some(done), .. }) = change.ancestry.as_deref() {
                let fingerprint = done.fingerprint.clone().try_into().unwrap_or([0; 32]);
                let receipts = deserialized(&done.result);
                let theirs = Done { fingerprint, receipts, at: now };
                state.results.entry(done.key.clone()).or_insert(theirs);
            }
        }
        if !batch.changes.is_empty() {
            state.latest = state.latest.max(newest.max(collected).get());
            state.draw(wall);
        }
        Ok(true)
    }

    pub(crate) fn conflicts(&self, after: Option<&(Key, Version)>, limit: usize) -> Vec<Conflict> {
        self.region(|region| {
            let after = region.conflicts.iter().filter(|(at, _)| after.is_none_or(|it| *at > it));
            after.take(limit).map(|(_, conflict)| conflict.clone()).collect()
        })
    }

    pub(crate) fn region_rows(&self, range: &KeyRange, limit: usize) -> Vec<Logged> {
        let state = self.state();
        let Some(region) = &state.region else { return Vec::new() };
        let here = state.rows.iter().filter(|(key, _)| range.has(key));
        let leaving = here.filter(|(key, _)| !region.options.stays(key.as_str()));
        let rows = leaving.take(limit).map(|(key, row)| Logged {
            position: LogPosition::default(),
            key: key.clone(),
            version: row.version,
            record: row.record(key),
            ancestry: Some(Arc::new(region.row_of(key))),
        });
        rows.collect()
    }

    pub(crate) fn collect_deleted(&self, horizon: Version) -> u64 {
        let mut state = self.state();
        let state = &mut *state;
        let Some(region) = &mut state.region else { return 0 };
        region.collected = region.collected.max(horizon);
        state.latest = state.latest.max(horizon.get());
        let gone = state.rows.iter().filter(|(_, row)| row.value.is_none());
        let gone = gone.filter(|(_, row)| row.version <= horizon);
        let gone = gone.map(|(key, _)| key.clone()).collect::<BTreeSet<_>>();
        for key in &gone {
            state.rows.remove(key);
            if let Some(state) = region.keys.get_mut(key) {
                // What was lost stays listed.
                *state = KeyState { lost: state.lost.clone(), ..KeyState::default() };
            }
        }
        gone.len() as u64
    }
}

/// What a range of rows comes to.
pub(crate) fn digest(rows: &[Logged]) -> RangeDigest {
    let mut digest = RangeDigest::default();
    for row in rows {
        digest.add(RangeDigest::of_row(&row.key, row.version, row.record.as_ref()));
    }
    digest.middle = rows.get(rows.len().saturating_sub(1) / 2).map(|row| row.key.clone());
    digest
}
