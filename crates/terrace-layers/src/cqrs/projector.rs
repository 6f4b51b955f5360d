//! Follows a change log and keeps a read model: every change once, the checkpoint with its effects.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::read_model::{Batch, Difference, Projection, begun, fold};
use terrace_core::{
    ChangeLog, Changes, Deadline, Error, ErrorKind, Histories, Inspection, LogPosition,
    PositionLost, ReadModel, Result, Runtime, Status, Unit,
};
use tokio::sync::watch;

/// How to project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectorOptions {
    /// The most changes of one batch. Default 2000.
    pub batch: usize,
    /// The least time from the end of a batch to the next: what comes meanwhile is one batch, with one
    /// commit. Default 10 ms.
    pub pace: Duration,
    /// How long an instance has the projection without renewing it; when it dies, another goes on
    /// after this time. Default 2 s.
    pub lease: Duration,
    /// The first wait after a failure; doubles up to 30 times itself. Default 100 ms.
    pub backoff: Duration,
    /// Deliberately wrong: the checkpoint is moved before the batch is applied.
    #[cfg(feature = "mutants")]
    pub checkpoint_first: bool,
}

impl Default for ProjectorOptions {
    fn default() -> Self {
        Self {
            batch: 2000,
            pace: Duration::from_millis(10),
            lease: Duration::from_secs(2),
            backoff: Duration::from_millis(100),
            #[cfg(feature = "mutants")]
            checkpoint_first: false,
        }
    }
}

/// Brings a read model up to date with a change log, for as long as [`Projector::run`] is polled.
///
/// A batch and its checkpoint are one transaction, which succeeds only from the checkpoint that the
/// batch began at: whatever dies, and however many project at once, each change has its effect once.
/// A lease keeps all but one instance from trying.
///
/// A change that the read model refuses stops its key: it is set aside, visibly, with all that follows
/// of that key, and the others go on. It is found by halving the batch.
#[derive(Debug)]
pub struct Projector {
    log: Arc<dyn ChangeLog>,
    model: Arc<dyn ReadModel>,
    source: Source,
    owner: String,
    options: ProjectorOptions,
    runtime: Runtime,
    progress: Progress,
}

/// What is projected: a log, in one life of its database. In another life, as after a restore, changes
/// may be lost that were projected, so the projection begins anew.
#[derive(Clone, Debug)]
pub struct Source {
    log: Arc<str>,
    histories: Arc<Histories>,
}

impl Source {
    /// The log with this name, of the database of which these are heard.
    pub fn new(log: Arc<str>, histories: Arc<Histories>) -> Self {
        Self { log, histories }
    }

    /// The name that a projection of it has, as far as was heard.
    pub fn name(&self) -> Arc<str> {
        format!("{}@{}", self.log, self.histories.name()).into()
    }

    /// Whether a projection with this name is of it.
    pub fn is(&self, name: &str) -> bool {
        let of = name.rsplit_once('@');
        of.is_some_and(|(log, history)| log == &*self.log && self.histories.has(history))
    }
}

/// What others see of it.
#[derive(Debug)]
struct Progress {
    /// Everything at or before it has been applied, as far as this instance knows.
    reached: watch::Sender<LogPosition>,
    leads: AtomicBool,
    projected: AtomicU64,
    batches: AtomicU64,
    lags: Mutex<VecDeque<Duration>>,
    trouble: Mutex<Option<String>>,
}

/// Where a run stands.
#[derive(Debug)]
struct Place {
    /// The name of what is followed.
    source: Arc<str>,
    /// The checkpoint in the read model, when it is known.
    stored: Option<LogPosition>,
    /// The position that was followed to; nothing lies between the checkpoint and it.
    followed: LogPosition,
    limit: usize,
    renew_at: Option<Instant>,
}

impl Projector {
    /// How many batches the lag is told from.
    const LAGS: usize = 512;

