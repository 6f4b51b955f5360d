//! An `Idempotency-Key` makes one change, however often it is sent, and fits one request.

use std::collections::BTreeMap;

use crate::{Operation, Outcome, Verdict, Violation};

/// Another request under the same key is refused with this.
const REUSED: u16 = 422;

/// Checks for each idempotency key that acknowledged repeats of the first request have its version,
/// and that another request under the key is answered 422.
///
/// The first request is the one that was acknowledged first. Refusals for other reasons (a repeat
/// while the first is under way, overload) change nothing, and are not counted.
pub fn idempotency(operations: &[Operation]) -> Verdict {
    let mut keys = BTreeMap::<&str, Vec<&Operation>>::new();
    for operation in operations {
        if let Some(key) = &operation.idempotency_key {
            keys.entry(key).or_default().push(operation);
        }
    }
    let (mut looked_at, mut violations) = (0, Vec::new());
    for (key, sent) in keys {
        let acknowledged = sent.iter().filter(|it| it.is_acknowledged());
        let Some(first) = acknowledged.min_by_key(|it| it.ended).copied() else { continue };
        let later = sent.iter().filter(|it| !std::ptr::eq(**it, first));
        for repeat in later.filter(|it| it.invoked >= first.ended) {
            if let Some(what) = wrong(first, repeat) {
                violations.push(Violation::new(format!("{what} (`{key}`)"), [first, *repeat]));
            }
            looked_at += 1;
        }
    }
    Verdict::of(looked_at, violations)
}

fn wrong(first: &Operation, repeat: &Operation) -> Option<&'static str> {
    let is_same = first.key == repeat.key
        && first.action == repeat.action
        && first.condition == repeat.condition;
    match repeat.outcome {
        Outcome::Ok if !is_same => Some("an idempotency key was accepted for another request"),
        Outcome::Ok if repeat.version != first.version => Some("a repeat made another version"),
        Outcome::Fail if is_same && repeat.status == REUSED => {
            Some("a repeat was refused as if it were another request")
        }
        Outcome::Ok | Outcome::Fail | Outcome::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::hand_made::{refused, write};
    use super::*;

    fn under(key: &str, version: u64, operation: Operation) -> Operation {
        Operation { idempotency_key: Some(key.to_owned()), version: Some(version), ..operation }
    }

    #[test]
    fn the_first_result_is_answered_again() {
        let first = under("i", 1, write("1", 0..10));
        idempotency(&[first.clone(), under("i", 1, write("1", 20..30))]).assert_holds();
        let judgement = idempotency(&[first, under("i", 2, write("1", 20..30))]);
        assert_eq!(judgement.violations().len(), 1);
    }

    #[test]
    fn another_request_is_refused() {
        let first = under("i", 1, write("1", 0..10));
        idempotency(&[first.clone(), under("i", 1, refused("2", 20..30, 422))]).assert_holds();
        let other_body = under("i", 2, write("2", 20..30));
        let other_key = Operation { key: "l".into(), ..under("i", 2, write("1", 20..30)) };
        for other in [other_body, other_key] {
            assert_eq!(idempotency(&[first.clone(), other]).violations().len(), 1);
        }
    }

    #[test]
    fn a_repeat_is_not_refused() {
        let first = under("i", 1, write("1", 0..10));
        let repeat = under("i", 1, refused("1", 20..30, 422));
        assert_eq!(idempotency(&[first, repeat]).violations().len(), 1);
    }

    #[test]
    fn different_keys_have_nothing_to_do_with_each_other() {
        let operations = [under("i", 1, write("1", 0..10)), under("j", 2, write("2", 20..30))];
        assert_eq!(idempotency(&operations), Verdict::Holds { looked_at: 0 });
    }
}
