//! Which keys are asked for most, in bounded memory.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use terrace_core::Key;

/// `SpaceSaving` (Metwally, Agrawal, El Abbadi: "Efficient Computation of Frequent and Top-k Elements
/// in Data Streams", ICDT 2005) over every so many-th call of a thread: a key that is more than one in
/// [`HotKeys::PLACES`] of what is looked at has a place; its count is too high by at most the lowest.
/// Looking at a sample adds an error: a key that was looked at `n` times is off by about `n.sqrt()`.
#[derive(Debug, Default)]
pub(super) struct HotKeys {
    counts: Mutex<HashMap<Key, u64>>,
}

thread_local! {
    /// Calls of this thread that are not looked at before the next one that is.
    static PASSED_OVER: Cell<u64> = const { Cell::new(0) };
}

impl HotKeys {
    /// How many keys are counted.
    pub(super) const PLACES: usize = 64;
    /// One in so many calls is looked at. No power of two and prime, so that few patterns of calls
    /// fall in step with it.
    const EVERY: u64 = 61;

    /// Counts a call.
    pub(super) fn note(&self, key: &Key) {
        // Each thread counts its own calls: one counter for all would be written by every read.
        let left = PASSED_OVER.get();
        if left > 0 {
            return PASSED_OVER.set(left - 1);
        }
        PASSED_OVER.set(Self::EVERY - 1);
        self.count(key);
    }

    fn count(&self, key: &Key) {
        // Nothing under this lock can panic half-way; whoever finds it taken looks at another call.
        let Ok(mut counts) = self.counts.try_lock() else { return };
        if let Some(count) = counts.get_mut(key) {
            *count += 1;
            return;
        }
        let mut inherited = 0;
        if counts.len() >= Self::PLACES {
            let least = counts.iter().min_by_key(|(_, count)| **count);
            if let Some((least, count)) = least.map(|(key, count)| (key.clone(), *count)) {
                counts.remove(&least);
                inherited = count;
            }
        }
        counts.insert(key.clone(), inherited + 1);
    }

    /// The keys that were asked for most, and about how often.
    pub(super) fn top(&self, most: usize) -> Vec<(Key, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut top = counts
            .iter()
            .map(|(key, count)| (key.clone(), count * Self::EVERY))
            .collect::<Vec<_>>();
        top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        top.truncate(most);
        top
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hot_key_is_found_among_many_and_memory_is_bounded() {
        let hot = HotKeys::default();
        for round in 0..10_000 {
            hot.count(&Key::new(format!("cold-{round}")).unwrap());
            if round % 10 == 0 {
                hot.count(&Key::new("hot").unwrap());
            }
        }
        let top = hot.top(3);
        assert_eq!(top[0].0.as_str(), "hot");
        assert!(hot.counts.lock().unwrap().len() <= HotKeys::PLACES);
    }

    #[test]
    fn every_thread_looks_at_its_own_share_of_the_calls() {
        let (hot, key) = (HotKeys::default(), Key::new("hot").unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let calls = || (0..HotKeys::EVERY * 100).for_each(|_| hot.note(&key));
                scope.spawn(calls).join().unwrap();
            }
        });
        assert_eq!(hot.top(1), [(key, HotKeys::EVERY * 400)]);
    }
}