    /// A projector of the log with this name.
    pub fn new(
        log: Arc<dyn ChangeLog>,
        source: Source,
        model: Arc<dyn ReadModel>,
        options: ProjectorOptions,
        runtime: Runtime,
    ) -> Self {
        let owner = format!("{:016x}", runtime.random());
        let progress = Progress {
            reached: watch::Sender::new(LogPosition::default()),
            leads: AtomicBool::new(false),
            projected: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            lags: Mutex::default(),
            trouble: Mutex::default(),
        };
        Self { log, model, source, owner, options, runtime, progress }
    }

    /// Projects without end. Cancellation safe: a batch is applied whole or not at all.
    pub async fn run(&self) {
        let mut place = self.start();
        let mut backoff = self.options.backoff;
        loop {
            match self.step(&mut place).await {
                Ok(()) => {
                    backoff = self.options.backoff;
                    self.settle(None);
                }
                Err(error) => {
                    place.stored = None;
                    self.settle(Some(&error));
                    self.runtime.sleep(self.runtime.jitter(backoff, 0.2)).await;
                    backoff = (backoff * 2).min(self.options.backoff * 30);
                }
            }
        }
    }

    /// Lets another instance project at once.
    pub(super) async fn release(&self) {
        if self.progress.leads.swap(false, Relaxed) {
            let _runs_out_by_itself = self.model.lease(&self.owner, Duration::ZERO).await;
        }
    }

    /// Projects what there is until the log's present head; for rebuilds by hand and for tests.
    ///
    /// # Errors
    /// The first failure.
    pub async fn catch_up(&self) -> Result<()> {
        let head = self.log.head().await?;
        let mut place = self.start();
        while place.followed < head {
            self.step(&mut place).await?;
        }
        Ok(())
    }

    fn start(&self) -> Place {
        let limit = self.options.batch;
        let (source, followed) = (Arc::default(), LogPosition::default());
        Place { source, stored: None, followed, limit, renew_at: None }
    }

    async fn step(&self, place: &mut Place) -> Result<()> {
        if !self.lead(place).await? {
            // Another instance has it; its progress is read from the checkpoint.
            place.stored = None;
            self.runtime.sleep(self.options.lease / 4).await;
            return Ok(());
        }
        if !self.source.is(&place.source) {
            place.source = self.source.name();
            place.stored = None;
            self.progress.reached.send_replace(LogPosition::default());
        }
        let stored = match place.stored {
            Some(stored) => stored,
            None => {
                let stored = begun(&*self.model, Projection::Live, &place.source).await?;
                place.stored = Some(stored);
                place.followed = stored;
                stored
            }
        };
        let page = match self.log.after(place.followed, place.limit).await {
            Err(error) if PositionLost::caused(&error) => {
                // What was projected may never have been; the command side answers meanwhile.
                tracing::error!(%error, "the projection begins anew");
                self.model.begin(Projection::Live, &place.source).await?;
                self.progress.reached.send_replace(LogPosition::default());
                (place.stored, place.followed) = (None, LogPosition::default());
                return Ok(());
            }
            page => page?,
        };
        // A page may say no more than that the last one was the end of its transaction.
        if page.changes.is_empty() && page.position <= stored {
            place.followed = page.position;
            self.reach(page.position);
            let until = self.runtime.now() + self.options.lease / 3;
            return self.log.wait(page.position, Deadline::at(until)).await;
        }
        self.project(place, stored, &page).await
    }

    async fn lead(&self, place: &mut Place) -> Result<bool> {
        let now = self.runtime.now();
        if place.renew_at.is_none_or(|at| at <= now) {
            let leads = self.model.lease(&self.owner, self.options.lease).await?;
            self.progress.leads.store(leads, Relaxed);
            place.renew_at = leads.then(|| now + self.options.lease / 3);
        }
        Ok(place.renew_at.is_some())
    }

