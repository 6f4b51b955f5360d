//! The state machine of a breaker.

use std::time::{Duration, Instant};

use super::{BreakerState, Trip};
use crate::{Backoff, Runtime};

/// Whose outcome it is. The number is the [stretch](Circuit::stretch) in which the call was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Made its call without asking.
    Other,
    /// Met a closed breaker.
    Admitted(u64),
    /// Has one of the places of probes.
    Probe(u64),
}

#[derive(Debug)]
pub(super) struct Circuit {
    trip: Trip,
    pauses: Backoff,
    /// Failures in a row while it is closed.
    failures: u32,
    lately: Lately,
    /// Grows when it opens, also anew, and when it closes. What was admitted in an earlier one says
    /// nothing of this one.
    stretch: u64,
    /// `None` while it is closed.
    broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug)]
struct Broken {
    /// Open until then, half-open from then on.
    until: Instant,
    /// Probes of which nothing is known yet.
    under_way: u32,
    /// Probes that have succeeded.
    passed: u32,
}

impl Circuit {
    pub(super) fn new(trip: Trip, pauses: Backoff, now: Instant) -> Self {
        let lately = Lately::new(now);
        Self { trip, pauses, failures: 0, lately, stretch: 0, broken: None }
    }

    pub(super) fn stretch(&self) -> u64 {
        self.stretch
    }

    /// Whether it may refuse a call, or a success in a row would change it.
    pub(super) fn is_troubled(&self) -> bool {
        self.broken.is_some() || self.failures > 0
    }

    pub(super) fn state(&self, now: Instant) -> BreakerState {
        match &self.broken {
            None => BreakerState::Closed,
            Some(broken) if now < broken.until || !self.has_room(broken) => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// Whether one more probe is wanted.
    fn has_room(&self, broken: &Broken) -> bool {
        broken.under_way + broken.passed < self.trip.probes()
    }

    /// Admits a call, as a probe where only that is possible. The place is taken here, so no two callers
    /// are given the same.
    pub(super) fn admit(&mut self, now: Instant) -> Option<Caller> {
        let state = self.state(now);
        let Some(broken) = &mut self.broken else { return Some(Caller::Admitted(self.stretch)) };
        if state != BreakerState::HalfOpen {
            return None;
        }
        broken.under_way += 1;
        Some(Caller::Probe(self.stretch))
    }

    /// A probe has ended without an outcome.
    pub(super) fn give_back(&mut self, stretch: u64) {
        if let Some(broken) = self.broken.as_mut().filter(|_| stretch == self.stretch) {
            broken.under_way -= 1;
        }
    }

    pub(super) fn succeeded(&mut self, caller: Caller, now: Instant) -> bool {
        let is_probe = caller == Caller::Probe(self.stretch);
        match (&mut self.broken, self.trip) {
            (_, Trip::InARow(_)) => self.close(now),
            (None, Trip::Rate { within, .. }) => {
                if self.counts(caller) {
                    self.lately.note(false, within, now);
                }
                false
            }
            (Some(broken), Trip::Rate { .. }) if is_probe => {
                broken.under_way -= 1;
                broken.passed += 1;
                broken.passed >= self.trip.probes() && self.close(now)
            }
            (Some(_), Trip::Rate { .. }) => false,
        }
    }

    fn close(&mut self, now: Instant) -> bool {
        self.failures = 0;
        self.lately = Lately::new(now);
        self.pauses.reset();
        let was_broken = self.broken.take().is_some();
        self.stretch += u64::from(was_broken);
        was_broken
    }

    pub(super) fn failed(&mut self, caller: Caller, runtime: &Runtime) -> bool {
        if self.broken.is_some() {
            if caller == Caller::Probe(self.stretch) {
                self.open(runtime);
            }
            return false;
        }
        let opens = self.counts(caller) && self.is_too_much(runtime.now());
        if opens {
            self.open(runtime);
        }
        opens
    }

    /// Whether an outcome is of this stretch.
    fn counts(&self, caller: Caller) -> bool {
        matches!(caller, Caller::Other) || caller == Caller::Admitted(self.stretch)
    }

    /// Counts one more failure of a closed breaker.
    fn is_too_much(&mut self, now: Instant) -> bool {
        match self.trip {
            Trip::InARow(threshold) => {
                self.failures += 1;
                self.failures >= threshold
            }
            Trip::Rate { percent, calls, within, .. } => {
                self.lately.note(true, within, now);
                let (all, failed) = self.lately.sums();
                all >= u64::from(calls) && failed * 100 >= all * u64::from(percent)
            }
        }
    }

    fn open(&mut self, runtime: &Runtime) {
        let until = runtime.now() + self.pauses.next_pause(runtime);
        self.broken = Some(Broken { until, under_way: 0, passed: 0 });
        self.stretch += 1;
    }
}

/// How the calls of the last while went: this half of the window, and the one before.
#[derive(Debug)]
struct Lately {
    began: Instant,
    halves: [Tally; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    all: u64,
    failed: u64,
}

impl Lately {
    fn new(now: Instant) -> Self {
        Self { began: now, halves: <[Tally; 2]>::default() }
    }

    fn note(&mut self, failed: bool, within: Duration, now: Instant) {
        let passed = now.saturating_duration_since(self.began);
        if passed >= within {
            *self = Self::new(now);
        } else if passed >= within / 2 {
            *self = Self { began: now, halves: [Tally::default(), self.halves[0]] };
        }
        self.halves[0].all += 1;
        self.halves[0].failed += u64::from(failed);
    }

    fn sums(&self) -> (u64, u64) {
        let [now, before] = self.halves;
        (now.all + before.all, now.failed + before.failed)
    }
}
