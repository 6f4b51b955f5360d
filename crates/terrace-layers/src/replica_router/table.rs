//! What is known of all servers at one moment, as every read looks at it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use terrace_core::{NodeState, Role};

use super::freshness::PrimaryLog;
use super::promotion::Lead;

/// All servers. A table that reads look at is never changed, only replaced.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// The number of this table; later ones are greater.
    pub(super) version: u64,
    /// What each server said; `None` of one that never did.
    pub(super) seats: Vec<Option<Seat>>,
    /// Replicas in service that follow the newest timeline.
    pub(super) replicas: Vec<usize>,
    pub(super) lead: Lead,
}

/// What is known of one server.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    /// What it said last.
    pub(super) state: NodeState,
    /// What it shows; answers move it on. Shared by the tables of one life and history.
    pub(super) reached: Arc<AtomicU64>,
    /// When it was asked for that.
    pub(super) asked: Instant,
    /// It shows everything that was acknowledged before.
    pub(super) fresh_as_of: Option<Instant>,
    /// Questions without an answer since the last that had one.
    pub(super) silences: u32,
    /// When it came back into service, if it was out.
    pub(super) returned: Option<Instant>,
    pub(super) trouble: Option<Trouble>,
}

/// Why a server is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It does not answer.
    Silent,
    /// It is on an older timeline.
    Outdated,
    /// It has the records of another database.
    Foreign,
    /// Another claims the same timeline.
    Rival,
    /// It is one of the others, by another address.
    Twice,
}

impl Seat {
    /// Questions without an answer that put a server out of service.
    const SILENCES: u32 = 2;

    pub(super) fn is_silent(&self) -> bool {
        self.silences >= Self::SILENCES
    }

    fn is_same_server(&self, other: &Self) -> bool {
        let (one, other) = (&self.state, &other.state);
        (one.life, one.role) == (other.life, other.role)
            && one.standing.history == other.standing.history
    }
}

/// Whether a server answers by the address of an earlier one, too; it counts as that one alone.
pub(super) fn is_named_before(seats: &[Option<Seat>], number: usize) -> bool {
    let Some(seat) = &seats[number] else { return false };
    let mut before = seats[..number].iter().flatten();
    before.any(|other| !other.is_silent() && other.is_same_server(seat))
}

impl Table {
    pub(super) fn new(history: Arc<str>, count: usize) -> Self {
        let (seats, replicas) = (vec![None; count], Vec::new());
        Self { version: 0, seats, replicas, lead: Lead::of(history) }
    }

    /// Notes what a server said when it was asked at `asked`.
    pub(super) fn heard(
        &mut self,
        number: usize,
        state: NodeState,
        asked: Instant,
        log: &mut PrimaryLog,
    ) {
        let (history, log_end) = (Arc::clone(&state.standing.history), state.log_end);
        let known = self.seats[number].take();
        self.seats[number] = Some(Seat::heard(known, state, asked));
        self.choose(log);
        if self.lead.primary == Some(number) {
            log.note(number, log_end, asked);
        }
        if let Some(seat) = &mut self.seats[number]
            && history == self.lead.standing.history
        {
            seat.fresh_as_of = seat.fresh_as_of.max(log.passed(log_end));
        }
    }

    /// Notes that a server did not answer.
    pub(super) fn silent(&mut self, number: usize, log: &mut PrimaryLog) {
        if let Some(seat) = &mut self.seats[number] {
            seat.silences = seat.silences.saturating_add(1);
        }
        self.choose(log);
    }

    /// Notes that the reads of a server succeed again.
    pub(super) fn recovered(&mut self, number: usize, now: Instant) {
        if let Some(seat) = &mut self.seats[number] {
            seat.returned = Some(now);
        }
    }

    fn choose(&mut self, log: &mut PrimaryLog) {
        let lead = self.lead.after(&self.seats);
        if lead.standing.history != self.lead.standing.history {
            log.forget();
            self.seats.iter_mut().flatten().for_each(|seat| seat.fresh_as_of = None);
        }
        self.lead = lead;
    }

    /// Draws the conclusions from what was noted.
    pub(super) fn conclude(&mut self, now: Instant) {
        self.version += 1;
        self.replicas.clear();
        let twice: Box<[_]> =
            (0..self.seats.len()).map(|number| is_named_before(&self.seats, number)).collect();
        for (number, seat) in self.seats.iter_mut().enumerate() {
            let Some(seat) = seat else { continue };
            let trouble = match seat.is_silent() {
                true => Some(Trouble::Silent),
                false => {
                    let refused = self.lead.refuses(&seat.state);
                    refused.or_else(|| twice[number].then_some(Trouble::Twice))
                }
            };
            if seat.trouble.is_some() && trouble.is_none() {
                seat.returned = Some(now);
            }
            seat.trouble = trouble;
            if trouble.is_none() && seat.state.role == Role::Replica {
                self.replicas.push(number);
            }
        }
    }

    /// Whether there is no primary to be asked now.
    pub(super) fn is_primary_silent(&self) -> bool {
        let seat = self.lead.primary.and_then(|number| self.seats[number].as_ref());
        seat.is_none_or(|seat| seat.trouble == Some(Trouble::Silent))
    }

    /// Why a server does less than it could, for people.
    pub(super) fn trouble(&self, number: usize) -> Option<&'static str> {
        let Some(seat) = &self.seats[number] else {
            return Some("it has not answered yet; it is asked again");
        };
        Some(match seat.trouble? {
            Trouble::Silent => "it does not answer; it is asked again",
            Trouble::Outdated => {
                "it does not follow the primary that was promoted last and is ignored; make it a \
                 standby of that one"
            }
            Trouble::Foreign => "it has the records of another database; correct its URL",
            Trouble::Rival => {
                "it takes writes, and so does another on the same timeline; demote one of them"
            }
            Trouble::Twice => {
                "it is the same server as another one of the settings and counts once; correct its \
                 URL, or take it out"
            }
        })
    }
}