    async fn project(&self, place: &mut Place, stored: LogPosition, page: &Changes) -> Result<()> {
        let began = self.runtime.wall();
        let mut batch = batch(&place.source, stored, page);
        let mut applied = self.apply(&batch).await;
        if let Err(error) = &applied
            && is_refusal(error)
        {
            if place.limit > 1 {
                place.limit = (page.changes.len() / 2).max(1);
                return Ok(());
            }
            tracing::error!(%error, changes = page.changes.len(), "a key is parked: a change of it \
                cannot be projected; see `terrace projections status`");
            let reason = error.to_string();
            let folded = std::mem::take(&mut batch.folded);
            batch.poison = folded.into_iter().map(|folded| (folded, reason.clone())).collect();
            applied = self.apply(&batch).await;
        }
        if let Err(error) = &applied
            && matches!(error.kind(), ErrorKind::DeadlineExceeded | ErrorKind::OutcomeUnknown)
        {
            // Perhaps it was too much at once.
            place.limit = (page.changes.len() / 2).max(1);
        }
        if !applied? {
            // Another instance was faster, or a rebuild is about to be swapped.
            place.stored = None;
            place.renew_at = None;
            self.runtime.sleep(self.options.pace.max(Duration::from_millis(5))).await;
            return Ok(());
        }
        (place.stored, place.followed) = (Some(page.position), page.position);
        place.limit = (place.limit * 2).min(self.options.batch);
        self.count(page, began);
        self.reach(page.position);
        self.runtime.sleep(self.options.pace).await;
        Ok(())
    }

    async fn apply(&self, batch: &Batch) -> Result<bool> {
        #[cfg(feature = "mutants")]
        if self.options.checkpoint_first {
            let first = Batch { folded: Vec::new(), poison: Vec::new(), ..batch.clone() };
            if !self.model.apply(Projection::Live, &first).await? {
                return Ok(false);
            }
            let then = Batch { from: batch.to, ..batch.clone() };
            return self.model.apply(Projection::Live, &then).await;
        }
        self.model.apply(Projection::Live, batch).await
    }

    fn reach(&self, position: LogPosition) {
        self.progress.reached.send_if_modified(|reached| {
            let later = position > *reached;
            *reached = position.max(*reached);
            later
        });
    }

    fn count(&self, page: &Changes, now: terrace_core::Timestamp) {
        self.progress.projected.fetch_add(page.changes.len() as u64, Relaxed);
        self.progress.batches.fetch_add(1, Relaxed);
        let oldest = page.changes.iter().filter_map(|change| change.record.as_ref());
        let Some(oldest) = oldest.map(|record| record.updated_at).min() else { return };
        let lag = Duration::try_from(now.duration_since(oldest)).unwrap_or_default();
        let mut lags = self.progress.lags.lock().unwrap_or_else(PoisonError::into_inner);
        if lags.len() == Self::LAGS {
            lags.pop_front();
        }
        lags.push_back(lag);
    }

