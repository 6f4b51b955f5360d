//! Keys whose rows another session held when they were last written.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Key};

/// They are written beside the others, until a write of them succeeds: by a [`Batcher`](crate::Batcher)
/// of their own, so that they hold up nobody else.
#[derive(Debug, Default)]
pub struct LockedKeys {
    any: AtomicBool,
    keys: Mutex<HashSet<Key>>,
}

impl LockedKeys {
    /// How many are remembered. A key that is forgotten holds up one batch, and is found again.
    const MOST: usize = 4096;

    fn keys(&self) -> MutexGuard<'_, HashSet<Key>> {
        // Every change of the set is complete when a panic could happen, so poison means nothing.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of these.
    pub fn among<'k>(&self, keys: impl Iterator<Item = &'k Key>) -> Vec<Key> {
        if !self.any.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let locked = self.keys();
        keys.filter(|key| locked.contains(*key)).cloned().collect()
    }

    /// Takes in the keys for which a write failed, if it did for [locked](Error::locked) ones.
    pub fn add(&self, error: &Error) {
        let Some(locked) = error.locked_keys().filter(|locked| !locked.is_empty()) else { return };
        let mut keys = self.keys();
        if keys.len() + locked.len() > Self::MOST {
            keys.clear();
        }
        let before = keys.len();
        keys.extend(locked.iter().take(Self::MOST).cloned());
        if keys.len() > before {
            let holder = error.fact("holder").unwrap_or("unknown");
            tracing::warn!(
                rows = locked.len(),
                holder,
                "another session holds rows; writes of them fail"
            );
        }
        self.any.store(true, Ordering::Relaxed);
    }

    /// They can be written again.
    pub fn remove(&self, written: &[Key]) {
        if !written.is_empty() {
            let mut keys = self.keys();
            keys.retain(|key| !written.contains(key));
            self.any.store(!keys.is_empty(), Ordering::Relaxed);
        }
    }
}
