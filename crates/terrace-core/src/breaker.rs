//! Whether something that fails is called again.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Backoff, Inspection, Runtime};

/// A circuit breaker (Nygard, "Release It!", 2nd edition, 2018, chapter 5).
///
/// *Closed*: every call is admitted. After `threshold` failures in a row it *opens*: calls are refused
/// until a pause is over, the longer the more often the calls after a pause have failed. Then it is
/// *half-open*: one caller is admitted as a probe, and everybody else is refused until the outcome
/// of the probe is known. A probe whose caller goes away is replaced after another pause.
///
/// Any success closes the breaker, also one of a call that began before it opened. Failures that
/// become known while it is open change nothing, unless there is a probe that they may be of.
///
/// A call on a closed breaker costs one atomic load.
#[derive(Debug)]
pub struct Breaker {
    circuit: Mutex<Circuit>,
    /// Whether the circuit is other than new. While it is not, nobody takes the lock.
    is_troubled: AtomicBool,
    opened: AtomicU64,
    probes: AtomicU64,
    refused: AtomicU64,
    runtime: Runtime,
}

/// What a [`Breaker`] does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Admits it.
    Closed,
    /// Refuses it.
    Open,
    /// Admits it as a probe.
    HalfOpen,
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        })
    }
}

impl Breaker {
    /// A closed breaker that opens after this many failures in a row, at least 1, with these pauses.
    pub fn new(threshold: u32, pauses: Backoff, runtime: Runtime) -> Self {
        let circuit = Circuit { threshold, pauses, failures: 0, broken: None };
        Self {
            circuit: Mutex::new(circuit),
            is_troubled: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            runtime,
        }
    }

    /// Whether to make a call now. Whoever is admitted tells the breaker how the call went.
    pub fn admits(&self) -> bool {
        if !self.is_troubled() {
            return true;
        }
        let before = self.circuit().admit(self.runtime.now());
        match before {
            BreakerState::Closed => {}
            BreakerState::HalfOpen => drop(self.probes.fetch_add(1, Ordering::Relaxed)),
            BreakerState::Open => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
        }
        before != BreakerState::Open
    }

    /// Notes a call that went well. Answers whether that has closed the breaker.
    pub fn succeeded(&self) -> bool {
        if !self.is_troubled() {
            return false;
        }
        let mut circuit = self.circuit();
        self.is_troubled.store(false, Ordering::Release);
        circuit.succeeded()
    }

    /// Notes a call that failed. Answers whether that has opened the breaker.
    pub fn failed(&self) -> bool {
        let mut circuit = self.circuit();
        self.is_troubled.store(true, Ordering::Release);
        let opens = circuit.failed(&self.runtime);
        if opens {
            self.opened.fetch_add(1, Ordering::Relaxed);
        }
        opens
    }

    /// What it would do with a call now; changes nothing.
    pub fn state(&self) -> BreakerState {
        match self.is_troubled() {
            false => BreakerState::Closed,
            true => self.circuit().state(self.runtime.now()),
        }
    }

    /// Adds its state, and how often it has opened, probed and refused, to what its user says of
    /// itself.
    #[must_use]
    pub fn show(&self, tree: Inspection) -> Inspection {
        tree.text("breaker", self.state())
            .counter("breaker_opened", self.opened.load(Ordering::Relaxed))
            .counter("breaker_probes", self.probes.load(Ordering::Relaxed))
            .counter("breaker_refused", self.refused.load(Ordering::Relaxed))
    }

    fn is_troubled(&self) -> bool {
        self.is_troubled.load(Ordering::Acquire)
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        // Every change is complete when a panic could happen, so poison means nothing.
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state machine.
#[derive(Debug)]
struct Circuit {
    threshold: u32,
    pauses: Backoff,
    /// Failures in a row while it is closed.
    failures: u32,
    /// `None` while it is closed.
    broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug)]
struct Broken {
    pause: Duration,
    /// Open until then, half-open from then on.
    until: Instant,
    /// Whether a probe was admitted of which nothing is known.
    is_probed: bool,
}

impl Circuit {
    fn state(&self, now: Instant) -> BreakerState {
        match self.broken {
            None => BreakerState::Closed,
            Some(broken) if now < broken.until => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// Answers the state that the call has met.
    fn admit(&mut self, now: Instant) -> BreakerState {
        let state = self.state(now);
        if let (BreakerState::HalfOpen, Some(broken)) = (state, &mut self.broken) {
            broken.until = now + broken.pause;
            broken.is_probed = true;
        }
        state
    }

    fn failed(&mut self, runtime: &Runtime) -> bool {
        match self.broken {
            None => {
                self.failures += 1;
                if self.failures < self.threshold {
                    return false;
                }
            }
            Some(broken) if !broken.is_probed => return false,
            Some(_) => {}
        }
        let pause = self.pauses.next_pause(runtime);
        let broken = Broken { pause, until: runtime.now() + pause, is_probed: false };
        self.broken.replace(broken).is_none()
    }

    fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.pauses.reset();
        self.broken.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::BreakerState::{Closed, HalfOpen, Open};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker(threshold: u32) -> Breaker {
        let pauses = Backoff::new(10 * SECOND, 40 * SECOND);
        Breaker::new(threshold, pauses, Runtime::seeded(1))
    }

    /// With the ± 20 % of a pause.
    async fn pass_pauses(seconds: u32) {
        tokio::time::advance(SECOND * seconds * 6 / 5).await;
    }

    fn figures(breaker: &Breaker) -> [Option<u64>; 3] {
        let tree = breaker.show(Inspection::new("user"));
        ["breaker_opened", "breaker_probes", "breaker_refused"].map(|name| tree.number(name))
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_and_admits_one_probe() {
        let breaker = breaker(2);
        assert!(!breaker.failed());
        assert!(!breaker.succeeded(), "it was closed");
        assert!(!breaker.failed() && breaker.admits(), "no two in a row");
        assert!(breaker.failed() && !breaker.admits());
        assert_eq!(breaker.state(), Open);
        pass_pauses(10).await;
        assert_eq!(breaker.state(), HalfOpen);
        assert!(breaker.admits() && !breaker.admits() && !breaker.admits());
        assert!(breaker.succeeded() && breaker.admits());
        assert_eq!(breaker.state(), Closed);
        assert_eq!(figures(&breaker), [Some(1), Some(1), Some(3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_makes_the_next_pause_longer_and_a_success_the_first_again() {
        let breaker = breaker(1);
        assert!(breaker.failed());
        for seconds in [10, 20, 40, 40] {
            tokio::time::advance(SECOND * seconds * 4 / 5 - SECOND / 10).await;
            assert!(!breaker.admits(), "{seconds}");
            tokio::time::advance(SECOND * seconds * 2 / 5 + SECOND / 5).await;
            assert!(breaker.admits(), "{seconds}");
            assert!(!breaker.failed(), "it was open");
        }
        assert!(breaker.succeeded() && breaker.failed());
        pass_pauses(10).await;
        assert!(breaker.admits());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_caller_went_away_is_replaced_after_a_pause() {
        let breaker = breaker(1);
        breaker.failed();
        pass_pauses(10).await;
        assert!(breaker.admits() && !breaker.admits());
        pass_pauses(10).await;
        assert!(breaker.admits() && !breaker.admits());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_earlier_calls_make_no_pause_longer() {
        let breaker = breaker(1);
        for _ in 0..100 {
            breaker.failed();
        }
        pass_pauses(10).await;
        breaker.failed();
        assert_eq!(breaker.state(), HalfOpen);
        assert_eq!(figures(&breaker), [Some(1), Some(0), Some(0)]);
    }
}
