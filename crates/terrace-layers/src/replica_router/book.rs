//! What is remembered of each server, and the table that follows from it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use terrace_core::{NodeState, Role, Standing};

use super::ReplicaRouterOptions;
use super::table::{Seat, Table, Trouble};

/// Under one lock, which only watches and failed reads take.
#[derive(Debug)]
pub(super) struct Book {
    /// What the newest primary said; who has another history is behind it, or none of these.
    standing: Standing,
    pages: Vec<Page>,
    /// Where the primary was, and when; both rise.
    marks: VecDeque<Mark>,
    marked: Option<usize>,
    /// The server that took the writes last.
    primary: Option<usize>,
    version: u64,
}

#[derive(Clone, Debug, Default)]
struct Page {
    state: Option<NodeState>,
    reached: Arc<AtomicU64>,
    fresh_as_of: Option<Instant>,
    /// Questions without an answer since the last that had one.
    silences: u32,
    /// Its reads rest until then.
    rests_until: Option<Instant>,
    /// How often it has rested lately.
    rests: u32,
    out: bool,
    returned: Option<Instant>,
}

/// Everything that the primary had acknowledged at `last` is before `log_end` of its log.
#[derive(Clone, Copy, Debug)]
struct Mark {
    log_end: u64,
    last: Instant,
}

impl Book {
    /// At ten a second, more than a minute and a half.
    const MARKS: usize = 1000;
    /// Questions without an answer that put a server out of service.
    const SILENCES: u32 = 2;
    const LONGEST_REST: Duration = Duration::from_secs(30);

    pub(super) fn new(history: Arc<str>, count: usize) -> Self {
        let pages = vec![Page::default(); count].into_iter();
        // Clones share what they count.
        let pages = pages.map(|page| Page { reached: Arc::default(), ..page }).collect();
        Self {
            standing: Standing::of(history),
            pages,
            marks: VecDeque::new(),
            marked: None,
            primary: None,
            version: 0,
        }
    }

    /// What the newest primary said of its history.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Notes what a server said when it was asked at `asked`.
    pub(super) fn heard(&mut self, number: usize, state: NodeState, asked: Instant) {
        let page = &mut self.pages[number];
        // A copy that began anew has gone back within its life.
        let back = page.state.as_ref().is_some_and(|known| known.log_end > state.log_end);
        let same = !back
            && page.state.as_ref().is_some_and(|known| {
                known.life == state.life && known.standing.history == state.standing.history
            });
        if same {
            page.reached.fetch_max(state.position.get(), Ordering::AcqRel);
        } else {
            page.reached = Arc::new(AtomicU64::new(state.position.get()));
        }
        if back || page.state.as_ref().is_some_and(|known| known.life != state.life) {
            // What it showed before it may show no more.
            page.fresh_as_of = None;
        }
        page.silences = 0;
        page.state = Some(state);
        self.choose();
        if self.primary == Some(number) {
            self.mark(number, asked);
        }
        self.measure(number);
    }

    /// Who takes the writes. One that is silent stays it until another claims: there is no better
    /// place to send a write to. But a server that does not answer claims nothing itself.
    fn choose(&mut self) {
        let mut claimants = self.claimants();
        let first = claimants.next();
        let rivals = claimants.next().is_some();
        drop(claimants);
        match first {
            Some(_) if rivals => self.primary = None,
            Some(number) => self.primary = Some(number),
            None => {
                let timeline = self.timeline();
                let state = |number: usize| self.pages[number].state.as_ref();
                self.primary = self.primary.filter(|&number| {
                    state(number)
                        .is_some_and(|it| it.role == Role::Primary && it.timeline == timeline)
                });
            }
        }
        let Some(number) = self.primary else { return };
        let Some(state) = &self.pages[number].state else { return };
        if self.standing != state.standing {
            let another = self.standing.history != state.standing.history;
            self.standing = state.standing.clone();
            if another {
                // What was measured by the log of another history says nothing of this one.
                self.marks.clear();
                self.pages.iter_mut().for_each(|page| page.fresh_as_of = None);
            }
        }
    }

    /// Notes that a server did not answer.
    pub(super) fn silent(&mut self, number: usize) {
        let page = &mut self.pages[number];
        page.silences = page.silences.saturating_add(1);
        self.choose();
    }

    /// Lets a server rest whose reads fail, if enough others are left.
    pub(super) fn rest(&mut self, number: usize, now: Instant, options: &ReplicaRouterOptions) {
        let others = self.in_service(now).filter(|&other| other != number).count();
        let page = &mut self.pages[number];
        if others < options.min_healthy || page.rests_until.is_some_and(|until| now < until) {
            return;
        }
        // Failures that are long past count no more.
        if page.rests_until.is_some_and(|until| now > until + Self::LONGEST_REST) {
            page.rests = 0;
        }
        let rest = options.rest.saturating_mul(1 << page.rests.min(5)).min(Self::LONGEST_REST);
        page.rests += 1;
        page.rests_until = Some(now + rest);
    }

