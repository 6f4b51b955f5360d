//! Judges what a level answers beside what it claims, knowing every write.
//!
//! The page's own traffic is the only writer of its keys, so the ledger of the load generator tells of each
//! read whether it showed what it may: see [`terrace_bench::ledger`]. How stale a read may be is the level's
//! own [`Staleness`], which stands beside its guarantee.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use terrace_bench::ledger::{Ledger, Moment, Verdict};
use terrace_bench::value::Named;
use terrace_core::{Inspection, Unit};

use crate::levels::Staleness;

/// How many operations are remembered, for the history of a violation.
const REMEMBERED: usize = 2_000;

/// What is known of the requests of one run of traffic.
#[derive(Debug)]
pub(super) struct Oracle {
    pub(super) ledger: Ledger,
    allowed: Allowed,
    judged: AtomicU64,
    stale: AtomicU64,
    worst_us: AtomicU64,
    violations: AtomicU64,
    log: Mutex<Log>,
}

/// How stale a read may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    AtMost(Duration),
    AnyAge,
}

#[derive(Debug, Default)]
struct Log {
    latest: VecDeque<Operation>,
    first: Option<(String, Vec<Operation>)>,
}

/// One request and its answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Operation {
    pub(super) key: u32,
    /// `read` or `write`.
    pub(super) what: &'static str,
    /// When it was sent and when it was answered, in microseconds since the traffic began.
    pub(super) sent: Moment,
    pub(super) answered: Moment,
    /// The number of the write that was made, or that the read showed; none: no record.
    pub(super) write: Option<u64>,
    /// Where the answer came from, or what went wrong.
    pub(super) how: String,
}

/// An answer that was not what the level claims, and what happened to its key before.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Violation {
    pub(super) level: u8,
    pub(super) claim: &'static str,
    pub(super) why: String,
    pub(super) history: Vec<Operation>,
}

impl Oracle {
    /// For keys from 0 to this number, of a level that looks like this.
    pub(super) fn new(keys: u32, run: u64, claim: Staleness, tree: &Inspection) -> Self {
        let allowed = match claim.bound(tree) {
            Some(bound) => Allowed::AtMost(bound),
            None => Allowed::AnyAge,
        };
        Self {
            ledger: Ledger::new(keys, run),
            allowed,
            judged: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            worst_us: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            log: Mutex::default(),
        }
    }

    /// Notes an operation that has nothing to be judged: a write, or a read that failed.
    pub(super) fn note(&self, operation: Operation) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.latest.push_back(operation);
        if log.latest.len() > REMEMBERED {
            log.latest.pop_front();
        }
    }

    /// Judges what a read showed; true where the level may answer so.
    pub(super) fn judge(&self, operation: Operation, value: Option<&str>) -> bool {
        let verdict = self.ledger.judge(operation.key, value, operation.sent);
        self.judged.fetch_add(1, Relaxed);
        let age = match verdict {
            Verdict::Stale(age) | Verdict::Missing(age) => {
                self.stale.fetch_add(1, Relaxed);
                self.worst_us.fetch_max(age, Relaxed);
                Some(Duration::from_micros(age))
            }
            _ => None,
        };
        let wrong = match (verdict, age, self.allowed) {
            (Verdict::Right, ..) | (_, Some(_), Allowed::AnyAge) => None,
            (_, Some(age), Allowed::AtMost(bound)) => (age > bound).then(|| {
                let what = if matches!(verdict, Verdict::Missing(_)) {
                    "no record"
                } else {
                    "an old value"
                };
                format!("{what}, {age:?} after a newer write was acknowledged")
            }),
            (Verdict::Swapped, ..) => Some("the value of another key".to_owned()),
            _ => Some("a value that nobody wrote".to_owned()),
        };
        let key = operation.key;
        self.note(operation);
        let Some(why) = wrong else { return true };
        self.violations.fetch_add(1, Relaxed);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.first.is_none() {
            let history = log.latest.iter().filter(|it| it.key == key).cloned().collect();
            log.first = Some((why, history));
        }
        false
    }

    /// The number of the write that a value names.
    pub(super) fn write_of(&self, value: &str) -> Option<u64> {
        let Named { write, .. } = self.ledger.values().read(value)?;
        Some(write.sequence())
    }

    /// The first answer that was wrong.
    pub(super) fn first(&self) -> Option<(String, Vec<Operation>)> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).first.clone()
    }

    /// Its figures.
    pub(super) fn add_to(&self, tree: Inspection) -> Inspection {
        tree.counter("judged", self.judged.load(Relaxed))
            .counter("stale", self.stale.load(Relaxed))
            .counter("violations", self.violations.load(Relaxed))
            .gauge("worst", self.worst_us.load(Relaxed), Unit::Micros)
    }
}

