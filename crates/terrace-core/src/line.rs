//! Where calls wait for the next batch.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A bounded line of jobs. They leave in the order of arrival, many at a time; one whose caller goes
/// away leaves at once.
///
/// It is emptied by *lanes*, tasks that callers start and that end when nobody waits
/// ([`Batcher`](crate::Batcher)), or by threads, which sleep meanwhile.
#[derive(Debug)]
pub struct Line<J> {
    state: Mutex<LineState<J>>,
    /// For threads.
    arrived: Condvar,
    /// The last lane has ended.
    idle: Notify,
    limit: Load,
    lanes: usize,
}

/// How much one job, a batch or a line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Keys, writes, or whatever else a job is a list of.
    pub parts: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

/// Why a job was not taken into the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too much waits.
    Full,
    /// Nothing is accepted any more.
    Closed,
}

/// What has happened in a line, and who is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// Jobs accepted.
    pub accepted: u64,
    /// Jobs that left before they were taken: deadline passed, or caller gone.
    pub withdrawn: u64,
    /// Jobs turned away because too much was waiting.
    pub rejected: u64,
    /// What waits.
    pub waiting: Load,
    /// Lanes under way.
    pub lanes: usize,
}

#[derive(Debug)]
struct LineState<J> {
    /// `None` where a caller went away.
    jobs: VecDeque<Option<(Load, J)>>,
    /// The number of the first place; whoever has a smaller one was taken.
    first: u64,
    sleeping: usize,
    closed: bool,
    counts: LineCounts,
}

impl<J> LineState<J> {
    fn drain(&mut self, into: &mut Vec<J>, most: Load) {
        let mut taken = Load::default();
        while let Some(next) = self.jobs.front() {
            if let Some((load, _)) = next {
                let sum = taken.plus(*load);
                if taken.parts > 0 && !sum.fits(most) {
                    break;
                }
                taken = sum;
            }
            into.extend(self.jobs.pop_front().flatten().map(|(_, job)| job));
            self.first += 1;
        }
        self.counts.waiting = self.counts.waiting.minus(taken);
    }

    fn withdraw(&mut self, place: u64) -> Option<J> {
        let index = usize::try_from(place.checked_sub(self.first)?).ok()?;
        let (load, job) = self.jobs.get_mut(index)?.take()?;
        self.counts.waiting = self.counts.waiting.minus(load);
        self.counts.withdrawn += 1;
        while let Some(None) = self.jobs.front() {
            self.jobs.pop_front();
            self.first += 1;
        }
        Some(job)
    }
}

impl Load {
    /// So many parts of whatever size.
    pub fn parts(parts: usize) -> Self {
        Self { parts, bytes: usize::MAX }
    }

    fn plus(self, more: Self) -> Self {
        let bytes = self.bytes.saturating_add(more.bytes);
        Self { parts: self.parts + more.parts, bytes }
    }

    fn minus(self, less: Self) -> Self {
        Self { parts: self.parts - less.parts, bytes: self.bytes - less.bytes }
    }

    fn fits(self, limit: Self) -> bool {
        self.parts <= limit.parts && self.bytes <= limit.bytes
    }
}

impl<J> Line<J> {
    /// Holds no more than `limit`, but for a single job that is larger; asks for up to so many lanes,
    /// none where threads empty it.
    pub fn new(limit: Load, lanes: usize) -> Self {
        let state = LineState {
            jobs: VecDeque::new(),
            first: 0,
            sleeping: 0,
            closed: false,
            counts: LineCounts::default(),
        };
        let (state, arrived, idle) = (Mutex::new(state), Condvar::new(), Notify::new());
        Self { state, arrived, idle, limit, lanes }
    }

