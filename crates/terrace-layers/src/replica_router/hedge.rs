//! A second read where the first takes unusually long.
//!
//! Dean and Barroso, "The Tail at Scale", CACM 2013.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use terrace_core::{ReadOptions, Result, Runtime};

use super::Shared;
use super::freshness::Wish;
use super::pick::Picked;
use super::question::Question;
use super::table::Table;
use crate::alarm::Alarm;
use crate::budget::Budget;
use crate::histogram::Histogram;

/// When a second replica is asked, and how often.
#[derive(Debug)]
pub(super) struct Hedge {
    times: Histogram,
    /// 99 in 100 reads took at most so many microseconds; 0 while too few have said.
    usual: AtomicU64,
    alarm: Alarm,
    budget: Budget,
    pub(super) hedges: AtomicU64,
    /// Hedges that answered first.
    pub(super) won: AtomicU64,
}

impl Hedge {
    /// Hedges, of 100 reads.
    const PERCENT: u32 = 5;
    /// Fewer reads say nothing of what is usual.
    const ENOUGH: u64 = 100;
    /// What is sooner is no delay that anybody feels, and would be within the noise of a busy machine.
    const SOONEST: Duration = Duration::from_millis(1);

    pub(super) fn new(runtime: Runtime) -> Self {
        Self {
            times: Histogram::new(runtime.now()),
            usual: AtomicU64::new(0),
            alarm: Alarm::new(runtime),
            budget: Budget::new(Self::PERCENT),
            hedges: AtomicU64::new(0),
            won: AtomicU64::new(0),
        }
    }

    /// Notes how long a read took.
    pub(super) fn took(&self, time: Duration, now: Instant) {
        self.times.record(time, now);
    }

    /// Looks up what is usual now; too dear for each read.
    pub(super) fn look(&self, now: Instant) {
        let spread = self.times.spread(now);
        let usual = if spread.count < Self::ENOUGH { 0 } else { spread.p99.max(1) };
        self.usual.store(usual, Relaxed);
    }

    fn delay(&self) -> Option<Duration> {
        let usual = self.usual.load(Relaxed);
        (usual > 0).then(|| Duration::from_micros(usual).max(Self::SOONEST))
    }
}

impl Shared {
    /// Asks a replica, and another one if it takes longer than reads usually do. The first answer counts; the
    /// other read is dropped, and so leaves the line that it waits in.
    pub(super) async fn ask_one_or_two<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
        table: &Table,
        wish: Wish,
        picked: Picked,
    ) -> Result<Option<Q::Answer>> {
        self.hedge.budget.earn();
        let number = picked.number;
        let first = self.ask_replica(question, how, table, picked);
        let Some(delay) = self.hedge.delay() else { return first.await };
        let mut first = pin!(first);
        let ring = self.hedge.alarm.after(delay);
        tokio::select! {
            biased;
            answer = &mut first => return answer,
            () = ring.end => {}
        }
        let Some(other) = self.pick(table, wish, Some(number)) else { return first.await };
        if !self.hedge.budget.spend() {
            return first.await;
        }
        self.hedge.hedges.fetch_add(1, Relaxed);
        let second = pin!(self.ask_replica(question, how, table, other));
        let (answer, is_second) = first_useful(first, second).await;
        self.hedge.won.fetch_add(u64::from(is_second && matches!(answer, Ok(Some(_)))), Relaxed);
        answer
    }
}

/// The first answer that there is, or the last failure; and whether it is of the second.
async fn first_useful<T>(
    first: impl Future<Output = Result<Option<T>>> + Unpin,
    second: impl Future<Output = Result<Option<T>>> + Unpin,
) -> (Result<Option<T>>, bool) {
    match select(first, second).await {
        Either::Left((answer @ Ok(Some(_)), _)) => (answer, false),
        Either::Right((answer @ Ok(Some(_)), _)) => (answer, true),
        Either::Left((_, second)) => (second.await, true),
        Either::Right((_, first)) => (first.await, false),
    }
}
