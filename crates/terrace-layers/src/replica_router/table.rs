//! What is known of all servers at one moment, as every read looks at it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use terrace_core::{Position, Standing, Status};

/// All servers; never changed, only replaced.
#[derive(Debug)]
pub(super) struct Table {
    /// The number of this table; later ones are greater.
    pub(super) version: u64,
    /// What each server said; `None` of one that never did.
    pub(super) seats: Vec<Option<Seat>>,
    /// Replicas in service that follow the newest timeline.
    pub(super) replicas: Vec<usize>,
    /// The server that takes writes.
    pub(super) primary: Option<usize>,
    /// Several claim to, on the newest timeline.
    pub(super) rivals: bool,
    /// The newest timeline on which anybody took writes.
    pub(super) timeline: u64,
    /// The history of the newest primary.
    pub(super) standing: Standing,
}

/// What one server said.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) life: u64,
    /// What it shows; answers move it on. Shared by the tables of one life and history.
    pub(super) reached: Arc<AtomicU64>,
    /// It shows everything that was acknowledged before.
    pub(super) fresh_as_of: Option<Instant>,
    /// When it came back into service, if it was out.
    pub(super) returned: Option<Instant>,
    pub(super) trouble: Option<Trouble>,
}

/// Why a server is not used, or not in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It does not answer.
    Silent,
    /// Its reads fail.
    Failing,
    /// It is on an older timeline.
    Outdated,
    /// It has the records of another database.
    Foreign,
    /// Another claims the same timeline.
    Rival,
}

impl Table {
    pub(super) fn empty(count: usize) -> Self {
        Self {
            version: 0,
            seats: vec![None; count],
            replicas: Vec::new(),
            primary: None,
            rivals: false,
            timeline: 0,
            standing: Standing::of(""),
        }
    }

    pub(super) fn why_no_primary(&self) -> &'static str {
        if self.rivals {
            "two servers take writes on the same timeline, so writes have stopped; demote one of \
             them, or take it out of the settings and restart Terrace"
        } else {
            "no server takes writes; start the primary, or promote a replica"
        }
    }

    /// Whether there is no primary to be asked now.
    pub(super) fn is_primary_silent(&self) -> bool {
        let seat = self.primary.and_then(|number| self.seats[number].as_ref());
        seat.is_none_or(|seat| seat.trouble == Some(Trouble::Silent))
    }

    /// Why a server does less than it could, for people.
    pub(super) fn trouble(&self, number: usize) -> Option<(Status, &'static str)> {
        let Some(seat) = &self.seats[number] else {
            return Some((Status::Down, "it has not answered yet; it is asked again"));
        };
        Some(match seat.trouble? {
            Trouble::Silent => (Status::Down, "it does not answer; it is asked again"),
            Trouble::Failing => (Status::Degraded, "its reads failed, so it rests for a while"),
            Trouble::Outdated => (
                Status::Down,
                "it does not follow the primary that was promoted last and is ignored; make it a \
                 standby of that one",
            ),
            Trouble::Foreign => {
                (Status::Down, "it has the records of another database; correct its URL")
            }
            Trouble::Rival => (
                Status::Down,
                "it takes writes, and so does another on the same timeline; demote one of them",
            ),
        })
    }
}

impl Seat {
    /// How old what it shows may be; `None` when nobody knows.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        self.fresh_as_of.map(|then| now.saturating_duration_since(then))
    }

    /// Whether this is the same life in the same history, in which nothing went back.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.life == other.life && Arc::ptr_eq(&self.reached, &other.reached)
    }

    pub(super) fn has_reached(&self, position: Position) -> bool {
        self.reached.load(Ordering::Acquire) >= position.get()
    }

    /// Its share of the reads, 0.1 to 1, while it comes back.
    pub(super) fn share(&self, now: Instant, ramp: Duration) -> f64 {
        match self.returned {
            Some(returned) if !ramp.is_zero() => {
                let since = now.saturating_duration_since(returned);
                (0.1 + 0.9 * since.as_secs_f64() / ramp.as_secs_f64()).min(1.0)
            }
            _ => 1.0,
        }
    }
}
