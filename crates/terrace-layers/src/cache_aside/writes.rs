//! How `CacheAside` writes, and how it delivers what a write has to tell the cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::{
    Deadline, Error, ErrorKind, Key, Outcome, Precondition, Receipt, Result, Version, Write,
    WriteOptions,
};
use tokio::sync::oneshot;

use super::Shared;
use super::undelivered::Work;

/// Writes in a task of its own: a caller that goes away cannot come between commit and
/// invalidation.
pub(super) async fn write(
    shared: &Arc<Shared>,
    batch: Vec<Write>,
    how: &WriteOptions,
) -> Result<Vec<Receipt>> {
    let (reply, answer) = oneshot::channel();
    let (task, how) = (Arc::clone(shared), how.clone());
    let doubt = Doubt::new(Arc::clone(shared), &batch);
    // Looked at once this write is counted: `close` either waits for it or has refused it.
    if let Err(closed) = shared.open() {
        doubt.settled();
        return Err(closed);
    }
    let work = async move {
        let result = task.write(batch, &how, doubt).await;
        let _ = reply.send(result);
    };
    shared.runtime.spawn("cache-aside write", work).detach();
    answer.await.unwrap_or_else(|_| {
        shared.keep_delivering();
        Err(Error::new(
            ErrorKind::OutcomeUnknown,
            "the write ended without an answer and may have been applied; read the record",
        )
        .during("write"))
    })
}

/// A write that has begun: if it ends in any other way than by [`Doubt::settled`], its keys are
/// listed as written at an unknown version.
struct Doubt {
    shared: Arc<Shared>,
    keys: Vec<Key>,
    repeats: Repeats,
}

impl Doubt {
    fn new(shared: Arc<Shared>, batch: &[Write]) -> Self {
        shared.writing.send_modify(|writing| *writing += 1);
        let keys = batch.iter().map(|write| write.key.clone()).collect();
        Self { shared, keys, repeats: Repeats::of(batch) }
    }

    fn settled(mut self) {
        self.keys.clear();
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        // Delivered later: a task that is torn down cannot start another.
        if !self.keys.is_empty() {
            self.shared.undelivered.add(self.keys.drain(..).map(|key| (key, Version::UNKNOWN)));
        }
        self.shared.writing.send_modify(|writing| *writing -= 1);
    }
}

