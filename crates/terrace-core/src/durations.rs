//! How long things took since the start, in buckets that can be added up.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

/// Counts durations by buckets, without a lock: two atomic additions each.
///
/// Unlike a [`Spread`](crate::Spread) nothing is forgotten, so whoever looks twice knows what happened
/// between the two, over several instances, too.
#[derive(Debug, Default)]
pub struct Durations {
    counts: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

const BUCKETS: usize = Times::BOUNDS.len() + 1;

/// What [`Durations`] has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// How many took at most the bound of the same place in [`Times::BOUNDS`], and longer than the one
    /// before; the last took longer than all bounds.
    pub counts: [u64; BUCKETS],
    /// All of them together.
    pub sum: Duration,
}

impl Times {
    /// The longest time of each bucket but the last: from what memory answers to what a request may
    /// take.
    pub const BOUNDS: [Duration; 15] = [
        Duration::from_micros(50),
        Duration::from_micros(100),
        Duration::from_micros(250),
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_micros(2_500),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(25),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(250),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_secs(5),
    ];

    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Durations {
    /// Counts one.
    pub fn record(&self, time: Duration) {
        let place = Times::BOUNDS.partition_point(|bound| *bound < time);
        self.counts[place].fetch_add(1, Relaxed);
        // 584 years of nanoseconds.
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    /// What was counted until now.
    pub fn times(&self) -> Times {
        let counts = array::from_fn(|place| self.counts[place].load(Relaxed));
        Times { counts, sum: Duration::from_nanos(self.nanos.load(Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_under_the_first_bound_that_it_keeps() {
        let durations = Durations::default();
        assert_eq!(durations.times(), Times::default());
        for time in [Duration::ZERO, Times::BOUNDS[0], Times::BOUNDS[3], Times::BOUNDS[14]] {
            durations.record(time);
        }
        durations.record(Times::BOUNDS[3] + Duration::from_nanos(1));
        durations.record(Duration::from_secs(7));
        let times = durations.times();
        let mut counts = [0; BUCKETS];
        for (place, count) in [(0, 2), (3, 1), (4, 1), (14, 1), (15, 1)] {
            counts[place] = count;
        }
        assert_eq!((times.counts, times.count()), (counts, 6));
        let wanted =
            Duration::from_secs(12) + Duration::from_micros(1050) + Duration::from_nanos(1);
        assert_eq!(times.sum, wanted);
    }
}
