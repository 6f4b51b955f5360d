//! The time at the server, as it is known here: what must not run late carries the latest time at
//! which it may.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tells a server's time from the latest answer that held it. The answer was made at some time between
/// the question and its arrival, so there is a latest and an earliest time that it can be.
#[derive(Debug, Default)]
pub(super) struct ServerClock(Mutex<Option<Learnt>>);

#[derive(Clone, Copy, Debug)]
struct Learnt {
    asked: Instant,
    answered: Instant,
    millis: u64,
}

impl ServerClock {
    /// Notes the milliseconds that the server counts since 1970, from the answer that came at
    /// `answered` to what was asked at `asked`.
    pub(super) fn learn(&self, asked: Instant, answered: Instant, millis: u64) {
        let learnt = Learnt { asked, answered, millis };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(learnt);
    }

    /// What the server counts at this moment, at the most; 0 as long as nothing was learnt.
    pub(super) fn at(&self, moment: Instant) -> u64 {
        self.learnt().map_or(0, |learnt| learnt.since(learnt.asked, moment))
    }

    /// What the server counts at this moment, at the least.
    pub(super) fn at_least(&self, moment: Instant) -> u64 {
        self.learnt().map_or(0, |learnt| learnt.since(learnt.answered, moment))
    }

    fn learnt(&self) -> Option<Learnt> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Learnt {
    fn since(self, then: Instant, moment: Instant) -> u64 {
        match moment.checked_duration_since(then) {
            Some(since) => self.millis.saturating_add(millis(since)),
            None => self.millis.saturating_sub(millis(then - moment)),
        }
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use terrace_core::Runtime;

    use super::*;

    #[test]
    fn a_moment_is_counted_from_what_was_learnt_last() {
        let (clock, asked) = (ServerClock::default(), Runtime::seeded(1).now());
        let second = Duration::from_secs(1);
        assert_eq!(clock.at(asked), 0);
        clock.learn(asked, asked + second / 4, 5000);
        assert_eq!((clock.at(asked), clock.at_least(asked)), (5000, 4750));
        assert_eq!((clock.at(asked + second), clock.at_least(asked + second)), (6000, 5750));
        clock.learn(asked + second, asked + second, 7000);
        assert_eq!((clock.at(asked), clock.at_least(asked)), (6000, 6000));
    }
}
