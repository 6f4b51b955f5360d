//! A log and a read model in memory, which fail and stand still as a seed says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use terrace_core::Budget;
use terrace_core::read_model::{
    Activity, Counted, Difference, Folded, Parked, Projection, Reached, Row, Rows, fold,
};
use terrace_core::{
    Batch, BoxFuture, ChangeLog, Changes, Checkpoint, Deadline, Error, ErrorKind, Follower,
    Inspection, Key, LeaderLease, LogPosition, Logged, Origin, Page, PartKind, Position,
    PositionLost, ReadModel, Record, Result, Runtime, Scan, Timestamp, Value, Version,
};
use tokio::sync::watch;

/// Fails calls by chance, before or after they took effect.
#[derive(Debug)]
pub(super) struct Faults {
    runtime: Runtime,
    /// Failures in a thousand calls.
    per_mille: Mutex<u64>,
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    Refused,
    Unknown,
}

impl Faults {
    pub(super) fn new(runtime: Runtime, per_mille: u64) -> Arc<Self> {
        Arc::new(Self { runtime, per_mille: Mutex::new(per_mille) })
    }

    pub(super) fn heal(&self) {
        *self.per_mille.lock().unwrap() = 0;
    }

    pub(super) async fn fate(&self) -> Fate {
        let most = *self.per_mille.lock().unwrap();
        if self.runtime.random().is_multiple_of(4) {
            self.runtime.sleep(Duration::from_millis(self.runtime.random() % 20)).await;
        }
        match self.runtime.random() % 1000 {
            number if number < most / 2 => Fate::Refused,
            number if number < most => Fate::Unknown,
            _ => Fate::Done,
        }
    }
}

pub(super) fn failed(fate: Fate) -> Error {
    match fate {
        Fate::Unknown => Error::new(ErrorKind::OutcomeUnknown, "the connection died"),
        _ => Error::new(ErrorKind::Unavailable, "the engine is down"),
    }
}

/// Transactions that draw their numbers when they begin and become visible when they commit.
#[derive(Debug)]
pub(super) struct MemoryLog {
    state: Mutex<LogState>,
    committed: watch::Sender<u64>,
    faults: Arc<Faults>,
    runtime: Runtime,
}

#[derive(Debug, Default)]
struct LogState {
    next_transaction: u64,
    latest_version: u64,
    open: BTreeSet<u64>,
    visible: BTreeMap<LogPosition, Logged>,
    keys: BTreeMap<Key, (Version, bool)>,
}

impl MemoryLog {
    pub(super) fn new(faults: Arc<Faults>, runtime: Runtime) -> Self {
        let state = LogState { next_transaction: 1, ..LogState::default() };
        Self { state: Mutex::new(state), committed: watch::Sender::new(0), faults, runtime }
    }

    fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap()
    }

    /// Begins a transaction that changes these keys, which nobody else may hold, and draws its
    /// numbers; a deletion has no value. Nothing is visible before [`MemoryLog::commit`].
    pub(super) fn begin(&self, writes: &[(Key, Option<Value>)]) -> Vec<Logged> {
        let epoch = {
            let mut state = self.state();
            state.next_transaction += 1;
            state.next_transaction - 1
        };
        self.state().open.insert(epoch);
        self.more(epoch, writes)
    }

    /// Further changes of a transaction, with later numbers.
    pub(super) fn more(&self, epoch: u64, writes: &[(Key, Option<Value>)]) -> Vec<Logged> {
        let mut state = self.state();
        let now = self.runtime.wall();
        let changes = writes.iter().map(|(key, value)| {
            state.latest_version += 1;
            let version = Version::new(state.latest_version);
            let record = value.clone().map(|value| Record {
                key: key.clone(),
                value,
                version,
                created_at: now,
                updated_at: now,
            });
            let position = LogPosition { epoch, offset: version.get() };
            Logged { position, key: key.clone(), version, record, ancestry: None }
        });
        changes.collect()
    }

    pub(super) fn commit(&self, changes: Vec<Logged>) {
        let mut state = self.state();
        for change in changes {
            state.open.remove(&change.position.epoch);
            let live = change.record.is_some();
            state.keys.insert(change.key.clone(), (change.version, live));
            state.visible.insert(change.position, change);
        }
        drop(state);
        self.committed.send_modify(|number| *number += 1);
    }

    /// As a database that was restored to a time before its last transactions.
    pub(super) fn lose_from(&self, epoch: u64) {
        let mut state = self.state();
        state.visible.retain(|position, _| position.epoch < epoch);
        state.next_transaction = epoch;
        state.latest_version =
            state.visible.keys().map(|position| position.offset).max().unwrap_or(0);
        drop(state);
        self.committed.send_modify(|number| *number += 1);
    }

    /// Every change that was committed.
    pub(super) fn all(&self) -> Vec<Logged> {
        self.state().visible.values().cloned().collect()
    }
}

impl ChangeLog for MemoryLog {
    fn name(&self) -> Arc<str> {
        "log".into()
    }

    /// Behind all changes of the transaction.
    fn place_of(&self, position: Position) -> LogPosition {
        LogPosition { epoch: position.get(), offset: u64::MAX }
    }

