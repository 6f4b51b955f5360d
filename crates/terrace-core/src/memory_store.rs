//! Records in this process's memory: the reference of the contract, and the store of every doctest.

#[cfg(feature = "testkit")]
pub(crate) mod region;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::{
    BoxFuture, Current, Durability, Error, ErrorKind, Generation, Generations, Histories,
    Idempotency, Inspection, Key, Origin, Outcome, Page, PartKind, Position, Proof, Read,
    ReadOptions, Receipt, Record, Result, Runtime, Scan, Sequence, Standing, Status, Store, Token,
    Unit, Value, Version, Write, WriteOptions, decide,
};

/// Keeps records in memory, with every promise of the contract except durability: its receipts say
/// [`Durability::Accepted`]. Not bounded; meant for tests, examples and as the model that other
/// stores are compared with.
#[derive(Debug)]
pub struct MemoryStore {
    runtime: Runtime,
    heard: Arc<Histories>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What a database would keep of its history and its generation.
    standing: Option<Standing>,
    rows: BTreeMap<Key, Row>,
    latest: u64,
    /// What makes it one of several regions.
    #[cfg(feature = "testkit")]
    region: Option<region::RegionPart>,
    results: HashMap<String, Done>,
    closed: bool,
}

/// A row outlives its record: a deleted one is the tombstone that keeps its version.
#[derive(Debug)]
struct Row {
    value: Option<Value>,
    version: Version,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// The last write of a journal that was applied.
    applied: Sequence,
}

#[derive(Debug)]
struct Done {
    fingerprint: [u8; 32],
    receipts: Vec<Receipt>,
    at: Instant,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(Runtime::system())
    }
}

impl MemoryStore {
    /// An empty store on this runtime's clock.
    pub fn new(runtime: Runtime) -> Self {
        let standing = Standing::of(format!("memory-{:08x}.1", runtime.random() >> 32));
        let state = State { standing: Some(standing.clone()), ..State::default() };
        Self { runtime, heard: Arc::new(Histories::new(standing)), state: Mutex::new(state) }
    }

