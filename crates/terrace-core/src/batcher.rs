//! Natural batching: many small calls become few large ones.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::yield_now;

use crate::{Deadline, Error, ErrorKind, Key, Line, LineCounts, Load, Refused, Result, Runtime};

/// Calls of one kind: those that wait, and up to [`BatchLimits::lanes`] batches under way. What comes
/// while a batch is under way forms the next one, so nothing lingers and nothing waits for a timer.
///
/// A lane is a task that lives as long as there is something to send. The call that finds a lane
/// free starts it, so an idle store has no task, and nothing but work under way holds on to the
/// store.
#[derive(Debug)]
pub struct Batcher<M: Merge> {
    merge: M,
    batch: Load,
    runtime: Runtime,
    line: Line<BatchItem<M>>,
    batches: AtomicU64,
    splits: AtomicU64,
}

/// How much is sent at once, and how much may wait.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Batches under way at once, at least 1.
    pub lanes: usize,
    /// The most of one batch. A call of more is a batch of its own.
    pub batch: Load,
    /// The most that may wait; calls beyond it are turned away.
    pub waiting: Load,
}

/// One accepted call that waits for its answers.
#[derive(Debug)]
pub struct BatchItem<M: Merge> {
    /// What it is about.
    pub parts: Vec<M::Part>,
    deadline: Deadline,
    reply: oneshot::Sender<Result<Vec<M::Answer>>>,
}

/// A kind of call of which many can be sent as one.
pub trait Merge: fmt::Debug + Sized + Send + Sync + 'static {
    /// What a call is a list of.
    type Part: fmt::Debug + Send + 'static;
    /// What one part is answered with.
    type Answer: fmt::Debug + Send + 'static;
    /// The name for logs and errors.
    const OPERATION: &'static str;

    /// The bytes that these parts send along.
    fn bytes(parts: &[Self::Part]) -> usize;

    /// Sends all items as one call; answers a list an item, in their order. A single item is not
    /// tried again, so its parts may be taken out.
    fn send<'a>(
        &'a self,
        batch: &'a mut [BatchItem<Self>],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<Vec<Self::Answer>>>>;

    /// Whether a call has to do with one of these keys, which are [locked](Error::locked).
    fn is_about(_: &[Self::Part], _: &[Key]) -> bool {
        false
    }

    /// The error for a call whose deadline passed after it was sent.
    fn expired() -> Error;

    /// The error for a call that was sent and ended without an answer.
    fn lost() -> Error;
}

/// What happened so far, and what is so now.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchCounts {
    /// Calls accepted, withdrawn and turned away; what waits; batches under way, as lanes.
    pub line: LineCounts,
    /// Batches sent, split ones counted again.
    pub batches: u64,
    /// Batches that were refused whole and tried again in parts.
    pub splits: u64,
}

