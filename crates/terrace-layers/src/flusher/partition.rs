//! The writes of some of the keys, and whose turn it is.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{FlusherOptions, Item};

/// The writes of some of the keys, in the order of their entries, cut into slices that rest each for
/// itself: in calm a batch is the work of one slice and small, so that no burst of work holds up
/// those who accept.
#[derive(Debug)]
pub(super) struct Partition {
    slices: Mutex<[VecDeque<Item>; SLICES]>,
    pub(super) arrived: Notify,
}

/// Slices of a partition.
pub(super) const SLICES: usize = 16;

/// However long a batch took, a slice rests no longer than this for each of its rows: a commit costs
/// time also when it is small.
const REST_OF_A_ROW: Duration = Duration::from_millis(4);

/// When each slice of a partition has rested.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rests([Instant; SLICES]);

/// Slices whose writes go with the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn(u16);

/// What a partition should do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// There is nothing to apply.
    Nothing,
    /// Some slices are due at this time.
    At(Instant),
    /// These have their turn.
    Apply(Turn),
}

impl Partition {
    pub(super) fn new() -> Self {
        Self { slices: Mutex::default(), arrived: Notify::new() }
    }

    /// Adds a write whose key has this hash.
    pub(super) fn push(&self, hash: u64, item: Item) {
        // A remainder of a length fits its type.
        let slice = usize::try_from(hash % SLICES as u64).unwrap_or(0);
        self.slices()[slice].push_back(item);
        self.arrived.notify_one();
    }

    /// Whose turn it is: the slices that have rested longest, as many as make a batch.
    pub(super) fn next(&self, rests: &Rests, now: Instant, options: &FlusherOptions) -> Next {
        let slices = self.slices();
        let all: usize = slices.iter().map(VecDeque::len).sum();
        let oldest = slices.iter().filter_map(|slice| slice.front()).map(|item| item.since).min();
        let Some(oldest) = oldest else { return Next::Nothing };
        let mut waiting: Vec<_> = (0..SLICES).filter(|&slice| !slices[slice].is_empty()).collect();
        waiting.sort_by_key(|&slice| rests.0[slice]);
        let little = all < options.min_batch;
        let ripe = if little { oldest + options.linger } else { oldest };
        let due = waiting.first().map_or(now, |&slice| rests.0[slice]).max(ripe);
        if due > now {
            return Next::At(due);
        }
        let (mut turn, mut count) = (Turn(0), 0);
        for slice in waiting {
            if rests.0[slice] > now || count >= options.min_batch {
                break;
            }
            count += slices[slice].len();
            turn.0 |= 1 << slice;
        }
        Next::Apply(turn)
    }

    /// Takes what a batch may hold from these slices, the oldest first, and says from which it did.
    pub(super) fn take(&self, turn: Turn, options: &FlusherOptions) -> (Turn, Vec<Item>) {
        let mut slices = self.slices();
        let first = |slice: usize| slices[slice].front().map(|item| (item.sequence, slice));
        let mut order: Vec<_> = turn.slices().filter_map(first).collect();
        order.sort_unstable();
        let (mut taken, mut batch, mut bytes) = (Turn(0), Vec::new(), 0);
        for (_, slice) in order {
            while let Some(item) = slices[slice].front() {
                bytes += item.write.bytes();
                let full = batch.len() >= options.max_batch.max(1)
                    || (bytes > options.max_batch_bytes && !batch.is_empty());
                if full {
                    return (taken, batch);
                }
                batch.extend(slices[slice].pop_front());
                taken.0 |= 1 << slice;
            }
        }
        (taken, batch)
    }

    fn slices(&self) -> MutexGuard<'_, [VecDeque<Item>; SLICES]> {
        // Every change of them is complete when a panic could happen, so poison means nothing.
        self.slices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// All have their turn, whether or not they have rested.
    pub(super) const ALL: Self = Self(u16::MAX);

    fn slices(self) -> impl Iterator<Item = usize> {
        (0..SLICES).filter(move |slice| self.0 & (1 << slice) != 0)
    }
}

impl Rests {
    pub(super) fn since(now: Instant) -> Self {
        Self([now; SLICES])
    }

