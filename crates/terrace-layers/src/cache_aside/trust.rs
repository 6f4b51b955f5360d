//! Whether what the cache answers may be believed, and what is owed to those who believe it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use terrace_core::{Backoff, Deadline, Error, ErrorKind, Key, Result};
use tokio::sync::Mutex;

use super::Shared;

/// What this instance knows of the cache's trustworthiness.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// The interruptions of the cache after which the generation was looked at.
    reassured: AtomicU64,
    /// Held by who looks; the moment of the last try.
    looking: Mutex<Option<Instant>>,
    /// Writes that were acknowledged to nobody because they could not be told: the generation must be
    /// raised. Counted, so that one that comes while an earlier one is paid for stays owed.
    debts: AtomicU64,
    paid: AtomicU64,
    /// Somebody works it off.
    paying: AtomicBool,
    pub(super) raises: AtomicU64,
}

impl Trust {
    pub(super) fn is_owed(&self) -> bool {
        self.paid.load(Ordering::Acquire) < self.debts.load(Ordering::Acquire)
    }

    pub(super) fn owe(&self) {
        self.debts.fetch_add(1, Ordering::AcqRel);
    }
}

impl Shared {
    /// How long the last look at the generations counts.
    const LOOKED_FOR: Duration = Duration::from_secs(1);
    /// The longest that a raise may take before the write is answered as unknown.
    const RAISE_WITHIN: Duration = Duration::from_secs(5);

    /// Looks at the generations unless that was done a moment ago, and since the cache was out of
    /// reach. Called with what the cache has answered in hand: whoever wrote while it was away has
    /// raised the generation before it came back. Where the database cannot be reached, nobody can
    /// know more, and the cache is believed.
    pub(super) async fn reassure(&self) {
        let interruptions = self.far.interruptions();
        let now = self.runtime.now();
        if !self.is_doubtful(interruptions, now) {
            return;
        }
        let mut tried = self.trust.looking.lock().await;
        let away = self.trust.reassured.load(Ordering::Acquire) != interruptions;
        let just_tried = tried.is_some_and(|at| now < at + Self::LOOKED_FOR);
        if !self.is_doubtful(interruptions, now) || (just_tried && !away) {
            return;
        }
        let deadline =
            Deadline::at(now + if away { Self::LOOKED_FOR } else { self.options.cache_timeout });
        // What was heard counts; of a database that cannot be reached, nobody can know more.
        let _looked = self.runtime.within(deadline, self.generations.look()).await;
        // Only now: a reader that goes away meanwhile has not looked.
        *tried = Some(now);
        self.trust.reassured.store(interruptions, Ordering::Release);
    }

    fn is_doubtful(&self, interruptions: u64, now: Instant) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) <= Self::LOOKED_FOR;
        self.trust.reassured.load(Ordering::Acquire) != interruptions
            || !self.generations.looked_at().is_some_and(recent)
    }

    /// Makes what is cached of these keys unbelievable for everybody.
    ///
    /// # Errors
    /// `OutcomeUnknown` when that could not be done in time: then nobody may be told that the write is
    /// done, and this instance reads past the cache until it was.
    pub(super) async fn raise(self: &Arc<Self>, keys: &[Key]) -> Result<()> {
        let Err(error) = self.raise_in_time(keys).await else { return Ok(()) };
        self.trust.owe();
        self.pay();
        let message = "the write left, and neither the cache nor the database could be told to \
                       forget what was cached before; read the record, or repeat the request with its \
                       Idempotency-Key";
        Err(Error::new(ErrorKind::OutcomeUnknown, message).during("write").caused_by(error))
    }

    /// Works off what is owed in the background, unless somebody does.
    pub(super) fn pay(self: &Arc<Self>) {
        if self.trust.paying.swap(true, Ordering::AcqRel) {
            return;
        }
        // Holds no part of the store while it waits, so it ends when the store is dropped.
        let (weak, runtime) = (Arc::downgrade(self), self.runtime.clone());
        let work = move || {
            let (weak, runtime) = (weak.clone(), runtime.clone());
            async move {
                let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
                loop {
                    backoff.wait(&runtime).await;
                    let Some(shared) = weak.upgrade() else { return Ok(()) };
                    if shared.settle_debt().await.is_ok() {
                        let trust = &shared.trust;
                        trust.paying.store(false, Ordering::Release);
                        // A debt of just now found somebody who was at it.
                        if !trust.is_owed() || trust.paying.swap(true, Ordering::AcqRel) {
                            return Ok(());
                        }
                    }
                }
            }
        };
        self.runtime.keep("cache-aside raise", work).detach();
    }

    /// Raises the generation of every database if that is owed.
    pub(super) async fn settle_debt(&self) -> Result<()> {
        let debts = self.trust.debts.load(Ordering::Acquire);
        if self.trust.paid.load(Ordering::Acquire) >= debts {
            return Ok(());
        }
        self.raise_in_time(&[]).await.map_err(|error| {
            let message = "a write could not be told to the cache, and other instances may read old \
                           records until they expire, or until somebody clears the cache";
            Error::new(ErrorKind::Unavailable, message).caused_by(error)
        })?;
        self.trust.paid.fetch_max(debts, Ordering::AcqRel);
        Ok(())
    }

    async fn raise_in_time(&self, keys: &[Key]) -> Result<()> {
        let deadline = Deadline::at(self.runtime.now() + Self::RAISE_WITHIN);
        let raised = self.runtime.within(deadline, self.generations.raise(keys)).await;
        raised.unwrap_or_else(|| Err(Deadline::exceeded()))?;
        self.trust.raises.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
