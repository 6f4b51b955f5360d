//! Invalidations that the cache has not taken yet; their keys bypass it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use terrace_core::{Key, Version};

/// A bounded list of keys and versions. Reading it costs one atomic load while it is empty.
#[derive(Debug)]
pub(super) struct Undelivered {
    /// Whether the list is not empty. Written only under the lock of `list`, before the receipt of
    /// the write is answered, so whoever has seen the receipt sees it.
    any: AtomicBool,
    list: Mutex<List>,
    most: usize,
}

#[derive(Debug, Default)]
struct List {
    keys: BTreeMap<Key, Version>,
    /// There were too many keys to remember: all of them bypass the cache until it was cleared.
    everything: bool,
    /// The cache is being cleared; what is written from now on is listed again.
    clearing: bool,
    /// A background task delivers.
    delivering: bool,
}

/// What has to be delivered next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    Nothing,
    Keys(Vec<(Key, Version)>),
    /// The whole cache has to be cleared; ends with `cleared` or `not_cleared`.
    Everything,
}

impl Undelivered {
    /// How many keys are delivered in one call.
    const AT_ONCE: usize = 1000;

    pub(super) fn new(most: usize) -> Self {
        Self { any: AtomicBool::new(false), list: Mutex::default(), most }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// How many keys are listed; all count as one more than can be listed.
    pub(super) fn len(&self) -> u64 {
        let list = self.list();
        if list.everything { self.most as u64 + 1 } else { list.keys.len() as u64 }
    }

    pub(super) fn holds(&self, key: &Key) -> bool {
        self.list().holds(key)
    }

    /// The places of those keys that are listed.
    pub(super) fn which(&self, keys: &[Key]) -> Vec<usize> {
        let list = self.list();
        keys.iter().enumerate().filter(|(_, key)| list.holds(key)).map(|(index, _)| index).collect()
    }

    pub(super) fn add(&self, written: impl IntoIterator<Item = (Key, Version)>) {
        let mut list = self.list();
        if !list.everything || list.clearing {
            for (key, version) in written {
                let listed = list.keys.entry(key).or_default();
                *listed = version.max(*listed);
            }
        }
        if list.keys.len() > self.most {
            // A clear that is under way came too early for what is dropped here.
            *list = List { everything: true, delivering: list.delivering, ..List::default() };
            tracing::warn!(
                keys = self.most,
                "too many invalidations wait for the cache; all keys bypass it until it is cleared"
            );
        }
        self.note(&list);
    }

    /// These have been delivered; a key that was written again since then stays.
    pub(super) fn delivered(&self, written: &[(Key, Version)]) {
        if self.is_empty() {
            return;
        }
        let mut list = self.list();
        for (key, version) in written {
            if list.keys.get(key).is_some_and(|listed| listed <= version) {
                list.keys.remove(key);
            }
        }
        self.note(&list);
    }

    /// Whether the caller has to start a delivery: there is something, and nobody does.
    pub(super) fn take_delivery(&self) -> bool {
        let mut list = self.list();
        let starts = !list.is_empty() && !list.delivering;
        list.delivering |= starts;
        starts
    }

    /// What to deliver next; [`Work::Nothing`] ends the delivery.
    pub(super) fn next(&self) -> Work {
        let mut list = self.list();
        if list.is_empty() {
            list.delivering = false;
            Work::Nothing
        } else if list.everything {
            // What is listed from here on may have been committed after the clear took effect.
            list.keys.clear();
            list.clearing = true;
            Work::Everything
        } else {
            let keys = list.keys.iter().take(Self::AT_ONCE);
            Work::Keys(keys.map(|(key, version)| (key.clone(), *version)).collect())
        }
    }

    pub(super) fn cleared(&self) {
        let mut list = self.list();
        // Unless the list ran over once more while the cache was being cleared.
        if list.clearing {
            list.everything = false;
            list.clearing = false;
        }
        self.note(&list);
    }

    pub(super) fn not_cleared(&self) {
        self.list().clearing = false;
    }

    fn note(&self, list: &List) {
        self.any.store(!list.is_empty(), Ordering::Release);
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // The list is whole whenever a panic could happen, so poison means nothing.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.everything
    }

    fn holds(&self, key: &Key) -> bool {
        self.everything || self.keys.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::testkit::key;

    use super::*;

    fn at(name: &str, version: u64) -> (Key, Version) {
        (key(name), Version::new(version))
    }

    #[test]
    fn a_key_written_again_during_the_delivery_stays() {
        let list = Undelivered::new(10);
        list.add([at("a", 1)]);
        assert!(list.take_delivery() && !list.take_delivery());
        let Work::Keys(keys) = list.next() else { panic!("keys") };
        list.add([at("a", 2)]);
        list.delivered(&keys);
        assert!(list.holds(&key("a")));
        list.delivered(&[at("a", 2)]);
        assert!(list.is_empty());
        assert_eq!(list.next(), Work::Nothing);
    }

    #[test]
    fn too_many_keys_are_all_keys_until_a_clear() {
        let list = Undelivered::new(2);
        list.add([at("a", 1), at("b", 2), at("c", 3)]);
        assert!(list.holds(&key("any")));
        assert_eq!(list.which(&[key("x"), key("y")]), [0, 1]);

        assert_eq!(list.next(), Work::Everything);
        list.not_cleared();
        assert_eq!(list.next(), Work::Everything);
        list.add([at("late", 4)]);
        list.cleared();
        assert!(list.holds(&key("late")) && !list.holds(&key("any")));
    }

    #[test]
    fn a_clear_during_which_the_list_ran_over_does_not_count() {
        let list = Undelivered::new(1);
        list.add([at("a", 1), at("b", 2)]);
        assert_eq!(list.next(), Work::Everything);
        list.add([at("c", 3), at("d", 4)]);
        list.cleared();
        assert!(list.holds(&key("any")));
        assert_eq!(list.next(), Work::Everything);
        list.cleared();
        assert!(list.is_empty());
    }
}
