//! The one loop that follows a change log.
//!
//! ```text
//!  lease ── checkpoint ── read a page after it ── apply the page and move the checkpoint ─┐
//!              ▲                                                                          │
//!              └──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The loop keeps nothing that a crash could lose: the follower keeps its checkpoint in the transaction
//! that has the effect. So it may be killed anywhere, and several may run at once.

mod progress;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::history::log_of;
use terrace_core::read_model::Difference;
use terrace_core::{
    Backoff, Batch, BoxFuture, ChangeLog, Changes, Checkpoint, Deadline, Error, ErrorKind,
    Follower, Inspection, Key, LeaderLease, LogPosition, Logged, PositionLost, Result, Runtime,
    Task,
};

use progress::FollowProgress;

/// How to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowOptions {
    /// The most changes of one batch. Default 1000.
    pub batch: usize,
    /// The least time from the end of the log to the next batch: what comes meanwhile is one batch, with
    /// one commit. Default 0.
    pub pace: Duration,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self { batch: 1000, pace: Duration::ZERO }
    }
}

/// Brings a follower to the end of a change log, and keeps it there.
///
/// Where the log has another name than the checkpoint, or no longer has what follows, the follower
/// begins anew. A batch that the follower refuses is halved until the one change is found that cannot be
/// applied; its key is parked, visibly, and the others go on. A follower that parks nothing stands before
/// it, and the inspection says before which key, and why.
pub struct Follow {
    name: &'static str,
    log: Arc<dyn ChangeLog>,
    follower: Arc<dyn Follower>,
    lease: Option<Arc<dyn LeaderLease>>,
    rows: Option<FirstRows>,
    mends: bool,
    options: FollowOptions,
    runtime: Runtime,
    progress: FollowProgress,
}

/// The origin's rows after a key, in the order of their keys: at most so many, and none at the end.
pub type FirstRows =
    Arc<dyn Fn(Option<Key>, usize) -> BoxFuture<'static, Result<Vec<Logged>>> + Send + Sync>;

/// A [`Follow`] that runs in the background until it is stopped or dropped.
#[derive(Debug)]
pub struct Following {
    follow: Arc<Follow>,
    task: Mutex<Option<Task>>,
}

/// Where a run stands.
struct Run {
    /// The name of the log that the checkpoint was compared with.
    log: Arc<str>,
    /// The follower's checkpoint, when it is known.
    checkpoint: Option<Checkpoint>,
    limit: usize,
    /// When the lease is to be renewed; nothing while another instance has it.
    renew_at: Option<Instant>,
    /// When the log was told last how far the follower is, and how far that was.
    told: Option<(Instant, LogPosition)>,
    /// Whether the follower knows that it has come to the end since it began, or since the start.
    ended: bool,
}

/// What came of a step.
enum Step {
    /// A batch was applied, and the log had no more.
    Applied,
    /// There is more, or the checkpoint is elsewhere, or the batch was too large.
    Again,
    /// There is nothing after this position just now.
    AtEnd(LogPosition),
}

impl Follow {
    /// How long an instance has the lease without renewing it.
    const LEASE: Duration = Duration::from_secs(2);
    /// The longest wait without a look at the lease and at the checkpoint.
    const LOOK: Duration = Duration::from_millis(650);
    /// How often the log is told how far the follower is.
    const TELL: Duration = Duration::from_secs(60);
    /// How long to wait when another instance has moved the checkpoint.
    const OVERTAKEN: Duration = Duration::from_millis(5);

    /// Follows the log under this name, which inspections and logs tell.
    pub fn new(
        name: &'static str,
        log: Arc<dyn ChangeLog>,
        follower: Arc<dyn Follower>,
        options: FollowOptions,
        runtime: Runtime,
    ) -> Self {
        let progress = FollowProgress::new(runtime.now());
        let (lease, rows, mends) = (None, None, false);
        Self { name, log, follower, lease, rows, mends, options, runtime, progress }
    }

    /// Only while this instance has the lease.
    #[must_use]
    pub fn led_by(self, lease: Option<Arc<dyn LeaderLease>>) -> Self {
        Self { lease, ..self }
    }

    /// Makes a first copy of these rows where the follower needs one. Each page is of its own snapshot:
    /// only for followers that merge rows with whatever changes they have or get.
    #[must_use]
    pub fn copying(self, rows: FirstRows) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// Compares the log with the records, and mends it, before it follows another life of the database; and
    /// applies a batch without changes where it finds the end at once.
    #[must_use]
    pub fn mending(self) -> Self {
        Self { mends: true, ..self }
    }

    /// Follows in the background from now on.
    pub fn start(self) -> Following {
        let follow = Arc::new(self);
        let run = Arc::clone(&follow);
        let task = follow.runtime.keep(follow.name, move || {
            let run = Arc::clone(&run);
            async move { run.run().await }
        });
        Following { follow, task: Mutex::new(Some(task)) }
    }

