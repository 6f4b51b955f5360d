//! The time at the server, as it is known here: what must not run late carries the latest time at
//! which it may.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tells a server's time from the latest answer that held it.
#[derive(Debug, Default)]
pub(super) struct ServerClock(Mutex<Option<(Instant, u64)>>);

impl ServerClock {
    /// Notes the milliseconds that the server counts since 1970, from an answer to what was asked
    /// at this moment. So this clock is fast by at most the time that the answer took.
    pub(super) fn learn(&self, asked: Instant, millis: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((asked, millis));
    }

    /// What the server counts at this moment; 0 as long as nothing was learnt.
    pub(super) fn at(&self, moment: Instant) -> u64 {
        let learnt = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((asked, then)) = learnt else { return 0 };
        match moment.checked_duration_since(asked) {
            Some(since) => then.saturating_add(millis(since)),
            None => then.saturating_sub(millis(asked - moment)),
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
        clock.learn(asked, 5000);
        assert_eq!(clock.at(asked), 5000);
        assert_eq!(clock.at(asked + second), 6000);
        clock.learn(asked + second, 7000);
        assert_eq!(clock.at(asked), 6000);
    }
}
