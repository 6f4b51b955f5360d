//! What others see of a follower's progress.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{
    Batch, Error, HeldBack, Inspection, LogPosition, PartKind, Status, Timestamp, Unit,
};
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
    /// What the log held back when it was asked, and when that was.
    held_back: Mutex<Option<(HeldBack, Instant)>>,
}

impl FollowProgress {
    /// How long committed changes may be held back before somebody should end that.
    const HELD_BACK_FOR: Duration = Duration::from_secs(10);

    pub(super) fn new(now: Instant) -> Self {
        Self {
            reached: watch::Sender::default(),
            leads: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            lags: Histogram::new(now),
            trouble: Mutex::default(),
            held_back: Mutex::default(),
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

    pub(super) fn has_reached(&self, position: LogPosition) -> bool {
        self.leads.load(Relaxed) && *self.reached.borrow() >= position
    }

    /// Whether this instance led before.
    pub(super) fn lead(&self, leads: bool) -> bool {
        self.leads.swap(leads, Relaxed)
    }

    pub(super) fn applied(&self, batch: &Batch, began: Timestamp, now: Instant) {
        self.changes.fetch_add(batch.changes.len() as u64, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        self.reach(batch.to.position);
        self.is_held_back(None, now);
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

    pub(super) fn is_held_back(&self, held: Option<HeldBack>, now: Instant) {
        let mut known = self.held_back.lock().unwrap_or_else(PoisonError::into_inner);
        *known = held.map(|held| (held, now));
    }

    /// How long the oldest change that is committed and not applied has waited, and who holds it back.
    fn behind(&self, now: Instant) -> (Duration, String) {
        let known = self.held_back.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((held, at)) = &*known else { return Default::default() };
        (held.waited + now.saturating_duration_since(*at), held.by.clone())
    }

    pub(super) fn inspect(&self, name: &'static str, now: Instant) -> Inspection {
        let tree = Inspection::of(PartKind::Follower, name)
            .fact("leads", self.leads.load(Relaxed))
            .text("position", *self.reached.borrow())
            .counter("changes", self.changes.load(Relaxed))
            .counter("batches", self.batches.load(Relaxed))
            .histogram("lag", self.lags.spread(now), Unit::Micros);
        let (behind, by) = self.behind(now);
        let micros = u64::try_from(behind.as_micros()).unwrap_or(u64::MAX);
        let tree = tree.gauge("behind", micros, Unit::Micros);
        match &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(trouble) => tree.status(Status::Degraded, trouble.clone()),
            None if behind >= Self::HELD_BACK_FOR => {
                let note = format!(
                    "what was committed {} s ago is held back by a transaction that stays open; end \
                     it: {by}",
                    behind.as_secs()
                );
                tree.status(Status::Degraded, note)
            }
            None => tree,
        }
    }
}
