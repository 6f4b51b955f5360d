//! A region as it is reached from another one, and whether it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use terrace_core::{
    Backoff, BoxFuture, Breaker, BreakerState, Checkpoints, Conflict, Deadline, Error, ErrorKind,
    Key, LogPosition, Position, RegionStore, Result, Runtime, Store, Trip, Version,
};

use crate::{ConcurrencyLimitOptions, Turns};

/// A region as it is reached from one place. Where all are in one place, one link to a region serves all
/// others.
#[derive(Debug)]
pub struct RegionLink {
    /// The whole stack of the region.
    store: Arc<dyn Store>,
    /// Its database.
    region: Arc<dyn RegionStore>,
    /// Whose turn it is there.
    turns: Arc<Turns>,
    breaker: Breaker,
    /// The latest that was heard of how far it has followed the others.
    checkpoints: ArcSwap<Checkpoints>,
    /// Whether a drill plays that it is lost.
    lost: AtomicBool,
    /// The last stretch of its history that was found to have left nothing in its log.
    quiet: ArcSwap<Quiet>,
}

/// From a place in a log to a position of its history there is no change.
#[derive(Debug, Default)]
struct Quiet {
    log: Option<Arc<str>>,
    from: LogPosition,
    until: Position,
}

impl RegionLink {
    /// After so many failures in a row a region counts as down until a look at it goes well.
    const FAILURES: u32 = 2;
    /// A region that does not answer for this long has failed.
    const PATIENCE: Duration = Duration::from_millis(500);

    /// To a region: its records by way of its cache, and its database.
    pub fn new(store: Arc<dyn Store>, region: Arc<dyn RegionStore>, runtime: Runtime) -> Self {
        let pauses = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let turns = Turns::new(&ConcurrencyLimitOptions::default(), runtime.clone());
        let turns = Arc::new(turns);
        let breaker = Breaker::new(Trip::InARow(Self::FAILURES), pauses, runtime);
        let (checkpoints, quiet) = (ArcSwap::default(), ArcSwap::default());
        let lost = AtomicBool::new(false);
        Self { store, region, turns, breaker, checkpoints, lost, quiet }
    }

    /// With the turns that its stack takes at its database, so that lists of conflicts take them, too.
    #[must_use]
    pub fn sharing(self, turns: &Arc<Turns>) -> Self {
        Self { turns: Arc::clone(turns), ..self }
    }

    /// See [`RegionStore::conflicts`].
    pub(super) async fn conflicts(
        &self,
        after: Option<&(Key, Version)>,
        limit: usize,
    ) -> Result<Vec<Conflict>> {
        self.turns.list(Deadline::NEVER, self.region.conflicts(after, limit)).await
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(super) fn region(&self) -> &Arc<dyn RegionStore> {
        &self.region
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Plays that the region is lost: no call arrives there, and none is answered.
    pub(crate) fn lose(&self, lost: bool) {
        self.lost.store(lost, Ordering::Release);
    }

    /// Lets a call go on; in a drill, to its deadline and no further.
    pub(super) async fn reach(&self, by: Deadline, runtime: &Runtime) -> Result<()> {
        if self.lost.load(Ordering::Acquire) {
            runtime.within(by, std::future::pending::<()>()).await;
            let _ = self.breaker.failed();
            return Err(Deadline::exceeded());
        }
        Ok(())
    }

    /// Whether it answers, as far as was seen. Requests probe nothing: looks in the background do.
    pub(super) fn is_well(&self) -> bool {
        self.breaker.state() == BreakerState::Closed
    }

    /// Makes a call by a deadline, and notes whether the region answers.
    pub(super) async fn call<T>(
        &self,
        by: Deadline,
        runtime: &Runtime,
        work: BoxFuture<'_, Result<T>>,
    ) -> Result<T> {
        let begun = runtime.now();
        self.reach(by, runtime).await?;
        let answer = runtime.within(by, work).await.unwrap_or_else(|| Err(Deadline::exceeded()));
        self.note(&answer, runtime.now() - begun);
        answer
    }

    /// Notes what a call has answered, and after which time.
    pub(super) fn note<T>(&self, answer: &Result<T>, taken: Duration) {
        match answer {
            // The caller had no time; that says nothing of the region.
            Err(error) if is_late(error) && taken < Self::PATIENCE => {}
            Err(error) if error.is_outage() => drop(self.breaker.failed()),
            _ => drop(self.breaker.succeeded()),
        }
    }

    /// How far the region has followed the others, as it says now.
    pub(super) async fn look(&self, by: Deadline, runtime: &Runtime) -> Result<Arc<Checkpoints>> {
        let found = Arc::new(self.call(by, runtime, self.region.checkpoints()).await?);
        self.checkpoints.rcu(|known| match self.is_newer(&found, known) {
            true => Arc::clone(&found),
            false => Arc::clone(known),
        });
        Ok(found)
    }

    /// The same, as it was heard last.
    pub(super) fn heard(&self) -> Arc<Checkpoints> {
        self.checkpoints.load_full()
    }

    /// Whether its log has anything between a place and a position of its history. What was quiet once is
    /// not asked for again.
    pub(super) async fn has_news(
        &self,
        log: &Arc<str>,
        (from, until): (LogPosition, Position),
        by: Deadline,
        runtime: &Runtime,
    ) -> Result<bool> {
        if self.is_quiet(log, from, until) {
            return Ok(false);
        }
        let news = self.call(by, runtime, self.region.has_news(from, until)).await?;
        if !news {
            self.quiet.store(Arc::new(Quiet { log: Some(Arc::clone(log)), from, until }));
        }
        Ok(news)
    }

    /// Whether that is known already.
    pub(super) fn is_quiet(&self, log: &Arc<str>, from: LogPosition, until: Position) -> bool {
        let known = self.quiet.load();
        known.log.as_ref() == Some(log) && known.from <= from && until <= known.until
    }

    /// Up to where in the history of the region checkpoints tell what it had of others.
    pub(super) fn position(&self, of: &Checkpoints) -> Option<Position> {
        of.token.position(&self.region.history()?).map(|_| of.through)
    }

    /// One of another life of the database replaces all that was heard before.
    fn is_newer(&self, found: &Checkpoints, known: &Checkpoints) -> bool {
        match (self.position(found), self.position(known)) {
            (Some(found), Some(known)) => found >= known,
            (found, known) => found.is_some() || known.is_none(),
        }
    }
}

fn is_late(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::DeadlineExceeded | ErrorKind::OutcomeUnknown)
}
