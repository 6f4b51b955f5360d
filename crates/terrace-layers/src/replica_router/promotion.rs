//! What a promotion means: which server takes the writes, and whose history is in force.

use std::sync::Arc;

use terrace_core::{NodeState, Role, Standing};

use super::table::{Seat, Trouble, is_named_before};

/// Follows from what the servers have said, and from who led before.
#[derive(Clone, Debug)]
pub(super) struct Lead {
    /// The server that takes writes.
    pub(super) primary: Option<usize>,
    /// Several claim to, on the newest timeline.
    pub(super) rivals: bool,
    /// The newest timeline on which anybody took writes.
    pub(super) timeline: u64,
    /// What the newest primary said; who has another history is behind it, or none of these.
    pub(super) standing: Standing,
}

impl Lead {
    /// Nobody has been heard yet.
    pub(super) fn of(history: Arc<str>) -> Self {
        Self { primary: None, rivals: false, timeline: 0, standing: Standing::of(history) }
    }

    /// Who leads now. A primary that is silent stays it until another claims: there is no better
    /// place to send a write to. But a server that does not answer claims nothing itself.
    pub(super) fn after(&self, seats: &[Option<Seat>]) -> Self {
        let mut next = self.clone();
        next.primary = match *self.claimants(seats) {
            [] => self.primary.filter(|&number| {
                let timeline = self.newest_timeline(seats);
                seats[number].as_ref().is_some_and(|Seat { state, .. }| {
                    state.role == Role::Primary && state.timeline == timeline
                })
            }),
            [only] => Some(only),
            _ => None,
        };
        if let Some(seat) = next.primary.and_then(|number| seats[number].as_ref()) {
            next.standing = seat.state.standing.clone();
        }
        next.timeline = next.newest_timeline(seats);
        next.rivals = next.claimants(seats).len() > 1;
        next
    }

    /// Why a server may not be used under this lead, however well it does.
    pub(super) fn refuses(&self, state: &NodeState) -> Option<Trouble> {
        let standing = &state.standing;
        let is_behind = self.standing.past.contains(&standing.history);
        let is_primary = state.role == Role::Primary;
        let is_outdated = match is_primary {
            true => state.timeline < self.timeline,
            false => standing.history != self.standing.history,
        };
        match () {
            () if !standing.is_kin(&self.standing) && !is_behind => Some(Trouble::Foreign),
            () if is_outdated => Some(Trouble::Outdated),
            () => (is_primary && self.rivals).then_some(Trouble::Rival),
        }
    }

    /// Servers that say that they take writes, on the newest timeline.
    fn claimants(&self, seats: &[Option<Seat>]) -> Box<[usize]> {
        let timeline = self.newest_timeline(seats);
        let claims = |(number, seat): (usize, &Seat)| {
            (seat.state.timeline == timeline && !seat.is_silent()).then_some(number)
        };
        self.primaries(seats).filter_map(claims).collect()
    }

    fn newest_timeline(&self, seats: &[Option<Seat>]) -> u64 {
        self.primaries(seats).map(|(_, seat)| seat.state.timeline).max().unwrap_or(0)
    }

    /// Those that take writes and are of this database, in one life or another. The primary itself may
    /// have become another database, by a restore; no other server may.
    fn primaries<'a>(&self, seats: &'a [Option<Seat>]) -> impl Iterator<Item = (usize, &'a Seat)> {
        let all = seats.iter().enumerate();
        let heard = all.filter_map(|(number, seat)| Some((number, seat.as_ref()?)));
        let each = heard.filter(|(number, _)| !is_named_before(seats, *number));
        each.filter(|(number, Seat { state, .. })| {
            let became = || {
                self.primary == Some(*number)
                    && state.standing.past.contains(&self.standing.history)
            };
            state.role == Role::Primary && (state.standing.is_kin(&self.standing) || became())
        })
    }

    pub(super) fn why_no_primary(&self) -> &'static str {
        if self.rivals {
            "two servers take writes on the same timeline, so writes have stopped; demote one of \
             them, or take it out of the settings and restart Terrace"
        } else {
            "no server takes writes; start the primary, or promote a replica"
        }
    }
}