    /// What a database does that was restored, copied or replaced: it begins a new history.
    pub fn begin_history(&self) {
        let mut state = self.state();
        let name = format!("memory-{:08x}.1", self.runtime.random() >> 32);
        let standing = state.standing();
        let mut past = standing.past;
        past.push(standing.history);
        let generation = Generation::new(standing.generation.get() + 1);
        state.standing = Some(Standing { history: name.into(), generation, past });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete when a panic could happen, so poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, operation: &'static str) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.closed {
            let closed = Error::new(ErrorKind::Unavailable, "the store is closed");
            return Err(closed.during(operation));
        }
        Ok(state)
    }

    pub(crate) fn raise_generation(&self) {
        let mut state = self.state();
        let standing = state.standing();
        let generation = Generation::new(standing.generation.get() + 1);
        let standing = Standing { generation, ..standing };
        state.standing = Some(standing.clone());
        self.heard.heard(standing, self.runtime.now());
    }

    /// Refuses a token that this store cannot prove.
    fn check(&self, state: &State, how: &ReadOptions) -> Result<()> {
        let Some(asked) = &how.token else { return Ok(()) };
        let standing = state.standing();
        if asked.marks().any(|(name, _)| standing.past.contains(name)) {
            return Err(crate::history::lost());
        }
        match asked.position(&standing.history) {
            Some(asked) if asked.get() > state.latest => Err(crate::history::ahead()),
            _ => Ok(()),
        }
    }

    fn apply(&self, batch: Vec<Write>, how: &WriteOptions) -> Result<Vec<Receipt>> {
        let mut state = self.open("write")?;
        let now = self.runtime.now();
        if let Some(request) = &how.idempotency {
            state.results.retain(|_, done| now - done.at < Idempotency::KEPT_FOR);
            if let Some(done) = state.results.get(request.key()) {
                let same = done.fingerprint == *request.fingerprint();
                return if same { Ok(done.receipts.clone()) } else { Err(Idempotency::reused()) };
            }
        }
        let wall = self.runtime.wall();
        #[cfg(feature = "testkit")]
        let logged = state.logged();
        let receipts = batch
            .into_iter()
            .map(|write| {
                let (outcome, version) = state.apply(write, wall);
                Receipt {
                    outcome,
                    version,
                    durability: Durability::Accepted,
                    token: state.token(),
                    origin: Origin::PRIMARY,
                    event: None,
                    cached: false,
                }
            })
            .collect::<Vec<_>>();
        if let Some(request) = &how.idempotency {
            let fingerprint = *request.fingerprint();
            let done = Done { fingerprint, receipts: receipts.clone(), at: now };
            #[cfg(feature = "testkit")]
            state.log_request(request, &done, logged);
            state.results.insert(request.key().to_owned(), done);
        }
        Ok(receipts)
    }

    fn page(&self, scan: &Scan, how: &ReadOptions) -> Result<Page> {
        let state = self.open("scan")?;
        self.check(&state, how)?;
        let from = match &scan.after {
            Some(after) => Bound::Excluded(after.clone()),
            None => Bound::Unbounded,
        };
        let (mut records, mut bytes, mut more) = (Vec::new(), 0, false);
        let found = state
            .rows
            .range((from, Bound::Unbounded))
            .filter(|(key, _)| key.as_str().starts_with(&scan.prefix))
            .filter_map(|(key, row)| row.record(key));
        for record in found {
            more = records.len() == scan.limit || bytes >= Page::MAX_BYTES;
            if more {
                break;
            }
            bytes += record.value.as_str().len();
            records.push(record);
        }
        let next = records.last().filter(|_| more).map(|record: &Record| record.key.clone());
        let (origin, age, token) = (Origin::PRIMARY, Duration::ZERO, state.token());
        Ok(Page { records, next, origin, age, token })
    }
}

/// What a shard and a ledger in memory do with their rows beyond the contract.
#[cfg(feature = "testkit")]
impl MemoryStore {
    /// What was heard of its history.
    pub(crate) fn histories(&self) -> Arc<Histories> {
        Arc::clone(&self.heard)
    }

    /// All rows, of deleted records too.
    pub(crate) fn rows(&self) -> Vec<crate::Logged> {
        let state = self.state();
        let rows = state.rows.iter().map(|(key, row)| crate::Logged {
            position: crate::LogPosition { epoch: 0, offset: row.version.get() },
            key: key.clone(),
            version: row.version,
            record: row.record(key),
            ancestry: None,
        });
        rows.collect()
    }

    /// Puts rows in the place of older ones.
    pub(crate) fn restore(&self, rows: Vec<crate::Logged>) {
        let mut state = self.state();
        for crate::Logged { key, version, record, .. } in rows {
            if state.rows.get(&key).is_some_and(|row| row.version >= version) {
                continue;
            }
            let times = record.as_ref().map(|record| (record.created_at, record.updated_at));
            let (created_at, updated_at) = times.unwrap_or_default();
            let value = record.map(|record| record.value);
            let applied = Sequence::NONE;
            state.rows.insert(key, Row { value, version, created_at, updated_at, applied });
        }
    }

    /// Lets versions go on above this one, and answers the latest.
    pub(crate) fn raise(&self, floor: Version) -> Version {
        let mut state = self.state();
        state.latest = state.latest.max(floor.get());
        Version::new(state.latest)
    }

    /// Removes rows without a trace.
    pub(crate) fn forget(&self, keys: &[Key]) {
        let mut state = self.state();
        keys.iter().for_each(|key| drop(state.rows.remove(key)));
    }

    /// Stored results of requests: key, digest, receipts.
    pub(crate) fn results(&self) -> Vec<(String, [u8; 32], Vec<Receipt>)> {
        let state = self.state();
        let each =
            |(key, done): (&String, &Done)| (key.clone(), done.fingerprint, done.receipts.clone());
        state.results.iter().map(each).collect()
    }

