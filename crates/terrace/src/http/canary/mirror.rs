//! Repeats some reads of the baseline's clients on both stacks, and compares the answers.
//!
//! A read of one record leaves its key in a bounded queue; what does not fit is left out, and no client waits.
//! One task reads each key on the baseline and then on the canary, so there is one such read at a time.
//!
//! **A write in between is no difference.** Two answers that differ are looked at again after a pause that is
//! longer than either level may be behind. They count when
//!
//! - neither has changed: a version is given out once, so the record did not go from the one to the other and
//!   back in between;
//! - or one of them is older than what the other had shown before the pause, as on a key that is written all the
//!   time.
//!
//! What is counted and logged is the kind of difference, never a key or a value.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use terrace_core::{
    Consistency, Deadline, Inspection, Key, Read, ReadOptions, Result, Runtime, Store,
    StoreExt as _, Version,
};
use tokio::sync::{Mutex, mpsc};

/// Keys that wait to be read; further ones are left out.
const QUEUE: usize = 64;
/// Answers that differ and wait for their second look; further ones are left out.
const SUSPECTS: usize = 100;
/// One in so many reads is repeated.
const ONE_IN: u64 = 10;
/// How long a stack may take for one.
const WITHIN: Duration = Duration::from_secs(5);

/// How two answers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// The baseline answers, and the canary cannot.
    Failed,
    /// One of them has no record.
    Missing,
    /// Another version of the record.
    Version,
    /// The same version, and another value.
    Value,
}

impl Difference {
    pub(super) const ALL: [Self; 4] = [Self::Failed, Self::Missing, Self::Version, Self::Value];

    /// The figure that counts it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "differs_failed",
            Self::Missing => "differs_missing",
            Self::Version => "differs_version",
            Self::Value => "differs_value",
        }
    }
}

/// What is compared, and how.
#[derive(Debug)]
pub(super) struct Mirror {
    baseline: Arc<dyn Store>,
    canary: Arc<dyn Store>,
    consistency: Consistency,
    /// Longer than either may be behind.
    pause: Duration,
    queue: mpsc::Sender<Key>,
    waiting: Mutex<mpsc::Receiver<Key>>,
    compared: AtomicU64,
    left_out: AtomicU64,
    differences: [AtomicU64; 4],
    runtime: Runtime,
}

/// The versions that two answers showed; none for no record.
type Shown = [Option<Version>; 2];

/// Answers that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspicion {
    how: Difference,
    shown: Shown,
}

/// What waits for its second look.
#[derive(Debug)]
struct Suspect {
    key: Key,
    first: Suspicion,
    due: Instant,
}

impl Mirror {
    pub(super) fn new(
        [baseline, canary]: [Arc<dyn Store>; 2],
        consistency: Consistency,
        pause: Duration,
        runtime: Runtime,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (waiting, differences) = (Mutex::new(waiting), Default::default());
        let (compared, left_out) = Default::default();
        Self {
            baseline,
            canary,
            consistency,
            pause,
            queue,
            waiting,
            compared,
            left_out,
            differences,
            runtime,
        }
    }

    /// Whether the next read is one to be repeated.
    pub(super) fn takes_one(&self) -> bool {
        self.runtime.random().is_multiple_of(ONE_IN)
    }

    /// Has the read of a key repeated, unless too many wait.
    pub(super) fn offer(&self, key: Key) {
        if self.queue.try_send(key).is_err() {
            self.left_out.fetch_add(1, Relaxed);
        }
    }

    /// Never ends.
    pub(super) async fn go_on(&self) -> Result<()> {
        let mut waiting = self.waiting.lock().await;
        let mut suspects = VecDeque::<Suspect>::new();
        loop {
            let due = suspects.front().map(|suspect| suspect.due);
            tokio::select! {
                biased;
                () = self.until(due) => {
                    if let Some(suspect) = suspects.pop_front() {
                        self.look_again(suspect).await;
                    }
                }
                // The sender lives as long as this does.
                Some(key) = waiting.recv() => self.look(key, &mut suspects).await,
            }
        }
    }

