//! A journal in this process's memory: the reference of the port, and what simulations run over.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::{
    Append, Appended, DeadLetter, Entry, Journal, JournalLimits, Progress, Sequence, Settled, Span,
};
use crate::{
    Deadline, Durability, Error, ErrorKind, Idempotency, Inspection, PartKind, Result, Runtime,
    Status, Unit, Write,
};

/// Keeps a journal in memory, with every promise of the port except durability: it says
/// [`Durability::Accepted`].
#[derive(Debug)]
pub struct MemoryJournal {
    runtime: Runtime,
    limits: JournalLimits,
    takeover: Duration,
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    last: Sequence,
    entries: BTreeMap<Sequence, Held>,
    dead: BTreeMap<Sequence, DeadLetter>,
    requests: HashMap<String, ([u8; 32], Sequence, Instant)>,
    writes: u64,
    bytes: u64,
    closed: bool,
}

#[derive(Debug)]
struct Held {
    entry: Entry,
    since: Instant,
    claimed: Option<Instant>,
}

impl MemoryJournal {
    /// An empty journal. An entry that was claimed `takeover` ago and is not settled is handed out
    /// again.
    pub fn new(limits: JournalLimits, takeover: Duration, runtime: Runtime) -> Self {
        let epoch = Sequence::at(runtime.wall()).millis();
        let state = Mutex::new(State { epoch, ..State::default() });
        Self { runtime, limits, takeover, state, arrived: Notify::new() }
    }

    /// Loses everything, as a server without persistence does when it is killed.
    pub fn lose(&self) {
        let mut state = self.state();
        let epoch = (state.epoch + 1).max(Sequence::at(self.runtime.wall()).millis());
        // Above what it gave out in this millisecond.
        let last = Sequence::at(self.runtime.wall()).plus(1 << Sequence::COUNT_BITS);
        *state = State { epoch, last: last.max(state.last), ..State::default() };
    }

    /// Takes all claims back, as if every claimer had died long ago.
    pub fn forget_claims(&self) {
        self.state().entries.values_mut().for_each(|held| held.claimed = None);
        self.arrived.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete when a panic could happen, so poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.closed {
            return Err(Error::new(ErrorKind::Unavailable, "the journal is closed"));
        }
        Ok(state)
    }

    fn add(&self, requests: Vec<Append>) -> Result<Appended> {
        let now = self.runtime.now();
        let mut state = self.open()?;
        state.requests.retain(|_, (_, _, at)| now - *at < Idempotency::KEPT_FOR);
        let writes: usize = requests.iter().map(|request| request.writes.len()).sum();
        let bytes: u64 = requests.iter().flat_map(|request| &request.writes).map(size).sum();
        if state.writes + writes as u64 > self.limits.writes
            || state.bytes + bytes > self.limits.bytes
        {
            return Err(full());
        }
        let previous = state.last;
        let mut spans = Vec::with_capacity(requests.len());
        for request in requests {
            spans.push(state.append(request, &self.runtime));
        }
        let (epoch, last) = (state.epoch, state.last);
        drop(state);
        self.arrived.notify_waiters();
        Ok(Appended { epoch, previous, last, durability: Durability::Accepted, spans })
    }

    fn take(&self, most: usize) -> Result<Vec<Entry>> {
        let now = self.runtime.now();
        let mut state = self.open()?;
        let mut taken = Vec::new();
        let mut writes = 0;
        for held in state.entries.values_mut() {
            if writes >= most {
                break;
            }
            if held.claimed.is_none_or(|at| now - at >= self.takeover) {
                held.claimed = Some(now);
                writes += held.entry.writes.len();
                taken.push(held.entry.clone());
            }
        }
        Ok(taken)
    }
}

fn size(write: &Write) -> u64 {
    write.bytes() as u64
}

/// The refusal of a journal that is full.
fn full() -> Error {
    Error::new(
        ErrorKind::Overloaded,
        "too many writes wait to be applied; nothing was changed; try again a little later",
    )
    .retry_after(Duration::from_secs(1))
}

impl State {
    fn append(&mut self, request: Append, runtime: &Runtime) -> Result<Span> {
        if let Some(named) = &request.idempotency
            && let Some((fingerprint, first, _)) = self.requests.get(named.key())
        {
            let same = fingerprint == named.fingerprint();
            let repeated = Span { first: *first, repeated: true };
            return if same { Ok(repeated) } else { Err(Idempotency::reused()) };
        }
        let first = Sequence::next(self.last, runtime.wall());
        if let Some(named) = &request.idempotency {
            let kept = (*named.fingerprint(), first, runtime.now());
            self.requests.insert(named.key().to_owned(), kept);
        }
        self.last = first.plus(request.writes.len() as u64).before();
        self.hold(first, first, request.writes, runtime.now());
        Ok(Span { first, repeated: false })
    }