    fn position_of(&self, place: LogPosition) -> Position {
        Position::new(place.epoch)
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            if self.faults.fate().await != Fate::Done {
                return Err(failed(Fate::Refused));
            }
            let state = self.state();
            if position.epoch >= state.next_transaction {
                return Err(PositionLost::error("the log has lost its end"));
            }
            let horizon = state.open.first().copied().unwrap_or(state.next_transaction);
            let below = LogPosition { epoch: horizon, offset: 0 };
            let mut changes = state
                .visible
                .range((std::ops::Bound::Excluded(position), std::ops::Bound::Unbounded))
                .take_while(|(at, _)| **at < below)
                .map(|(_, change)| change.clone())
                .take(limit + 1)
                .collect::<Vec<_>>();
            let more = changes.len() > limit;
            changes.truncate(limit);
            let behind = |last: &Logged| match more {
                true => last.position,
                false => self.place_of(self.position_of(last.position)),
            };
            let position = changes.last().map_or(position, behind);
            Ok(Changes { changes, position, more })
        })
    }

    fn wait(&self, _: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut committed = self.committed.subscribe();
            let look = self.runtime.now() + Duration::from_millis(20);
            let until = deadline.min(Deadline::at(look));
            let _ = self.runtime.within(until, committed.changed()).await;
            Ok(())
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async move {
            let state = self.state();
            Ok(state.visible.keys().next_back().copied().unwrap_or_default())
        })
    }
}

impl fmt::Display for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory log")
    }
}

/// What a read model must keep, in maps.
#[derive(Debug)]
pub(super) struct MemoryModel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<Model>,
    faults: Arc<Faults>,
    runtime: Runtime,
    /// Values that cannot be applied.
    poison: Mutex<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Model {
    tables: BTreeMap<bool, Table>,
    owner: Option<(u64, std::time::Instant)>,
    paused_until: Option<std::time::Instant>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Table {
    reached: Reached,
    pub(super) rows: BTreeMap<Key, Row>,
    pub(super) parked: BTreeMap<Key, (Folded, String)>,
}

impl MemoryModel {
    pub(super) fn new(faults: Arc<Faults>, runtime: Runtime) -> Self {
        let (state, poison) = Default::default();
        Self { shared: Arc::new(Shared { state, faults, runtime, poison }) }
    }

    pub(super) fn refuse(&self, value: &str, refused: bool) {
        let mut poison = self.shared.poison.lock().unwrap();
        if refused {
            poison.insert(value.to_owned())
        } else {
            poison.remove(value)
        };
    }

    pub(super) fn live(&self) -> Table {
        self.shared.state.lock().unwrap().tables.get(&false).cloned().unwrap_or_default()
    }
}

impl Shared {
    async fn changing<T>(&self, change: impl FnOnce(&mut Model) -> Result<T>) -> Result<T> {
        let fate = self.faults.fate().await;
        if fate == Fate::Refused {
            return Err(failed(fate));
        }
        let answer = change(&mut self.state.lock().unwrap());
        if fate == Fate::Unknown { Err(failed(fate)) } else { answer }
    }

    fn put(&self, table: &mut Table, folded: &Folded) -> Result<()> {
        let value = folded.newest.record.as_ref().map(|record| record.value.as_str().to_owned());
        if value.is_some_and(|value| self.poison.lock().unwrap().contains(&value)) {
            return Err(Error::invalid("this value cannot be kept"));
        }
        let row = table.rows.entry(folded.newest.key.clone()).or_default();
        row.writes += folded.commands;
        if folded.newest.version > row.version {
            row.version = folded.newest.version;
            row.record.clone_from(&folded.newest.record);
        }
        Ok(())
    }
}

/// What makes a projection.
#[derive(Debug)]
struct Projecting {
    shared: Arc<Shared>,
    of: Projection,
}

impl Follower for Projecting {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(self.shared.changing(|model| {
            let table = model.tables.entry(self.of == Projection::Next).or_default();
            Ok(table.reached.checkpoint.clone())
        }))
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.shared.changing(move |model| {
            let checkpoint = Checkpoint::beginning(log);
            let reached = Reached { checkpoint, whole: false };
            let next = self.of == Projection::Next;
            model.tables.insert(next, Table { reached, ..Table::default() });
            Ok(())
        }))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.shared.changing(move |model| {
            let now = self.shared.runtime.now();
            let live = self.of == Projection::Live;
            let paused = live && model.paused_until.is_some_and(|until| until > now);
            let table = model.tables.entry(!live).or_default();
            if paused || table.reached.checkpoint != batch.from {
                return Ok(false);
            }
            let mut next = table.clone();
            for folded in fold(&batch.changes) {
                let key = folded.newest.key.clone();
                match (next.parked.get_mut(&key), &batch.refused) {
                    (Some((waiting, _)), _) => merge(waiting, &folded),
                    (None, Some(reason)) => {
                        next.parked.insert(key, (folded, reason.clone()));
                    }
                    (None, None) => self.shared.put(&mut next, &folded)?,
                }
            }
            next.reached.checkpoint = batch.to.clone();
            next.reached.whole |= !batch.more;
            *table = next;
            Ok(true)
        }))
    }
}

