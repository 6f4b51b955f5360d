//! What a worker counts.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::ledger::Verdict;
use crate::workload::Operation;

/// Why a request has no good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Failure {
    /// No answer by the deadline.
    Timeout,
    /// No connection could be made.
    Refused,
    /// The connection ended before the answer.
    Lost,
    /// What came was not HTTP.
    Protocol,
    /// It waited in the generator for half its time, for want of a free connection.
    Unsent,
    /// A status that is no success.
    Status(u16),
}

impl Failure {
    /// The kind, for people and files.
    pub fn name(self) -> String {
        match self {
            Self::Timeout => "timeout".into(),
            Self::Refused => "connection refused".into(),
            Self::Lost => "connection lost".into(),
            Self::Protocol => "not HTTP".into(),
            Self::Unsent => "unsent".into(),
            Self::Status(status) => format!("status {status}"),
        }
    }
}

/// A small map whose keys are few and mostly the same.
#[derive(Clone, Debug)]
pub struct Counts<K>(Vec<(K, u64)>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: PartialEq> Counts<K> {
    /// Adds to the count of what equals `key`; `make` makes the key when it is new.
    pub fn add<Q: ?Sized>(&mut self, key: &Q, number: u64, make: impl FnOnce() -> K)
    where
        K: PartialEq<Q>,
    {
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some((_, count)) => *count += number,
            None => self.0.push((make(), number)),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &(K, u64)> {
        self.0.iter()
    }

    /// Their sum.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }
}

impl<K: PartialEq + Clone> Counts<K> {
    fn merge(&mut self, other: &Self) {
        for (key, count) in other.iter() {
            self.add(key, *count, || key.clone());
        }
    }
}

/// Wrong answers.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Answers that were judged.
    pub judged: u64,
    /// Superseded before the read was sent.
    pub stale: u64,
    /// No record where one was acknowledged, or a statement with too few transactions.
    pub missing: u64,
    /// Another key's value.
    pub swapped: u64,
    /// No write explains the value, or a statement with too many transactions.
    pub made_up: u64,
    /// How old stale answers were, in microseconds.
    pub ages: Vec<u64>,
    /// The first few, in words.
    pub examples: Vec<String>,
}

/// So many examples and ages are kept.
const EXAMPLES: usize = 5;
const AGES: usize = 10_000;

impl Findings {
    /// Counts a judgement; `words` describes the answer.
    pub fn add(&mut self, verdict: Verdict, words: impl FnOnce() -> String) {
        self.judged += 1;
        match verdict {
            Verdict::Right => return,
            Verdict::Stale(age) => {
                self.stale += 1;
                if self.ages.len() < AGES {
                    self.ages.push(age);
                }
            }
            Verdict::Missing(_) | Verdict::Lacking(_) => self.missing += 1,
            Verdict::Swapped => self.swapped += 1,
            Verdict::MadeUp | Verdict::Surplus(_) => self.made_up += 1,
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push(words());
        }
    }

    /// All wrong answers.
    pub fn wrong(&self) -> u64 {
        self.stale + self.missing + self.swapped + self.made_up
    }

    /// Takes over what another counted.
    pub fn merge(&mut self, other: Self) {
        self.judged += other.judged;
        self.stale += other.stale;
        self.missing += other.missing;
        self.swapped += other.swapped;
        self.made_up += other.made_up;
        self.ages.extend(other.ages);
        self.ages.truncate(AGES);
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
    }
}

/// Microseconds from 1 to an hour with three digits.
fn latencies() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the proof stands in the message")]
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("1 < the highest, three digits")
}

/// A coarse one for a moment of the run: two digits.
fn moment_latencies() -> Histogram<u32> {
    #[expect(clippy::expect_used, reason = "the proof stands in the message")]
    Histogram::new_with_bounds(1, 3_600_000_000, 2).expect("1 < the highest, two digits")
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What happened since the last tick.
#[derive(Clone, Debug)]
pub struct Tick {
    /// Answered well.
    pub done: u64,
    /// Not answered well.
    pub failed: u64,
    /// Latencies, failures at their deadline.
    pub latencies: Histogram<u32>,
    /// Reads by whether a cache answered.
    pub hits: u64,
    /// Reads.
    pub reads: u64,
    /// Requests that wait in the generator for a connection.
    pub waiting: u64,
}

impl Default for Tick {
    fn default() -> Self {
        Self { done: 0, failed: 0, latencies: moment_latencies(), hits: 0, reads: 0, waiting: 0 }
    }
}

impl Tick {
    /// Takes over what another counted.
    pub fn merge(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.hits += other.hits;
        self.reads += other.reads;
        self.waiting += other.waiting;
        // Both have the same bounds.
        let _ = self.latencies.add(&other.latencies);
    }
}

/// What one worker counted in one phase.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Latency by operation, failures at their deadline; in the order of [`Operation::ALL`].
    pub latencies: [Histogram<u64>; Operation::ALL.len()],
    /// How late requests left though a connection was free: the generator's own fault.
    pub lag: Histogram<u64>,
    /// Answered well.
    pub done: u64,
    /// By kind.
    pub failures: Counts<Failure>,
    /// Reads by `Terrace-Origin`.
    pub origins: Counts<Vec<u8>>,
    /// Writes by `Terrace-Durability`.
    pub durabilities: Counts<Vec<u8>>,
    /// Wrong answers.
    pub findings: Findings,
    /// The most requests that waited in the generator at once.
    pub most_waiting: u64,
    /// Since the last tick.
    pub tick: Tick,
    /// CPU time of the worker's thread.
    pub cpu: Duration,
    /// From the first request to the last answer.
    pub elapsed: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            latencies: std::array::from_fn(|_| latencies()),
            lag: latencies(),
            done: 0,
            failures: Counts::default(),
            origins: Counts::default(),
            durabilities: Counts::default(),
            findings: Findings::default(),
            most_waiting: 0,
            tick: Tick::default(),
            cpu: Duration::ZERO,
            elapsed: Duration::ZERO,
        }
    }
}

impl Tally {
    /// A good answer.
    pub fn answered(&mut self, operation: Operation, latency: Duration) {
        self.done += 1;
        self.tick.done += 1;
        self.record(operation, latency);
    }

    /// A request without a good answer; its latency is the whole time it was given.
    pub fn failed(&mut self, operation: Operation, why: Failure, deadline: Duration) {
        self.failures.add(&why, 1, || why);
        self.tick.failed += 1;
        self.record(operation, deadline);
    }

    fn record(&mut self, operation: Operation, latency: Duration) {
        let latency = micros(latency).max(1);
        self.latencies[operation as usize].saturating_record(latency);
        self.tick.latencies.saturating_record(latency);
    }

    /// Where a read came from.
    pub fn origin(&mut self, origin: &[u8]) {
        self.tick.reads += 1;
        if matches!(origin, b"near" | b"far") {
            self.tick.hits += 1;
        }
        self.origins.add(origin, 1, || origin.to_vec());
    }

    /// Takes over what another worker counted.
    pub fn merge(&mut self, other: Self) {
        for (own, others) in self.latencies.iter_mut().zip(&other.latencies) {
            // All have the same bounds.
            let _ = own.add(others);
        }
        let _ = self.lag.add(&other.lag);
        self.done += other.done;
        self.failures.merge(&other.failures);
        self.origins.merge(&other.origins);
        self.durabilities.merge(&other.durabilities);
        self.findings.merge(other.findings);
        self.most_waiting += other.most_waiting;
        self.cpu += other.cpu;
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}