#[cfg(test)]
mod tests {
    use terrace_bench::value::WriteId;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn oracle(claim: Staleness) -> Oracle {
        let router = Inspection::new("replica-router").fact("max_lag", Duration::from_secs(5));
        Oracle::new(4, 7, claim, &Inspection::new("observe").needs(router))
    }

    fn write(oracle: &Oracle, sequence: u64, at: u64) -> String {
        let named = Named { key: 1, write: WriteId::new(0, sequence) };
        oracle.ledger.sent(named, at);
        oracle.ledger.acknowledged(named, at + 1);
        let mut text = Vec::new();
        oracle.ledger.values().write(&mut text, named, 20);
        String::from_utf8(text).expect("text")
    }

    fn read(oracle: &Oracle, value: Option<&str>, sent: u64) -> bool {
        let (what, how) = ("read", "primary".to_owned());
        let answered = sent + 1;
        oracle.judge(Operation { key: 1, what, sent, answered, write: None, how }, value)
    }

    #[test]
    fn an_old_value_is_judged_by_what_the_level_claims() {
        let bounded = Staleness::AtMost { part: "replica-router", fact: "max_lag" };
        for (claim, three_seconds, six_seconds) in [
            (Staleness::None, false, false),
            (bounded, true, false),
            (Staleness::Unbounded, true, true),
        ] {
            let oracle = oracle(claim);
            let old = write(&oracle, 1, 0);
            assert!(read(&oracle, Some(&old), 10));
            let new = write(&oracle, 2, 100);
            assert!(read(&oracle, Some(&new), 6 * SECOND));
            assert_eq!(read(&oracle, Some(&old), 3 * SECOND), three_seconds, "{claim:?}");
            assert_eq!(read(&oracle, Some(&old), 6 * SECOND), six_seconds, "{claim:?}");
            let tree = oracle.add_to(Inspection::new("traffic"));
            assert_eq!((tree.number("judged"), tree.number("stale")), (Some(4), Some(2)));
            assert!(tree.number("worst").is_some_and(|worst| worst > 5 * SECOND));
        }
    }

    #[test]
    fn the_first_violation_has_the_history_of_its_key() {
        let oracle = oracle(Staleness::None);
        let old = write(&oracle, 1, 0);
        let other = |key| Operation {
            key,
            what: "write",
            sent: 0,
            answered: 1,
            write: Some(1),
            how: "acknowledged".into(),
        };
        oracle.note(other(1));
        oracle.note(other(2));
        assert!(read(&oracle, Some(&old), 5));
        write(&oracle, 2, 10);
        assert!(oracle.first().is_none());
        assert!(!read(&oracle, Some(&old), SECOND));
        assert!(!read(&oracle, None, 2 * SECOND));
        assert!(!read(&oracle, Some("Ada"), 2 * SECOND));
        let (why, history) = oracle.first().expect("one");
        assert!(why.starts_with("an old value, 999.989ms"), "{why}");
        let history = history.iter().map(|it| (it.what, it.key)).collect::<Vec<_>>();
        assert_eq!(history, [("write", 1), ("read", 1), ("read", 1)]);
    }
}