impl fmt::Display for Projecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

/// The lease of one instance, by time.
#[derive(Debug)]
struct Leading {
    shared: Arc<Shared>,
    owner: u64,
}

impl LeaderLease for Leading {
    fn hold(&self, time: Duration) -> BoxFuture<'_, Result<bool>> {
        let now = self.shared.runtime.now();
        Box::pin(self.shared.changing(move |model| {
            let free = model.owner.is_none_or(|(owner, until)| owner == self.owner || until < now);
            if free {
                model.owner = Some((self.owner, now + time));
            }
            Ok(free)
        }))
    }
}

impl ReadModel for MemoryModel {
    fn follower(&self, of: Projection) -> Arc<dyn Follower> {
        Arc::new(Projecting { shared: Arc::clone(&self.shared), of })
    }

    fn search_index(&self) -> Option<Arc<dyn Follower>> {
        None
    }

    fn lease(&self) -> Option<Arc<dyn LeaderLease>> {
        let owner = self.shared.runtime.random();
        Some(Arc::new(Leading { shared: Arc::clone(&self.shared), owner }))
    }

    fn read<'a>(&'a self, keys: &'a [Key], mut budget: Budget) -> BoxFuture<'a, Result<Rows>> {
        Box::pin(self.shared.changing(move |model| {
            let table = model.tables.entry(false).or_default();
            let row = |key: &Key| {
                let row = table.rows.get(key).cloned().unwrap_or_default();
                Row { parked: table.parked.contains_key(key), ..row }
            };
            let rows = keys.iter().map(row).collect::<Vec<_>>();
            for record in rows.iter().filter_map(|row| row.record.as_ref()) {
                budget.spend(record.value.as_str().len())?;
            }
            Ok(Rows { rows, reached: table.reached.clone() })
        }))
    }

    fn scan<'a>(&'a self, scan: &'a Scan) -> BoxFuture<'a, Result<(Page, Reached)>> {
        Box::pin(self.shared.changing(move |model| {
            let table = model.tables.entry(false).or_default();
            let rows = &table.rows;
            let after = |record: &Record| scan.after.as_ref().is_none_or(|it| record.key > *it);
            let records = rows.values().filter_map(|row| row.record.clone());
            let records = records.filter(after).take(scan.limit + 1).collect();
            let mut reached = table.reached.clone();
            reached.whole &= table.parked.is_empty();
            Ok((Page::cut(records, scan.limit, Origin::READ_MODEL), reached))
        }))
    }

    fn search<'a>(&'a self, _: &'a str, _: usize) -> BoxFuture<'a, Result<Vec<Row>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn top(&self, _: Counted, _: usize) -> BoxFuture<'_, Result<Vec<Row>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn activity(&self, _: Duration, _: usize) -> BoxFuture<'_, Result<Vec<Activity>>> {
        Box::pin(async { Ok(vec![Activity { from: Timestamp::UNIX_EPOCH, writes: 0 }]) })
    }

    fn add_reads<'a>(&'a self, reads: &'a [(Key, u64)]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.shared.changing(move |model| {
            let table = model.tables.entry(false).or_default();
            for (key, count) in reads {
                table.rows.entry(key.clone()).or_default().reads += count;
            }
            Ok(())
        }))
    }

    fn parked(&self, _: usize) -> BoxFuture<'_, Result<Vec<Parked>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn retry<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.shared.changing(move |model| {
            let table = model.tables.entry(false).or_default();
            let Some((folded, _)) = table.parked.get(key).cloned() else { return Ok(false) };
            self.shared.put(table, &folded)?;
            table.parked.remove(key);
            Ok(true)
        }))
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, Result<()>> {
        let until = self.shared.runtime.now() + time;
        Box::pin(self.shared.changing(move |model| {
            model.paused_until = Some(until);
            Ok(())
        }))
    }

    fn finish_rebuild(&self, swap: bool) -> BoxFuture<'_, Result<Option<Difference>>> {
        Box::pin(self.shared.changing(move |model| {
            let (live, next) = (model.tables.get(&false), model.tables.get(&true));
            let (Some(live), Some(next)) = (live.cloned(), next.cloned()) else { return Ok(None) };
            if live.reached.checkpoint != next.reached.checkpoint {
                return Ok(None);
            }
            let differing = live.rows.iter().filter(|(key, row)| {
                next.rows.get(*key).is_none_or(|new| {
                    (&new.record, new.version, new.writes) != (&row.record, row.version, row.writes)
                })
            });
            let (keys, differing) = (next.rows.len() as u64, differing.count() as u64);
            model.paused_until = None;
            if swap {
                model.tables.insert(false, next);
            }
            Ok(Some(Difference { keys, differing, examples: Vec::new() }))
        }))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { Inspection::of(PartKind::ReadModel, "read-model") })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

fn merge(waiting: &mut Folded, folded: &Folded) {
    waiting.commands += folded.commands;
    if folded.newest.version > waiting.newest.version {
        waiting.newest = folded.newest.clone();
    }
}

impl fmt::Display for MemoryModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}
