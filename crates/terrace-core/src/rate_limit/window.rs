//! How much one client has had lately, in one window.

use std::time::Duration;

/// Parts of a window that are counted on their own.
const PARTS: u32 = 20;

/// Slots that are counted together.
///
/// Any window is as long as 20. It begins in the middle of a slot, so it touches one more. And what is
/// taken may be used for as long as a slot after it was counted, which is another one.
const COUNTED: usize = 22;

/// How much a client may have: so many permits in any window of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The most permits in a window, at least 1.
    pub limit: u32,
    /// The length of a window, at least a second.
    pub window: Duration,
}

impl Quota {
    /// For how long what was taken may be used, from before it was asked for.
    pub fn slot(&self) -> Duration {
        Duration::from_micros(self.slot_micros())
    }

    /// After this time nothing counts that was taken before it.
    pub fn memory(&self) -> Duration {
        Duration::from_micros(self.slot_micros().saturating_mul(COUNTED as u64))
    }

    /// The most that is taken at once.
    pub(super) fn chunk(&self) -> u32 {
        (self.limit / PARTS).max(1)
    }

    /// Of this limit the part of one of so many.
    pub(super) fn part(&self, of: u32) -> Self {
        Self { limit: (self.limit / of.max(1)).max(1), ..*self }
    }

    fn slot_micros(&self) -> u64 {
        (micros(self.window) / u64::from(PARTS)).max(1)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The permits that one client has taken lately: a counter for each slot that still counts.
///
/// Time is cut into slots, 20 to a window. Permits are granted while the last 22 slots have less than
/// the limit. So no window has more than the limit, even though what is granted is used up to a slot's
/// length later; a steady client gets 20/22 of the limit, which is what this certainty costs. All of the
/// limit may go out at once. (A token bucket with the same burst admits twice the limit in one window.)
///
/// Time that goes backwards makes nothing free: it counts as the latest time at which some were granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// The number of the latest slot in which some were taken.
    newest: u64,
    /// What was taken in the slots up to the newest one, each at its number's place.
    counts: [u32; COUNTED],
}

impl Window {
    /// How many permits there are.
    pub(super) fn room(&self, quota: &Quota, at: Duration) -> u32 {
        self.room_of(COUNTED as u64, quota, at)
    }

    fn room_of(&self, slots: u64, quota: &Quota, at: Duration) -> u32 {
        let taken = self.taken(slots, self.slot(quota, at));
        u32::try_from(u64::from(quota.limit).saturating_sub(taken)).unwrap_or(u32::MAX)
    }

    /// How long until there are so many; zero where nothing is in the way.
    pub(super) fn room_in(&self, quota: &Quota, at: Duration, room: u32) -> Duration {
        self.room_in_of(COUNTED as u64, quota, at, room)
    }

    /// Counts permits as taken.
    pub(super) fn add(&mut self, quota: &Quota, at: Duration, permits: u32) {
        if permits > 0 {
            let now = self.slot(quota, at);
            self.pass_to(now);
            let count = &mut self.counts[place(now)];
            *count = count.saturating_add(permits);
        }
    }

    fn slot(&self, quota: &Quota, at: Duration) -> u64 {
        (micros(at) / quota.slot_micros()).max(self.newest)
    }

    fn taken(&self, slots: u64, now: u64) -> u64 {
        (0..slots).map(|ago| self.count(now, ago)).sum()
    }

    /// Goes on to a slot; those in between are empty.
    fn pass_to(&mut self, slot: u64) {
        let passed = slot.saturating_sub(self.newest).min(COUNTED as u64);
        self.newest = slot;
        for ago in 0..passed {
            self.counts[place(slot - ago)] = 0;
        }
    }

    /// What was taken in the slot that is so many before this one, which no other is after.
    fn count(&self, now: u64, ago: u64) -> u64 {
        let is_kept = |slot: &u64| *slot <= self.newest && self.newest - slot < COUNTED as u64;
        let slot = now.checked_sub(ago).filter(is_kept);
        slot.map_or(0, |slot| u64::from(self.counts[place(slot)]))
    }

