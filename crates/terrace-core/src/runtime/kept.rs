//! Background work that is kept going: what fails is started again, and told of.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::{Runtime, Task};
use crate::{Backoff, Inspection, Result, Status};

/// The first and the longest pause before work that failed is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Work that has run for this long is taken to be well again.
const STEADY: Duration = Duration::from_secs(30);

/// The kept work of a runtime that has failed lately.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Failures>);

#[derive(Debug, Default)]
struct Failures {
    next: u64,
    all: BTreeMap<u64, Failure>,
}

#[derive(Debug)]
struct Failure {
    task: &'static str,
    times: u64,
    /// When the work was started again; nothing while it rests.
    started: Option<Instant>,
}

impl Kept {
    fn failures(&self) -> MutexGuard<'_, Failures> {
        // Every change is complete when a panic could happen, so poison means nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime {
    /// The same, with none of the kept work of the other: what fails here is told of here alone.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { kept: Arc::default(), ..self.clone() }
    }

    /// Keeps work going in the background until it is done, which is when it returns `Ok`. Work that
    /// fails, or panics, is made anew after a pause that grows from 100 ms to 10 s; meanwhile, and for
    /// the 30 s after, it is among the [`failures`](Self::failures). Dropping the [`Task`] aborts it.
    ///
    /// This is for whatever must not silently end: loops, and debts. Work that somebody waits for is
    /// [spawned](Self::spawn).
    pub fn keep<W>(&self, name: &'static str, mut work: impl FnMut() -> W + Send + 'static) -> Task
    where
        W: Future<Output = Result<()>> + Send + 'static,
    {
        let mut keeping = Keeping::new(self, name);
        self.spawn(name, async move {
            loop {
                let begun = keeping.runtime.now();
                // What makes the work may panic, too.
                let run = AssertUnwindSafe(async { work().await });
                let Some(pause) = keeping.failed(run.catch_unwind().await, begun) else { return };
                keeping.runtime.sleep(pause).await;
                keeping.starts();
            }
        })
    }

    /// As [`keep`](Self::keep), for work that blocks its thread, which is the caller's.
    pub fn keep_here(&self, name: &'static str, mut work: impl FnMut() -> Result<()>) {
        let mut keeping = Keeping::new(self, name);
        loop {
            let (begun, ended) = (self.now(), catch_unwind(AssertUnwindSafe(&mut work)));
            let Some(pause) = keeping.failed(ended, begun) else { return };
            // A pause that somebody cuts short is a shorter pause.
            thread::park_timeout(pause);
            keeping.starts();
        }
    }

    /// A part of the tree for each kept work that has failed lately: degraded, and why.
    pub fn failures(&self) -> Vec<Inspection> {
        let now = self.now();
        let failures = self.kept.failures();
        let lately = failures.all.values().filter(|failure| {
            failure.started.is_none_or(|started| now.saturating_duration_since(started) < STEADY)
        });
        let told = lately.map(|Failure { task, times, started }| {
            let state = if started.is_some() { "was started again" } else { "starts again soon" };
            let note = format!(
                "the background work \"{task}\" met a defect of Terrace and {state} (failures: \
                 {times}); report it with the log"
            );
            Inspection::new("background-work")
                .instance(*task)
                .status(Status::Degraded, note)
                .counter("failures", *times)
        });
        told.collect()
    }
}

/// One kept work, and its place among the failures.
struct Keeping {
    runtime: Runtime,
    name: &'static str,
    backoff: Backoff,
    number: u64,
}

impl Keeping {
    fn new(runtime: &Runtime, name: &'static str) -> Self {
        let number = {
            let mut failures = runtime.kept.failures();
            failures.next += 1;
            failures.next
        };
        let backoff = Backoff::new(PAUSES.0, PAUSES.1);
        Self { runtime: runtime.clone(), name, backoff, number }
    }

    /// How long to rest before a run that ended in this way is followed by another; `None` when it is done.
    fn failed(&mut self, ended: thread::Result<Result<()>>, begun: Instant) -> Option<Duration> {
        let why = match ended {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("it panicked: {}", words(&*panic)),
        };
        if self.runtime.now() - begun >= STEADY {
            self.backoff.reset();
        }
        let times = {
            let mut failures = self.runtime.kept.failures();
            let first = Failure { task: self.name, times: 0, started: None };
            let failure = failures.all.entry(self.number).or_insert(first);
            failure.times += 1;
            failure.started = None;
            failure.times
        };
        let task = self.name;
        tracing::error!(task, why, times, "background work failed; it starts again");
        Some(self.backoff.next_pause(&self.runtime))
    }

    fn starts(&self) {
        let now = self.runtime.now();
        if let Some(failure) = self.runtime.kept.failures().all.get_mut(&self.number) {
            failure.started = Some(now);
        }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.runtime.kept.failures().all.remove(&self.number);
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::{Error, ErrorKind};

    /// Work that does as it is told, one word a run.
    fn kept(runtime: &Runtime, script: &'static [&'static str]) -> (Task, Arc<AtomicU64>) {
        let runs = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&runs);
        let task = runtime.keep("work", move || {
            let run = usize::try_from(counted.fetch_add(1, Ordering::SeqCst)).expect("few");
            async move {
                match script.get(run) {
                    Some(&"fails") => Err(Error::new(ErrorKind::Internal, "no")),
                    Some(&"panics") => panic!("on purpose"),
                    Some(_) => Ok(()),
                    None => std::future::pending().await,
                }
            }
        });
        (task, runs)
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_or_panics_starts_again_and_is_told_of_until_it_is_steady() {
        let runtime = Runtime::seeded(1);
        let (task, runs) = kept(&runtime, &["fails", "panics", "panics"]);
        assert_eq!(runtime.failures(), []);
        runtime.sleep(Duration::from_millis(50)).await;
        let told = runtime.failures();
        let tree = Inspection::new("top").helped_by(told[0].clone());
        assert_eq!(tree.status, Status::Degraded);
        assert!(tree.reason().contains("\"work\"") && tree.reason().contains("starts again soon"));
        // 0.1 + 0.2 + 0.4 s, and a fifth.
        runtime.sleep(Duration::from_secs(1)).await;
        assert_eq!(runs.load(Ordering::SeqCst), 4);
        assert_eq!(runtime.failures()[0].number("failures"), Some(3));
        assert!(runtime.failures()[0].note.contains("was started again"));
        assert_eq!(runtime.apart().failures(), [], "another's");
        runtime.sleep(STEADY).await;
        assert_eq!(runtime.failures(), []);
        task.stop().await;
    }

    #[test]
    fn work_of_a_thread_starts_again_on_it() {
        let (runtime, mut runs) = (Runtime::seeded(1), 0);
        runtime.keep_here("work", || {
            runs += 1;
            assert_ne!(runs, 1, "on purpose");
            assert_eq!(runtime.failures().len(), 1);
            Ok(())
        });
        assert_eq!((runs, runtime.failures()), (2, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_ends_and_what_is_stopped_is_no_failure() {
        let runtime = Runtime::seeded(1);
        let (task, runs) = kept(&runtime, &["panics", "ends"]);
        task.await;
        assert_eq!((runs.load(Ordering::SeqCst), runtime.failures()), (2, vec![]));
        let (task, _) = kept(&runtime, &["panics"]);
        runtime.sleep(Duration::from_millis(50)).await;
        assert_eq!(runtime.failures().len(), 1);
        task.stop().await;
        assert_eq!(runtime.failures(), []);
    }
}
