//! Whether something that fails is called again.

mod circuit;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{Backoff, Inspection, Runtime};
use circuit::{Caller, Circuit};

/// A circuit breaker (Nygard, "Release It!", 2nd edition, 2018, chapter 5).
///
/// *Closed*: every call is admitted. When too many have failed (see [`Trip`]) it *opens*: calls are
/// refused until a pause is over, the longer the more often the calls after a pause have failed. Then it
/// is *half-open*: a limited number of callers is admitted as probes, and everybody else is refused until
/// the outcome of the probes is known. It closes when as many probes have succeeded, and opens again with
/// the first that fails.
///
/// Whoever is admitted holds an [`Pass`] and says how the call went. One that is dropped says
/// nothing: the caller went away, or the failure was the caller's own. The place of a probe is free again
/// then.
///
/// Failures that become known while it is open change nothing, unless they are a probe's. A success
/// of another call closes a breaker that counts [in a row](Trip::InARow), and no other.
///
/// A call on a closed breaker that counts in a row costs one atomic load and a count of references, on
/// one that counts a rate a short lock besides. Clones are the same breaker.
#[derive(Clone, Debug)]
pub struct Breaker {
    board: Arc<Board>,
}

/// When a closed [`Breaker`] opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// After so many failures in a row, at least 1; one probe decides. For calls that are few, as looks
    /// and connections are, and for those whose failure makes a request wait.
    InARow(u32),
    /// When of at least `calls` calls of the last `within` this share has failed. For many calls at once:
    /// a connection that is lost, or a batch, fails all of its calls together and is no outage.
    Rate {
        /// Of 100 calls so many.
        percent: u32,
        /// Fewer calls say nothing. At least 1.
        calls: u32,
        /// How far back calls count; half of it at least.
        within: Duration,
        /// Probes at once; so many that succeed close the breaker. At least 1.
        probes: u32,
    },
}

impl Trip {
    fn probes(self) -> u32 {
        match self {
            Self::InARow(_) => 1,
            Self::Rate { probes, .. } => probes.max(1),
        }
    }
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

/// What all clones of a breaker, and whoever it has admitted, share.
#[derive(Debug)]
struct Board {
    trip: Trip,
    circuit: Mutex<Circuit>,
    /// Whether the circuit may refuse a call, or a success would change it. While it is not, nobody takes
    /// the lock for being admitted.
    is_troubled: AtomicBool,
    /// [`Circuit::stretch`], to be read without the lock.
    stretch: AtomicU64,
    opened: AtomicU64,
    probes: AtomicU64,
    refused: AtomicU64,
    runtime: Runtime,
}

/// The right to make one call. Dropped without a word it counts for nothing, and gives the place of a
/// probe back.
#[must_use = "say how the call went, or its outcome does not count"]
#[derive(Debug)]
pub struct Pass {
    /// Nothing once it was told how the call went.
    board: Option<Arc<Board>>,
    caller: Caller,
}

impl Breaker {
    /// A closed breaker with these pauses.
    pub fn new(trip: Trip, pauses: Backoff, runtime: Runtime) -> Self {
        let board = Board {
            trip,
            circuit: Mutex::new(Circuit::new(trip, pauses, runtime.now())),
            is_troubled: AtomicBool::new(false),
            stretch: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            runtime,
        };
        Self { board: Arc::new(board) }
    }

    /// Whether to make a call now.
    pub fn admit(&self) -> Option<Pass> {
        let board = &self.board;
        let caller = if board.is_troubled() {
            let mut circuit = board.circuit();
            let admitted = circuit.admit(board.runtime.now());
            match admitted {
                Some(Caller::Probe(_)) => drop(board.probes.fetch_add(1, Ordering::Relaxed)),
                Some(_) => {}
                None => drop(board.refused.fetch_add(1, Ordering::Relaxed)),
            }
            admitted?
        } else {
            Caller::Admitted(board.stretch.load(Ordering::Acquire))
        };
        Some(Pass { board: Some(Arc::clone(board)), caller })
    }

    /// Notes a success of a call that was made without being admitted. Answers whether that has closed the
    /// breaker.
    pub fn succeeded(&self) -> bool {
        self.board.succeeded(Caller::Other)
    }

    /// Notes a failure of such a call. Answers whether that has opened the breaker.
    pub fn failed(&self) -> bool {
        self.board.failed(Caller::Other)
    }

    /// What it would do with a call now; changes nothing.
    pub fn state(&self) -> BreakerState {
        match self.board.is_troubled() {
            false => BreakerState::Closed,
            true => self.board.circuit().state(self.board.runtime.now()),
        }
    }

    /// Adds its state, and how often it has opened, probed and refused, to what its user says of
    /// itself.
    #[must_use]
    pub fn show(&self, tree: Inspection) -> Inspection {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        tree.text("breaker", self.state())
            .counter("breaker_opened", count(&self.board.opened))
            .counter("breaker_probes", count(&self.board.probes))
            .counter("breaker_refused", count(&self.board.refused))
    }
}

impl Pass {
    /// Notes that the call went well. Answers whether that has closed the breaker.
    pub fn succeeded(mut self) -> bool {
        self.board.take().is_some_and(|board| board.succeeded(self.caller))
    }

    /// Notes that the call failed. Answers whether that has opened the breaker.
    pub fn failed(mut self) -> bool {
        self.board.take().is_some_and(|board| board.failed(self.caller))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let (Some(board), Caller::Probe(stretch)) = (&self.board, self.caller) {
            board.circuit().give_back(stretch);
        }
    }
}

impl Board {
    fn is_troubled(&self) -> bool {
        self.is_troubled.load(Ordering::Acquire)
    }

    fn succeeded(&self, caller: Caller) -> bool {
        if matches!(self.trip, Trip::InARow(_)) && !self.is_troubled() {
            return false;
        }
        let mut circuit = self.circuit();
        let closes = circuit.succeeded(caller, self.runtime.now());
        self.publish(&circuit);
        closes
    }

    fn failed(&self, caller: Caller) -> bool {
        let mut circuit = self.circuit();
        let opens = circuit.failed(caller, &self.runtime);
        self.publish(&circuit);
        if opens {
            self.opened.fetch_add(1, Ordering::Relaxed);
        }
        opens
    }

    /// Under the lock, for those who do not take it.
    fn publish(&self, circuit: &Circuit) {
        self.stretch.store(circuit.stretch(), Ordering::Release);
        self.is_troubled.store(circuit.is_troubled(), Ordering::Release);
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        // Every change is complete when a panic could happen, so poison means nothing.
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