    /// After a batch of so many rows that took so long, the store has its rest from these slices.
    pub(super) fn after(
        &mut self,
        turn: Turn,
        rows: usize,
        took: Duration,
        now: Instant,
        options: &FlusherOptions,
    ) {
        let share = u32::try_from(SLICES / turn.slices().count().max(1)).unwrap_or(1);
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        let rest = took
            .saturating_mul(options.pace.saturating_mul(share))
            .min(REST_OF_A_ROW.saturating_mul(rows))
            .min(options.max_rest);
        turn.slices().for_each(|slice| self.0[slice] = now + rest);
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::{Key, Runtime, Sequence, Value, Write};

    use super::*;

    fn options() -> FlusherOptions {
        FlusherOptions { min_batch: 4, max_batch: 6, pace: 9, ..FlusherOptions::default() }
    }

    fn push(partition: &Partition, slice: u64, count: u64, since: Instant) {
        for number in 0..count {
            let write = Write::put(Key::new("k").unwrap(), Value::new("v").unwrap());
            let sequence = Sequence::new(number + 1);
            let item = Item { entry: sequence, sequence, write, tries: 0, since };
            partition.push(slice, item);
        }
    }

    const fn turn(slices: &[usize]) -> Turn {
        let (mut bits, mut at) = (0, 0);
        while at < slices.len() {
            bits |= 1 << slices[at];
            at += 1;
        }
        Turn(bits)
    }

    #[test]
    fn little_waits_a_moment_and_enough_does_not() {
        let (partition, now, options) = (Partition::new(), Runtime::system().now(), options());
        let rests = Rests::since(now);
        assert_eq!(partition.next(&rests, now, &options), Next::Nothing);
        push(&partition, 3, 1, now);
        let ripe = now + options.linger;
        assert_eq!(partition.next(&rests, now, &options), Next::At(ripe));
        assert_eq!(partition.next(&rests, ripe, &options), Next::Apply(turn(&[3])));
        push(&partition, 5, 3, now);
        assert_eq!(partition.next(&rests, now, &options), Next::Apply(turn(&[3, 5])));
    }

    #[test]
    fn slices_take_turns_and_rest_by_what_their_batch_took() {
        let (partition, now, options) = (Partition::new(), Runtime::system().now(), options());
        let mut rests = Rests::since(now);
        (0..16).for_each(|slice| push(&partition, slice, 5, now));
        // Enough for a batch is enough: the others come next.
        assert_eq!(partition.next(&rests, now, &options), Next::Apply(turn(&[0])));
        let took = Duration::from_millis(1);
        rests.after(turn(&[0]), 500, took, now, &options);
        assert_eq!(partition.next(&rests, now, &options), Next::Apply(turn(&[1])));
        for slice in 1..16 {
            rests.after(turn(&[slice]), 500, took, now + took, &options);
        }
        let due = now + took * 9 * 16;
        assert_eq!(partition.next(&rests, now + took, &options), Next::At(due));
        assert_eq!(partition.next(&rests, due, &options), Next::Apply(turn(&[0])));
        // All at once had the whole time; a row alone is soon forgotten; nobody rests for ever.
        rests.after(Turn::ALL, 500, took, now, &options);
        assert_eq!(partition.next(&rests, now, &options), Next::At(now + took * 9));
        rests.after(Turn::ALL, 1, took, now, &options);
        assert_eq!(partition.next(&rests, now, &options), Next::At(now + REST_OF_A_ROW));
        rests.after(Turn::ALL, 5000, Duration::from_secs(9), now, &options);
        assert_eq!(partition.next(&rests, now, &options), Next::At(now + options.max_rest));
    }

    #[test]
    fn a_batch_is_bounded_and_keeps_the_order() {
        let (partition, now, options) = (Partition::new(), Runtime::system().now(), options());
        push(&partition, 2, 8, now);
        push(&partition, 9, 1, now);
        let take = |turn| {
            let (taken, batch) = partition.take(turn, &options);
            (taken, batch.iter().map(|item| item.sequence.get()).collect::<Vec<_>>())
        };
        assert_eq!(take(turn(&[9])), (turn(&[9]), vec![1]));
        assert_eq!(take(Turn::ALL), (turn(&[2]), vec![1, 2, 3, 4, 5, 6]));
        push(&partition, 0, 3, now);
        assert_eq!(take(Turn::ALL), (turn(&[0, 2]), vec![1, 2, 3, 7, 8]), "the oldest first");
        assert_eq!(take(Turn::ALL), (turn(&[]), vec![]));
        let small = FlusherOptions { max_batch_bytes: 1, ..options };
        push(&partition, 2, 2, now);
        assert_eq!(partition.take(Turn::ALL, &small).1.len(), 1, "one is always taken");
    }
}
