//! Compares what the two cohorts were answered, and takes the canary back.
//!
//! Reads are compared with reads, and writes with writes: clients of one cohort may write more than those of
//! the other. There are two questions, and both are whether more requests of the canary are bad than could be
//! by chance:
//!
//! - **Errors.** A request is bad when it was answered 5xx.
//! - **p99.** A request is bad when it took longer than a bound which is more than twice the p99 of the
//!   baseline in the same time: a two-sample quantile test (Conover, "Practical Nonparametric Statistics", on
//!   median and quantile tests), which supposes nothing about how times are spread.
//!
//! **By chance.** If the canary were no worse, each bad request would be one of the canary's with the
//! probability that any request is. Hoeffding's bound for sampling without replacement ("Probability
//! inequalities for sums of bounded random variables", 1963, theorem 1 and section 6) says how improbable it
//! is that so many are: at most `exp(-n D)`, where `n` are all bad requests and `D` is the relative entropy of
//! the two shares. [`CHANCE`] is small because the question is asked again and again. One error at low traffic
//! is never enough, however few the requests.
//!
//! **Margin.** What is certain may still be little. So the canary is bad only from twice the baseline's share of
//! bad requests on, and a margin above it.
//!
//! Both are asked of the latest window, which shows what has begun just now, and of the whole run, which shows
//! what happens seldom. A window lasts until both cohorts have [`ENOUGH`] requests; before that there is no
//! verdict, and without traffic there never is one. Nothing here puts a client into the canary.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use terrace_core::{Durations, Inspection, Times};

use crate::access::Scope;

/// Requests of each cohort, or mirrored reads, below which there is no verdict.
pub(super) const ENOUGH: u64 = 100;
/// How often the cohorts are compared.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A canary that is no worse is taken for worse once in so many looks, as the exponent of e: a thousand million.
const CHANCE: f64 = 20.7;
/// How much larger the canary's share of errors must be.
const ERRORS: f64 = 0.001;
/// How much larger the canary's share of slow requests must be: the hundredth that p99 leaves out.
const SLOW: f64 = 0.01;
/// The place in [`Times::BOUNDS`] of 5 ms, up to which nothing is slow: below it a busy machine decides.
const NEVER_SLOW: usize = 6;

/// By which stack a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cohort {
    Baseline,
    Canary,
}

impl Cohort {
    pub(super) const ALL: [Self; 2] = [Self::Baseline, Self::Canary];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Canary => "canary",
        }
    }
}

/// What is compared with its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Reads,
    Writes,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Reads, Self::Writes];

    /// Of a request that needs this; none of one that is about the installation.
    pub(super) fn of(scope: Scope) -> Option<Self> {
        match scope {
            Scope::Read => Some(Self::Reads),
            Scope::Write => Some(Self::Writes),
            Scope::Admin => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Writes => "writes",
        }
    }
}

/// The comparison, from the start of the process until the canary is taken back.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// By cohort, then by kind.
    tallies: [[Tally; 2]; 2],
    /// What had been answered when the latest windows began, by kind and cohort.
    begun: Mutex<[[Answered; 2]; 2]>,
    judged: AtomicU64,
    /// Why the canary was taken back. What is set stays.
    returned: OnceLock<String>,
}

#[derive(Debug, Default)]
struct Tally {
    failed: AtomicU64,
    times: Durations,
}

/// Requests of one kind that one cohort was answered.
#[derive(Clone, Copy, Debug, Default)]
struct Answered {
    failed: u64,
    times: Times,
}

impl Trial {
    /// Notes how a request was answered.
    pub(super) fn note(&self, cohort: Cohort, kind: Kind, failed: bool, took: Duration) {
        let tally = &self.tallies[cohort as usize][kind as usize];
        tally.times.record(took);
        tally.failed.fetch_add(failed.into(), Relaxed);
    }

    /// Whether no client is served by the canary any more.
    pub(super) fn is_over(&self) -> bool {
        self.returned.get().is_some()
    }

