//! How far this instance knows the journal, and what waits up to there.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use terrace_core::{
    Appended, Durability, Error, ErrorKind, JournalEntry, Key, Position, Progress, Result, Runtime,
    Scan, Sequence, Token, Write,
};
use tokio::sync::{Notify, watch};

use super::pending::{Pending, Waiting};
use crate::flusher::Acceptor;

/// What one instance knows of its journal.
///
/// The one invariant: **every write up to `seen` is either among those that wait here, or settled.**
/// An append keeps it when it follows right on `seen`, else the writes between are looked up before
/// anybody relies on them.
///
/// What was looked up shows what waits, and not what was settled before its turn: between two that
/// wait, a later write of the same key may have been applied by another flusher. So a write that
/// waits is the latest of its key only from the end of the last look-up on, `gap`.
///
/// A write that is settled is in the database, and not yet in what the caches below show: whoever
/// applied it may have raised the cache generation instead of emptying them. So it goes on waiting
/// here until the caches have looked, [`keep_forgetting`](super::background::keep_forgetting).
///
/// A life of the journal begins here when all that waits in it is looked up, in one step. Until then
/// reads show what waited in the life before, and no write of the new one is answered.
#[derive(Debug)]
pub(super) struct Horizon {
    history: Arc<str>,
    runtime: Runtime,
    state: RwLock<State>,
    /// Epoch and place up to which the journal says that everything is settled.
    pub(super) settled: watch::Sender<(u64, Sequence)>,
    /// Up to where reads below see everything, and whether the buffer is closed.
    applied: watch::Sender<(Sequence, bool)>,
    /// How many wait for it.
    pub(super) waiters: watch::Sender<usize>,
    pub(super) wanted: Notify,
}

/// A place in one life of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct JournalPlace {
    pub(super) epoch: u64,
    pub(super) sequence: Sequence,
}

#[derive(Debug)]
struct State {
    progress: Progress,
    /// The newest life of the journal that there was news of.
    heard: u64,
    /// Everything at or below it is forgotten: reads below see it.
    forgotten: Sequence,
    /// When the oldest write that is not known to be settled was accepted, by the clock that deadlines
    /// have.
    oldest: Option<Instant>,
    seen: Sequence,
    gap: Sequence,
    /// The name of this life of the journal, kept so that tokens share it.
    name: (u64, Arc<str>),
    pending: Pending,
    durability: Durability,
}

