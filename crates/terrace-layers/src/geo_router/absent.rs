//! Keys that no region has, for a short time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::Key;

/// Keys of which every region has said a moment ago that it knows nothing: asking again would cost a
/// round trip around the world for each read.
#[derive(Debug)]
pub(super) struct AbsentKeys {
    until: Mutex<HashMap<Key, Instant>>,
    lasts: Duration,
    most: usize,
}

impl AbsentKeys {
    pub(super) fn new(lasts: Duration, most: usize) -> Self {
        Self { until: Mutex::default(), lasts, most }
    }

    pub(super) fn has(&self, key: &Key, now: Instant) -> bool {
        self.until().get(key).is_some_and(|until| now < *until)
    }

    /// Notes a key; where there is no room, nothing is noted.
    pub(super) fn add(&self, key: &Key, now: Instant) {
        let mut until = self.until();
        if until.len() >= self.most {
            until.retain(|_, until| now < *until);
        }
        if until.len() < self.most {
            until.insert(key.clone(), now + self.lasts);
        }
    }

    /// A key is written.
    pub(super) fn remove(&self, key: &Key) {
        self.until().remove(key);
    }

    fn until(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        // Every change is complete when a panic could happen.
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::{Runtime, testkit};

    use super::*;

    #[test]
    fn keys_are_forgotten_in_time_and_never_more_than_there_is_room_for() {
        let now = Runtime::seeded(1).now();
        let absent = AbsentKeys::new(Duration::from_secs(1), 2);
        let key = |name: &str| testkit::key(name);
        for name in ["a", "b", "c"] {
            absent.add(&key(name), now);
        }
        assert!(absent.has(&key("a"), now) && absent.has(&key("b"), now));
        assert!(!absent.has(&key("c"), now), "there is no room");
        absent.remove(&key("b"));
        assert!(!absent.has(&key("b"), now), "written");
        let later = now + Duration::from_secs(1);
        assert!(!absent.has(&key("a"), later));
        absent.add(&key("b"), later);
        absent.add(&key("c"), later);
        assert!(absent.has(&key("b"), later) && absent.has(&key("c"), later), "room again");
    }
}