    /// Compares, and takes the canary back where it is worse. `differences` of so many mirrored reads count
    /// like any other reason.
    pub(super) fn look(&self, compared: u64, differences: u64) {
        let wrong = (compared >= ENOUGH && differences > 0).then(|| {
            format!(
                "it answers otherwise than the baseline: {differences} of {compared} mirrored reads"
            )
        });
        if let Some(reason) = wrong.or_else(|| self.compare())
            && self.returned.set(reason.clone()).is_ok()
        {
            tracing::error!(
                reason,
                "the canary is taken back: the baseline serves all clients until this process is started \
                 again"
            );
        }
    }

    /// What is worse, if anything is.
    fn compare(&self) -> Option<String> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        Kind::ALL.into_iter().find_map(|kind| {
            let now = Cohort::ALL.map(|cohort| self.answered(cohort, kind));
            let window = &mut begun[kind as usize];
            let lately = array::from_fn(|place| now[place].since(&window[place]));
            if !enough(&lately) {
                return None;
            }
            *window = now;
            self.judged.fetch_add(1, Relaxed);
            let worse = worse(&lately).or_else(|| worse(&now));
            worse.map(|how| format!("{} {how}", kind.as_str()))
        })
    }

    fn answered(&self, cohort: Cohort, kind: Kind) -> Answered {
        let tally = &self.tallies[cohort as usize][kind as usize];
        // A failure is counted after its time, so there are never more of them.
        let failed = tally.failed.load(Relaxed);
        Answered { failed, times: tally.times.times() }
    }

    /// Adds the verdict and the figures of both cohorts.
    pub(super) fn show(&self, tree: Inspection) -> Inspection {
        let tree = tree.counter("windows", self.judged.load(Relaxed));
        let tree = match self.returned.get() {
            Some(reason) => tree.text("returned", reason),
            None => tree,
        };
        Cohort::ALL.into_iter().fold(tree, |tree, cohort| {
            let [reads, writes] = Kind::ALL.map(|kind| self.answered(cohort, kind));
            let part = Inspection::new("cohort")
                .instance(cohort.as_str())
                .counter("failed_reads", reads.failed)
                .counter("failed_writes", writes.failed)
                .times("read_time", reads.times)
                .times("write_time", writes.times);
            tree.needs(part)
        })
    }
}

impl Answered {
    fn count(&self) -> u64 {
        self.times.count()
    }

    fn since(&self, earlier: &Self) -> Self {
        let counts = array::from_fn(|place| self.times.counts[place] - earlier.times.counts[place]);
        let sum = self.times.sum.saturating_sub(earlier.times.sum);
        Self { failed: self.failed - earlier.failed, times: Times { counts, sum } }
    }

    /// How many took longer than the bound at this place.
    fn slower_than(&self, place: usize) -> u64 {
        self.times.counts[place + 1..].iter().sum()
    }

    fn share_of(&self, bad: u64) -> BadShare {
        BadShare { bad, all: self.count() }
    }
}

/// So many bad answers of all.
#[derive(Clone, Copy, Debug)]
struct BadShare {
    bad: u64,
    all: u64,
}

impl BadShare {
    fn share(self) -> f64 {
        self.bad as f64 / self.all as f64
    }
}

/// Whether there may be a verdict.
fn enough(cohorts: &[Answered; 2]) -> bool {
    cohorts.iter().all(|cohort| cohort.count() >= ENOUGH)
}

/// What the canary does worse; baseline and canary have enough requests.
fn worse([baseline, canary]: &[Answered; 2]) -> Option<String> {
    let told = |what: String, [baseline, canary]: [BadShare; 2]| {
        let (BadShare { bad, all }, BadShare { bad: of_baseline, all: all_of_baseline }) =
            (canary, baseline);
        format!("{what}: {bad} of {all}, and {of_baseline} of {all_of_baseline} of the baseline's")
    };
    let failed = [baseline, canary].map(|it| it.share_of(it.failed));
    if is_worse(failed, ERRORS) {
        return Some(told("fail".into(), failed));
    }
    let place = slow_from(&baseline.times)?;
    let slow = [baseline, canary].map(|it| it.share_of(it.slower_than(place)));
    let what = || format!("take longer than {:?}", Times::BOUNDS[place]);
    is_worse(slow, SLOW).then(|| told(what(), slow))
}