impl Shared {
    async fn write(
        self: &Arc<Self>,
        batch: Vec<Write>,
        how: &WriteOptions,
        doubt: Doubt,
    ) -> Result<Vec<Receipt>> {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::InvalidatesFirst) {
            let early: Vec<_> = doubt.keys.iter().map(|key| (key.clone(), Version::NONE)).collect();
            self.deliver(early).await;
            let result = self.inner.write(batch, how).await;
            doubt.settled();
            return result;
        }
        let result = self.inner.write(batch, how).await;
        let written = written(&doubt.keys, doubt.repeats, &result);
        if written.iter().any(|(_, version)| *version == Version::UNKNOWN) {
            self.deliver_again(written.clone());
        }
        self.deliver(written).await;
        doubt.settled();
        result
    }

    /// Tells the cache once more, when a write in doubt must have ended: a cache that lost its
    /// memory meanwhile (a flush, a restart) lost the tombstone, too.
    fn deliver_again(self: &Arc<Self>, written: Vec<(Key, Version)>) {
        let (weak, runtime) = (Arc::downgrade(self), self.runtime.clone());
        let wait = self.options.doubt;
        let work = async move {
            runtime.sleep(wait).await;
            if let Some(shared) = weak.upgrade() {
                shared.deliver(written).await;
            }
        };
        self.runtime.spawn("cache-aside doubt", work).detach();
    }

    /// Tells the cache, or lists the keys; returns when one of the two is done.
    async fn deliver(self: &Arc<Self>, written: Vec<(Key, Version)>) {
        if written.is_empty() {
            return;
        }
        // Always tried, also when lookups have just failed, and never cut short by the caller's
        // deadline: other instances read what it would have removed. The cache's timeout bounds it.
        if self.far.invalidate(&written, Deadline::NEVER).await.is_ok() {
            self.undelivered.delivered(&written);
            return;
        }
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::Forgets) {
            return;
        }
        self.undelivered.add(written);
        self.keep_delivering();
    }

    /// Starts the background delivery, unless it runs or has nothing to do.
    pub(super) fn keep_delivering(self: &Arc<Self>) {
        if !self.undelivered.take_delivery() {
            return;
        }
        // Holds no part of the store while it waits, so it ends when the store is dropped.
        let weak = Arc::downgrade(self);
        let (runtime, retry, longest) =
            (self.runtime.clone(), self.options.retry, self.options.max_retry);
        let work = async move {
            let mut wait = retry;
            loop {
                runtime.sleep(runtime.jitter(wait, 0.2)).await;
                let Some(shared) = weak.upgrade() else { return };
                wait = match shared.deliver_some().await {
                    Ok(true) => Duration::ZERO,
                    Ok(false) => return,
                    Err(_) => (wait * 2).clamp(retry, longest),
                };
            }
        };
        self.runtime.spawn("cache-aside delivery", work).detach();
    }

    /// Delivers a part of the list; `false` when nothing is left, which also ends the delivery.
    async fn deliver_some(&self) -> Result<bool> {
        match self.undelivered.next() {
            Work::Nothing => return Ok(false),
            Work::Keys(keys) => {
                self.far.invalidate(&keys, Deadline::NEVER).await?;
                self.undelivered.delivered(&keys);
            }
            Work::Everything => match self.far.clear().await {
                Ok(()) => self.undelivered.cleared(),
                Err(error) => {
                    self.undelivered.not_cleared();
                    return Err(error);
                }
            },
        }
        Ok(true)
    }

    /// The last try before the store is closed.
    pub(super) async fn deliver_the_rest(&self) -> Result<()> {
        while self.deliver_some().await.map_err(|error| {
            Error::new(
                ErrorKind::Unavailable,
                "the cache could not be told of all writes; other instances may read old records \
                 until they expire, or until somebody clears the cache",
            )
            .during("close")
            .with("undelivered", self.undelivered.len().to_string())
            .caused_by(error)
        })? {}
        Ok(())
    }
}

/// Whether a batch may repeat one that somebody else has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeats {
    /// Each write is the first of its kind: one that is refused has changed nothing.
    Never,
    /// Writes of a journal: a place that was reached before may be the work of a process that died
    /// between its commit and its invalidation.
    Possibly,
}

impl Repeats {
    pub(crate) fn of(batch: &[Write]) -> Self {
        let placed = |write: &Write| matches!(write.precondition, Precondition::After(_));
        if batch.iter().any(placed) { Self::Possibly } else { Self::Never }
    }
}

/// What the cache has to be told: each key at the highest version that was, or may have been,
/// written.
pub(crate) fn written(
    keys: &[Key],
    repeats: Repeats,
    result: &Result<Vec<Receipt>>,
) -> Vec<(Key, Version)> {
    let mut newest: BTreeMap<&Key, Version> = BTreeMap::new();
    match result {
        Ok(receipts) => {
            for (key, receipt) in keys.iter().zip(receipts) {
                let written = match receipt.outcome {
                    Outcome::Unknown => Version::UNKNOWN,
                    applied if applied.is_applied() => receipt.version,
                    // A repeated delete finds nothing, too.
                    Outcome::PreconditionFailed | Outcome::Absent
                        if repeats == Repeats::Possibly =>
                    {
                        match receipt.version {
                            Version::NONE => Version::UNKNOWN,
                            current => current,
                        }
                    }
                    _ => continue,
                };
                let version = newest.entry(key).or_default();
                *version = written.max(*version);
            }
        }
        Err(error) if may_have_been_applied(error.kind()) => {
            newest.extend(keys.iter().map(|key| (key, Version::UNKNOWN)));
        }
        Err(_) => {}
    }
    newest.into_iter().map(|(key, version)| (key.clone(), version)).collect()
}

/// By the contract only `OutcomeUnknown`; kinds that report a defect are not believed.
fn may_have_been_applied(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::OutcomeUnknown | ErrorKind::Internal | ErrorKind::Corrupt)
}
