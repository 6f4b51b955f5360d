//! Which claimed entries still have writes to apply.

use std::collections::HashMap;

use terrace_core::{DeadLetter, JournalEntry, Sequence, Settled};

/// The entries that a flusher has claimed and not settled.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    open: HashMap<Sequence, Open>,
    finished: Vec<Sequence>,
    writes: usize,
    bytes: u64,
}

#[derive(Debug)]
struct Open {
    left: usize,
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
        let open = Open { left: entry.writes.len(), settled: Settled::of(entry) };
        if open.left == 0 {
            self.finished.push(entry.id);
        }
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
        open.left = open.left.saturating_sub(count);
        if open.left == 0 {
            self.finished.push(entry);
        }
        open.left == 0
    }

    /// What can be settled. It stays here until [`Ledger::close`].
    pub(super) fn finished(&mut self) -> Vec<Settled> {
        let done = std::mem::take(&mut self.finished);
        done.iter().filter_map(|id| self.open.get(id)).map(|open| open.settled.clone()).collect()
    }

    /// Forgets what is settled.
    pub(super) fn close(&mut self, done: &[Settled]) {
        for settled in done {
            if let Some(open) = self.open.remove(&settled.id) {
                // A `usize` counted them.
                self.writes -= usize::try_from(open.settled.writes).unwrap_or(0);
                self.bytes -= open.settled.bytes;
            }
        }
    }

    /// Writes and bytes of all that is not settled.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.writes, self.bytes)
    }
}