impl Horizon {
    pub(super) fn new(history: Arc<str>, runtime: Runtime) -> Self {
        let state = State {
            progress: Progress::default(),
            heard: 0,
            forgotten: Sequence::NONE,
            oldest: None,
            seen: Sequence::NONE,
            gap: Sequence::NONE,
            name: (0, name_of(&history, 0)),
            pending: Pending::default(),
            // What no append has shown yet is not claimed.
            durability: Durability::Accepted,
        };
        Self {
            history,
            runtime,
            state: RwLock::new(state),
            settled: watch::Sender::new((0, Sequence::NONE)),
            applied: watch::Sender::new((Sequence::NONE, false)),
            waiters: watch::Sender::new(0),
            wanted: Notify::new(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Every change of the state is complete when a panic could happen, so poison means nothing.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what this instance has just appended.
    pub(super) fn add_own(&self, appended: &Appended, spans: &[(Sequence, &[Write])]) {
        let now = self.runtime.now();
        let mut state = self.write();
        if !state.is_of(appended.epoch) {
            return;
        }
        state.durability = appended.durability;
        let counted = state.progress.last;
        for (first, writes) in spans {
            state.oldest.get_or_insert(now);
            // News of the journal that came before this answer may have counted them.
            if *first > counted {
                state.progress.writes += writes.len() as u64;
            }
            for (sequence, write) in (0..).map(|n| first.plus(n)).zip(*writes) {
                state.add(sequence, write);
            }
        }
        if state.seen == appended.previous {
            state.seen = appended.last;
        }
        state.progress.last = state.progress.last.max(appended.last);
        drop(state);
        self.wanted.notify_one();
    }

    /// Takes in what was looked up after `after`: all there is up to `to`.
    pub(super) fn add_foreign(
        &self,
        epoch: u64,
        after: Sequence,
        to: Sequence,
        entries: Vec<JournalEntry>,
    ) {
        let mut state = self.write();
        if !state.is_of(epoch) {
            return;
        }
        for (sequence, write) in entries.iter().flat_map(waiting_of) {
            state.add(sequence, write);
        }
        // Something else may have moved it meanwhile.
        if state.seen >= after {
            state.seen = state.seen.max(to);
        }
        state.gap = state.gap.max(to);
        drop(state);
        self.wanted.notify_one();
    }

    pub(super) fn seen_short_of(&self, to: Sequence) -> Option<Sequence> {
        Some(self.read().seen).filter(|seen| *seen < to)
    }

    /// A life of the journal begins here, with all that waits in it up to `seen`. What waited here up
    /// to `kept`, which the journal has not lost, and is not in the backlog, is settled: it goes on
    /// waiting until the caches have looked.
    pub(super) fn begin(
        &self,
        progress: &Progress,
        seen: Sequence,
        mut backlog: Pending,
        kept: Sequence,
    ) {
        let epoch = progress.epoch;
        let mut state = self.write();
        if epoch <= state.progress.epoch {
            return;
        }
        backlog.take_over(&state.pending, kept);
        if state.progress.epoch > 0 {
            tracing::error!(
                waited = state.pending.len(),
                waiting = backlog.len(),
                "a new life of the journal began: it was lost, or its engine was restarted or \
                 replaced; what it still has was looked up"
            );
        }
        state.progress = Progress { epoch, ..Progress::default() };
        state.name = (epoch, name_of(&self.history, epoch));
        (state.oldest, state.forgotten) = (None, Sequence::NONE);
        (state.seen, state.gap, state.pending) = (seen, seen, backlog);
        self.take_in(&mut state, progress);
    }

    /// Whether the newest life of the journal that there was news of has begun here.
    pub(super) fn has_begun(&self) -> bool {
        let state = self.read();
        state.progress.epoch > 0 && state.heard <= state.progress.epoch
    }

    /// Returns once a life of the journal has begun here.
    pub(super) async fn until_begun(&self, epoch: u64) {
        let mut settled = self.settled.subscribe();
        if settled.borrow().0 < epoch {
            self.wanted.notify_one();
            // The sender lives as long as this borrow of it.
            let _ = settled.wait_for(|(known, _)| *known >= epoch).await;
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.read().progress
    }

    /// How long the oldest write has waited.
    pub(super) fn age(&self) -> Duration {
        let oldest = self.read().oldest;
        oldest.map_or(Duration::ZERO, |oldest| self.runtime.now().saturating_duration_since(oldest))
    }

    pub(super) fn last(&self) -> Sequence {
        self.read().progress.last
    }

    pub(super) fn durability(&self) -> Durability {
        self.read().durability
    }

    pub(super) fn waiting(&self) -> usize {
        self.read().pending.len()
    }

    /// What waits for these keys; `None` when nothing waits for any of them.
    pub(super) fn find(&self, keys: &[Key]) -> Option<Vec<Option<Waiting>>> {
        let state = self.read();
        if state.pending.len() == 0 {
            return None;
        }
        let found: Vec<_> = keys.iter().map(|key| state.pending.get(key).cloned()).collect();
        found.iter().any(Option::is_some).then_some(found)
    }

    /// As [`Horizon::find`], but only what is the latest of its key.
    ///
    /// # Errors
    /// The latest of what may not be; in the same step, since a look-up may add some at any time.
    pub(super) fn find_latest(
        &self,
        keys: &[Key],
    ) -> Result<Option<Vec<Option<Waiting>>>, Sequence> {
        let state = self.read();
        let found: Vec<_> = keys.iter().map(|key| state.pending.get(key).cloned()).collect();
        match state.doubtful(found.iter().flatten()) {
            Some(doubtful) => Err(doubtful),
            None => Ok(found.iter().any(Option::is_some).then_some(found)),
        }
    }

    /// What waits within a scan.
    pub(super) fn within(&self, scan: &Scan) -> Vec<Waiting> {
        let state = self.read();
        if state.pending.len() == 0 { Vec::new() } else { state.pending.within(scan) }
    }

    /// As [`Horizon::find_latest`], for a scan.
    ///
    /// # Errors
    /// As [`Horizon::find_latest`].
    pub(super) fn latest_within(&self, scan: &Scan) -> Result<Vec<Waiting>, Sequence> {
        let state = self.read();
        let found = state.pending.within(scan);
        match state.doubtful(found.iter()) {
            Some(doubtful) => Err(doubtful),
            None => Ok(found),
        }
    }

    /// What a client has seen that knows this place. A journal that was made anew is another history.
    pub(super) fn token(&self, epoch: u64, sequence: Sequence) -> Token {
        let known = Some(self.read().name.clone()).filter(|(named, _)| *named == epoch);
        let name = known.map_or_else(|| name_of(&self.history, epoch), |(_, name)| name);
        Token::of(name, Position::new(sequence.get()))
    }

    /// Proof of a place in the journal as it is known.
    pub(super) fn token_now(&self, sequence: Sequence) -> Token {
        self.token(self.read().progress.epoch, sequence)
    }

    /// What a token asks of this journal, and of others.
    pub(super) fn asked(&self, token: &Token) -> (Option<JournalPlace>, Token) {
        let (mut own, mut rest) = (None, Token::default());
        let current = self.read().progress.epoch;
        for (name, position) in token.marks() {
            let epoch = name.strip_prefix(&*self.history).and_then(|it| it.strip_prefix(':'));
            match epoch.and_then(|epoch| epoch.parse().ok()) {
                // A place in another life of the journal decides: it is lost, or yet to be heard of.
                Some(epoch) if own.is_none() || epoch != current => {
                    own = Some(JournalPlace { epoch, sequence: Sequence::new(position.get()) });
                }
                Some(_) => {}
                None => rest.merge(&Token::of(Arc::clone(name), position)),
            }
        }
        (own, rest)
    }

    /// Whether a place that a client has seen can be in this journal at all.
    ///
    /// # Errors
    /// `Unavailable` when it was in a journal that is gone, or lies beyond the end of this one.
    pub(super) fn check(&self, asked: JournalPlace) -> Result<()> {
        let Progress { epoch, last, .. } = self.read().progress;
        if asked.epoch == epoch && asked.sequence <= last {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the journal that accepted this client's write was lost or replaced; send the request \
             without Terrace-Token to read what is there",
        ))
    }

    /// Whether everything up to a place is known.
    pub(super) fn knows(&self, asked: JournalPlace) -> bool {
        let state = self.read();
        asked.epoch == state.progress.epoch && asked.sequence <= state.seen
    }

    /// The place that must be settled before every write of these keys up to `to` is, for everybody:
    /// where this instance has looked something up, another may still show a write of these keys that
    /// was settled before its turn, so all of that must be.
    pub(super) fn latest_of(&self, keys: &[Key], to: Sequence) -> Sequence {
        let state = self.read();
        let latest = keys.iter().filter_map(|key| state.pending.get(key));
        let latest = latest.map(|waiting| waiting.sequence().min(to)).max().unwrap_or_default();
        latest.max(state.gap.min(to))
    }

    /// The place that reads below must have reached for a token: as far as it is settled, since of
    /// the rest this instance knows itself.
    pub(super) fn settled_of(&self, asked: Sequence) -> Sequence {
        asked.min(self.read().progress.applied)
    }

    /// Returns once reads below see everything up to a place; `false` when the buffer is closed
    /// before.
    pub(super) async fn until_applied(&self, sequence: Sequence) -> bool {
        let mut applied = self.applied.subscribe();
        if applied.borrow().0 >= sequence {
            return true;
        }
        let _waiter = Waiter::new(self);
        self.wanted.notify_one();
        // The sender lives as long as this borrow of it.
        let news = applied.wait_for(|(applied, closed)| *applied >= sequence || *closed).await;
        news.is_ok_and(|news| news.0 >= sequence)
    }

    /// Forgets what reads below see from now on.
    pub(super) fn forget(&self, epoch: u64, applied: Sequence) {
        let mut state = self.write();
        if epoch != state.progress.epoch || applied <= state.forgotten {
            return;
        }
        state.forgotten = applied;
        state.pending.forget(applied);
        self.applied.send_modify(|(known, _)| *known = applied);
    }

    pub(super) fn close(&self) {
        self.applied.send_modify(|(_, closed)| *closed = true);
        self.wanted.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.applied.borrow().1
    }
}

/// The writes of an entry that wait, by their places.
pub(super) fn waiting_of(entry: &JournalEntry) -> impl Iterator<Item = (Sequence, &Write)> {
    // A dead letter that is tried again has its old sequence; what it would say of its key now is
    // not known here.
    let writes = if entry.first == entry.id { &*entry.writes } else { &[] };
    (0..).map(|n| entry.first.plus(n)).zip(writes)
}

/// What tokens call one life of a journal.
fn name_of(history: &str, epoch: u64) -> Arc<str> {
    format!("{history}:{epoch}").into()
}

impl State {
    /// Whether news are of the life that has begun here.
    fn is_of(&mut self, epoch: u64) -> bool {
        self.heard = self.heard.max(epoch);
        epoch == self.progress.epoch
    }

    /// The latest of these that may not be the latest of its key.
    fn doubtful<'a>(&self, waiting: impl Iterator<Item = &'a Waiting>) -> Option<Sequence> {
        waiting.map(Waiting::sequence).filter(|sequence| *sequence < self.gap).max()
    }

    fn add(&mut self, sequence: Sequence, write: &Write) {
        if sequence > self.forgotten {
            self.pending.add(sequence, write);
        }
    }
}

impl Horizon {
    /// Takes in how far the journal has come. Under the lock, or an older answer could follow a newer
    /// one.
    fn take_in(&self, state: &mut State, news: &Progress) {
        let now = self.runtime.now();
        let known = &mut state.progress;
        let epoch = known.epoch;
        // Answers may overtake each other: the one that is further along is the later one.
        let latest = news.applied >= known.applied && news.last >= known.last;
        if latest {
            (known.writes, known.bytes, known.dead) = (news.writes, news.bytes, news.dead);
        }
        known.last = known.last.max(news.last);
        known.applied = known.applied.max(news.applied);
        known.settled = known.settled.max(news.settled);
        let (applied, waits) = (known.applied, known.writes > 0);
        if latest {
            state.oldest = waits.then(|| now.checked_sub(news.age).unwrap_or(now));
        }
        // What is settled is known well enough.
        state.seen = state.seen.max(applied);
        self.settled.send_if_modified(|settled| {
            let news = *settled != (epoch, applied);
            *settled = (epoch, applied);
            news
        });
    }
}

impl Acceptor for Horizon {
    fn learn(&self, news: &Progress) {
        let mut state = self.write();
        if state.is_of(news.epoch) {
            self.take_in(&mut state, news);
        } else {
            drop(state);
            self.wanted.notify_one();
        }
    }

    fn awaited(&self) -> Option<watch::Receiver<usize>> {
        Some(self.waiters.subscribe())
    }
}

/// Somebody who waits for the journal to come further.
struct Waiter<'a>(&'a Horizon);

impl<'a> Waiter<'a> {
    fn new(horizon: &'a Horizon) -> Self {
        horizon.waiters.send_modify(|count| *count += 1);
        Self(horizon)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.send_modify(|count| *count -= 1);
    }
}
