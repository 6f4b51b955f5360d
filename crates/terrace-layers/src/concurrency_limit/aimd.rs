//! How many calls a store can bear, found out by how long they take.

use std::time::{Duration, Instant};

/// Bounds of a limit that is found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adaptive {
    /// It is never less. At least 1.
    pub least: u32,
    /// It is never more.
    pub most: u32,
    /// A read or write that takes longer says that there are too many.
    pub slow: Duration,
}

/// Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease
/// Algorithms for Congestion Avoidance", 1989).
///
/// One more call for each round of calls in which the limit was reached, a quarter less when one was slow; once
/// for all calls that were under way together, as they were slow for the same reason.
#[derive(Debug)]
pub(super) struct Aimd {
    limit: f64,
    /// None: the limit is fixed.
    bounds: Option<Adaptive>,
    /// When it was lowered last.
    lowered: Option<Instant>,
    pub(super) times_lowered: u64,
}

impl Aimd {
    const DECREASE: f64 = 0.75;

    pub(super) fn new(limit: u32, bounds: Option<Adaptive>) -> Self {
        let limit = match &bounds {
            None => limit.max(1),
            Some(bounds) => limit.clamp(bounds.least.max(1), bounds.most.max(bounds.least).max(1)),
        };
        Self { limit: limit.into(), bounds, lowered: None, times_lowered: 0 }
    }

    pub(super) fn limit(&self) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is 1 to u32::MAX"
        )]
        let limit = self.limit as u32;
        limit
    }

    /// Notes a call that has ended; `full` when as many were under way as may be.
    pub(super) fn ended(&mut self, begun: Instant, now: Instant, full: bool) {
        let Some(bounds) = &self.bounds else { return };
        if now.saturating_duration_since(begun) > bounds.slow {
            if self.lowered.is_none_or(|lowered| lowered <= begun) {
                self.limit = (self.limit * Self::DECREASE).max(bounds.least.max(1).into());
                self.lowered = Some(now);
                self.times_lowered += 1;
            }
        } else if full {
            self.limit = (self.limit + 1.0 / self.limit).min(bounds.most.max(1).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::Runtime;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn aimd() -> Aimd {
        Aimd::new(64, Some(Adaptive { least: 8, most: 100, slow: 50 * MS }))
    }

    #[test]
    fn a_round_of_full_calls_raises_it_by_one_up_to_the_most() {
        let (mut it, now) = (aimd(), Runtime::system().now());
        (0..1000).for_each(|_| it.ended(now, now, false));
        assert_eq!(it.limit(), 64, "it was not in anybody's way");
        (0..65).for_each(|_| it.ended(now, now, true));
        assert_eq!(it.limit(), 65);
        (0..10_000).for_each(|_| it.ended(now, now, true));
        assert_eq!(it.limit(), 100);
    }

    #[test]
    fn calls_that_were_slow_together_lower_it_once() {
        let (mut it, begun) = (aimd(), Runtime::system().now());
        (0..64).for_each(|_| it.ended(begun, begun + 60 * MS, true));
        assert_eq!((it.limit(), it.times_lowered), (48, 1));
        (0..64).for_each(|_| it.ended(begun + 59 * MS, begun + 120 * MS, true));
        assert_eq!(it.limit(), 48, "they began before it was lowered");
        for round in 1..20 {
            it.ended(begun + 200 * round * MS, begun + 200 * round * MS + 60 * MS, true);
        }
        assert_eq!(it.limit(), 8);
    }
}
