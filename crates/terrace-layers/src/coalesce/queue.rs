//! The line in which calls wait for the next batch, and the lanes that send batches.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use terrace_core::{Deadline, Error, ErrorKind, Result, Runtime};
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;

use super::merge::{Item, Merge, weight};

/// Calls of one kind: those that wait, and up to [`Limits::lanes`] batches under way.
///
/// A lane is a task that lives as long as there is something to send. The call that finds a lane
/// free starts it, so an idle store has no task, and nothing but work under way holds on to the
/// store.
#[derive(Debug)]
pub(crate) struct Queue<M: Merge> {
    merge: M,
    limits: Limits,
    runtime: Runtime,
    state: Mutex<State<M>>,
    idle: Notify,
}

/// See the options of the same names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) lanes: usize,
    pub(crate) batch: usize,
    pub(crate) batch_bytes: usize,
    pub(crate) waiting: usize,
    pub(crate) waiting_bytes: usize,
}

#[derive(Debug)]
struct State<M: Merge> {
    /// `None` where a caller went away.
    waiting: VecDeque<Option<Item<M>>>,
    /// The ticket of the first that waits; whoever has a smaller one was taken.
    first: u64,
    /// Parts of all that wait.
    weight: usize,
    bytes: usize,
    lanes: usize,
    closed: bool,
    counts: Counts,
}

/// What happened so far, and what is so now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Calls accepted.
    pub(crate) calls: u64,
    /// Batches sent, split ones counted again.
    pub(crate) batches: u64,
    /// Batches that were refused whole and tried again in halves.
    pub(crate) splits: u64,
    /// Calls that left before they were sent: deadline passed, or caller gone.
    pub(crate) withdrawn: u64,
    /// Calls turned away because too much was waiting.
    pub(crate) rejected: u64,
    /// Parts that wait.
    pub(crate) waiting: u64,
    /// Bytes that wait.
    pub(crate) waiting_bytes: u64,
    /// Batches under way.
    pub(crate) in_flight: u64,
}

