//! The entries that a flusher has claimed and not settled.

use std::collections::BTreeMap;
use std::time::Instant;

use terrace_core::{DeadLetter, Deadline, JournalEntry, Sequence, Settled, Write};

/// One write on its way.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// The entry that it is a part of.
    entry: Sequence,
    pub(super) sequence: Sequence,
    pub(super) write: Write,
    /// How often the store has refused it.
    pub(super) tries: u32,
    /// Whether it was a dead letter before.
    pub(super) was_dead: bool,
}

/// Entries that are not settled, in their order, and their refused writes.
#[derive(Debug, Default)]
pub(super) struct Open {
    entries: BTreeMap<Sequence, Entry>,
    refused: Vec<(Instant, Item)>,
}

#[derive(Debug)]
struct Entry {
    /// Refused writes that are tried again.
    left: usize,
    settled: Settled,
}

impl Open {
    pub(super) fn has(&self, entry: Sequence) -> bool {
        self.entries.contains_key(&entry)
    }

    /// Takes an entry in; answers its writes.
    pub(super) fn take_in(&mut self, entry: JournalEntry) -> impl Iterator<Item = Item> {
        self.entries.insert(entry.id, Entry { left: 0, settled: Settled::of(&entry) });
        let was_dead = entry.first != entry.id;
        let sequences = (0..).map(move |number| entry.first.plus(number));
        let item =
            move |(sequence, write)| Item { entry: entry.id, sequence, write, tries: 0, was_dead };
        sequences.zip(entry.writes).map(item)
    }

    /// When the next refused write is to be tried again.
    pub(super) fn next_due(&self) -> Deadline {
        self.refused.iter().map(|(due, _)| *due).min().map_or(Deadline::NEVER, Deadline::at)
    }

    /// Takes out the refused writes that are due.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Item> {
        let due = self.refused.extract_if(.., |(due, _)| *due <= now);
        let due = due.map(|(_, item)| item).collect::<Vec<_>>();
        for item in &due {
            if let Some(entry) = self.entries.get_mut(&item.entry) {
                entry.left -= 1;
            }
        }
        due
    }

    /// Keeps a refused write until it is tried again.
    pub(super) fn try_again(&mut self, item: Item, due: Instant) {
        if let Some(entry) = self.entries.get_mut(&item.entry) {
            entry.left += 1;
        }
        self.refused.push((due, item));
    }

    /// Makes a dead letter of a refused write.
    pub(super) fn set_aside(&mut self, item: Item, reason: &str) {
        if let Some(entry) = self.entries.get_mut(&item.entry) {
            let (sequence, write) = (item.sequence, item.write);
            entry.settled.dead.push(DeadLetter { sequence, write, reason: reason.to_owned() });
        }
    }

    /// Takes out what can be settled: one whose write the store refuses does not hold up the others.
    pub(super) fn finished(&mut self) -> Vec<Settled> {
        let done = self.entries.extract_if(.., |_, entry| entry.left == 0);
        done.map(|(_, entry)| entry.settled).collect()
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::Runtime;
    use terrace_core::testkit::{key, value};

    use super::*;

    #[test]
    fn a_refused_write_keeps_its_entry_and_no_other() {
        let entry = |id: u64, writes| {
            let (id, write) = (Sequence::new(id), Write::put(key("k"), value("v")));
            JournalEntry { id, first: id, writes: vec![write; writes], bytes: 1 }
        };
        let (mut open, now) = (Open::default(), Runtime::seeded(1).now());
        let mut items = open.take_in(entry(1, 2)).collect::<Vec<_>>();
        items.extend(open.take_in(entry(5, 1)));
        let sequences = items.iter().map(|item| item.sequence.get());
        assert_eq!(sequences.collect::<Vec<_>>(), [1, 2, 5]);
        open.try_again(items.remove(1), now);
        let ids = |done: Vec<Settled>| done.iter().map(|it| it.id.get()).collect::<Vec<_>>();
        assert_eq!(ids(open.finished()), [5]);
        assert!(open.has(Sequence::new(1)));
        assert_eq!(open.next_due().instant(), Some(now));
        let again = open.due(now).remove(0);
        open.set_aside(again, "no");
        let done = open.finished();
        assert_eq!(done[0].dead[0].sequence, Sequence::new(2));
        assert_eq!(ids(done), [1]);
    }
}
