//! Which replicas are fresh enough.
//!
//! Lag is not what a replica believes. The router remembers where the log of the primary was, and
//! when: a replica that has come to where the primary was a second ago is at most a second old. Only who has
//! seen no primary since it started has nothing but the replica's word, and takes it for reads that would
//! else be refused.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use terrace_core::{NodeState, Position};

use super::table::Seat;

/// What a read wants of a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// It shows all up to here.
    pub(super) reached: Position,
    /// It is no older than this.
    pub(super) within: Duration,
}

/// Where the log of the primary was, and when; both rise.
#[derive(Debug, Default)]
pub(super) struct PrimaryLog {
    marks: VecDeque<Mark>,
    /// The server whose log it is.
    of: Option<usize>,
}

/// Everything that the primary had acknowledged at `last` is before `log_end` of its log.
#[derive(Clone, Copy, Debug)]
struct Mark {
    log_end: u64,
    last: Instant,
}

impl PrimaryLog {
    /// At ten a second, more than a minute and a half.
    const MARKS: usize = 1000;

    /// The primary is this server, which was asked at `asked`.
    pub(super) fn note(&mut self, number: usize, log_end: u64, asked: Instant) {
        if self.of.replace(number) != Some(number) {
            self.marks.clear();
        }
        match self.marks.back_mut() {
            Some(mark) if mark.log_end >= log_end => mark.last = mark.last.max(asked),
            _ => self.marks.push_back(Mark { log_end, last: asked }),
        }
        if self.marks.len() > Self::MARKS {
            self.marks.pop_front();
        }
    }

    /// The latest moment by which the primary had come no further than this.
    pub(super) fn passed(&self, log_end: u64) -> Option<Instant> {
        let past = self.marks.partition_point(|mark| mark.log_end <= log_end);
        Some(self.marks[past.checked_sub(1)?].last)
    }

    /// What was measured by the log of another history says nothing of this one.
    pub(super) fn forget(&mut self) {
        self.marks.clear();
    }
}

impl Seat {
    /// What is known of a server after it has said this.
    pub(super) fn heard(known: Option<Self>, state: NodeState, asked: Instant) -> Self {
        let position = state.position.get();
        let Some(known) = known else {
            let reached = Arc::new(AtomicU64::new(position));
            let (fresh_as_of, returned, trouble) = (None, None, None);
            return Self { state, reached, asked, fresh_as_of, silences: 0, returned, trouble };
        };
        let same_life = known.state.life == state.life;
        // A copy that began anew has gone back within its life.
        let back = known.state.log_end > state.log_end;
        let same_history = known.state.standing.history == state.standing.history;
        let reached = if same_life && same_history && !back {
            known.reached.fetch_max(position, Ordering::AcqRel);
            known.reached
        } else {
            Arc::new(AtomicU64::new(position))
        };
        // What it showed before it may show no more.
        let fresh_as_of = known.fresh_as_of.filter(|_| same_life && !back);
        Self { state, reached, asked, fresh_as_of, silences: 0, ..known }
    }

    /// Whether this is the same life in the same history, in which nothing went back.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.state.life == other.state.life && Arc::ptr_eq(&self.reached, &other.reached)
    }

    /// Notes what an answer has shown, which may be news before the next question.
    pub(super) fn shows(&self, position: Position) {
        // Nearly never news, and what all readers write is slow.
        if !self.has_reached(position) {
            self.reached.fetch_max(position.get(), Ordering::AcqRel);
        }
    }

    pub(super) fn has_reached(&self, position: Position) -> bool {
        self.reached.load(Ordering::Acquire) >= position.get()
    }

    /// How old what it shows may be; `None` when nobody knows.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        let ago = |ago| now.saturating_duration_since(self.asked).saturating_add(ago);
        self.measured_age(now).or_else(|| self.state.committed_ago.map(ago))
    }

    /// The same by the log of the primary alone.
    fn measured_age(&self, now: Instant) -> Option<Duration> {
        self.fresh_as_of.map(|then| now.saturating_duration_since(then))
    }

    pub(super) fn grants(&self, wish: Wish, now: Instant) -> bool {
        let age = match wish.within {
            Duration::MAX => self.age(now),
            _ => self.measured_age(now),
        };
        self.has_reached(wish.reached) && age.is_some_and(|age| age <= wish.within)
    }
}