impl<M: Merge> Queue<M> {
    pub(crate) fn new(merge: M, limits: Limits, runtime: Runtime) -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            first: 0,
            weight: 0,
            bytes: 0,
            lanes: 0,
            closed: false,
            counts: Counts::default(),
        };
        let limits = Limits { lanes: limits.lanes.max(1), ..limits };
        Arc::new(Self { merge, limits, runtime, state: Mutex::new(state), idle: Notify::new() })
    }

    /// Sends the parts with the next batch.
    pub(crate) async fn call(
        self: &Arc<Self>,
        parts: Vec<M::Part>,
        deadline: Deadline,
    ) -> Result<Vec<M::Answer>> {
        deadline.check(self.runtime.now()).map_err(|error| error.during(M::OPERATION))?;
        let (reply, answer) = oneshot::channel();
        let bytes = M::bytes(&parts);
        let ticket = self.enter(Item { parts, bytes, deadline, reply })?;
        let mut place = Place { queue: self, ticket, left: false };
        let answer = self.runtime.within(deadline, answer).await;
        place.left = answer.is_some();
        match answer {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => Err(M::lost()),
            None if place.leave() => Err(Deadline::exceeded().during(M::OPERATION)),
            None => Err(M::expired()),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.state();
        Counts {
            waiting: state.weight as u64,
            waiting_bytes: state.bytes as u64,
            in_flight: state.lanes as u64,
            ..state.counts
        }
    }

    /// Accepts nothing more, and returns when everything accepted was answered.
    pub(crate) async fn close(&self) {
        self.state().closed = true;
        loop {
            let idle = self.idle.notified();
            if self.state().lanes == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Puts an item in the line, and starts a lane when one is free.
    fn enter(self: &Arc<Self>, item: Item<M>) -> Result<u64> {
        let mut state = self.state();
        if state.closed {
            return Err(closed::<M>());
        }
        let weight = item.parts.len();
        // Places left by withdrawn calls count too, or a stalled store would let them pile up.
        let full = state.weight + weight > self.limits.waiting
            || state.bytes + item.bytes > self.limits.waiting_bytes
            || state.waiting.len() >= self.limits.waiting;
        if full {
            state.counts.rejected += 1;
            let message = "too much is waiting for the database; try again a little later";
            return Err(Error::new(ErrorKind::Overloaded, message)
                .retry_after(Duration::from_secs(1))
                .during(M::OPERATION));
        }
        state.counts.calls += 1;
        state.weight += weight;
        state.bytes += item.bytes;
        state.waiting.push_back(Some(item));
        let ticket = state.first + state.waiting.len() as u64 - 1;
        let start = state.lanes < self.limits.lanes;
        if start {
            state.lanes += 1;
        }
        drop(state);
        if start {
            let lane = Lane { queue: Arc::clone(self), ended: false };
            self.runtime.spawn("coalesce", lane.run()).detach();
        }
        Ok(ticket)
    }

    /// The next batch: whole items, in order, up to the limit. Ends the lane when there is none.
    fn take(&self) -> Option<Vec<Item<M>>> {
        let mut state = self.state();
        let mut batch = Vec::with_capacity(state.waiting.len().min(self.limits.batch));
        let (mut parts, mut bytes) = (0, 0);
        while let Some(next) = state.waiting.front() {
            if let Some(item) = next {
                let fits = parts + item.parts.len() <= self.limits.batch
                    && bytes + item.bytes <= self.limits.batch_bytes;
                if !fits && parts > 0 {
                    break;
                }
                parts += item.parts.len();
                bytes += item.bytes;
            }
            batch.extend(state.waiting.pop_front().flatten());
            state.first += 1;
        }
        state.weight -= parts;
        state.bytes -= bytes;
        if batch.is_empty() {
            self.end_lane(&mut state);
            return None;
        }
        Some(batch)
    }

    fn end_lane(&self, state: &mut State<M>) {
        state.lanes -= 1;
        if state.lanes == 0 {
            self.idle.notify_waiters();
        }
    }

    /// Sends a batch and answers its items; one that is refused for what it holds is tried again in
    /// halves, until only the item that is wrong fails.
    async fn settle(&self, batch: Vec<Item<M>>) {
        let mut todo = vec![batch];
        while let Some(mut batch) = todo.pop() {
            let deadline = latest(&batch);
            self.state().counts.batches += 1;
            let sent = AssertUnwindSafe(self.merge.send(&mut batch, deadline));
            // A panic may have left the inner store in any state, but that is its own affair; here
            // it must only not take the lane with it.
            let result = sent.catch_unwind().await.unwrap_or_else(|_| Err(M::lost()));
            match result {
                Ok(answers) => {
                    for (item, answer) in batch.into_iter().zip(answers) {
                        // A caller that went away needs no answer.
                        let _ = item.reply.send(Ok(answer));
                    }
                }
                Err(error) if batch.len() > 1 && !error.is_retryable() => {
                    self.state().counts.splits += 1;
                    tracing::debug!(%error, parts = weight(&batch), "refused batch is split");
                    let tail = batch.split_off(batch.len() / 2);
                    todo.push(tail);
                    todo.push(batch);
                }
                Err(error) => {
                    for item in batch {
                        let _ = item.reply.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        // Every change of the state is complete when a panic could happen, so poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller's place in the line, which it leaves when it goes away.
struct Place<'a, M: Merge> {
    queue: &'a Queue<M>,
    ticket: u64,
    left: bool,
}

impl<M: Merge> Place<'_, M> {
    /// Withdraws the item; `false` when it was taken already.
    fn leave(&mut self) -> bool {
        self.left = true;
        let mut state = self.queue.state();
        let state = &mut *state;
        let item = self.ticket.checked_sub(state.first).and_then(|place| {
            let place = usize::try_from(place).ok()?;
            state.waiting.get_mut(place)?.take()
        });
        let Some(item) = item else { return false };
        state.weight -= item.parts.len();
        state.bytes -= item.bytes;
        state.counts.withdrawn += 1;
        while let Some(None) = state.waiting.front() {
            state.waiting.pop_front();
            state.first += 1;
        }
        true
    }
}

impl<M: Merge> Drop for Place<'_, M> {
    fn drop(&mut self) {
        if !self.left {
            self.leave();
        }
    }
}

/// The right to have one batch under way.
struct Lane<M: Merge> {
    queue: Arc<Queue<M>>,
    ended: bool,
}

impl<M: Merge> Lane<M> {
    async fn run(mut self) {
        loop {
            // Callers that are ready to run, those just answered above all, bring their next call
            // before the batch is cut: that makes batches half as large again. It also keeps a
            // store that is always ready from keeping the thread.
            yield_now().await;
            let Some(batch) = self.queue.take() else { break };
            self.queue.settle(batch).await;
        }
        self.ended = true;
    }
}

impl<M: Merge> Drop for Lane<M> {
    /// A lane that is dropped under way, as when the runtime shuts down, leaves nobody waiting.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut state = self.queue.state();
        self.queue.end_lane(&mut state);
        if state.lanes > 0 {
            return;
        }
        let stranded = std::mem::take(&mut state.waiting);
        state.first += stranded.len() as u64;
        (state.weight, state.bytes) = (0, 0);
        drop(state);
        for item in stranded.into_iter().flatten() {
            let _ = item.reply.send(Err(closed::<M>()));
        }
    }
}

fn latest<M: Merge>(batch: &[Item<M>]) -> Deadline {
    batch.iter().map(|item| item.deadline).reduce(Deadline::max).unwrap_or_default()
}

fn closed<M: Merge>() -> Error {
    let message = "this part is shutting down and nothing was changed; try again";
    Error::new(ErrorKind::Unavailable, message).during(M::OPERATION)
}