    /// When the oldest slots that are in the way have passed.
    fn room_in_of(&self, slots: u64, quota: &Quota, at: Duration, room: u32) -> Duration {
        let now = self.slot(quota, at);
        let taken = self.taken(slots, now);
        if taken == 0 {
            return Duration::ZERO;
        }
        let in_the_way = (taken + u64::from(room)).saturating_sub(u64::from(quota.limit)).max(1);
        let mut passed = 0;
        let last = (0..slots).rev().find(|ago| {
            passed += self.count(now, *ago);
            passed >= in_the_way
        });
        let free = (now + slots).saturating_sub(last.unwrap_or(0));
        Duration::from_micros(free.saturating_mul(quota.slot_micros()).saturating_sub(micros(at)))
    }
}

/// Where the count of a slot is.
fn place(slot: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "it is below 22")]
    let place = (slot % COUNTED as u64) as usize;
    place
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUOTA: Quota = Quota { limit: 10, window: Duration::from_secs(20) };

    /// What became of a wish for as many permits as there are.
    #[derive(Debug, PartialEq, Eq)]
    struct Taken {
        granted: u32,
        left: u32,
        more_in: Duration,
    }

    impl Window {
        fn take(&mut self, quota: &Quota, at: Duration, wanted: u32) -> Taken {
            self.take_of(COUNTED as u64, quota, at, wanted)
        }

        fn take_of(&mut self, slots: u64, quota: &Quota, at: Duration, wanted: u32) -> Taken {
            let room = self.room_of(slots, quota, at);
            let granted = wanted.min(room);
            self.add(quota, at, granted);
            let left = room - granted;
            let more_in = self.room_in_of(slots, quota, at, left.saturating_add(1));
            Taken { granted, left, more_in }
        }
    }

    fn millis(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    /// The most uses in any window, its ends included.
    fn most_in_a_window(mut uses: Vec<Duration>) -> usize {
        uses.sort_unstable();
        let from = |first: usize| {
            let end = uses[first] + QUOTA.window;
            uses[first..].partition_point(|at| *at <= end)
        };
        (0..uses.len()).map(from).max().unwrap_or(0)
    }

    /// Takes after pauses, each used as late as it says. Answers when each permit was used.
    fn used(slots: u64, steps: &[(u64, u32, u64)]) -> Vec<Duration> {
        let (mut window, mut now, mut uses) = (Window::default(), 0, Vec::new());
        for (pause, wanted, late) in steps {
            now += pause;
            let taken = window.take_of(slots, &QUOTA, millis(now), *wanted);
            uses.extend((0..taken.granted).map(|_| millis(now + late)));
        }
        uses
    }

    proptest! {
        /// A slot is 1 s, so what was taken is used up to 999 ms later.
        #[test]
        fn no_window_has_more_than_the_limit(
            steps in prop::collection::vec((0..6_000_u64, 0..15_u32, 0..1_000_u64), 1..80),
        ) {
            prop_assert!(most_in_a_window(used(COUNTED as u64, &steps)) <= QUOTA.limit as usize);
        }

        #[test]
        fn what_it_says_of_later_is_so(
            steps in prop::collection::vec((0..4_000_u64, 0..5_u32), 1..40),
        ) {
            let (mut window, mut now) = (Window::default(), 0);
            for (pause, wanted) in steps {
                now += pause;
                let taken = window.take(&QUOTA, millis(now), wanted);
                prop_assert!(taken.granted == wanted || taken.left == 0);
                let micro = Duration::from_micros(1);
                let then = millis(now) + taken.more_in;
                let left = |at| window.clone().take(&QUOTA, at, 0).left;
                prop_assert_eq!(left(millis(now)), taken.left);
                if taken.more_in > Duration::ZERO {
                    prop_assert_eq!(left(then - micro), taken.left);
                    prop_assert!(left(then) > taken.left);
                }
            }
        }

        /// As calls of several threads may come.
        #[test]
        fn time_that_goes_backwards_makes_nothing_free(
            steps in prop::collection::vec((0..10_000_u64, 0..5_u32), 1..40),
        ) {
            let (mut window, mut taken) = (Window::default(), 0);
            for (at, wanted) in steps {
                taken += window.take(&QUOTA, millis(at), wanted).granted;
            }
            prop_assert!(taken <= QUOTA.limit);
        }
    }

    /// All of it late in a slot and used a slot later, and all of it again as early as it is granted.
    #[test]
    fn fewer_slots_admit_too_much() {
        for (slots, most) in [(20, 20), (21, 20), (22, 10)] {
            let steps = (0..50).map(|_| (500, 10, 999)).collect::<Vec<_>>();
            let mut early = used(slots, &[&[(900, 10, 999)][..], &steps].concat());
            // What was granted later is used at once.
            early[10..].iter_mut().for_each(|at| *at -= millis(999));
            assert_eq!(most_in_a_window(early), most, "{slots} slots");
        }
    }

    #[test]
    fn all_of_it_may_go_at_once_and_a_steady_client_gets_nine_tenths() {
        let mut window = Window::default();
        assert_eq!(window.take(&QUOTA, Duration::ZERO, 99).granted, 10);
        let mut window = Window::default();
        let asks = (0..22_000).map(|at| window.take(&QUOTA, millis(at * 10), 1).granted);
        assert_eq!(asks.sum::<u32>(), 100, "in 220 s, which are 11 windows");
    }

    #[test]
    fn a_limit_that_has_become_smaller_counts_what_was_before() {
        let mut window = Window::default();
        window.take(&QUOTA, Duration::ZERO, 6);
        window.take(&QUOTA, millis(5_000), 4);
        let less = Quota { limit: 5, ..QUOTA };
        let taken = window.take(&less, millis(6_000), 1);
        assert_eq!((taken.granted, taken.left), (0, 0));
        assert_eq!(taken.more_in, millis(16_000), "when the first six are gone");
    }
}