    /// Puts a job at the end. Answers the caller's ticket, and whether the caller has to start a lane.
    ///
    /// # Errors
    /// The job was dropped, for this reason.
    pub fn enter(&self, job: J, load: Load) -> Result<(Ticket<'_, J>, bool), Refused> {
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        let waiting = state.counts.waiting;
        let too_much = waiting.parts > 0 && !waiting.plus(load).fits(self.limit);
        // Places of jobs that have left count too, or they would pile up while nothing is taken.
        if too_much || state.jobs.len() >= self.limit.parts {
            state.counts.rejected += 1;
            return Err(Refused::Full);
        }
        state.counts.accepted += 1;
        state.counts.waiting = waiting.plus(load);
        state.jobs.push_back(Some((load, job)));
        let number = state.first + state.jobs.len() as u64 - 1;
        let starts_lane = state.counts.lanes < self.lanes;
        state.counts.lanes += usize::from(starts_lane);
        // A thread at work looks here before it sleeps; only a sleeping one costs a system call.
        let wakes = state.sleeping > 0;
        drop(state);
        if wakes {
            self.arrived.notify_one();
        }
        Ok((Ticket { line: self, number: Some(number) }, starts_lane))
    }

    /// Moves the first jobs that are together no more than `most`, at least one if one waits.
    pub fn take(&self, into: &mut Vec<J>, most: Load) {
        self.state().drain(into, most);
    }

    /// As [`take`](Self::take), for a lane, which ends when nothing waits: then answers `false`.
    pub fn take_or_end_lane(&self, into: &mut Vec<J>, most: Load) -> bool {
        let mut state = self.state();
        state.drain(into, most);
        if into.is_empty() {
            self.end_lane_in(&mut state);
        }
        !into.is_empty()
    }

    /// Ends a lane that is torn down. Answers the jobs that nobody is left to take.
    pub fn end_lane(&self) -> Vec<J> {
        let mut state = self.state();
        self.end_lane_in(&mut state);
        let mut left = Vec::new();
        if state.counts.lanes == 0 {
            state.drain(&mut left, Load::parts(usize::MAX));
        }
        left
    }

    fn end_lane_in(&self, state: &mut LineState<J>) {
        state.counts.lanes -= 1;
        if state.counts.lanes == 0 {
            self.idle.notify_waiters();
        }
    }

    /// Blocks the thread until a job waits; `false` when the line is closed and empty.
    pub fn wait(&self) -> bool {
        self.wait_in(self.state()).is_some()
    }

    /// Blocks the thread until a job waits, and takes as [`take`](Self::take) does; `false` when the
    /// line is closed and empty.
    pub fn wait_and_take(&self, into: &mut Vec<J>, most: Load) -> bool {
        let found = self.wait_in(self.state());
        found.map(|mut state| state.drain(into, most)).is_some()
    }

    fn wait_in<'a>(
        &'a self,
        mut state: MutexGuard<'a, LineState<J>>,
    ) -> Option<MutexGuard<'a, LineState<J>>> {
        while state.counts.waiting.parts == 0 {
            if state.closed {
                return None;
            }
            state.sleeping += 1;
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleeping -= 1;
        }
        Some(state)
    }

    /// Does what waits, up to `most` at a time, until the line is closed and empty. Should `work` panic,
    /// what it has taken is dropped, and what waits is for whoever serves next.
    pub fn serve(&self, most: Load, mut work: impl FnMut(&mut Vec<J>)) {
        let mut jobs = Vec::new();
        while self.wait_and_take(&mut jobs, most) {
            work(&mut jobs);
            jobs.clear();
        }
    }

    /// Accepts nothing more; what waits can still be taken.
    pub fn close(&self) {
        self.state().closed = true;
        self.arrived.notify_all();
    }

    /// Accepts nothing more, and hands out what waits, for there is nobody left to take it.
    pub fn abandon(&self) -> Vec<J> {
        self.close();
        let mut left = Vec::new();
        self.take(&mut left, Load::parts(usize::MAX));
        left
    }

    /// Returns when no lane is under way.
    pub async fn lanes_ended(&self) {
        loop {
            let idle = self.idle.notified();
            if self.state().counts.lanes == 0 {
                return;
            }
            idle.await;
        }
    }

    /// What has happened, and who is there.
    pub fn counts(&self) -> LineCounts {
        self.state().counts
    }

    fn state(&self) -> MutexGuard<'_, LineState<J>> {
        // Every change of the state is complete when a panic could happen, so poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller's right to a place in a [`Line`]. Whoever drops it takes the job out of the line.