/// The place in [`Times::BOUNDS`] of a bound that is more than twice the p99 of these times. None where p99 is
/// beyond what is measured.
fn slow_from(times: &Times) -> Option<usize> {
    // Neighbouring bounds are two to five times apart.
    let place = (p99(times)? + 1).max(NEVER_SLOW);
    (place < Times::BOUNDS.len()).then_some(place)
}

/// The place of the count that has the p99 of these times, if there are any.
fn p99(times: &Times) -> Option<usize> {
    let (all, mut seen) = (times.count(), 0);
    let place = times.counts.iter().position(|count| {
        seen += count;
        seen * 100 >= all * 99
    });
    place.filter(|_| all > 0)
}

/// What 99 in 100 took at most, in microseconds, rounded up to a bound; the largest where it is beyond all.
pub(super) fn p99_bound(times: &Times) -> u64 {
    let place = p99(times).map(|place| place.min(Times::BOUNDS.len() - 1));
    let bound = place.map(|place| Times::BOUNDS[place]).unwrap_or_default();
    u64::try_from(bound.as_micros()).unwrap_or(u64::MAX)
}

/// Whether the canary's share of bad requests is larger by more than the margin, and by more than chance.
fn is_worse([baseline, canary]: [BadShare; 2], margin: f64) -> bool {
    if canary.share() < 2.0 * baseline.share() + margin {
        return false;
    }
    let bad = (baseline.bad + canary.bad) as f64;
    let seen = canary.bad as f64 / bad;
    let expected = canary.all as f64 / (baseline.all + canary.all) as f64;
    bad * relative_entropy(seen, expected) >= CHANCE
}

