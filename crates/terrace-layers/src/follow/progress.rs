//! What others see of a follower's progress.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use terrace_core::{Batch, Error, Inspection, LogPosition, Status, Timestamp, Unit};
use tokio::sync::watch;

#[derive(Debug, Default)]
pub(super) struct FollowProgress {
    /// Everything at or before it has been applied, as far as this instance knows.
    reached: watch::Sender<LogPosition>,
    leads: AtomicBool,
    changes: AtomicU64,
    batches: AtomicU64,
    /// From the oldest change of a batch to its effect, of the last batches.
    lags: Mutex<VecDeque<Duration>>,
    trouble: Mutex<Option<String>>,
}

impl FollowProgress {
    /// How many batches the lag is told from.
    const LAGS: usize = 512;

    pub(super) fn reach(&self, position: LogPosition) {
        self.reached.send_if_modified(|reached| {
            let later = position > *reached;
            *reached = position.max(*reached);
            later
        });
    }

    pub(super) fn begin_anew(&self) {
        self.reached.send_replace(LogPosition::default());
    }

    /// Returns when this position is reached; never when it was already: who asks has seen that it does
    /// not help.
    pub(super) async fn reaches(&self, position: LogPosition) {
        let mut reached = self.reached.subscribe();
        if *reached.borrow_and_update() >= position {
            std::future::pending::<()>().await;
        }
        let _the_sender_lives_as_long = reached.wait_for(|reached| *reached >= position).await;
    }

    /// Whether this instance led before.
    pub(super) fn lead(&self, leads: bool) -> bool {
        self.leads.swap(leads, Relaxed)
    }

    pub(super) fn applied(&self, batch: &Batch, now: Timestamp) {
        self.changes.fetch_add(batch.changes.len() as u64, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        self.reach(batch.to.position);
        let written = batch.changes.iter().filter_map(|change| change.record.as_ref());
        let Some(oldest) = written.map(|record| record.updated_at).min() else { return };
        let lag = Duration::try_from(now.duration_since(oldest)).unwrap_or_default();
        let mut lags = self.lags.lock().unwrap_or_else(PoisonError::into_inner);
        if lags.len() == Self::LAGS {
            lags.pop_front();
        }
        lags.push_back(lag);
    }

    pub(super) fn waits(&self, name: &str, error: &Error) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_none() {
            tracing::warn!(%error, "the {name} waits; it is tried again");
        }
        *trouble = Some(error.message().to_owned());
    }

    pub(super) fn goes_on(&self, name: &str) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.take().is_some() {
            tracing::info!("the {name} goes on");
        }
    }

    pub(super) fn inspect(&self, name: &'static str) -> Inspection {
        let mut lags = {
            let lags = self.lags.lock().unwrap_or_else(PoisonError::into_inner);
            lags.iter().copied().collect::<Vec<_>>()
        };
        lags.sort_unstable();
        let at = |share: usize| {
            let lag = lags.get((lags.len() * share / 100).min(lags.len().saturating_sub(1)));
            lag.map_or(0, |lag| u64::try_from(lag.as_micros()).unwrap_or(u64::MAX))
        };
        let tree = Inspection::new(name)
            .option("leads", self.leads.load(Relaxed))
            .option("position", *self.reached.borrow())
            .counter("changes", self.changes.load(Relaxed))
            .counter("batches", self.batches.load(Relaxed))
            .gauge("lag_p50", at(50), Unit::Micros)
            .gauge("lag_p99", at(99), Unit::Micros);
        match &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(trouble) => tree.status(Status::Degraded, trouble.clone()),
            None => tree,
        }
    }
}
