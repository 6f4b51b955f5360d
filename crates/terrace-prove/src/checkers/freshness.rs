//! No read that began after a change was acknowledged returns what the change replaced.

use std::time::Duration;

use super::sources::{Source, by_key, newer_than_found, without_repeats};
use crate::{Consistency, Operation, Verdict, Violation};

/// What a level promises to reads without a token.
#[derive(Debug, Clone, Default)]
pub struct Freshness {
    /// How old an answer to a default read may be. Default: not at all.
    pub allowed: Duration,
    /// Times in which more is allowed. Default: none.
    pub exceptions: Vec<Exception>,
}

/// A stated exception: reads that begin within it may be older than usual.
#[derive(Debug, Clone, Copy)]
pub struct Exception {
    /// When it begins, from the start of the history.
    pub from: Duration,
    /// When it ends, from the start of the history.
    pub until: Duration,
    /// How old an answer may be meanwhile.
    pub allowed: Duration,
}

impl Freshness {
    /// The promise with one more exception.
    #[must_use]
    pub fn except(mut self, from: Duration, until: Duration, allowed: Duration) -> Self {
        self.exceptions.push(Exception { from, until, allowed });
        self
    }

    fn allows(&self, read: &Operation) -> Duration {
        let usual = match read.consistency {
            Consistency::Strong => return Duration::ZERO,
            Consistency::Default => self.allowed,
            Consistency::MaxStale(bound) => bound,
        };
        let within = |it: &&Exception| it.from <= read.invoked && read.invoked <= it.until;
        let exceptions = self.exceptions.iter().filter(within).map(|it| it.allowed);
        exceptions.fold(usual, Duration::max)
    }
}

/// Checks that each read returns the last change that was acknowledged before it began, or
/// something newer, up to what the promise allows; and that every value was written by somebody.
/// The worst violation comes first.
pub fn freshness(operations: &[Operation], promise: &Freshness) -> Verdict {
    let effects = without_repeats(operations);
    let (mut looked_at, mut violations) = (0, Vec::new());
    for of_key in by_key(&effects).values() {
        for read in of_key.iter().filter(|it| it.has_read()) {
            let allowed = promise.allows(read);
            let could_refute = |change: &&&Operation| {
                change.is_acknowledged() && change.ended.saturating_add(allowed) <= read.invoked
            };
            looked_at += usize::from(of_key.iter().any(|change| could_refute(&change)));
            if Source::of(read, of_key).is_empty() {
                let what = Violation::new("a value that nobody wrote was read", [*read]);
                violations.push((Duration::MAX, what));
            } else if let Some(newer) = newer_than_found(read, of_key, allowed) {
                let after = read.invoked.saturating_sub(newer.ended);
                let what = format!(
                    "an old value was read {:.3} s after a newer one was acknowledged ({} s allowed)",
                    after.as_secs_f64(),
                    allowed.as_secs_f64()
                );
                violations.push((after, Violation::new(what, [newer, *read])));
            }
        }
    }
    violations.sort_by_key(|(after, _)| std::cmp::Reverse(*after));
    Verdict::of(looked_at, violations.into_iter().map(|(_, violation)| violation).collect())
}

#[cfg(test)]
mod tests {
    use super::super::hand_made::{deleted, missing, ms, read, unknown, write};
    use super::*;

    fn judged(operations: &[Operation]) -> Verdict {
        freshness(operations, &Freshness::default())
    }

    #[test]
    fn the_last_acknowledged_value_is_fresh() {
        judged(&[write("1", 0..10), write("2", 20..30), read("2", 40..50)]).assert_holds();
    }

    #[test]
    fn a_value_that_was_replaced_is_old() {
        let operations = [write("1", 0..10), write("2", 20..30), read("1", 31..40)];
        assert_eq!(judged(&operations).violations().len(), 1);
    }

    #[test]
    fn a_read_that_overlaps_the_write_may_return_either() {
        let (old, new) = (read("1", 25..40), read("2", 25..40));
        judged(&[write("1", 0..10), write("2", 20..30), old, new]).assert_holds();
    }

    #[test]
    fn concurrent_writes_have_no_order() {
        judged(&[write("1", 0..30), write("2", 10..20), read("1", 40..50)]).assert_holds();
        judged(&[write("1", 0..30), write("2", 10..20), read("2", 40..50)]).assert_holds();
    }

    #[test]
    fn an_unknown_write_may_come_late() {
        let operations = [unknown("1", 0..10), write("2", 20..30), read("1", 40..50)];
        judged(&operations).assert_holds();
    }

    #[test]
    fn missing_is_old_after_a_write_and_fresh_after_a_delete() {
        let judgement = judged(&[write("1", 0..10), missing(40..50)]);
        assert_eq!(judgement.violations().len(), 1);
        judged(&[write("1", 0..10), deleted(20..30), missing(40..50)]).assert_holds();
        let judgement = judged(&[write("1", 0..10), deleted(20..30), read("1", 40..50)]);
        assert_eq!(judgement.violations().len(), 1);
    }

    #[test]
    fn a_repeat_is_no_later_write() {
        let under = |operation| Operation { idempotency_key: Some("i".into()), ..operation };
        let repeated = [
            under(write("1", 0..10)),
            write("2", 20..30),
            under(write("1", 40..50)),
            read("2", 60..70),
        ];
        judged(&repeated).assert_holds();
        // What nobody knew is known from the repeat on, and may have happened before.
        let retried = [under(unknown("1", 0..10)), write("2", 20..30), under(write("1", 40..50))];
        judged(&[&retried[..], &[read("2", 60..70)]].concat()).assert_holds();
        judged(&[&retried[..], &[read("1", 60..70)]].concat()).assert_holds();
        let lost = judged(&[&retried[..], &[missing(60..70)]].concat());
        assert_eq!(lost.violations().len(), 1);
    }

    #[test]
    fn an_allowance_and_an_exception_are_used_up() {
        let operations = [write("1", 0..10), write("2", 20..30), read("1", 1030..1040)];
        let promise = |allowed| Freshness { allowed: ms(allowed), ..Freshness::default() };
        assert!(!freshness(&operations, &promise(1000)).holds());
        assert!(freshness(&operations, &promise(1001)).violations().is_empty());
        let except = |until| Freshness::default().except(ms(0), ms(until), ms(5000));
        assert!(freshness(&operations, &except(1030)).violations().is_empty());
        assert!(!freshness(&operations, &except(1029)).holds());
    }

    #[test]
    fn strong_reads_know_no_allowance_and_max_stale_has_its_own() {
        let with = |consistency| {
            let old = Operation { consistency, ..read("1", 1030..1040) };
            let promise = Freshness { allowed: ms(5000), ..Freshness::default() };
            freshness(&[write("1", 0..10), write("2", 20..30), old], &promise).violations().len()
        };
        assert_eq!(with(Consistency::Default), 0);
        assert_eq!(with(Consistency::Strong), 1);
        assert_eq!(with(Consistency::MaxStale(ms(500))), 1);
        assert_eq!(with(Consistency::MaxStale(ms(2000))), 0);
    }

    #[test]
    fn a_value_of_nobody_is_caught() {
        assert_eq!(judged(&[write("1", 0..10), read("other", 20..30)]).violations().len(), 1);
    }

    #[test]
    fn a_history_that_could_not_refute_anything_is_no_pass() {
        assert!(!judged(&[write("1", 0..10)]).holds());
    }
}
