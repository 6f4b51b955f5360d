//! What others see of a follower's progress.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{Batch, Error, Inspection, LogPosition, PartKind, Status, Timestamp, Unit};
use tokio::sync::watch;

use crate::histogram::Histogram;

#[derive(Debug)]
pub(super) struct FollowProgress {
    /// Everything at or before it has been applied, as far as this instance knows.
    reached: watch::Sender<LogPosition>,
    leads: AtomicBool,
    changes: AtomicU64,
    batches: AtomicU64,
    /// From the oldest change of a batch to its effect.
    lags: Histogram,
    trouble: Mutex<Option<String>>,
}

impl FollowProgress {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            reached: watch::Sender::default(),
            leads: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            lags: Histogram::new(now),
            trouble: Mutex::default(),
        }
    }

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

    pub(super) fn applied(&self, batch: &Batch, began: Timestamp, now: Instant) {
        self.changes.fetch_add(batch.changes.len() as u64, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        self.reach(batch.to.position);
        let written = batch.changes.iter().filter_map(|change| change.record.as_ref());
        let Some(oldest) = written.map(|record| record.updated_at).min() else { return };
        let lag = Duration::try_from(began.duration_since(oldest)).unwrap_or_default();
        self.lags.record(lag, now);
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

    pub(super) fn inspect(&self, name: &'static str, now: Instant) -> Inspection {
        let tree = Inspection::of(PartKind::Follower, name)
            .fact("leads", self.leads.load(Relaxed))
            .text("position", *self.reached.borrow())
            .counter("changes", self.changes.load(Relaxed))
            .counter("batches", self.batches.load(Relaxed))
            .histogram("lag", self.lags.spread(now), Unit::Micros);
        match &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(trouble) => tree.status(Status::Degraded, trouble.clone()),
            None => tree,
        }
    }
}