    async fn until(&self, due: Option<Instant>) {
        match due {
            Some(due) => self.runtime.sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    async fn look(&self, key: Key, suspects: &mut VecDeque<Suspect>) {
        let Some(found) = self.compare(&key).await else { return };
        self.compared.fetch_add(1, Relaxed);
        let Some(first) = found else { return };
        if suspects.len() < SUSPECTS {
            suspects.push_back(Suspect { key, first, due: self.runtime.now() + self.pause });
        } else {
            self.left_out.fetch_add(1, Relaxed);
        }
    }

    async fn look_again(&self, Suspect { key, first, .. }: Suspect) {
        let Some(Some(second)) = self.compare(&key).await else { return };
        if !counts(&first, &second) {
            return;
        }
        let how = second.how;
        let total = self.differences[how as usize].fetch_add(1, Relaxed) + 1;
        // Of many of a kind, fewer and fewer lines.
        if total.is_power_of_two() {
            let kind = how.as_str();
            tracing::warn!(kind, total, "the canary answers otherwise than the baseline");
        }
    }

    /// How the answers for a key differ, if they do; `None` where that cannot be told.
    async fn compare(&self, key: &Key) -> Option<Option<Suspicion>> {
        let baseline = self.read(&self.baseline, key).await.ok()?;
        let canary = self.read(&self.canary, key).await;
        suspicion(&baseline, canary.as_ref().ok())
    }

    async fn read(&self, store: &Arc<dyn Store>, key: &Key) -> Result<Read> {
        let deadline = Deadline::at(self.runtime.now() + WITHIN);
        let how = ReadOptions { consistency: self.consistency, deadline, ..ReadOptions::default() };
        let read = self.runtime.within(deadline, store.get_read(key, &how)).await;
        read.unwrap_or_else(|| Err(Deadline::exceeded()))
    }

    /// How many reads were compared, and how many of them differed in what they answered. A canary that fails is
    /// judged by what its clients are answered.
    pub(super) fn found(&self) -> (u64, u64) {
        let counts = self.differences.iter().skip(1).map(|count| count.load(Relaxed));
        (self.compared.load(Relaxed), counts.sum())
    }

    /// Adds its figures.
    pub(super) fn show(&self, tree: Inspection) -> Inspection {
        let tree = tree
            .counter("compared", self.compared.load(Relaxed))
            .counter("left_out", self.left_out.load(Relaxed));
        Difference::ALL.into_iter().fold(tree, |tree, how| {
            tree.counter(how.as_str(), self.differences[how as usize].load(Relaxed))
        })
    }
}

/// See [`Mirror::compare`]; no read of the canary is one that failed.
fn suspicion(baseline: &Read, canary: Option<&Read>) -> Option<Option<Suspicion>> {
    let version = |read: &Read| read.record.as_ref().map(|record| record.version);
    let shown = [version(baseline), canary.and_then(version)];
    // A write that waits to be applied has no version yet.
    if shown.contains(&Some(Version::NONE)) {
        return None;
    }
    let how = match (canary, shown) {
        (None, _) => Difference::Failed,
        (Some(canary), [mine, other]) if mine == other => {
            let value = |read: &'_ Read| read.record.as_ref().map(|record| record.value.clone());
            if value(baseline) == value(canary) {
                return Some(None);
            }
            Difference::Value
        }
        (Some(_), [Some(_), Some(_)]) => Difference::Version,
        _ => Difference::Missing,
    };
    Some(Some(Suspicion { how, shown }))
}

/// Whether what differs twice is a difference of the stacks.
fn counts(first: &Suspicion, second: &Suspicion) -> bool {
    let [baseline, canary] = second.shown;
    let is_older = |now: Option<Version>, before: Option<Version>| now.is_some() && now < before;
    first == second || is_older(canary, first.shown[0]) || is_older(baseline, first.shown[1])
}

#[cfg(test)]
mod tests {
    use terrace_core::ErrorKind;
    use terrace_core::testkit::{Hand, Scripted, key};

    use super::*;

    const PAUSE: Duration = Duration::from_secs(6);

    /// What one stack answers: a record of this version, or none.
    type Answer = Option<u64>;

    async fn answer(hand: &mut Hand, answer: Answer) {
        let call = hand.read().await;
        match answer {
            Some(version) => call.found(&[("a", &format!("value {version}"), version)]),
            None => call.found(&[]),
        }
    }

    /// What is counted of a key that is answered in this way, at the first look and at the second.
    async fn counted(looks: &[(Answer, Answer)]) -> (u64, Vec<&'static str>) {
        let ((baseline, mut of_baseline), (canary, mut of_canary)) =
            (Scripted::new(), Scripted::new());
        let runtime = Runtime::system();
        let stores = [baseline as _, canary as _];
        let mirror = Mirror::new(stores, Consistency::Default, PAUSE, runtime.clone());
        mirror.offer(key("a"));
        let hands = async {
            let mut asked = Vec::new();
            for (baseline, canary) in looks {
                answer(&mut of_baseline, *baseline).await;
                answer(&mut of_canary, *canary).await;
                asked.push(runtime.now());
            }
            // Nobody asks again.
            runtime.sleep(10 * PAUSE).await;
            assert!(of_baseline.try_next().is_none() && of_canary.try_next().is_none());
            asked
        };
        let asked = tokio::select! {
            asked = hands => asked,
            _ = mirror.go_on() => unreachable!("it never ends"),
        };
        assert!(asked.windows(2).all(|two| two[1] - two[0] >= PAUSE), "{asked:?}");
        let tree = mirror.show(Inspection::new("canary"));
        let kinds = Difference::ALL.map(Difference::as_str).into_iter();
        (mirror.found().0, kinds.filter(|kind| tree.number(kind) == Some(1)).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn what_differs_and_stays_so_is_a_difference() {
        for (look, kind) in [
            ((Some(2), Some(1)), "differs_version"),
            ((Some(1), Some(2)), "differs_version"),
            ((Some(1), None), "differs_missing"),
            ((None, Some(1)), "differs_missing"),
        ] {
            assert_eq!(counted(&[look, look]).await, (1, vec![kind]), "{look:?}");
        }
        assert_eq!(counted(&[(Some(1), Some(1))]).await, (1, vec![]));
        assert_eq!(counted(&[(None, None)]).await, (1, vec![]));
    }

    /// Each write comes between the read of the one stack and that of the other.
    #[tokio::test(start_paused = true)]
    async fn what_is_written_meanwhile_is_no_difference() {
        for looks in [
            [(Some(1), Some(2)), (Some(2), Some(2))],
            [(Some(1), Some(2)), (Some(2), Some(3))],
            [(Some(1), Some(2)), (Some(5), Some(6))],
            [(None, Some(1)), (Some(1), Some(1))],
            [(None, Some(1)), (None, Some(4))],
            [(Some(1), None), (Some(4), None)],
            [(Some(1), None), (None, None)],
        ] {
            assert_eq!(counted(&looks).await, (1, vec![]), "{looks:?}");
        }
    }

    /// A stack that is always behind, of a key that is always written.
    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_what_was_shown_before_the_pause_is_a_difference() {
        let looks = [(Some(9), Some(1)), (Some(90), Some(8))];
        assert_eq!(counted(&looks).await, (1, vec!["differs_version"]));
        let looks = [(Some(1), Some(9)), (Some(8), Some(90))];
        assert_eq!(counted(&looks).await, (1, vec!["differs_version"]));
    }

    #[tokio::test(start_paused = true)]
    async fn another_value_of_one_version_and_a_canary_that_fails_are_differences() {
        let ((baseline, mut of_baseline), (canary, mut of_canary)) =
            (Scripted::new(), Scripted::new());
        let runtime = Runtime::system();
        let stores = [baseline as _, canary as _];
        let mirror = Mirror::new(stores, Consistency::Strong, PAUSE, runtime.clone());
        mirror.offer(key("a"));
        mirror.offer(key("b"));
        let hands = async {
            for _ in 0..2 {
                let asked = of_baseline.read().await;
                assert_eq!(asked.how.consistency, Consistency::Strong);
                asked.found(&[("a", "one", 1)]);
                of_canary.read().await.found(&[("a", "other", 1)]);
                of_baseline.read().await.found(&[("b", "one", 1)]);
                of_canary.read().await.fail(ErrorKind::Unavailable);
            }
            runtime.sleep(PAUSE).await;
        };
        tokio::select! {
            () = hands => {}
            _ = mirror.go_on() => unreachable!("it never ends"),
        }
        let tree = mirror.show(Inspection::new("canary"));
        let counts = Difference::ALL.map(|kind| tree.number(kind.as_str()));
        assert_eq!(counts, [Some(1), Some(0), Some(0), Some(1)]);
        // Failures are judged elsewhere.
        assert_eq!(mirror.found(), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_baseline_that_fails_tells_nothing_and_the_queue_has_a_bound() {
        let ((baseline, mut of_baseline), (canary, _of_canary)) =
            (Scripted::new(), Scripted::new());
        let runtime = Runtime::system();
        let stores = [baseline as _, canary as _];
        let mirror = Mirror::new(stores, Consistency::Default, PAUSE, runtime.clone());
        (0..QUEUE + 3).for_each(|_| mirror.offer(key("a")));
        let hands = async {
            for _ in 0..QUEUE {
                of_baseline.read().await.fail(ErrorKind::Unavailable);
            }
            runtime.sleep(PAUSE).await;
        };
        tokio::select! {
            () = hands => {}
            _ = mirror.go_on() => unreachable!("it never ends"),
        }
        let tree = mirror.show(Inspection::new("canary"));
        assert_eq!((tree.number("compared"), tree.number("left_out")), (Some(0), Some(3)));
    }
}
