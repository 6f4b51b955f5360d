//! A timer that many calls share.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use terrace_core::{BoxFuture, Runtime};

/// One timer for all that begin to wait within an eighth of the time, by the first of them: a timer
/// each would be a fifteenth of what a hit of the far cache costs this side.
#[derive(Debug)]
pub(crate) struct Alarm {
    runtime: Runtime,
    set: Mutex<Option<Set>>,
}

#[derive(Clone, Debug)]
struct Set {
    /// When nobody joins any more.
    closes: Instant,
    ring: Ring,
}

/// A moment, and what ends then.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) at: Instant,
    pub(crate) end: Shared<BoxFuture<'static, ()>>,
}

impl Alarm {
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self { runtime, set: Mutex::new(None) }
    }

    /// Rings after this time, or up to an eighth sooner.
    pub(crate) fn after(&self, time: Duration) -> Ring {
        let now = self.runtime.now();
        // Every change is complete when a panic could happen, so poison means nothing.
        let mut place = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = place.as_ref().filter(|set| now < set.closes) {
            return set.ring.clone();
        }
        let at = now + time;
        let ring = Ring { at, end: self.runtime.sleep_until(at).shared() };
        place.insert(Set { closes: now + time / 8, ring }).ring.clone()
    }
}
