//! Counts of reads: kept in memory, stored in batches, for a read is not a write.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use terrace_core::{ErrorKind, Key, ReadModel};

/// The reads of one key that are not stored yet.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// As the read model had it last.
    stored: u64,
    pending: u64,
}

/// Reads of this instance. What is pending is lost when the process is killed.
#[derive(Debug, Default)]
pub(super) struct ReadCounts {
    keys: Mutex<HashMap<Key, Count>>,
    uncounted: AtomicU64,
}

impl ReadCounts {
    /// Reads of more keys than this, between two flushes, are not counted, but for how many they are.
    const MAX_KEYS: usize = 100_000;

    fn keys(&self) -> MutexGuard<'_, HashMap<Key, Count>> {
        // Every change is complete when a panic could happen.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a read of a key whose stored count is this.
    pub(super) fn add(&self, key: &Key, stored: u64) {
        let mut keys = self.keys();
        if let Some(count) = keys.get_mut(key) {
            count.stored = stored;
            count.pending += 1;
        } else if keys.len() < Self::MAX_KEYS {
            keys.insert(key.clone(), Count { stored, pending: 1 });
        } else {
            self.uncounted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads that no key's count has, because too many keys were read.
    pub(super) fn uncounted(&self) -> u64 {
        self.uncounted.load(Ordering::Relaxed)
    }

    /// All reads of a key that this instance knows of.
    pub(super) fn total(&self, key: &Key) -> u64 {
        self.keys().get(key).map_or(0, |count| count.stored + count.pending)
    }

    /// What is not stored yet.
    pub(super) fn pending(&self, key: &Key) -> u64 {
        self.keys().get(key).map_or(0, |count| count.pending)
    }

    /// Stores what is pending. What may have been stored is not stored again.
    pub(super) async fn flush(&self, model: &dyn ReadModel) {
        let mut reads = {
            let mut keys = self.keys();
            // Not read since the last flush: an answer no longer needs it.
            keys.retain(|_, count| count.pending > 0);
            let reads = keys.iter_mut().map(|(key, count)| {
                let pending = std::mem::take(&mut count.pending);
                count.stored += pending;
                (key.clone(), pending)
            });
            reads.collect::<Vec<_>>()
        };
        if reads.is_empty() {
            return;
        }
        // One order for all instances, so that none waits for another in a circle.
        reads.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        if let Err(error) = model.add_reads(&reads).await {
            tracing::debug!(%error, "counts of reads were not stored");
            if error.kind() != ErrorKind::OutcomeUnknown {
                let mut keys = self.keys();
                for (key, pending) in reads {
                    let count = keys.entry(key).or_default();
                    count.pending += pending;
                    count.stored = count.stored.saturating_sub(pending);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_too_many_keys_are_known_to_be_uncounted() {
        let counts = ReadCounts::default();
        let key = |number: usize| Key::new(number.to_string()).unwrap();
        for number in 0..ReadCounts::MAX_KEYS {
            counts.add(&key(number), 0);
        }
        counts.add(&key(0), 0);
        assert_eq!((counts.total(&key(0)), counts.uncounted()), (2, 0));
        counts.add(&key(ReadCounts::MAX_KEYS), 0);
        assert_eq!((counts.total(&key(ReadCounts::MAX_KEYS)), counts.uncounted()), (0, 1));
    }
}