    /// Keeps results of another store.
    pub(crate) fn keep_result(&self, key: String, fingerprint: [u8; 32], receipts: Vec<Receipt>) {
        let done = Done { fingerprint, receipts, at: self.runtime.now() };
        self.state().results.entry(key).or_insert(done);
    }
}

impl State {
    fn standing(&self) -> Standing {
        self.standing.clone().unwrap_or_else(|| Standing::of("memory"))
    }

    fn token(&self) -> Token {
        Token::of(self.standing().history, Position::new(self.latest))
    }

    fn answer(&self, key: &Key) -> Read {
        let row = self.rows.get(key);
        let version = row.map_or(Version::NONE, |row| row.version);
        let standing = self.standing();
        let proof = Proof {
            history: standing.history,
            generation: standing.generation,
            through: Position::new(self.latest),
            shown: Position::new(version.get()),
        };
        Read {
            record: row.and_then(|row| row.record(key)),
            version,
            origin: Origin::PRIMARY,
            age: Duration::ZERO,
            token: proof.token(),
            proof: Some(proof),
        }
    }

    fn apply(&mut self, write: Write, wall: Timestamp) -> (Outcome, Version) {
        let row = self.rows.get(&write.key);
        let current = row.map_or_else(Current::default, |row| Current {
            version: row.version,
            live: row.value.is_some(),
            applied: row.applied,
        });
        let decision = match decide(&write, &current) {
            Ok(decision) => decision,
            Err(answer) => return answer,
        };
        let updated_at = decision.accepted.unwrap_or(wall);
        let live = row.filter(|row| row.value.is_some());
        let created_at = live.map_or(updated_at, |row| row.created_at);
        self.draw(wall);
        let version = Version::new(self.latest);
        let (value, applied) = (decision.value.cloned(), decision.applied);
        let answer = decision.answer(version);
        let row = Row { value, version, created_at, updated_at, applied };
        #[cfg(feature = "testkit")]
        self.log(&write.key, &row);
        self.rows.insert(write.key, row);
        answer
    }

    fn draw(&mut self, wall: Timestamp) {
        #[cfg(feature = "testkit")]
        if let Some(region) = &self.region {
            self.latest = region.next(self.latest, wall);
            return;
        }
        let _of_no_region = wall;
        self.latest += 1;
    }
}

impl Row {
    fn record(&self, key: &Key) -> Option<Record> {
        Some(Record {
            key: key.clone(),
            value: self.value.clone()?,
            version: self.version,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

impl Generations for MemoryStore {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.heard.admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.heard.looked_at()
    }

    fn history(&self) -> Option<Arc<str>> {
        Some(self.heard.name())
    }

    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.heard.changes()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let asked = self.runtime.now();
            let standing = self.open("look")?.standing();
            self.heard.heard(standing, asked);
            Ok(())
        })
    }

    fn raise<'a>(&'a self, _: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            drop(self.open("raise")?);
            self.raise_generation();
            Ok(())
        })
    }
}

impl fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl Store for MemoryStore {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            how.deadline.check(self.runtime.now())?;
            let state = self.open("read")?;
            self.check(&state, how)?;
            let mut budget = how.budget;
            let answer = |key| {
                let read = state.answer(key);
                budget.spend(read.record.as_ref().map_or(0, |it| it.value.as_str().len()))?;
                Ok(read)
            };
            keys.iter().map(answer).collect()
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            how.deadline.check(self.runtime.now())?;
            self.apply(batch, how)
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            how.deadline.check(self.runtime.now())?;
            self.page(scan, how)
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let state = self.state();
            let tree = Inspection::of(PartKind::Database, "memory");
            if state.closed {
                return tree.status(Status::Down, "closed");
            }
            let live = state.rows.values().filter(|row| row.value.is_some()).count();
            tree.gauge("records", live as u64, Unit::Count)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.state().closed = true;
            Ok(())
        })
    }
}
