//! A journal that fails, and a database that commits for flushers that are gone.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use terrace_core::{
    Append, Appended, BoxFuture, DeadLetter, Error, ErrorKind, Inspection, JournalEntry, Key, Page,
    Progress, Read, Scan, Sequence, Settled,
};

use super::*;

/// A rule that is broken, so that its check is seen to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// What is claimed is settled before it is applied.
    SettlesFirst,
    /// It is applied without the guard in the row.
    Unguarded,
    /// It counts as applied as soon as it is in the journal.
    ForgetsEarly,
}

/// Fails calls, and loses their answers, as a seed decides.
#[derive(Debug)]
pub(super) struct FaultyJournal {
    pub(super) inner: Arc<MemoryJournal>,
    pub(super) runtime: Runtime,
    /// Of a thousand calls, how many fail.
    pub(super) rate: AtomicU64,
    pub(super) broken: Option<Broken>,
}

impl FaultyJournal {
    fn told(&self, progress: Result<Progress>) -> Result<Progress> {
        let early = self.broken == Some(Broken::ForgetsEarly);
        progress.map(|it| if early { Progress { applied: it.last, ..it } } else { it })
    }

    async fn with<T>(&self, appends: bool, work: BoxFuture<'_, Result<T>>) -> Result<T> {
        let error = |kind| Err(Error::new(kind, "an injected fault"));
        if self.runtime.random() % 1000 < 300 {
            self.runtime.sleep(Duration::from_millis(self.runtime.random() % 4)).await;
        }
        let rate = self.rate.load(Ordering::Relaxed);
        match self.runtime.random() % 1000 {
            draw if draw < rate => error(ErrorKind::Unavailable),
            draw if draw < rate * 2 => {
                work.await?;
                error(if appends { ErrorKind::OutcomeUnknown } else { ErrorKind::Unavailable })
            }
            _ => work.await,
        }
    }
}

impl fmt::Display for FaultyJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

impl Journal for FaultyJournal {
    fn append(&self, requests: Vec<Append>) -> BoxFuture<'_, Result<Appended>> {
        Box::pin(self.with(true, self.inner.append(requests)))
    }

    fn claim(&self, writes: usize, wait: Deadline) -> BoxFuture<'_, Result<Vec<JournalEntry>>> {
        let claim = Box::pin(async move {
            let entries = self.inner.claim(writes, wait).await?;
            if self.broken == Some(Broken::SettlesFirst) {
                self.inner.settle(entries.iter().map(Settled::of).collect()).await?;
            }
            Ok(entries)
        });
        Box::pin(self.with(false, claim))
    }

    fn settle(&self, done: Vec<Settled>) -> BoxFuture<'_, Result<Progress>> {
        let settle = async { self.told(self.inner.settle(done).await) };
        Box::pin(self.with(false, Box::pin(settle)))
    }

    fn peek(&self, after: Sequence, writes: usize) -> BoxFuture<'_, Result<Vec<JournalEntry>>> {
        Box::pin(self.with(false, self.inner.peek(after, writes)))
    }

    fn progress(&self) -> BoxFuture<'_, Result<Progress>> {
        let progress = async { self.told(self.inner.progress().await) };
        Box::pin(self.with(false, Box::pin(progress)))
    }

    fn raise(&self, floor: Sequence) -> BoxFuture<'_, Result<()>> {
        self.inner.raise(floor)
    }

    fn dead(&self, after: Sequence, limit: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        self.inner.dead(after, limit)
    }

    fn retry(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        self.inner.retry(sequences)
    }

    fn bury(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        self.inner.bury(sequences)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.inner.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        // Others use it, too.
        Box::pin(async { Ok(()) })
    }
}

/// A database that goes on with a batch when its caller is gone, and notes in which order it applied
/// what to each key.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) inner: Arc<MemoryStore>,
    pub(super) runtime: Runtime,
    pub(super) applied: Arc<Mutex<Vec<(Key, u64)>>>,
    pub(super) unguarded: bool,
}

/// The number that a write carries; deletes carry theirs in the order of the writer.
pub(super) fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

impl fmt::Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("recorder")
    }
}

impl Store for Recorder {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        self.inner.read(keys, how)
    }

    fn write<'a>(
        &'a self,
        mut batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        for write in batch.iter_mut().filter(|_| self.unguarded) {
            if let Precondition::After(_) = write.precondition {
                write.precondition = Precondition::None;
            }
        }
        let (inner, applied) = (Arc::clone(&self.inner), Arc::clone(&self.applied));
        let (runtime, how) = (self.runtime.clone(), how.clone());
        let (reply, answer) = tokio::sync::oneshot::channel();
        let work = async move {
            // Rarely, and then for longer than it takes to be taken for dead.
            let longest = if runtime.random().is_multiple_of(20) { 3000 } else { 5 };
            runtime.sleep(Duration::from_millis(runtime.random() % longest)).await;
            let how = WriteOptions { deadline: Deadline::NEVER, ..how };
            let receipts = inner.write(batch.clone(), &how).await;
            if let Ok(receipts) = &receipts {
                let mut applied = applied.lock().unwrap();
                for (write, receipt) in batch.iter().zip(receipts) {
                    if receipt.outcome.is_applied()
                        && let terrace_core::Change::Put(value) = &write.change
                    {
                        applied.push((write.key.clone(), number(value.as_str())));
                    }
                }
            }
            let _ = reply.send(receipts);
        };
        self.runtime.spawn("database", work).detach();
        Box::pin(async move { answer.await.unwrap() })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.inner.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.inner.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
