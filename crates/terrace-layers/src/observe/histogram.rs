//! How long things took, in buckets of fixed relative width.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counts of times in microseconds: exact below 8, then eight buckets for each doubling, so that a
/// percentile is at most an eighth too high. (The layout of HdrHistogram, with three bits.)
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: Box<[AtomicU64; BUCKETS]>,
}

const BITS: u32 = 3;
const STEPS: u64 = 1 << BITS;
/// Times of 2^36 microseconds (19 hours) and more share the last bucket.
const LONGEST: u64 = (1 << 36) - 1;
const BUCKETS: usize = bucket(LONGEST) + 1;

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new(std::array::from_fn(|_| AtomicU64::new(0))) }
    }
}

impl Histogram {
    pub(super) fn record(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(LONGEST).min(LONGEST);
        self.buckets[bucket(micros)].fetch_add(1, Relaxed);
    }

    /// For each percentile the time, in microseconds, that so many in a hundred did not exceed;
    /// zero when nothing was recorded.
    pub(super) fn micros<const N: usize>(&self, percentiles: [u64; N]) -> [u64; N] {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        percentiles.map(|percentile| {
            let rank = (total * percentile).div_ceil(100);
            let mut seen = 0;
            let place = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            if total == 0 { 0 } else { place.map_or(LONGEST, highest) }
        })
    }
}

/// The bucket of a time.
const fn bucket(micros: u64) -> usize {
    if micros < STEPS {
        return small(micros);
    }
    let doublings = micros.ilog2() - BITS;
    // The leading bit and the three after it: 8 to 15.
    let step = micros >> doublings;
    small(doublings as u64 * STEPS + step)
}

/// The longest time that falls into a bucket.
fn highest(place: usize) -> u64 {
    let place = place as u64;
    if place < 2 * STEPS {
        return place;
    }
    let doublings = place / STEPS - 1;
    let step = place % STEPS + STEPS;
    ((step + 1) << doublings) - 1
}

#[expect(clippy::cast_possible_truncation, reason = "times are below 2^36, buckets below 300")]
const fn small(number: u64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_at_most_an_eighth_below_what_its_bucket_says() {
        for micros in (0..100_000).chain((17..36).map(|bits| (1 << bits) - 1)) {
            let said = highest(bucket(micros));
            assert!(said >= micros && said - micros <= micros / 8, "{micros} is said to be {said}");
        }
        assert_eq!(bucket(LONGEST), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let times = Histogram::default();
        assert_eq!(times.micros([50, 99]), [0, 0]);
        for micros in 1..=1000 {
            times.record(Duration::from_micros(micros));
        }
        let [half, most] = times.micros([50, 99]);
        assert!((500..=563).contains(&half), "{half}");
        assert!((990..=1114).contains(&most), "{most}");
        times.record(Duration::MAX);
        assert_eq!(times.micros([100]), [LONGEST]);
    }
}