    fn settle(&self, failure: Option<&Error>) {
        let mut trouble = self.progress.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            Some(error) if trouble.is_none() => {
                tracing::warn!(%error, "the projection stands still; it is tried again");
            }
            None if trouble.is_some() => tracing::info!("the projection goes on"),
            _ => {}
        }
        *trouble = failure.map(|error| error.message().to_owned());
    }

    /// Waits until the projection may have come to this position: this instance's own progress wakes
    /// it; where another instance projects, a timer that begins at 2 ms and doubles.
    pub(super) async fn progressed(&self, position: LogPosition, round: u32, deadline: Deadline) {
        let mut reached = self.progress.reached.subscribe();
        let look = Duration::from_millis(2 << round.min(5));
        let limit = deadline.min(Deadline::at(self.runtime.now() + look));
        let come = async {
            // Reached and not in the answer: it came just now, or the read database has gone back.
            if *reached.borrow_and_update() >= position {
                std::future::pending::<()>().await;
            }
            let _the_sender_lives_as_long = reached.wait_for(|reached| *reached >= position).await;
        };
        let _either_way_it_is_looked_at_again = self.runtime.within(limit, come).await;
    }

    /// Builds the read model anew beside the one that answers, compares both at one position, and lets
    /// the new one answer from then on when `swap` says so.
    ///
    /// # Errors
    /// What stopped it; the old one goes on answering.
    pub async fn rebuild(&self, swap: bool) -> Result<Difference> {
        /// How long the live projection may stand still for the last part.
        const PAUSE: Duration = Duration::from_secs(10);
        let source = self.source.name();
        self.model.begin(Projection::Next, &source).await?;
        let mut paused_until = None;
        loop {
            let live = self.model.checkpoint(Projection::Live, &source).await?;
            let live = live.ok_or_else(|| stopped("the read model follows another log now"))?;
            let next = self.model.checkpoint(Projection::Next, &source).await?;
            let next = next.ok_or_else(|| stopped("another rebuild has just ended"))?;
            if next < live {
                self.advance(&source, next, live).await?;
            } else if paused_until.is_none_or(|until| until <= self.runtime.now()) {
                // From here on the live one stands still, so the two will meet.
                paused_until = Some(self.runtime.now() + PAUSE);
                self.model.pause(PAUSE).await?;
            } else {
                match self.model.finish_rebuild(swap).await {
                    Ok(Some(difference)) => return Ok(difference),
                    Ok(None) => {}
                    // Somebody reads the tables that are to go.
                    Err(error) if error.kind() == ErrorKind::Overloaded => {
                        self.runtime.sleep(self.options.backoff).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// One batch of the rebuild, not beyond the live projection.
    async fn advance(&self, source: &str, next: LogPosition, live: LogPosition) -> Result<()> {
        let mut page = self.log.after(next, self.options.batch).await?;
        // A log that was trimmed may end before the live projection does.
        if page.position > live || page.changes.is_empty() {
            page.changes.retain(|change| change.position <= live);
            page.position = live;
        }
        let batch = batch(source, next, &page);
        match self.model.apply(Projection::Next, &batch).await {
            Err(error) if is_refusal(&error) => self.advance_one_by_one(source, next, &page).await,
            applied => applied.map(drop),
        }
    }

    async fn advance_one_by_one(
        &self,
        source: &str,
        mut from: LogPosition,
        page: &Changes,
    ) -> Result<()> {
        for group in page.changes.chunk_by(|a, b| a.position == b.position) {
            let Some(first) = group.first() else { continue };
            let part = Changes { changes: group.to_vec(), position: first.position, more: true };
            let mut batch = batch(source, from, &part);
            let applied = self.model.apply(Projection::Next, &batch).await;
            if let Err(error) = applied {
                if !is_refusal(&error) {
                    return Err(error);
                }
                let folded = std::mem::take(&mut batch.folded);
                let reason = error.to_string();
                batch.poison = folded.into_iter().map(|it| (it, reason.clone())).collect();
                self.model.apply(Projection::Next, &batch).await?;
            }
            from = first.position;
        }
        let rest = Changes { changes: Vec::new(), position: page.position, more: page.more };
        self.model.apply(Projection::Next, &batch(source, from, &rest)).await.map(drop)
    }

    pub(super) fn inspect(&self) -> Inspection {
        let progress = &self.progress;
        let mut lags = {
            let lags = progress.lags.lock().unwrap_or_else(PoisonError::into_inner);
            lags.iter().copied().collect::<Vec<_>>()
        };
        lags.sort_unstable();
        let at = |share: usize| {
            let lag = lags.get((lags.len() * share / 100).min(lags.len().saturating_sub(1)));
            lag.map_or(0, |lag| u64::try_from(lag.as_micros()).unwrap_or(u64::MAX))
        };
        let trouble = progress.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = if trouble.is_some() { Status::Degraded } else { Status::Healthy };
        let note = trouble.unwrap_or_default();
        Inspection::new("projector")
            .status(status, note)
            .option("source", self.source.name())
            .option("leads", progress.leads.load(Relaxed))
            .counter("events_projected", progress.projected.load(Relaxed))
            .counter("batches", progress.batches.load(Relaxed))
            .gauge("lag_p50", at(50), Unit::Micros)
            .gauge("lag_p99", at(99), Unit::Micros)
    }
}

fn stopped(why: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, why)
}

fn batch(source: &str, from: LogPosition, page: &Changes) -> Batch {
    let folded = fold(&page.changes);
    Batch { source: source.to_owned(), from, to: page.position, folded, poison: Vec::new() }
}

/// Whether trying again would fail again.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Internal | ErrorKind::Corrupt)
}
