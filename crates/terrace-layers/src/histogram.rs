//! How long things took lately, in buckets of fixed relative width.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use terrace_core::Spread;

/// Counts of times in microseconds over the last 30 to 60 seconds.
///
/// A bucket is exact below 8, then there are eight for each doubling, so that a percentile is at most
/// an eighth too high. (The layout of HdrHistogram, with three bits.) Two sets of buckets take turns:
/// one is filled while the other is the half minute before. Times that are recorded at the moment of
/// a turn may be lost.
#[derive(Debug)]
pub(crate) struct Histogram {
    sets: Box<[[AtomicU64; BUCKETS]; 2]>,
    started: Instant,
    /// Half minutes since the start; its last bit is the set that is filled.
    turn: AtomicU64,
}

const BITS: u32 = 3;
const STEPS: u64 = 1 << BITS;
/// Times of 2^36 microseconds (19 hours) and more share the last bucket.
const LONGEST: u64 = (1 << 36) - 1;
const BUCKETS: usize = bucket(LONGEST) + 1;
/// How long one set is filled.
const HALF: Duration = Duration::from_secs(30);

impl Histogram {
    pub(crate) fn new(now: Instant) -> Self {
        let set = || array::from_fn(|_| AtomicU64::new(0));
        Self { sets: Box::new([set(), set()]), started: now, turn: AtomicU64::new(0) }
    }

    pub(crate) fn record(&self, time: Duration, now: Instant) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(LONGEST).min(LONGEST);
        self.sets[self.turn(now)][bucket(micros)].fetch_add(1, Relaxed);
    }

    /// What was recorded in the window that ends now.
    pub(crate) fn spread(&self, now: Instant) -> Spread {
        self.turn(now);
        let counts: [u64; BUCKETS] =
            array::from_fn(|place| self.sets.iter().map(|set| set[place].load(Relaxed)).sum());
        let count: u64 = counts.iter().sum();
        let percentile = |percent: u64| {
            let rank = (count * percent).div_ceil(100);
            let mut seen = 0;
            let place = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            if count == 0 { 0 } else { place.map_or(LONGEST, highest) }
        };
        Spread { window: 2 * HALF, count, p50: percentile(50), p99: percentile(99) }
    }

    /// The set to fill; whoever comes first in a new half minute empties it.
    fn turn(&self, now: Instant) -> usize {
        let turn = now.saturating_duration_since(self.started).as_secs() / HALF.as_secs();
        let known = self.turn.load(Relaxed);
        if turn > known && self.turn.compare_exchange(known, turn, Relaxed, Relaxed).is_ok() {
            // After more than one turn nothing is recent.
            for past in (known + 1..=turn).take(self.sets.len()) {
                self.sets[parity(past)].iter().for_each(|bucket| bucket.store(0, Relaxed));
            }
        }
        parity(turn.max(known))
    }
}

fn parity(turn: u64) -> usize {
    usize::from(turn % 2 == 1)
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
    use terrace_core::Runtime;

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
        let now = Runtime::system().now();
        let times = Histogram::new(now);
        assert_eq!(times.spread(now), Spread { window: 2 * HALF, ..Spread::default() });
        for micros in 1..=1000 {
            times.record(Duration::from_micros(micros), now);
        }
        let spread = times.spread(now);
        assert_eq!(spread.count, 1000);
        assert!((500..=563).contains(&spread.p50), "{spread:?}");
        assert!((990..=1114).contains(&spread.p99), "{spread:?}");
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let start = Runtime::system().now();
        let times = Histogram::new(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        times.record(Duration::MAX, start);
        times.record(Duration::from_micros(5), after(31));
        assert_eq!(times.spread(after(59)).count, 2);
        assert_eq!(times.spread(after(59)).p99, LONGEST);
        let later = times.spread(after(61));
        assert_eq!((later.count, later.p99), (1, 5), "the first is gone");
        times.record(Duration::from_micros(7), after(600));
        assert_eq!(times.spread(after(600)).count, 1, "so is all that was before a pause");
    }
}