impl<M: Merge> Batcher<M> {
    /// Sends by `merge`; its lanes run on this runtime.
    pub fn new(merge: M, limits: BatchLimits, runtime: Runtime) -> Arc<Self> {
        let line = Line::new(limits.waiting, limits.lanes.max(1));
        let (batches, splits) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { merge, batch: limits.batch, runtime, line, batches, splits })
    }

    /// Sends the parts with the next batch. Whoever drops this before they were sent withdraws them;
    /// later they go on.
    ///
    /// # Errors
    /// `Overloaded` when too much waits, `Unavailable` once closed, `DeadlineExceeded` for a call
    /// that has not been sent; those of [`Merge`].
    pub async fn call(
        self: &Arc<Self>,
        parts: Vec<M::Part>,
        deadline: Deadline,
    ) -> Result<Vec<M::Answer>> {
        deadline.check(self.runtime.now()).map_err(|error| error.during(M::OPERATION))?;
        let (reply, answer) = oneshot::channel();
        let load = Load { parts: parts.len(), bytes: M::bytes(&parts) };
        let entered = self.line.enter(BatchItem { parts, deadline, reply }, load);
        let (mut ticket, starts_lane) = entered.map_err(refused::<M>)?;
        if starts_lane {
            let lane = Lane { batcher: Arc::clone(self), ended: false };
            self.runtime.spawn("batches", lane.run()).detach();
        }
        match self.runtime.within(deadline, answer).await {
            Some(answer) => {
                ticket.answered();
                answer.unwrap_or_else(|_| Err(M::lost()))
            }
            None if ticket.leave().is_some() => Err(Deadline::exceeded().during(M::OPERATION)),
            None => Err(M::expired()),
        }
    }

    /// What happened so far, and what is so now.
    pub fn counts(&self) -> BatchCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (batches, splits) = (load(&self.batches), load(&self.splits));
        BatchCounts { line: self.line.counts(), batches, splits }
    }

    /// Accepts nothing more, and returns when everything accepted was answered.
    pub async fn close(&self) {
        self.line.close();
        self.line.lanes_ended().await;
    }

    /// Sends a batch and answers its items; one that is refused for what it holds is tried again in
    /// halves, until only the item that is wrong fails. One that met a lock is tried again without the
    /// items whose rows are locked; where nobody knows which these are, item by item.
    async fn settle(&self, batch: Vec<BatchItem<M>>) {
        let mut todo = vec![batch];
        while let Some(mut batch) = todo.pop() {
            // Who has been told that nobody knows may have gone on from there.
            batch.retain(|item| !item.reply.is_closed());
            if batch.is_empty() {
                continue;
            }
            let deadlines = batch.iter().map(|item| item.deadline);
            let deadline = deadlines.reduce(Deadline::max).unwrap_or_default();
            self.batches.fetch_add(1, Ordering::Relaxed);
            let sent = AssertUnwindSafe(self.merge.send(&mut batch, deadline));
            // A panic may have left what is below in any state, but that is its own affair; here it
            // must only not take the lane with it.
            let result = sent.catch_unwind().await.unwrap_or_else(|_| Err(M::lost()));
            match result {
                Ok(answers) => {
                    for (item, answer) in batch.into_iter().zip(answers) {
                        // A caller that went away needs no answer.
                        let _ = item.reply.send(Ok(answer));
                    }
                }
                Err(error) if batch.len() > 1 && error.locked_keys().is_some() => {
                    self.splits.fetch_add(1, Ordering::Relaxed);
                    todo.extend(Self::without_locked(batch, &error));
                }
                Err(error) if batch.len() > 1 && !error.is_retryable() => {
                    self.splits.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, calls = batch.len(), "refused batch is split");
                    let tail = batch.split_off(batch.len() / 2);
                    todo.push(tail);
                    todo.push(batch);
                }
                Err(error) => {
                    // What waits for the same row would wait as long, and hold up the others.
                    let locked = error.locked_keys().unwrap_or_default();
                    for rest in &mut todo {
                        batch.extend(rest.extract_if(.., |it| M::is_about(&it.parts, locked)));
                    }
                    for item in batch {
                        let _ = item.reply.send(Err(error.clone()));
                    }
                }
            }
        }
    }
}

impl<M: Merge> Batcher<M> {
    /// Answers the items whose rows are locked; what to send again, the last part first.
    fn without_locked(batch: Vec<BatchItem<M>>, error: &Error) -> Vec<Vec<BatchItem<M>>> {
        let locked = error.locked_keys().unwrap_or_default();
        let (stopped, rest): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|item| M::is_about(&item.parts, locked));
        if stopped.is_empty() {
            return rest.into_iter().rev().map(|item| vec![item]).collect();
        }
        for item in stopped {
            let _ = item.reply.send(Err(error.clone()));
        }
        if rest.is_empty() { Vec::new() } else { vec![rest] }
    }
}

/// The right to have one batch under way.
struct Lane<M: Merge> {
    batcher: Arc<Batcher<M>>,
    ended: bool,
}

impl<M: Merge> Lane<M> {
    async fn run(mut self) {
        loop {
            // Callers that are ready to run, those just answered above all, bring their next call
            // before the batch is cut: that makes batches half as large again. It also keeps a
            // store that is always ready from keeping the thread.
            yield_now().await;
            let mut batch = Vec::new();
            if !self.batcher.line.take_or_end_lane(&mut batch, self.batcher.batch) {
                break;
            }
            self.batcher.settle(batch).await;
        }
        self.ended = true;
    }
}

impl<M: Merge> Drop for Lane<M> {
    /// A lane that is dropped under way, as when the runtime shuts down, leaves nobody waiting.
    fn drop(&mut self) {
        if !self.ended {
            for item in self.batcher.line.end_lane() {
                let _ = item.reply.send(Err(refused::<M>(Refused::Closed)));
            }
        }
    }
}

fn refused<M: Merge>(why: Refused) -> Error {
    let error = match why {
        Refused::Full => {
            let message = "too much is waiting for this part; try again a little later";
            Error::new(ErrorKind::Overloaded, message).retry_after(Duration::from_secs(1))
        }
        Refused::Closed => {
            let message = "this part is shutting down and nothing was changed; try again";
            Error::new(ErrorKind::Unavailable, message)
        }
    };
    error.during(M::OPERATION)
}