    /// Follows without end. Cancellation safe: a batch is applied whole or not at all.
    ///
    /// # Errors
    /// None: what fails is tried again.
    pub async fn run(&self) -> Result<()> {
        let mut run = self.begin();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(3));
        loop {
            match self.turn(&mut run).await {
                Ok(()) => {
                    backoff.reset();
                    self.progress.goes_on(self.name);
                }
                Err(error) => {
                    (run.checkpoint, run.told) = (None, None);
                    self.progress.waits(self.name, &error);
                    backoff.wait(&self.runtime).await;
                }
            }
        }
    }

    /// Applies what the log holds just now, whoever has the lease; answers where that ends.
    ///
    /// # Errors
    /// The first failure.
    pub async fn catch_up(&self) -> Result<LogPosition> {
        let mut run = self.begin();
        loop {
            if let Step::AtEnd(position) = self.step(&mut run).await? {
                return Ok(position);
            }
        }
    }

    /// Applies everything that was committed before the call. A transaction of somebody else that is
    /// slow to end may hold this up without end; give it a deadline.
    ///
    /// # Errors
    /// The first failure.
    pub async fn catch_up_to_head(&self) -> Result<()> {
        let head = self.log.head().await?;
        loop {
            let position = self.catch_up().await?;
            if position >= head {
                return Ok(());
            }
            self.log.wait(position, Deadline::NEVER).await?;
        }
    }

    fn begin(&self) -> Run {
        let limit = self.options.batch;
        Run { log: "".into(), checkpoint: None, limit, renew_at: None, told: None, ended: false }
    }

    /// One step under the lease, and the pause after it.
    async fn turn(&self, run: &mut Run) -> Result<()> {
        if !self.leads(run).await? {
            run.checkpoint = None;
            self.runtime.sleep(Self::LEASE / 4).await;
            return Ok(());
        }
        match self.step(run).await? {
            Step::Applied => self.runtime.sleep(self.options.pace).await,
            Step::Again => {}
            Step::AtEnd(position) => {
                let look = self.runtime.now() + Self::LOOK;
                self.log.wait(position, Deadline::at(look)).await?;
                if self.runtime.now() >= look {
                    // The follower may have lost its end, or another instance has moved it.
                    run.checkpoint = None;
                    // And what was committed may be held back.
                    let held = self.log.held_back(position).await?;
                    self.progress.is_held_back(held, self.runtime.now());
                }
            }
        }
        Ok(())
    }

    async fn leads(&self, run: &mut Run) -> Result<bool> {
        let Some(lease) = &self.lease else {
            self.progress.lead(true);
            return Ok(true);
        };
        let now = self.runtime.now();
        if run.renew_at.is_none_or(|at| at <= now) {
            run.renew_at = None;
            let leads = lease.hold(Self::LEASE).await?;
            self.progress.lead(leads);
            run.renew_at = leads.then(|| now + Self::LEASE / 3);
        }
        Ok(run.renew_at.is_some())
    }

    async fn step(&self, run: &mut Run) -> Result<Step> {
        let log = self.log.name();
        if run.log != log {
            (run.log, run.checkpoint, run.told) = (Arc::clone(&log), None, None);
        }
        let from = match run.checkpoint.take() {
            Some(known) => known,
            None => {
                let found = self.follower.checkpoint().await?;
                if !self.has_what_it_ends_with(&found).await? {
                    return self.begin_anew(run, &found).await;
                }
                found
            }
        };
        if !from.is_in(&log) {
            return self.begin_anew(run, &from).await;
        }
        if !from.complete {
            return self.copy(run, from).await;
        }
        let page = match self.page(run, from.position).await {
            Err(error) if PositionLost::caused(&error) => {
                tracing::error!(follower = %self.follower, %error, "a follower begins anew");
                return self.begin_anew(run, &from).await;
            }
            page => page?,
        };
        if self.log.name() != log {
            // Perhaps the page is of another life of the database than the checkpoint was compared with.
            return Ok(Step::Again);
        }
        // A page may say no more than that the last change was the end of its transaction.
        if page.changes.is_empty() && page.position <= from.position {
            if self.mends && !run.ended {
                // A log in which nothing follows has its end, too.
                let step = self.apply(run, from, page).await?;
                run.ended = matches!(step, Step::Applied);
                return Ok(step);
            }
            self.progress.reach(page.position);
            run.checkpoint = Some(from);
            return Ok(Step::AtEnd(page.position));
        }
        self.apply(run, from, page).await
    }

    /// What follows this position in the log, which keeps that for the follower.
    async fn page(&self, run: &mut Run, position: LogPosition) -> Result<Changes> {
        let now = self.runtime.now();
        let is_told = |(at, of): (Instant, LogPosition)| now < at + Self::TELL && of <= position;
        if !run.told.is_some_and(is_told) {
            self.log.keep_for(&format!("{} {}", self.name, self.follower), position).await?;
            run.told = Some((now, position));
        }
        self.log.after(position, run.limit).await
    }

    /// A follower that cannot say which log it follows, as a stream, knows the last change that it took:
    /// a log that lacks that one has lost it, and gives its place to another.
    async fn has_what_it_ends_with(&self, found: &Checkpoint) -> Result<bool> {
        let end = found.position;
        if found.log != Checkpoint::ANY_LOG || end == LogPosition::default() {
            return Ok(true);
        }
        let before = LogPosition { offset: end.offset.saturating_sub(1), ..end };
        match self.log.after(before, 1).await {
            Err(error) if PositionLost::caused(&error) => Ok(false),
            page => Ok(page?.changes.first().is_some_and(|change| change.position == end)),
        }
    }

    /// Copies the next rows of the origin.
    async fn copy(&self, run: &mut Run, from: Checkpoint) -> Result<Step> {
        let Some(rows) = &self.rows else {
            return Err(PositionLost::error("the first copy is not complete"));
        };
        let after = from.copied.as_ref().map(Key::new).transpose()?;
        let changes = rows(after, run.limit).await?;
        let mut to = Checkpoint { complete: changes.is_empty(), ..from.clone() };
        if let Some(last) = changes.last() {
            to.copied = Some(last.key.as_str().to_owned());
        }
        let batch = Batch { from, to, changes, more: true, refused: None };
        if self.follower.apply(&batch).await? {
            run.checkpoint = Some(batch.to);
        }
        Ok(Step::Again)
    }

    async fn begin_anew(&self, run: &mut Run, from: &Checkpoint) -> Result<Step> {
        let log = self.log.name();
        match from.log.is_empty() {
            true => tracing::debug!(follower = %self.follower, to = &*log, "a log is followed"),
            false => tracing::info!(follower = %self.follower, from = from.log, to = &*log,
                "another log is followed"),
        }
        if self.mends && from.log != *log && log_of(&from.log) == log_of(&log) {
            // Another life of the database: records that were restored by themselves are not in its log.
            let Difference { keys, differing, .. } = self.log.compare_with_records(true).await?;
            if differing > 0 {
                tracing::warn!(
                    log = &*log,
                    keys,
                    differing,
                    "records that the log lacked are logged"
                );
            }
        }
        self.follower.begin_anew(&log).await?;
        run.ended = false;
        self.progress.begin_anew();
        Ok(Step::Again)
    }

    async fn apply(&self, run: &mut Run, from: Checkpoint, page: Changes) -> Result<Step> {
        let (began, count) = (self.runtime.wall(), page.changes.len());
        let to = from.at(page.position);
        let mut batch = Batch { from, to, changes: page.changes, more: page.more, refused: None };
        let mut applied = self.follower.apply(&batch).await;
        if let Err(error) = &applied
            && is_refusal(error)
        {
            if run.limit > 1 {
                run.limit = (count / 2).max(1);
                return Ok(Step::Again);
            }
            tracing::error!(follower = %self.follower, %error, changes = count,
                "a change cannot be applied; its key is set aside where that is possible");
            batch.refused = Some(error.to_string());
            applied = self.follower.apply(&batch).await.map_err(|error| stands(error, &batch));
        }
        if applied.is_err() {
            // Perhaps it was too much at once.
            run.limit = (count / 2).max(1);
        }
        if !applied? {
            run.renew_at = None;
            self.runtime.sleep(self.options.pace.max(Self::OVERTAKEN)).await;
            return Ok(Step::Again);
        }
        // Back slowly: what does not arrive in time costs its whole timeout.
        run.limit = (run.limit + run.limit / 8 + 1).min(self.options.batch);
        self.progress.applied(&batch, began, self.runtime.now());
        let step = if batch.more { Step::Again } else { Step::Applied };
        run.checkpoint = Some(batch.to);
        Ok(step)
    }

    /// Returns when the follower may have come to this position: this instance's own progress wakes it;
    /// where another instance follows, time does.
    pub(crate) async fn progressed(&self, position: LogPosition, look: Duration, by: Deadline) {
        let limit = by.min(Deadline::at(self.runtime.now() + look));
        let _either_way = self.runtime.within(limit, self.progress.reaches(position)).await;
    }

    /// Whether this instance follows, and has come to this position.
    pub(crate) fn has_reached(&self, position: LogPosition) -> bool {
        self.progress.has_reached(position)
    }

    /// What is known of it.
    pub fn inspect(&self) -> Inspection {
        self.progress.inspect(self.name, self.runtime.now()).text("log", self.log.name())
    }
}

/// A follower that sets nothing aside goes no further: whoever looks must see before what it stands.
fn stands(error: Error, batch: &Batch) -> Error {
    let Some(change) = batch.changes.first().filter(|_| is_refusal(&error)) else { return error };
    let why = format!(
        "the change of key {} cannot be applied, and nothing after it is: {}",
        change.key,
        error.message()
    );
    Error::new(error.kind(), why).caused_by(error)
}

/// Whether trying again would fail again.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Internal | ErrorKind::Corrupt)
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} -> {})", self.name, self.log, self.follower)
    }
}

impl Following {
    /// What runs.
    pub fn follow(&self) -> &Follow {
        &self.follow
    }

    /// Ends it; what was applied stays, and another instance may go on at once.
    pub async fn stop(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.stop().await;
        }
        if let Some(lease) = &self.follow.lease
            && self.follow.progress.lead(false)
        {
            let _ends_by_itself = lease.hold(Duration::ZERO).await;
        }
    }
}
