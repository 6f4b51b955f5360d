//! The writes that wait, by key.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use terrace_core::{Change, Key, Result, Scan, Sequence, Timestamp, Value, Write};

/// The latest write of a key that is not settled. Key and value are one text, and one pointer is all
/// that refers to it: a backlog of a million keys has to fit.
#[derive(Clone, Debug)]
pub(super) struct Waiting(Arc<Held>);

#[derive(Debug)]
struct Held {
    sequence: Sequence,
    /// The key, then the value.
    text: Box<str>,
    /// Where the key ends.
    key: u32,
    deletes: bool,
    reborn: AtomicBool,
    /// A later one of its key waits.
    superseded: AtomicBool,
}

impl Waiting {
    fn new(sequence: Sequence, write: &Write) -> Self {
        let key = write.key.as_str();
        let (value, deletes) = match &write.change {
            Change::Put(value) => (value.as_str(), false),
            Change::Delete => ("", true),
        };
        let text = [key, value].concat().into_boxed_str();
        // A key has at most 255 characters.
        let key = u32::try_from(key.len()).unwrap_or(u32::MAX);
        let (reborn, superseded) = Default::default();
        Self(Arc::new(Held { sequence, text, key, deletes, reborn, superseded }))
    }

    /// About how many bytes of memory it takes.
    fn weight(&self) -> usize {
        const BESIDE_THE_TEXT: usize = 96;
        self.0.text.len() + BESIDE_THE_TEXT
    }

    fn parts(&self) -> (&str, &str) {
        self.0.text.split_at(self.0.key as usize)
    }

    pub(super) fn sequence(&self) -> Sequence {
        self.0.sequence
    }

    pub(super) fn key(&self) -> Result<Key> {
        Key::new(self.parts().0)
    }

    /// `None` for a delete.
    pub(super) fn value(&self) -> Result<Option<Value>> {
        if self.0.deletes { Ok(None) } else { Value::new(self.parts().1).map(Some) }
    }

    /// Whether the record came into being after a delete that waits, too: what is below is another.
    pub(super) fn is_reborn(&self) -> bool {
        self.0.reborn.load(Relaxed)
    }

    /// When it was accepted.
    pub(super) fn at(&self) -> Timestamp {
        self.0.sequence.time()
    }
}

/// What waits, as it stands among the others: by its key.
#[derive(Debug)]
struct ByKey(Waiting);

impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        self.0.parts().0
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.parts().0.cmp(other.0.parts().0)
    }
}

/// What waits: the latest write of each key, also in the order in which writes will be settled.
#[derive(Debug, Default)]
pub(super) struct Pending {
    keys: BTreeSet<ByKey>,
    /// With some that are superseded.
    order: VecDeque<Waiting>,
    /// What those and the others weigh.
    superseded: usize,
    waiting: usize,
}

impl Pending {
    /// Adds a write, unless a later one of its key waits already.
    pub(super) fn add(&mut self, sequence: Sequence, write: &Write) {
        self.take(Waiting::new(sequence, write));
    }

    /// Takes over what waits elsewhere, up to a place.
    pub(super) fn take_over(&mut self, other: &Self, to: Sequence) {
        let up_to = other.order.iter().take_while(|waiting| waiting.sequence() <= to);
        up_to.for_each(|waiting| self.take(waiting.clone()));
    }

    fn take(&mut self, waiting: Waiting) {
        let sequence = waiting.sequence();
        if waiting.0.superseded.load(Relaxed) {
            return;
        }
        // One search: most keys that are written are written again.
        if let Some(ByKey(before)) = self.keys.replace(ByKey(waiting.clone())) {
            if before.sequence() >= sequence {
                self.keys.replace(ByKey(before));
                return;
            }
            before.0.superseded.store(true, Relaxed);
            self.superseded += before.weight();
            self.waiting -= before.weight();
            waiting.0.reborn.store(before.0.deletes || before.is_reborn(), Relaxed);
        }
        self.waiting += waiting.weight();
        // Appends come in order; what was looked up elsewhere may come late.
        let place = match self.order.back() {
            Some(last) if last.sequence() > sequence => {
                self.order.partition_point(|other| other.sequence() < sequence)
            }
            _ => self.order.len(),
        };
        self.order.insert(place, waiting);
        self.sweep();
    }

    /// Lets go of those that are superseded when they weigh more than the others.
    fn sweep(&mut self) {
        const LITTLE: usize = 128 * 1024;
        if self.superseded > self.waiting + LITTLE {
            self.order.retain(|waiting| !waiting.0.superseded.load(Relaxed));
            self.superseded = 0;
        }
    }

