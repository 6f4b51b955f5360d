//! A bounded queue from async callers to plain threads.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs wait here, bounded by number and by bytes. One `take` empties up to a batch, so that under
/// load a thread is woken once for many jobs.
#[derive(Debug)]
pub(crate) struct Queue<J> {
    state: Mutex<State<J>>,
    filled: Condvar,
    max_jobs: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct State<J> {
    jobs: VecDeque<(usize, J)>,
    bytes: usize,
    idle: usize,
    closed: bool,
}

impl<J> State<J> {
    fn drain(&mut self, into: &mut Vec<J>, most: usize) {
        let count = most.min(self.jobs.len());
        let mut freed = 0;
        into.extend(self.jobs.drain(..count).map(|(bytes, job)| {
            freed += bytes;
            job
        }));
        self.bytes -= freed;
    }
}

/// Why a job was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

impl<J> Queue<J> {
    pub(crate) fn new(max_jobs: usize, max_bytes: usize) -> Self {
        let state = State { jobs: VecDeque::new(), bytes: 0, idle: 0, closed: false };
        Self { state: Mutex::new(state), filled: Condvar::new(), max_jobs, max_bytes }
    }

    /// Queues a job of this many bytes. One larger than the limit passes when the queue is empty.
    pub(crate) fn push(&self, job: J, bytes: usize) -> Result<(), Refused> {
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        let too_many = state.jobs.len() >= self.max_jobs;
        let too_large = !state.jobs.is_empty() && state.bytes + bytes > self.max_bytes;
        if too_many || too_large {
            return Err(Refused::Full);
        }
        state.bytes += bytes;
        state.jobs.push_back((bytes, job));
        let wake = state.idle > 0;
        drop(state);
        // A thread at work looks here before it sleeps; only a sleeping one costs a system call.
        if wake {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Waits until there are jobs and moves up to `most` of them; `false` when the queue is closed
    /// and empty.
    pub(crate) fn take(&self, into: &mut Vec<J>, most: usize) -> bool {
        let mut state = self.state();
        while state.jobs.is_empty() {
            if state.closed {
                return false;
            }
            state.idle += 1;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
        state.drain(into, most.max(1));
        true
    }

    /// Moves up to `most` jobs that are there now.
    pub(crate) fn take_now(&self, into: &mut Vec<J>, most: usize) {
        self.state().drain(into, most);
    }

    /// Takes no more jobs; what is queued can still be taken.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.filled.notify_all();
    }

    /// Takes no more jobs and drops those that wait, for there is nobody left to do them.
    pub(crate) fn abandon(&self) {
        self.close();
        let jobs = std::mem::take(&mut self.state().jobs);
        drop(jobs);
    }

    pub(crate) fn len(&self) -> usize {
        self.state().jobs.len()
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        // Nothing under this lock can panic half-way, so poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_leave_in_order_and_limits_hold() {
        let queue = Queue::new(3, 10);
        assert_eq!(queue.push("large", 100), Ok(()));
        assert_eq!(queue.push("over bytes", 1), Err(Refused::Full));
        let mut taken = Vec::new();
        assert!(queue.take(&mut taken, 8));
        for job in ["a", "b", "c"] {
            assert_eq!(queue.push(job, 1), Ok(()));
        }
        assert_eq!(queue.push("over jobs", 1), Err(Refused::Full));
        assert!(queue.take(&mut taken, 2));
        assert_eq!(taken, ["large", "a", "b"]);
        queue.close();
        assert_eq!(queue.push("late", 1), Err(Refused::Closed));
        assert!(queue.take(&mut taken, 2), "what was accepted is done");
        assert!(!queue.take(&mut taken, 2));
    }
}
