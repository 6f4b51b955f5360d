//! A read with a token is at least as new as the answers that the token came with.

use super::sources::{Source, by_key, without_repeats};
use crate::{Operation, Verdict, Violation};

/// Checks each answered read that sent tokens against every earlier answer of the same key that
/// came with one of them.
pub fn sessions(operations: &[Operation]) -> Verdict {
    let effects = without_repeats(operations);
    let (mut looked_at, mut violations) = (0, Vec::new());
    for of_key in by_key(&effects).values() {
        for read in of_key.iter().filter(|it| it.has_read() && !it.tokens_sent.is_empty()) {
            for floor in of_key.iter().filter(|it| gave_token(it, read)) {
                looked_at += 1;
                if is_older(read, floor, of_key) {
                    let what = "a read with a token is older than what the token came with";
                    violations.push(Violation::new(what, [*floor, *read]));
                    break;
                }
            }
        }
    }
    Verdict::of(looked_at, violations)
}

fn gave_token(earlier: &Operation, read: &Operation) -> bool {
    let sent = |token: &String| read.tokens_sent.contains(token);
    (earlier.has_read() || earlier.is_acknowledged())
        && earlier.ended <= read.invoked
        && earlier.token_received.as_ref().is_some_and(sent)
}

fn is_older(read: &Operation, floor: &Operation, of_key: &[&Operation]) -> bool {
    if let (Some(found), Some(least)) = (read.version, floor.version)
        && found < least
    {
        return true;
    }
    let (found, least) = (Source::of(read, of_key), Source::of(floor, of_key));
    found.iter().all(|found| least.iter().all(|least| found.is_before_source(*least)))
        && !found.is_empty()
        && !least.is_empty()
}

#[cfg(test)]
mod tests {
    use super::super::hand_made::{missing, read, write};
    use super::*;

    fn gives(token: &str, operation: Operation) -> Operation {
        Operation { token_received: Some(token.to_owned()), ..operation }
    }

    fn with(token: &str, operation: Operation) -> Operation {
        Operation { tokens_sent: vec![token.to_owned()], ..operation }
    }

    #[test]
    fn own_writes_are_read() {
        let write = gives("t", write("1", 0..10));
        sessions(&[write.clone(), with("t", read("1", 20..30))]).assert_holds();
        let judgement = sessions(&[write, with("t", missing(20..30))]);
        assert_eq!(judgement.violations().len(), 1);
    }

    #[test]
    fn a_token_of_a_read_does_not_go_back() {
        let writes = [write("1", 0..10), write("2", 20..30)];
        let seen = gives("t", read("2", 40..50));
        let again = |found| with("t", read(found, 60..70));
        let judged = |found| sessions(&[&writes[..], &[seen.clone(), again(found)]].concat());
        judged("2").assert_holds();
        assert_eq!(judged("1").violations().len(), 1);
    }

    #[test]
    fn another_token_or_none_promises_nothing() {
        let write = gives("t", write("1", 0..10));
        for read in [with("u", missing(20..30)), missing(20..30)] {
            let judgement = sessions(&[write.clone(), read]);
            assert_eq!(judgement, Verdict::Holds { looked_at: 0 });
        }
    }

    #[test]
    fn a_lower_version_is_older() {
        let version = |version, operation| Operation { version: Some(version), ..operation };
        let write = gives("t", version(7, write("1", 0..10)));
        let found = with("t", version(6, read("1", 20..30)));
        assert_eq!(sessions(&[write, found]).violations().len(), 1);
    }
}