    /// The newest timeline on which anybody took writes.
    fn timeline(&self) -> u64 {
        self.primaries().map(|(_, state)| state.timeline).max().unwrap_or(0)
    }

    /// What those have said that take writes and are of this database, in one life or another. The
    /// primary itself may have become another database, by a restore; no other server may.
    fn primaries(&self) -> impl Iterator<Item = (usize, &NodeState)> {
        let all = self.pages.iter().enumerate();
        let states = all.filter_map(|(number, page)| Some((number, page.state.as_ref()?)));
        states.filter(|(number, state)| {
            let became = || {
                self.primary == Some(*number)
                    && state.standing.past.contains(&self.standing.history)
            };
            state.role == Role::Primary && (state.standing.is_kin(&self.standing) || became())
        })
    }

    /// Servers that say that they take writes, on the newest timeline.
    fn claimants(&self) -> impl Iterator<Item = usize> {
        let timeline = self.timeline();
        self.primaries().filter_map(move |(number, state)| {
            let claims = state.timeline == timeline && self.pages[number].silences < Self::SILENCES;
            claims.then_some(number)
        })
    }

    fn mark(&mut self, number: usize, asked: Instant) {
        let Some(state) = &self.pages[number].state else { return };
        if self.marked != Some(number) {
            self.marks.clear();
            self.marked = Some(number);
        }
        let log_end = state.log_end;
        match self.marks.back_mut() {
            Some(mark) if mark.log_end >= log_end => mark.last = mark.last.max(asked),
            _ => self.marks.push_back(Mark { log_end, last: asked }),
        }
        if self.marks.len() > Self::MARKS {
            self.marks.pop_front();
        }
    }

    /// A replica that has come to where the primary was is as fresh as that.
    fn measure(&mut self, number: usize) {
        let page = &mut self.pages[number];
        let Some(state) = &page.state else { return };
        if state.standing.history != self.standing.history {
            return;
        }
        let past = self.marks.partition_point(|mark| mark.log_end <= state.log_end);
        let passed = past.checked_sub(1).map(|index| self.marks[index].last);
        page.fresh_as_of = page.fresh_as_of.max(passed);
    }

    fn in_service(&self, now: Instant) -> impl Iterator<Item = usize> {
        self.pages.iter().enumerate().filter_map(move |(number, page)| {
            let state = page.state.as_ref()?;
            let serves = state.role == Role::Replica && self.trouble(page, now).is_none();
            serves.then_some(number)
        })
    }

    fn trouble(&self, page: &Page, now: Instant) -> Option<Trouble> {
        let state = page.state.as_ref()?;
        if page.silences >= Self::SILENCES {
            return Some(Trouble::Silent);
        }
        let standing = &state.standing;
        let is_behind = self.standing.past.contains(&standing.history);
        if !standing.is_kin(&self.standing) && !is_behind {
            return Some(Trouble::Foreign);
        }
        let is_primary = state.role == Role::Primary;
        let outdated = match is_primary {
            true => state.timeline < self.timeline(),
            false => state.standing.history != self.standing.history,
        };
        if outdated {
            return Some(Trouble::Outdated);
        }
        if is_primary {
            return (self.claimants().count() > 1).then_some(Trouble::Rival);
        }
        page.rests_until.is_some_and(|until| now < until).then_some(Trouble::Failing)
    }

    /// The table that follows from all this.
    pub(super) fn table(&mut self, now: Instant) -> Table {
        self.version += 1;
        let troubles = self.pages.iter().map(|page| self.trouble(page, now)).collect::<Vec<_>>();
        for (page, trouble) in self.pages.iter_mut().zip(&troubles) {
            if page.out && trouble.is_none() {
                page.returned = Some(now);
            }
            page.out = trouble.is_some();
        }
        let seats = self.pages.iter().zip(troubles).map(|(page, trouble)| {
            let state = page.state.as_ref()?;
            Some(Seat {
                life: state.life,
                reached: Arc::clone(&page.reached),
                fresh_as_of: page.fresh_as_of,
                returned: page.returned,
                trouble,
            })
        });
        Table {
            version: self.version,
            seats: seats.collect(),
            replicas: self.in_service(now).collect(),
            primary: self.primary,
            rivals: self.claimants().count() > 1,
            timeline: self.timeline(),
            standing: self.standing.clone(),
        }
    }
}
