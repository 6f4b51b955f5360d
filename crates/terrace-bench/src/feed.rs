//! What the connections of a worker are fed with: in a closed loop whenever one is free, in an open
//! loop by a schedule that was fixed in advance.
//!
//! In an open loop a request has an intended start, and its latency counts from there: a server that
//! stalls makes the requests behind the stall late, as it would for real clients. A closed loop does
//! not send while the server stalls, and so hides all but one late request a connection
//! ("coordinated omission"); it tells how much a server can do, not how it feels.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution as _, Exp1};
use serde::{Deserialize, Serialize};

use crate::keys::Picker;
use crate::ledger::Ledger;
use crate::workload::{Operation, Workload};

/// How the intended starts of an open loop are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// As people come who know nothing of each other: exponential gaps.
    Poisson,
    /// Equal gaps.
    Constant,
}

/// How requests are offered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loop {
    /// Each connection sends its next request when the last was answered.
    Closed,
    /// By schedule, so many a second for one worker.
    Open(f64, Arrivals),
}

/// Something to do.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// When it should start; none means now.
    pub intended: Option<Instant>,
    /// What.
    pub operation: Operation,
    /// On which key.
    pub key: u32,
}

/// Draws operations and keys.
#[derive(Debug)]
pub struct Draw<'a> {
    rng: Xoshiro256PlusPlus,
    workload: &'a Workload,
    picker: Picker,
    ledger: &'a Ledger,
}

impl<'a> Draw<'a> {
    /// Draws as `rng` decides.
    pub fn new(
        rng: Xoshiro256PlusPlus,
        workload: &'a Workload,
        picker: Picker,
        ledger: &'a Ledger,
    ) -> Self {
        Self { rng, workload, picker, ledger }
    }

    fn job(&mut self, intended: Option<Instant>) -> Job {
        let operation = self.workload.draw(&mut self.rng);
        let key = match operation {
            Operation::Insert => self.ledger.insert(),
            _ => self.picker.pick(&mut self.rng, self.ledger.known()),
        };
        Job { intended, operation, key }
    }

    /// The generator, for other draws.
    pub fn rng(&mut self) -> &mut Xoshiro256PlusPlus {
        &mut self.rng
    }

    /// The gap to the next arrival at this rate.
    pub fn gap(&mut self, rate: f64, arrivals: Arrivals) -> Duration {
        let mean = 1.0 / rate;
        let gap = match arrivals {
            Arrivals::Constant => mean,
            Arrivals::Poisson => {
                let draw: f64 = Exp1.sample(&mut self.rng);
                mean * draw
            }
        };
        Duration::from_secs_f64(gap)
    }
}

/// The queue between the schedule and the connections of one worker.
#[derive(Debug)]
pub struct Feed<'a> {
    inner: RefCell<Inner<'a>>,
    closed_loop: bool,
}

#[derive(Debug)]
struct Inner<'a> {
    draw: Draw<'a>,
    queue: VecDeque<Job>,
    idle: VecDeque<Waker>,
    over: bool,
    most_waiting: u64,
}

impl<'a> Feed<'a> {
    /// An empty feed.
    pub fn new(draw: Draw<'a>, closed_loop: bool) -> Self {
        let queue = VecDeque::new();
        let inner = Inner { draw, queue, idle: VecDeque::new(), over: false, most_waiting: 0 };
        Self { inner: RefCell::new(inner), closed_loop }
    }

    /// The next job; none when the phase is over.
    pub async fn next(&self) -> Option<Job> {
        poll_fn(|context| {
            let mut inner = self.inner.borrow_mut();
            if let Some(job) = inner.queue.pop_front() {
                return Poll::Ready(Some(job));
            }
            if inner.over {
                return Poll::Ready(None);
            }
            if self.closed_loop {
                return Poll::Ready(Some(inner.draw.job(None)));
            }
            inner.idle.push_back(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// An arrival of the schedule: for the connection that was idle longest, or the queue.
    pub fn arrive(&self, intended: Instant) {
        let mut inner = self.inner.borrow_mut();
        let job = inner.draw.job(Some(intended));
        inner.queue.push_back(job);
        let waiting = inner.queue.len().saturating_sub(inner.idle.len()) as u64;
        inner.most_waiting = inner.most_waiting.max(waiting);
        if let Some(waker) = inner.idle.pop_front() {
            waker.wake();
        }
    }

    /// Nothing more arrives; what waits is still to be done.
    pub fn end(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.over = true;
        inner.idle.drain(..).for_each(Waker::wake);
    }

    /// How many wait for a connection.
    pub fn waiting(&self) -> u64 {
        self.inner.borrow().queue.len() as u64
    }

    /// The most that ever waited.
    pub fn most_waiting(&self) -> u64 {
        self.inner.borrow().most_waiting
    }

    /// The draw behind it.
    pub fn draw<T>(&self, work: impl FnOnce(&mut Draw<'a>) -> T) -> T {
        work(&mut self.inner.borrow_mut().draw)
    }
}