/// Of a coin that shows heads in this share of throws to one that would be expected to.
fn relative_entropy(seen: f64, expected: f64) -> f64 {
    // The limit of `p log p` at 0.
    let term = |p: f64, q: f64| if p == 0.0 { 0.0 } else { p * (p / q).ln() };
    term(seen, expected) + term(1.0 - seen, 1.0 - expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    /// So many reads of a cohort, of which so many fail.
    fn reads(trial: &Trial, cohort: Cohort, all: u64, failed: u64, took: Duration) {
        (0..all).for_each(|number| trial.note(cohort, Kind::Reads, number < failed, took));
    }

    #[test]
    fn there_is_no_verdict_below_the_minimum_and_none_without_traffic() {
        let trial = Trial::default();
        for _ in 0..1000 {
            trial.look(0, 0);
        }
        // All fail, but they are too few.
        reads(&trial, Cohort::Canary, ENOUGH - 1, ENOUGH - 1, QUICK);
        reads(&trial, Cohort::Baseline, 10_000, 0, QUICK);
        trial.look(0, 0);
        trial.look(ENOUGH - 1, ENOUGH - 1);
        assert_eq!((trial.is_over(), trial.judged.load(Relaxed)), (false, 0));
        // Too few of the baseline.
        let other = Trial::default();
        reads(&other, Cohort::Baseline, ENOUGH - 1, 0, QUICK);
        reads(&other, Cohort::Canary, 10_000, 10_000, QUICK);
        other.look(0, 0);
        assert!(!other.is_over());
        reads(&trial, Cohort::Canary, 1, 1, QUICK);
        trial.look(0, 0);
        assert!(trial.is_over());
        assert_eq!(trial.returned.get().map(String::as_str), Some(ALL_FAIL));
    }

    const ALL_FAIL: &str = "reads fail: 100 of 100, and 0 of 10000 of the baseline's";

    #[test]
    fn a_canary_that_is_as_good_stays_and_one_error_is_not_enough() {
        for (canary, baseline) in [(0, 0), (1, 0), (6, 0), (10, 200), (100, 2000), (12, 150)] {
            let trial = Trial::default();
            reads(&trial, Cohort::Baseline, 1900, baseline.min(1900), QUICK);
            reads(&trial, Cohort::Canary, 100, canary, QUICK);
            trial.look(0, 0);
            assert!(!trial.is_over(), "{canary} and {baseline}: {:?}", trial.returned);
            assert_eq!(trial.judged.load(Relaxed), 1);
        }
        for (canary, baseline) in [(7, 0), (20, 20), (100, 800)] {
            let trial = Trial::default();
            reads(&trial, Cohort::Baseline, 1900, baseline, QUICK);
            reads(&trial, Cohort::Canary, 100, canary, QUICK);
            trial.look(0, 0);
            assert!(trial.is_over(), "{canary} and {baseline}");
        }
    }

    #[test]
    fn a_p99_of_more_than_twice_the_baselines_is_worse() {
        let slower = |baseline, canary, slow| {
            let trial = Trial::default();
            reads(&trial, Cohort::Baseline, 2000, 0, Duration::from_micros(baseline));
            reads(&trial, Cohort::Canary, 1000 - slow, 0, Duration::from_micros(baseline));
            reads(&trial, Cohort::Canary, slow, 0, Duration::from_micros(canary));
            trial.look(0, 0);
            trial.is_over()
        };
        // Within the margin, and where the machine decides.
        assert!(!slower(10_000, 20_000, 1000));
        assert!(!slower(50, 5_000, 1000));
        // A hundredth may be slow.
        assert!(!slower(10_000, 500_000, 9));
        assert!(slower(10_000, 500_000, 50));
        assert!(slower(50, 6_000, 50));
        // Beyond what is measured.
        assert!(!slower(5_000_000, 50_000_000, 1000));
    }

    #[test]
    fn reads_are_not_compared_with_writes() {
        let trial = Trial::default();
        reads(&trial, Cohort::Baseline, 10_000, 0, QUICK);
        (0..1000).for_each(|_| {
            trial.note(Cohort::Canary, Kind::Writes, true, Duration::from_secs(1));
        });
        trial.look(0, 0);
        assert!(!trial.is_over());
    }

    #[test]
    fn what_is_too_seldom_for_a_window_is_seen_over_the_whole_run() {
        let trial = Trial::default();
        let mut windows = 0;
        while !trial.is_over() && windows < 100 {
            reads(&trial, Cohort::Baseline, 1900, 0, QUICK);
            reads(&trial, Cohort::Canary, 100, 1, QUICK);
            trial.look(0, 0);
            windows += 1;
        }
        assert_eq!(windows, 7);
    }

    #[test]
    fn what_begins_late_is_seen_in_the_latest_window() {
        let trial = Trial::default();
        reads(&trial, Cohort::Baseline, 1_900_000, 0, QUICK);
        reads(&trial, Cohort::Canary, 100_000, 0, QUICK);
        trial.look(0, 0);
        reads(&trial, Cohort::Baseline, 1900, 0, QUICK);
        reads(&trial, Cohort::Canary, 100, 50, QUICK);
        trial.look(0, 0);
        assert!(trial.is_over());
    }

    #[test]
    fn what_is_taken_back_stays_back() {
        let trial = Trial::default();
        trial.look(ENOUGH, 1);
        assert!(trial.is_over());
        let reason = trial.returned.get().cloned();
        for _ in 0..100 {
            reads(&trial, Cohort::Baseline, 1000, 1000, QUICK);
            reads(&trial, Cohort::Canary, 1000, 0, QUICK);
            trial.look(10_000, 0);
        }
        assert!(trial.is_over());
        assert_eq!(trial.returned.get().cloned(), reason);
    }
}