    fn hold(&mut self, id: Sequence, first: Sequence, writes: Vec<Write>, since: Instant) {
        if writes.is_empty() {
            return;
        }
        let bytes = writes.iter().map(size).sum();
        self.writes += writes.len() as u64;
        self.bytes += bytes;
        let entry = Entry { id, first, writes, bytes };
        self.entries.insert(id, Held { entry, since, claimed: None });
    }

    fn progress(&self, now: Instant) -> Progress {
        let oldest = self.entries.values().next();
        let age = oldest.map_or(Duration::ZERO, |held| now.saturating_duration_since(held.since));
        let applied = self.entries.keys().next().map_or(self.last, |first| first.before());
        let oldest_dead = self.dead.keys().next().map_or(applied, |first| first.before());
        // A dead letter that is being tried again has its old sequence.
        let again = self.entries.values().map(|held| held.entry.first.before()).min();
        let settled = applied.min(oldest_dead).min(again.unwrap_or(applied));
        let (epoch, last) = (self.epoch, self.last);
        let (writes, bytes, dead) = (self.writes, self.bytes, self.dead.len() as u64);
        Progress { epoch, last, applied, settled, writes, bytes, age, dead }
    }
}

impl fmt::Display for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl Journal for MemoryJournal {
    fn append(&self, requests: Vec<Append>) -> BoxFuture<'_, Result<Appended>> {
        Box::pin(async move { self.add(requests) })
    }

    fn claim(&self, writes: usize, wait: Deadline) -> BoxFuture<'_, Result<Vec<Entry>>> {
        Box::pin(async move {
            loop {
                let mut arrived = std::pin::pin!(self.arrived.notified());
                arrived.as_mut().enable();
                let taken = self.take(writes.max(1))?;
                if !taken.is_empty() || wait.passed(self.runtime.now()) {
                    return Ok(taken);
                }
                // What its claimer left is noticed by time, not by an arrival.
                let again = Deadline::at(self.runtime.now() + self.takeover / 2);
                self.runtime.within(wait.min(again), arrived).await;
            }
        })
    }

    fn settle(&self, done: Vec<Settled>) -> BoxFuture<'_, Result<Progress>> {
        Box::pin(async move {
            let mut state = self.open()?;
            for settled in done {
                if let Some(held) = state.entries.remove(&settled.id) {
                    state.writes -= held.entry.writes.len() as u64;
                    state.bytes -= held.entry.bytes;
                    for letter in settled.dead {
                        state.dead.insert(letter.sequence, letter);
                    }
                }
            }
            Ok(state.progress(self.runtime.now()))
        })
    }

    fn peek(&self, after: Sequence, writes: usize) -> BoxFuture<'_, Result<Vec<Entry>>> {
        Box::pin(async move {
            let state = self.open()?;
            let mut seen = 0;
            let mut entries = Vec::new();
            for held in state.entries.range((Bound::Excluded(after), Bound::Unbounded)) {
                if seen >= writes.max(1) {
                    break;
                }
                seen += held.1.entry.writes.len();
                entries.push(held.1.entry.clone());
            }
            Ok(entries)
        })
    }

    fn progress(&self) -> BoxFuture<'_, Result<Progress>> {
        Box::pin(async move { Ok(self.open()?.progress(self.runtime.now())) })
    }

    fn raise(&self, floor: Sequence) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut state = self.open()?;
            state.last = state.last.max(floor);
            Ok(())
        })
    }

    fn dead(&self, after: Sequence, limit: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        Box::pin(async move {
            let state = self.open()?;
            let later = state.dead.range((Bound::Excluded(after), Bound::Unbounded));
            Ok(later.take(limit).map(|(_, letter)| letter.clone()).collect())
        })
    }

    fn retry(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let mut state = self.open()?;
            let mut count = 0;
            for sequence in sequences {
                if let Some(letter) = state.dead.remove(&sequence) {
                    let id = Sequence::next(state.last, self.runtime.wall());
                    state.last = id;
                    state.hold(id, sequence, vec![letter.write], self.runtime.now());
                    count += 1;
                }
            }
            drop(state);
            self.arrived.notify_waiters();
            Ok(count)
        })
    }

    fn bury(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let mut state = self.open()?;
            let gone = sequences.iter().filter(|one| state.dead.remove(one).is_some());
            Ok(gone.count() as u64)
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let state = self.state();
            let tree = Inspection::of(PartKind::Journal, "memory-journal")
                .text("durability", Durability::Accepted);
            if state.closed {
                return tree.status(Status::Down, "closed");
            }
            tree.gauge("bytes", state.bytes, Unit::Bytes)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.state().closed = true;
            self.arrived.notify_waiters();
            Ok(())
        })
    }
}
