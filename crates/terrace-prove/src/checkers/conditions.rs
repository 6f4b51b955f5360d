//! `If-Match` changes only the content that had the version, once; versions name one content.

use std::collections::BTreeMap;

use super::sources::{by_key, without_repeats};
use crate::{Condition, Operation, Verdict, Violation};

/// Checks for each key that no version names two contents, and that at most one change with
/// `If-Match` on a version was acknowledged.
///
/// Together they say that a change with `If-Match` replaced what its client had seen. Changes whose
/// outcome is unknown are not counted.
pub fn conditions(operations: &[Operation]) -> Verdict {
    let effects = without_repeats(operations);
    let (mut looked_at, mut violations) = (0, Vec::new());
    for of_key in by_key(&effects).values() {
        let mut named = BTreeMap::<u64, &Operation>::new();
        let mut matched = BTreeMap::<u64, &Operation>::new();
        for operation in of_key.iter().filter(|it| it.has_read() || it.is_acknowledged()) {
            if let Some(version) = operation.version {
                let first = *named.entry(version).or_insert(operation);
                if first.content() != operation.content() {
                    let what = format!("version {version} names two contents");
                    violations.push(Violation::new(what, [first, *operation]));
                }
            }
            if let (true, Some(Condition::IfVersion(version))) =
                (operation.changes(), operation.condition)
            {
                looked_at += 1;
                if let Some(first) = matched.insert(version, operation) {
                    let what = format!("two changes replaced version {version}");
                    violations.push(Violation::new(what, [first, *operation]));
                }
            }
        }
    }
    Verdict::of(looked_at, violations)
}

#[cfg(test)]
mod tests {
    use super::super::hand_made::{read, refused, write};
    use super::*;

    fn version(version: u64, operation: Operation) -> Operation {
        Operation { version: Some(version), ..operation }
    }

    fn if_version(version: u64, operation: Operation) -> Operation {
        Operation { condition: Some(Condition::IfVersion(version)), ..operation }
    }

    #[test]
    fn one_of_two_wins() {
        let operations = [
            version(1, write("1", 0..10)),
            version(2, if_version(1, write("2", 20..40))),
            if_version(1, refused("3", 20..30, 412)),
            version(2, read("2", 50..60)),
        ];
        conditions(&operations).assert_holds();
    }

    #[test]
    fn two_winners_are_caught() {
        let operations = [
            version(1, write("1", 0..10)),
            version(2, if_version(1, write("2", 20..30))),
            version(3, if_version(1, write("3", 40..50))),
        ];
        assert_eq!(conditions(&operations).violations().len(), 1);
    }

    #[test]
    fn a_version_that_is_given_out_again_is_caught() {
        let operations = [
            version(122, write("lost", 0..10)),
            version(122, write("of somebody else", 20..30)),
            version(123, if_version(122, write("blind", 40..50))),
        ];
        assert_eq!(conditions(&operations).violations().len(), 1);
    }
}
