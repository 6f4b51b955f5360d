//! Each key behaves like one register: there is an order of its operations that agrees with real
//! time and in which every read returns the last write.
//!
//! The search is that of Wing and Gong, with the memory of Lowe ("Testing for linearizability",
//! 2017): a set of operations that were put in order, with the content that they lead to, is tried
//! once.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::sources::{by_key, without_repeats};
use crate::{Action, Condition, Operation, Outcome, Verdict, Violation};

/// Checks the register of each key. A change whose outcome is unknown may take effect at any time
/// after it was sent, or never.
///
/// `budget` is the number of steps for all keys together. When it is used up before an order was
/// found, the verdict is [`Verdict::NotLookedAt`], unless another key is refuted.
pub fn linearizability(operations: &[Operation], budget: usize) -> Verdict {
    let effects = without_repeats(operations);
    let (mut looked_at, mut violations, mut budget) = (0, Vec::new(), budget);
    let mut exhausted = None;
    for (key, of_key) in by_key(&effects) {
        let calls = calls(&of_key);
        let mut search = Search::new(&calls);
        match search.run(&mut budget) {
            Found::Order => looked_at += calls.len(),
            Found::NoOrder => {
                let what = format!("the operations of {key:?} have no order");
                violations.push(Violation::new(what, search.stuck.map(|at| calls[at].operation)));
            }
            Found::OutOfBudget => exhausted = Some(key),
        }
    }
    match exhausted {
        Some(key) if violations.is_empty() => {
            Verdict::NotLookedAt(format!("the budget was used up at {key:?}"))
        }
        _ => Verdict::of(looked_at, violations),
    }
}

/// An operation as the register sees it; contents are numbers, 0 is "missing".
struct Call<'a> {
    operation: &'a Operation,
    begins: Duration,
    ends: Duration,
    /// The content that it must meet.
    meets: Option<usize>,
    /// The content that it leaves, if it changes anything.
    leaves: Option<usize>,
}

fn calls<'a>(of_key: &[&'a Operation]) -> Vec<Call<'a>> {
    let mut numbers = BTreeMap::from([(None, 0)]);
    let mut number = |content: Option<&'a str>| {
        let next = numbers.len();
        *numbers.entry(content).or_insert(next)
    };
    let versions: BTreeMap<u64, usize> = of_key
        .iter()
        .filter(|it| it.outcome == Outcome::Ok)
        .filter_map(|it| Some((it.version?, number(it.content()))))
        .collect();
    let took_part =
        |it: &&&Operation| it.has_read() || (it.changes() && it.outcome != Outcome::Fail);
    let mut call = |operation: &'a Operation| {
        let content = number(operation.content());
        let is_known = operation.outcome == Outcome::Ok;
        let (meets, leaves) = match (&operation.action, operation.condition) {
            (Action::Read, _) => (Some(content), None),
            (_, Some(Condition::IfMissing)) if is_known => (Some(0), Some(content)),
            (_, Some(Condition::IfVersion(version))) if is_known => {
                (versions.get(&version).copied(), Some(content))
            }
            _ => (None, Some(content)),
        };
        let ends = operation.settled().unwrap_or(Duration::MAX);
        Call { operation, begins: operation.invoked, ends, meets, leaves }
    };
    of_key.iter().filter(took_part).map(|it| call(it)).collect()
}

enum Found {
    Order,
    NoOrder,
    OutOfBudget,
}

#[derive(Clone, Copy)]
enum Event {
    Edge,
    Begins(usize),
    Ends(usize),
}

/// The beginnings and ends that are not in the order yet, as a list by time; node 0 is its edge.
struct Search<'a> {
    calls: &'a [Call<'a>],
    events: Vec<Event>,
    next: Vec<usize>,
    previous: Vec<usize>,
    begins: Vec<usize>,
    ends: Vec<usize>,
    /// The call that the longest order could not get past.
    stuck: Option<usize>,
}