#[derive(Debug)]
pub struct Ticket<'a, J> {
    line: &'a Line<J>,
    number: Option<u64>,
}

impl<J> Ticket<'_, J> {
    /// Takes the job out; `None` when somebody else has taken it, or did so before.
    pub fn leave(&mut self) -> Option<J> {
        let number = self.number.take()?;
        self.line.state().withdraw(number)
    }

    /// The job was answered, so it is not there any more.
    pub fn answered(&mut self) {
        self.number = None;
    }
}

impl<J> Drop for Ticket<'_, J> {
    fn drop(&mut self) {
        drop(self.leave());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIGHT: Load = Load { parts: 8, bytes: usize::MAX };

    fn of(bytes: usize) -> Load {
        Load { parts: 1, bytes }
    }

    #[test]
    fn jobs_leave_in_order_and_limits_hold() {
        let line = Line::new(Load { parts: 3, bytes: 10 }, 0);
        let _large = line.enter("large", of(100)).unwrap();
        assert_eq!(line.enter("over bytes", of(1)).err(), Some(Refused::Full));
        let mut taken = Vec::new();
        assert!(line.wait_and_take(&mut taken, EIGHT));
        let _tickets = ["a", "b", "c"].map(|job| line.enter(job, of(1)).unwrap());
        assert_eq!(line.enter("over parts", of(1)).err(), Some(Refused::Full));
        assert!(line.wait_and_take(&mut taken, Load::parts(2)));
        assert_eq!(taken, ["large", "a", "b"]);
        line.close();
        assert_eq!(line.enter("late", of(1)).err(), Some(Refused::Closed));
        assert!(line.wait_and_take(&mut taken, EIGHT), "what was accepted is done");
        assert!(!line.wait_and_take(&mut taken, EIGHT));
        assert_eq!(line.counts().rejected, 2);
    }

    #[test]
    fn whoever_goes_away_leaves_the_line_with_its_job() {
        let line = Line::new(Load { parts: 3, bytes: 10 }, 0);
        let (mut first, _) = line.enter("first", of(4)).unwrap();
        let (second, _) = line.enter("second", of(4)).unwrap();
        drop(second);
        assert_eq!(line.counts().waiting, of(4));
        let (mut third, _) = line.enter("third", of(4)).unwrap();
        assert_eq!(line.enter("its place", of(1)).err(), Some(Refused::Full));
        assert_eq!(first.leave(), Some("first"));
        let mut taken = Vec::new();
        line.take(&mut taken, EIGHT);
        assert_eq!((taken, third.leave()), (vec!["third"], None));
        assert_eq!(line.counts().withdrawn, 2);
        assert_eq!(line.counts().waiting, Load::default());
    }

    #[test]
    fn a_lane_is_asked_for_while_one_is_free_and_ends_when_nobody_waits() {
        let line = Line::new(EIGHT, 1);
        let starts = ["a", "b"].map(|job| {
            line.enter(job, of(1)).map(|(ticket, starts)| {
                std::mem::forget(ticket);
                starts
            })
        });
        assert_eq!(starts, [Ok(true), Ok(false)]);
        let mut taken = Vec::new();
        assert!(line.take_or_end_lane(&mut taken, EIGHT));
        taken.clear();
        assert!(!line.take_or_end_lane(&mut taken, EIGHT));
        assert_eq!(line.counts().lanes, 0);
        assert!(line.enter("c", of(1)).unwrap().1);
    }
}