    /// Forgets what is settled: each write by its own sequence, so that a later one stays.
    pub(super) fn forget(&mut self, applied: Sequence) {
        while let Some(first) = self.order.pop_front_if(|it| it.sequence() <= applied) {
            if first.0.superseded.load(Relaxed) {
                self.superseded -= first.weight();
            } else {
                self.keys.remove(first.parts().0);
                self.waiting -= first.weight();
            }
        }
        self.sweep();
        if self.order.is_empty() {
            // The room of a large backlog is given back.
            self.order = VecDeque::new();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Waiting> {
        self.keys.get(key.as_str()).map(|ByKey(waiting)| waiting)
    }

    /// What waits within a scan, and in order no more than it can show: `limit` puts and the
    /// deletes between them.
    pub(super) fn within(&self, scan: &Scan) -> Vec<Waiting> {
        let from = match &scan.after {
            Some(after) if after.as_str() >= scan.prefix.as_str() => {
                Bound::Excluded(after.as_str())
            }
            _ => Bound::Included(scan.prefix.as_str()),
        };
        let mut puts = 0;
        let mut found = Vec::new();
        for ByKey(waiting) in self.keys.range::<str, _>((from, Bound::Unbounded)) {
            // A limit above what the inner page may reach; deletes do not count against it.
            if !waiting.parts().0.starts_with(&scan.prefix) || puts > scan.limit {
                break;
            }
            puts += usize::from(!waiting.0.deletes);
            found.push(waiting.clone());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::testkit::{key, value};

    use super::*;

    fn at(number: u64) -> Sequence {
        Sequence::new(number)
    }

    fn put(name: &str, text: &str) -> Write {
        Write::put(key(name), value(text))
    }

    fn told(pending: &Pending) -> Vec<(u64, String, Option<String>)> {
        let all = Scan { prefix: String::new(), after: None, limit: 100 };
        let told = |waiting: &Waiting| {
            let value = waiting.value().unwrap().map(|value| value.as_str().to_owned());
            (waiting.sequence().get(), waiting.key().unwrap().as_str().to_owned(), value)
        };
        pending.within(&all).iter().map(told).collect()
    }

    #[test]
    fn the_latest_of_each_key_waits_and_goes_by_its_own_sequence() {
        let mut pending = Pending::default();
        pending.add(at(5), &put("b", "5"));
        pending.add(at(9), &put("a", ""));
        pending.add(at(7), &put("b", "7"));
        pending.add(at(6), &put("b", "late"));
        assert_eq!(
            told(&pending),
            [(9, "a".into(), Some(String::new())), (7, "b".into(), Some("7".into()))]
        );
        pending.forget(at(6));
        assert_eq!(pending.len(), 2, "the one that was superseded does not take the other with it");
        pending.forget(at(7));
        assert_eq!(told(&pending), [(9, "a".into(), Some(String::new()))]);
        assert!(pending.get(&key("b")).is_none());
        pending.forget(at(20));
        assert_eq!((pending.len(), pending.order.len()), (0, 0));
    }

    /// Settled before its turn, over a restart of the journal that lost what came later.
    #[test]
    fn what_is_settled_goes_on_waiting_in_the_next_life() {
        let (mut before, mut backlog) = (Pending::default(), Pending::default());
        before.add(at(5), &put("a", "5"));
        before.add(at(7), &put("a", "7"));
        before.add(at(9), &put("b", "lost"));
        backlog.add(at(5), &put("a", "5"));
        backlog.add(at(12), &put("c", "12"));
        backlog.take_over(&before, at(8));
        assert_eq!(
            told(&backlog),
            [(7, "a".into(), Some("7".into())), (12, "c".into(), Some("12".into()))]
        );
        backlog.forget(at(12));
        assert_eq!((backlog.len(), backlog.order.len()), (0, 0));
    }

    #[test]
    fn what_is_superseded_does_not_pile_up() {
        let mut pending = Pending::default();
        for number in 1..=100_000 {
            pending.add(at(number), &put(if number % 2 == 0 { "a" } else { "b" }, "x"));
        }
        assert!(pending.order.len() < 2000, "{}", pending.order.len());
        pending.forget(at(99_999));
        assert_eq!(told(&pending), [(100_000, "a".into(), Some("x".into()))]);
        let large = put("a", &"x".repeat(1 << 20));
        (0..100).for_each(|number| pending.add(at(200_000 + number), &large));
        assert!(pending.order.len() < 4, "{}", pending.order.len());
        // Those that kept many superseded ones in company are forgotten.
        (0..9000)
            .for_each(|number| pending.add(at(300_000 + number), &put(&format!("k{number}"), "x")));
        (0..9000).for_each(|number| pending.add(at(400_000 + number), &put("hot", "x")));
        pending.forget(at(399_999));
        assert!(pending.order.len() < 2000, "{}", pending.order.len());
        pending.forget(at(500_000));
        let Pending { keys, order, superseded, waiting } = pending;
        assert_eq!((keys.len(), order.len(), superseded, waiting), (0, 0, 0, 0));
    }

    #[test]
    fn who_comes_after_a_delete_is_another() {
        let mut pending = Pending::default();
        let reborn = |pending: &Pending| pending.get(&key("a")).unwrap().is_reborn();
        pending.add(at(1), &put("a", "1"));
        assert!(!reborn(&pending));
        pending.add(at(2), &Write::delete(key("a")));
        assert_eq!(told(&pending), [(2, "a".into(), None)]);
        pending.add(at(3), &put("a", "3"));
        assert!(reborn(&pending));
        pending.add(at(4), &put("a", "4"));
        assert!(reborn(&pending), "what is below is still the record before the delete");
    }

    #[test]
    fn a_scan_shows_its_part_whatever_the_keys_hold() {
        let mut pending = Pending::default();
        for (number, name) in ["é", "éa", "éb", "e", "f"].into_iter().enumerate() {
            pending.add(at(number as u64 + 1), &put(name, "x"));
        }
        let names = |prefix: &str, after: Option<&str>| -> Vec<String> {
            let scan = Scan { prefix: prefix.into(), after: after.map(key), limit: 1 };
            let within = pending.within(&scan);
            within.iter().map(|it| it.key().unwrap().as_str().to_owned()).collect()
        };
        assert_eq!(names("é", None), ["é", "éa"], "one more than the limit");
        assert_eq!(names("é", Some("éa")), ["éb"]);
        assert_eq!(names("", Some("e")), ["f", "é"]);
        assert_eq!(names("z", None), [] as [String; 0]);
    }
}
