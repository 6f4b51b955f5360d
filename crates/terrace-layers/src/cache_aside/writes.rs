//! How `CacheAside` writes, and how it delivers what a write has to tell the cache.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Key, Outcome, Receipt, Result, Version, Write,
    WriteOptions,
};
use tokio::sync::oneshot;

use super::Shared;

/// Writes to the inner store, and tells the cache.
pub(super) async fn write(
    shared: &Arc<Shared>,
    batch: Vec<Write>,
    how: &WriteOptions,
) -> Result<Vec<Receipt>> {
    let keys = batch.iter().map(|write| write.key.clone()).collect();
    let (inner, how) = (Arc::clone(&shared.inner), how.clone());
    let work = async move { inner.write(batch, &how).await };
    run(shared, keys, Box::pin(work), Box::new(written)).await
}

/// Does what writes these keys, in a task of its own: a caller that goes away cannot come between
/// commit and invalidation.
pub(super) async fn run<T: Send + 'static>(
    shared: &Arc<Shared>,
    keys: Vec<Key>,
    work: BoxFuture<'static, Result<T>>,
    written: Written<T>,
) -> Result<T> {
    let (reply, answer) = oneshot::channel();
    let task = Arc::clone(shared);
    let doubt = Doubt::new(Arc::clone(shared), keys);
    // Looked at once this write is counted: `close` either waits for it or has refused it.
    if let Err(closed) = shared.open() {
        doubt.settled();
        return Err(closed);
    }
    let work = async move {
        let result = task.write(work, written, doubt).await;
        let _ = reply.send(result);
    };
    shared.runtime.spawn("cache-aside write", work).detach();
    answer.await.unwrap_or_else(|_| {
        shared.pay();
        Err(without_an_answer())
    })
}

/// What the cache has to be told of keys, by what came of the write.
type Written<T> = Box<dyn Fn(&[Key], &Result<T>) -> Vec<(Key, Version)> + Send>;

fn without_an_answer() -> Error {
    let message = "the write ended without an answer and may have been applied; read the record";
    Error::new(ErrorKind::OutcomeUnknown, message).during("write")
}

/// A write that has begun: if it ends in any other way than by [`Doubt::settled`], what was cached
/// before must not be believed.
struct Doubt {
    shared: Arc<Shared>,
    keys: Vec<Key>,
}

impl Doubt {
    fn new(shared: Arc<Shared>, keys: Vec<Key>) -> Self {
        shared.writing.send_modify(|writing| *writing += 1);
        Self { shared, keys }
    }

    fn settled(mut self) {
        self.keys.clear();
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        // Worked off later: a task that is torn down cannot start another.
        if !self.keys.is_empty() {
            self.shared.trust.owe();
        }
        self.shared.writing.send_modify(|writing| *writing -= 1);
    }
}

impl Shared {
    async fn write<T>(
        self: &Arc<Self>,
        work: BoxFuture<'static, Result<T>>,
        written: Written<T>,
        doubt: Doubt,
    ) -> Result<T> {
        // What panicked may have sent the write, which may still come: its keys are kept out.
        let work = AssertUnwindSafe(work);
        let result = work.catch_unwind().await.unwrap_or_else(|_| Err(without_an_answer()));
        let told = self.tell(written(&doubt.keys, &result)).await;
        doubt.settled();
        result.and_then(|answer| told.map(|()| answer))
    }

    /// Tells the cache, or everybody not to believe it; returns when one of the two is done.
    async fn tell(self: &Arc<Self>, written: Vec<(Key, Version)>) -> Result<()> {
        if written.is_empty() {
            return Ok(());
        }
        // Always tried, also when lookups have just failed, and never cut short by the caller's
        // deadline: other instances read what it would have removed. The cache's timeout bounds it.
        if self.far.invalidate(&written, Deadline::NEVER).await.is_ok() {
            return Ok(());
        }
        let keys = written.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        self.raise(&keys).await
    }
}

/// What the cache has to be told: each key at the highest version that was, or may have been,
/// written.
pub(crate) fn written(keys: &[Key], result: &Result<Vec<Receipt>>) -> Vec<(Key, Version)> {
    let mut newest: BTreeMap<&Key, Version> = BTreeMap::new();
    match result {
        Ok(receipts) => {
            let untouched = [Outcome::Queued, Outcome::Unavailable];
            let told = |receipt: &&Receipt| !untouched.contains(&receipt.outcome);
            for (key, receipt) in keys.iter().zip(receipts).filter(|(_, it)| told(it)) {
                let written = match receipt.outcome {
                    Outcome::Unknown => Version::UNKNOWN,
                    // What changed nothing shows what somebody else has written, who may have died
                    // between the commit and the invalidation.
                    _ if receipt.version == Version::NONE => Version::UNKNOWN,
                    _ => receipt.version,
                };
                let version = newest.entry(key).or_default();
                *version = written.max(*version);
            }
        }
        Err(error) => return doubtful(keys, error),
    }
    newest.into_iter().map(|(key, version)| (key.clone(), version)).collect()
}

/// The same for a write that failed.
pub(super) fn doubtful(keys: &[Key], error: &Error) -> Vec<(Key, Version)> {
    if !may_have_been_applied(error.kind()) {
        return Vec::new();
    }
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().map(|key| (key, Version::UNKNOWN)).collect()
}

/// By the contract only `OutcomeUnknown`; kinds that report a defect are not believed.
fn may_have_been_applied(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::OutcomeUnknown | ErrorKind::Internal | ErrorKind::Corrupt)
}
