//! Which claimed entries still have writes to apply.

use std::collections::BTreeMap;

use terrace_core::{DeadLetter, JournalEntry, Sequence, Settled};

/// The entries that a flusher has claimed and not settled.
///
/// They are settled in their order, whatever comes first: an instance that starts looks up what waits,
/// and must not find an older write of a key there when a later one is applied and gone. Only one whose
/// write the store refuses does not hold up the others.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    open: BTreeMap<Sequence, Open>,
    /// Those that are not done: one that is refused must not take up the room of its entry for long.
    writes: usize,
    bytes: u64,
}

#[derive(Debug)]
struct Open {
    left: usize,
    /// The store refuses one of its writes.
    refused: bool,
    settled: Settled,
}

impl Ledger {
    /// Takes an entry in; `false` when it is there already.
    pub(super) fn open(&mut self, entry: &JournalEntry) -> bool {
        if self.open.contains_key(&entry.id) {
            return false;
        }
        self.writes += entry.writes.len();
        self.bytes += entry.bytes;
        let settled = Settled::of(entry);
        let open = Open { left: entry.writes.len(), refused: false, settled };
        self.open.insert(entry.id, open);
        true
    }

    /// Counts writes of an entry as done; `true` when there are no others.
    pub(super) fn finish(
        &mut self,
        entry: Sequence,
        count: usize,
        dead: Option<DeadLetter>,
    ) -> bool {
        let Some(open) = self.open.get_mut(&entry) else { return false };
        open.settled.dead.extend(dead);
        let count = count.min(open.left);
        open.left -= count;
        self.writes -= count;
        open.left == 0
    }

    /// Notes that the store refuses a write of an entry.
    pub(super) fn refuse(&mut self, entry: Sequence) {
        if let Some(open) = self.open.get_mut(&entry) {
            open.refused = true;
        }
    }

    /// What can be settled. It stays here until [`Ledger::close`].
    pub(super) fn finished(&self) -> Vec<Settled> {
        let ended = |open: &&Open| open.left == 0 || open.refused;
        let done = self.open.values().take_while(ended).filter(|open| open.left == 0);
        done.map(|open| open.settled.clone()).collect()
    }

    /// Forgets what is settled.
    pub(super) fn close(&mut self, done: &[Settled]) {
        for settled in done {
            if let Some(open) = self.open.remove(&settled.id) {
                self.writes -= open.left;
                self.bytes -= open.settled.bytes;
            }
        }
    }

    /// Writes that are not done, and bytes of all that is not settled.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.writes, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::Write;
    use terrace_core::testkit::{key, value};

    use super::*;

    fn entry(id: u64, writes: usize) -> JournalEntry {
        let (id, bytes) = (Sequence::new(id), 10);
        JournalEntry {
            id,
            first: id,
            writes: vec![Write::put(key("k"), value("v")); writes],
            bytes,
        }
    }

    #[test]
    fn what_is_done_takes_up_no_room_while_a_refused_write_keeps_its_entry() {
        let mut ledger = Ledger::default();
        assert!(ledger.open(&entry(1, 256)) && ledger.open(&entry(300, 2)));
        ledger.refuse(Sequence::new(1));
        assert!(!ledger.finish(Sequence::new(1), 255, None));
        assert!(ledger.finish(Sequence::new(300), 2, None));
        assert_eq!(ledger.size(), (1, 20));
        let done = ledger.finished();
        assert_eq!(done.iter().map(|it| it.id.get()).collect::<Vec<_>>(), [300], "not held up");
        ledger.close(&done);
        assert!(ledger.finish(Sequence::new(1), 1, None));
        ledger.close(&ledger.finished());
        assert_eq!(ledger.size(), (0, 0));
    }
}