impl<'a> Search<'a> {
    fn new(calls: &'a [Call<'a>]) -> Self {
        let mut times = Vec::with_capacity(calls.len() * 2);
        for (at, call) in calls.iter().enumerate() {
            times.push((call.begins, false, at));
            times.push((call.ends, true, at));
        }
        times.sort_unstable();
        let length = times.len() + 1;
        let (mut begins, mut ends) = (vec![0; calls.len()], vec![0; calls.len()]);
        let mut events = vec![Event::Edge];
        for (node, (_, is_end, at)) in (1..).zip(times) {
            if is_end {
                ends[at] = node
            } else {
                begins[at] = node
            }
            events.push(if is_end { Event::Ends(at) } else { Event::Begins(at) });
        }
        let next = (0..length).map(|node| (node + 1) % length).collect();
        let previous = (0..length).map(|node| (node + length - 1) % length).collect();
        Self { calls, events, next, previous, begins, ends, stuck: None }
    }

    fn run(&mut self, budget: &mut usize) -> Found {
        let mut tried = HashSet::new();
        let mut placed = vec![0_u64; self.calls.len().div_ceil(64)];
        let mut order = Vec::<(usize, usize)>::new();
        let (mut content, mut longest, mut node) = (0, 0, self.next[0]);
        while self.next[0] != 0 {
            let Some(left) = budget.checked_sub(1) else { return Found::OutOfBudget };
            *budget = left;
            match self.events[node] {
                Event::Begins(at) => {
                    let call = &self.calls[at];
                    let leaves = call.leaves.unwrap_or(content);
                    placed[at / 64] |= 1 << (at % 64);
                    if call.meets.is_none_or(|meets| meets == content)
                        && tried.insert((placed.clone(), leaves))
                    {
                        order.push((at, content));
                        content = leaves;
                        self.take_out(at);
                        node = self.next[0];
                    } else {
                        placed[at / 64] &= !(1 << (at % 64));
                        node = self.next[node];
                    }
                }
                // A call that has ended must be in the order by now.
                Event::Ends(_) | Event::Edge => {
                    if let (Event::Ends(at), true) = (self.events[node], order.len() >= longest) {
                        (self.stuck, longest) = (Some(at), order.len());
                    }
                    let Some((at, before)) = order.pop() else { return Found::NoOrder };
                    content = before;
                    placed[at / 64] &= !(1 << (at % 64));
                    self.put_back(at);
                    node = self.next[self.begins[at]];
                }
            }
        }
        Found::Order
    }

    fn take_out(&mut self, at: usize) {
        for node in [self.begins[at], self.ends[at]] {
            let (previous, next) = (self.previous[node], self.next[node]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
    }

    fn put_back(&mut self, at: usize) {
        for node in [self.ends[at], self.begins[at]] {
            let (previous, next) = (self.previous[node], self.next[node]);
            self.next[previous] = node;
            self.previous[next] = node;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hand_made::{deleted, missing, read, refused, unknown, write};
    use super::*;

    fn judged(operations: &[Operation]) -> Verdict {
        linearizability(operations, 100_000)
    }

    #[track_caller]
    fn assert_refuted(operations: &[Operation]) {
        assert_eq!(judged(operations).violations().len(), 1);
    }

    #[test]
    fn one_after_the_other() {
        let history = [missing(0..5), write("1", 10..20), read("1", 30..40), deleted(50..60)];
        judged(&history).assert_holds();
        judged(&[&history[..], &[missing(70..80)]].concat()).assert_holds();
        assert_refuted(&[&history[..], &[read("1", 70..80)]].concat());
    }

    #[test]
    fn overlapping_reads_agree_on_an_order() {
        let (first, second) = (write("1", 0..100), write("2", 0..100));
        let reads = [read("1", 10..20), read("2", 30..40)];
        judged(&[&[first.clone(), second.clone()], &reads[..]].concat()).assert_holds();
        let back = [&[first, second], &reads[..], &[read("1", 50..60)]].concat();
        assert_refuted(&back);
    }

    #[test]
    fn a_read_of_a_write_that_is_not_acknowledged_binds_the_next() {
        let history = [write("1", 0..10), write("2", 20..100), read("2", 30..40)];
        judged(&[&history[..], &[read("2", 50..60)]].concat()).assert_holds();
        assert_refuted(&[&history[..], &[read("1", 50..60)]].concat());
    }

    #[test]
    fn an_unknown_write_comes_late_or_never_and_once() {
        let history = [write("1", 0..10), unknown("2", 20..30), read("1", 40..50)];
        judged(&history).assert_holds();
        judged(&[&history[..], &[read("2", 60..70)]].concat()).assert_holds();
        let again = [read("2", 60..70), write("3", 80..90), read("2", 100..110)];
        assert_refuted(&[&history[..], &again[..]].concat());
    }

    #[test]
    fn a_refused_write_never_comes() {
        assert_refuted(&[write("1", 0..10), refused("2", 20..30, 412), read("2", 40..50)]);
    }

    #[test]
    fn a_condition_is_met_by_what_it_replaces() {
        let with = |condition, operation| Operation { condition: Some(condition), ..operation };
        let first = Operation { version: Some(1), ..write("1", 0..10) };
        let change = |time| with(Condition::IfVersion(1), write("3", time));
        judged(&[first.clone(), change(20..30), read("3", 40..50)]).assert_holds();
        assert_refuted(&[first, write("2", 12..18), change(20..30)]);
        assert_refuted(&[write("1", 0..10), with(Condition::IfMissing, write("2", 20..30))]);
    }

    #[test]
    fn keys_are_registers_of_their_own() {
        let other = Operation { key: "other".into(), ..missing(20..30) };
        judged(&[write("1", 0..10), other]).assert_holds();
    }

    #[test]
    fn an_exhausted_budget_is_no_pass() {
        let history: Vec<_> = (0..20).map(|n| write(&n.to_string(), 0..100)).collect();
        let impossible = [&history[..], &[read("0", 200..210), read("1", 220..230)]].concat();
        let judgement = linearizability(&impossible, 1000);
        assert!(matches!(judgement, Verdict::NotLookedAt(_)), "{judgement}");
        assert!(!judgement.holds());
    }
}
