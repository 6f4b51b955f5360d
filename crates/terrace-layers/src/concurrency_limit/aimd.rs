//! How many calls a store can bear, found out by how long they take.

use std::time::{Duration, Instant};

use super::ConcurrencyLimitOptions;

/// So many keys or writes of a call may take as long as one. Larger batches take longer because they are
/// larger: that says nothing of how many calls there are.
const FEW: usize = 100;

/// Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease
/// Algorithms for Congestion Avoidance", 1989).
///
/// One more call for each round of calls in which the limit was reached, a quarter less when one was slow; once
/// for all calls that were under way together, as they were slow for the same reason.
#[derive(Debug)]
pub(super) struct Aimd {
    limit: f64,
    least: u32,
    most: u32,
    slow: Duration,
    /// When it was lowered last.
    lowered: Option<Instant>,
    pub(super) times_lowered: u64,
}

impl Aimd {
    const DECREASE: f64 = 0.75;

    pub(super) fn new(options: &ConcurrencyLimitOptions) -> Self {
        let least = options.least.max(1);
        let most = options.most.max(least);
        let limit = options.limit.clamp(least, most).into();
        Self { limit, least, most, slow: options.slow, lowered: None, times_lowered: 0 }
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

    /// Notes a call of so many keys that has ended; `full` when as many were under way as may be.
    pub(super) fn ended(&mut self, begun: Instant, now: Instant, keys: usize, full: bool) {
        let parts = u32::try_from(keys.div_ceil(FEW)).unwrap_or(u32::MAX);
        let slow = self.slow.saturating_mul(parts.max(1));
        if now.saturating_duration_since(begun) > slow {
            if self.lowered.is_none_or(|lowered| lowered <= begun) {
                self.limit = (self.limit * Self::DECREASE).max(self.least.into());
                self.lowered = Some(now);
                self.times_lowered += 1;
            }
        } else if full {
            self.limit = (self.limit + 1.0 / self.limit).min(self.most.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::Runtime;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn aimd() -> Aimd {
        let options = ConcurrencyLimitOptions::default();
        Aimd::new(&ConcurrencyLimitOptions { most: 100, slow: 50 * MS, ..options })
    }

    #[test]
    fn a_round_of_full_calls_raises_it_by_one_up_to_the_most() {
        let (mut it, now) = (aimd(), Runtime::system().now());
        (0..1000).for_each(|_| it.ended(now, now, 1, false));
        assert_eq!(it.limit(), 64, "it was not in anybody's way");
        (0..65).for_each(|_| it.ended(now, now, 1, true));
        assert_eq!(it.limit(), 65);
        (0..10_000).for_each(|_| it.ended(now, now, 1, true));
        assert_eq!(it.limit(), 100);
    }

    #[test]
    fn calls_that_were_slow_together_lower_it_once() {
        let (mut it, begun) = (aimd(), Runtime::system().now());
        (0..64).for_each(|_| it.ended(begun, begun + 60 * MS, 1, true));
        assert_eq!((it.limit(), it.times_lowered), (48, 1));
        (0..64).for_each(|_| it.ended(begun + 59 * MS, begun + 120 * MS, 1, true));
        assert_eq!(it.limit(), 48, "they began before it was lowered");
        for round in 1..20 {
            it.ended(begun + 200 * round * MS, begun + 200 * round * MS + 60 * MS, 1, true);
        }
        assert_eq!(it.limit(), 8);
    }

    #[test]
    fn a_large_batch_may_take_longer_and_only_so_much() {
        let (mut it, begun) = (aimd(), Runtime::system().now());
        it.ended(begun, begun + 2_400 * MS, 5_000, false);
        assert_eq!(it.limit(), 64, "5000 rows in 50 times the time of 100");
        it.ended(begun, begun + 120 * MS, 101, false);
        assert_eq!(it.limit(), 48);
    }
}
