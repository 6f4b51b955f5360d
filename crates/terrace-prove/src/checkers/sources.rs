//! Where the content that a read found can come from, and what came after that.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Operation, Outcome};

/// The operations without repeats: requests under one idempotency key are one change, which took
/// effect between the first request and the first acknowledgement.
pub(super) fn without_repeats(operations: &[Operation]) -> Vec<Operation> {
    let mut effects: Vec<Operation> = Vec::with_capacity(operations.len());
    let mut first = BTreeMap::<(&str, &str), usize>::new();
    for operation in operations {
        let Some(request) = operation.idempotency_key.as_deref() else {
            effects.push(operation.clone());
            continue;
        };
        if operation.outcome == Outcome::Fail {
            continue; // changed nothing, and says nothing about the others
        }
        match first.get(&(request, operation.key.as_str())) {
            Some(at) => {
                let known = &mut effects[*at];
                let invoked = known.invoked.min(operation.invoked);
                let is_better = known.outcome == Outcome::Unknown
                    || (operation.is_acknowledged() && operation.ended < known.ended);
                if known.action == operation.action && is_better {
                    *known = operation.clone();
                }
                known.invoked = invoked;
            }
            None => {
                first.insert((request, operation.key.as_str()), effects.len());
                effects.push(operation.clone());
            }
        }
    }
    effects
}

/// The operations of each key, in the order of the history.
pub(super) fn by_key(operations: &[Operation]) -> BTreeMap<&str, Vec<&Operation>> {
    let mut keys = BTreeMap::<&str, Vec<&Operation>>::new();
    for operation in operations {
        keys.entry(&operation.key).or_default().push(operation);
    }
    keys
}

/// What can have brought about a content of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// The key has no value before its first write.
    Beginning,
    /// This change, which was not refused.
    Change(&'a Operation),
}

impl<'a> Source<'a> {
    /// Everything that the content of `operation` can come from: itself when it is a change, else
    /// each change with this content that was sent before the read ended.
    pub(super) fn of(operation: &'a Operation, of_key: &[&'a Operation]) -> Vec<Self> {
        if operation.changes() {
            return vec![Self::Change(operation)];
        }
        let content = operation.content();
        let beginning = content.is_none().then_some(Self::Beginning);
        let made_it = |change: &&&Operation| {
            change.changes()
                && change.outcome != Outcome::Fail
                && change.content() == content
                && change.invoked <= operation.ended
        };
        let changes = of_key.iter().filter(made_it).map(|change| Self::Change(change));
        beginning.into_iter().chain(changes).collect()
    }

    /// Whether `later` certainly took effect after this source. A change whose outcome is unknown
    /// may still come, after everything.
    pub(super) fn is_before(self, later: &Operation) -> bool {
        match self {
            Self::Beginning => true,
            Self::Change(change) => change.settled().is_some_and(|at| at < later.invoked),
        }
    }

    /// Whether another source certainly took effect after this one.
    pub(super) fn is_before_source(self, later: Source<'_>) -> bool {
        match later {
            Source::Beginning => false,
            Source::Change(change) => self.is_before(change),
        }
    }
}

/// The change that refutes a read, if there is one: acknowledged `allowed` before the read began, and
/// certainly after everything that the content of the read can come from.
pub(super) fn newer_than_found<'a>(
    read: &'a Operation,
    of_key: &[&'a Operation],
    allowed: Duration,
) -> Option<&'a Operation> {
    let sources = Source::of(read, of_key);
    let refutes = |change: &&&Operation| {
        change.is_acknowledged()
            && change.ended.saturating_add(allowed) <= read.invoked
            && sources.iter().all(|source| source.is_before(change))
    };
    // The last that was acknowledged says best how old the answer is.
    of_key.iter().filter(refutes).max_by_key(|change| change.ended).copied()
}
