//! What was acknowledged is there in the end, or something that came after it.

use std::time::Duration;

use super::sources::{by_key, newer_than_found, without_repeats};
use crate::{Consistency, Operation, Verdict, Violation};

/// Checks the last strong read of each key that began after all its changes had been answered.
///
/// Keys without such a read are not looked at; without any the verdict is
/// [`Verdict::NotLookedAt`].
pub fn lost_writes(operations: &[Operation]) -> Verdict {
    let effects = without_repeats(operations);
    let (mut looked_at, mut violations) = (0, Vec::new());
    for of_key in by_key(&effects).values() {
        let changes = || of_key.iter().filter(|it| it.changes());
        let Some(quiet) = changes().map(|it| it.ended).max() else { continue };
        let is_last = |it: &&&Operation| {
            it.has_read() && it.consistency == Consistency::Strong && it.invoked >= quiet
        };
        let Some(read) = of_key.iter().filter(is_last).max_by_key(|it| it.invoked) else {
            continue;
        };
        looked_at += changes().filter(|it| it.is_acknowledged()).count();
        if let Some(lost) = newer_than_found(read, of_key, Duration::ZERO) {
            violations.push(Violation::new("an acknowledged change is gone", [lost, *read]));
        }
    }
    if looked_at == 0 && violations.is_empty() {
        return Verdict::NotLookedAt("no key has a strong read after its changes".into());
    }
    Verdict::of(looked_at, violations)
}

#[cfg(test)]
mod tests {
    use super::super::hand_made::{missing, read, unknown, write};
    use super::*;

    fn strong(read: Operation) -> Operation {
        Operation { consistency: Consistency::Strong, ..read }
    }

    #[test]
    fn a_write_that_is_there_is_not_lost() {
        lost_writes(&[write("1", 0..10), strong(read("1", 20..30))]).assert_holds();
    }

    #[test]
    fn a_write_that_is_gone_is_lost() {
        let gone = [write("1", 0..10), strong(missing(20..30))];
        assert_eq!(lost_writes(&gone).violations().len(), 1);
        let back = [write("1", 0..10), write("2", 20..30), strong(read("1", 40..50))];
        assert_eq!(lost_writes(&back).violations().len(), 1);
    }

    #[test]
    fn an_unknown_write_is_neither_missed_nor_wrong() {
        lost_writes(&[write("1", 0..10), unknown("2", 20..30), strong(read("1", 40..50))])
            .assert_holds();
        lost_writes(&[write("1", 0..10), unknown("2", 20..30), strong(read("2", 40..50))])
            .assert_holds();
    }

    #[test]
    fn reads_that_are_not_strong_or_too_early_show_nothing() {
        let weak = [write("1", 0..10), missing(20..30)];
        assert!(matches!(lost_writes(&weak), Verdict::NotLookedAt(_)));
        let early = [write("1", 0..10), strong(missing(5..30))];
        assert!(matches!(lost_writes(&early), Verdict::NotLookedAt(_)));
    }
}
