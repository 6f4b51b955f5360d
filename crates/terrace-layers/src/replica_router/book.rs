//! What is remembered of each server, and the table that follows from it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use terrace_core::{NodeState, Position, Role};

use super::ReplicaRouterOptions;
use super::table::{Seat, Table, Trouble};

/// Under one lock, which only watches and failed reads take.
#[derive(Debug)]
pub(super) struct Book {
    /// The name of the records' history; who has another is none of these.
    history: Arc<str>,
    pages: Vec<Page>,
    /// Where the primary was, and when; both rise.
    marks: VecDeque<Mark>,
    marked: Option<usize>,
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

/// Everything that the primary had acknowledged at `last` is before `position`.
#[derive(Clone, Copy, Debug)]
struct Mark {
    position: Position,
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
        Self { history, pages, marks: VecDeque::new(), marked: None, version: 0 }
    }

    /// Notes what a server said when it was asked at `asked`.
    pub(super) fn heard(&mut self, number: usize, state: NodeState, asked: Instant) {
        let page = &mut self.pages[number];
        // A copy that began anew has gone back within its life.
        let back = page.state.as_ref().is_some_and(|known| known.position > state.position);
        let same = !back
            && page.state.as_ref().is_some_and(|known| {
                (known.life, known.position.epoch) == (state.life, state.position.epoch)
            });
        if same {
            page.reached.fetch_max(state.position.offset, Ordering::AcqRel);
        } else {
            page.reached = Arc::new(AtomicU64::new(state.position.offset));
        }
        if back || page.state.as_ref().is_some_and(|known| known.life != state.life) {
            // What it showed before it may show no more.
            page.fresh_as_of = None;
        }
        page.silences = 0;
        page.state = Some(state);
        if self.primary() == Some(number) {
            self.mark(number, asked);
        }
        self.measure(number);
    }

    /// Notes that a server did not answer.
    pub(super) fn silent(&mut self, number: usize) {
        let page = &mut self.pages[number];
        page.silences = page.silences.saturating_add(1);
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

    /// The newest timeline that anybody has ever spoken of.
    fn epoch(&self) -> u64 {
        self.states().map(|(_, state)| state.position.epoch).max().unwrap_or(0)
    }

    /// What those of this history have said.
    fn states(&self) -> impl Iterator<Item = (usize, &NodeState)> {
        let all = self.pages.iter().enumerate();
        let states = all.filter_map(|(number, page)| Some((number, page.state.as_ref()?)));
        states.filter(|(_, state)| state.history == self.history)
    }

    fn claimants(&self) -> impl Iterator<Item = usize> {
        let epoch = self.epoch();
        self.states().filter_map(move |(number, state)| {
            (state.role == Role::Primary && state.position.epoch == epoch).then_some(number)
        })
    }

    /// The one server that takes writes on the newest timeline. One that is silent stays it until
    /// another claims: there is no better place to send a write to.
    fn primary(&self) -> Option<usize> {
        let mut claimants = self.claimants();
        claimants.next().filter(|_| claimants.next().is_none())
    }

    fn mark(&mut self, number: usize, asked: Instant) {
        let Some(state) = &self.pages[number].state else { return };
        if self.marked != Some(number) {
            self.marks.clear();
            self.marked = Some(number);
        }
        let position = state.position;
        match self.marks.back_mut() {
            Some(mark) if mark.position >= position => mark.last = mark.last.max(asked),
            _ => self.marks.push_back(Mark { position, last: asked }),
        }
        if self.marks.len() > Self::MARKS {
            self.marks.pop_front();
        }
    }

    /// A replica that has come to where the primary was is as fresh as that.
    fn measure(&mut self, number: usize) {
        let page = &mut self.pages[number];
        let Some(state) = &page.state else { return };
        let position = state.position;
        let past = self.marks.partition_point(|mark| mark.position <= position);
        // Where the primary was on another timeline says nothing of this one.
        let passed = past.checked_sub(1).map(|index| self.marks[index]);
        let passed = passed.filter(|mark| mark.position.epoch == position.epoch);
        let passed = passed.map(|mark| mark.last);
        page.fresh_as_of = page.fresh_as_of.max(passed);
    }

    fn in_service(&self, now: Instant) -> impl Iterator<Item = usize> {
        let epoch = self.epoch();
        self.pages.iter().enumerate().filter_map(move |(number, page)| {
            let state = page.state.as_ref()?;
            let serves = state.role == Role::Replica && self.trouble(page, epoch, now).is_none();
            serves.then_some(number)
        })
    }

    fn trouble(&self, page: &Page, epoch: u64, now: Instant) -> Option<Trouble> {
        let state = page.state.as_ref()?;
        if page.silences >= Self::SILENCES {
            return Some(Trouble::Silent);
        }
        if state.history != self.history {
            return Some(Trouble::Foreign);
        }
        if state.position.epoch < epoch {
            return Some(Trouble::Outdated);
        }
        if state.role == Role::Primary {
            return (self.claimants().count() > 1).then_some(Trouble::Rival);
        }
        page.rests_until.is_some_and(|until| now < until).then_some(Trouble::Failing)
    }

    /// The table that follows from all this.
    pub(super) fn table(&mut self, now: Instant) -> Table {
        self.version += 1;
        let epoch = self.epoch();
        let troubles =
            self.pages.iter().map(|page| self.trouble(page, epoch, now)).collect::<Vec<_>>();
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
                epoch: state.position.epoch,
                reached: Arc::clone(&page.reached),
                fresh_as_of: page.fresh_as_of,
                returned: page.returned,
                trouble,
            })
        });
        let forks = self.states().map(|(_, state)| state);
        let forks = forks.filter(|state| state.position.epoch == epoch);
        let forks = forks.max_by_key(|state| state.forks.len());
        Table {
            version: self.version,
            seats: seats.collect(),
            replicas: self.in_service(now).collect(),
            primary: self.primary(),
            rivals: self.claimants().count() > 1,
            epoch,
            forks: forks.map(|state| state.forks.clone()).unwrap_or_default(),
            names: self
                .states()
                .next()
                .map(|(_, state)| (Arc::clone(&state.history), Arc::clone(&state.log))),
        }
    }
}
