//! How much one client has had lately, in several windows at once.

use std::time::Duration;

use super::Quota;
use super::window::Window;

/// What a client may have: so many permits in any window of each of these lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas(Vec<Quota>);

impl From<Quota> for Quotas {
    fn from(quota: Quota) -> Self {
        Self(vec![quota])
    }
}

impl FromIterator<Quota> for Quotas {
    /// The first one first, each of another length.
    fn from_iter<I: IntoIterator<Item = Quota>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl Quotas {
    /// All of them, in their order.
    pub fn all(&self) -> &[Quota] {
        &self.0
    }

    /// The most that one request can take, where each instance has one of so many parts: more than a window
    /// has is all that it has.
    pub fn most(&self, parts: u32) -> u32 {
        self.0.iter().map(|quota| quota.part(parts).limit).min().unwrap_or(u32::MAX)
    }

    /// For how long what was taken may be used, from before it was asked for: the shortest
    /// [`Quota::slot`].
    pub fn slot(&self) -> Duration {
        self.0.iter().map(Quota::slot).min().unwrap_or(Duration::MAX)
    }

    /// After this time nothing counts that was taken before it: the longest [`Quota::memory`].
    pub fn memory(&self) -> Duration {
        self.0.iter().map(Quota::memory).max().unwrap_or_default()
    }

    /// The most that is taken at once.
    pub(super) fn chunk(&self) -> u32 {
        self.0.iter().map(Quota::chunk).min().unwrap_or(1)
    }
}

/// How many permits are wanted, in all windows or in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// At least so many, or none. Of no window more than it has in all: see [`Quotas::most`].
    pub least: u32,
    /// At most so many.
    pub most: u32,
}

impl From<u32> for Wanted {
    /// Exactly so many.
    fn from(permits: u32) -> Self {
        Self { least: permits, most: permits }
    }
}

/// What became of a wish for permits in several windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// How many there were in each; none, or what was wanted.
    pub granted: u32,
    /// How many are left in the tightest window.
    pub left: u32,
    /// How long until more are; where there were too few, until there are enough in all of them.
    pub more_in: Duration,
    /// Which window that is, by its place among the [`Quotas`].
    pub tightest: usize,
}

/// The permits that one client has taken lately, in each of its windows. Bounded: one window for each quota.
///
/// ```
/// # use std::time::Duration;
/// # use terrace_core::{Quota, Quotas, Windows};
/// let minute = Quota { limit: 100, window: Duration::from_secs(60) };
/// let second = Quota { limit: 10, window: Duration::from_secs(1) };
/// let (quotas, mut windows) = (Quotas::from_iter([minute, second]), Windows::default());
/// assert_eq!(windows.take(&quotas, 1, Duration::ZERO, 8.into()).granted, 8);
/// let refused = windows.take(&quotas, 1, Duration::ZERO, 8.into());
/// assert_eq!((refused.granted, refused.left, refused.tightest), (0, 2, 1));
/// assert_eq!(refused.more_in, Duration::from_millis(1100));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows(Vec<Window>);

impl Windows {
    /// Takes permits from all windows or from none, at this time since a beginning that is always the same.
    /// Each window has one of so many parts of its limit.
    pub fn take(&mut self, quotas: &Quotas, parts: u32, at: Duration, wanted: Wanted) -> Taken {
        self.0.resize(quotas.all().len(), Window::default());
        let least = wanted.least.min(quotas.most(parts));
        let quotas = || quotas.all().iter().map(|quota| quota.part(parts));
        let windows = self.0.iter().zip(quotas());
        let room = windows.map(|(window, quota)| window.room(&quota, at)).min().unwrap_or(0);
        let granted = if room < least { 0 } else { wanted.most.min(room) };
        for (window, quota) in self.0.iter_mut().zip(quotas()) {
            window.add(&quota, at, granted);
        }
        let left = room - granted;
        // What it takes for there to be more, in the windows that have too little for it.
        let enough = if room < least { least } else { left.saturating_add(1) };
        let windows = self.0.iter().zip(quotas()).enumerate();
        let in_the_way = windows.filter(|(_, (window, quota))| window.room(quota, at) < enough);
        let tightest = in_the_way
            .map(|(place, (window, quota))| (window.room_in(&quota, at, enough), place))
            .max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        let (more_in, tightest) = tightest.unwrap_or_default();
        Taken { granted, left, more_in, tightest }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Quota = Quota { limit: 30, window: Duration::from_secs(60) };
    const SHORT: Quota = Quota { limit: 8, window: Duration::from_secs(2) };

    fn both() -> Quotas {
        Quotas::from_iter([LONG, SHORT])
    }

    fn millis(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    /// The most permits used in any window of this quota, its ends included.
    fn most_in_a_window(uses: &[(Duration, u32)], quota: &Quota) -> u32 {
        let from = |first: usize| {
            let end = uses[first].0 + quota.window;
            uses[first..].iter().take_while(|(at, _)| *at <= end).map(|(_, cost)| cost).sum()
        };
        (0..uses.len()).map(from).max().unwrap_or(0)
    }

    /// What is granted of these costs after these pauses.
    fn used(quotas: &Quotas, steps: &[(u64, u32)]) -> Vec<(Duration, u32)> {
        let (mut windows, mut now) = (Windows::default(), 0);
        let uses = steps.iter().map(|(pause, cost)| {
            now += pause;
            (millis(now), windows.take(quotas, 1, millis(now), (*cost).into()).granted)
        });
        uses.collect()
    }

    fn keeps(uses: &[(Duration, u32)]) -> bool {
        [LONG, SHORT].iter().all(|quota| most_in_a_window(uses, quota) <= quota.limit)
    }

    proptest! {
        #[test]
        fn no_window_of_any_length_has_more_than_its_limit(
            steps in prop::collection::vec((0..2_000_u64, 1..12_u32), 1..80),
        ) {
            prop_assert!(keeps(&used(&both(), &steps)));
        }

        #[test]
        fn it_is_taken_from_all_or_from_none_and_what_it_says_of_later_is_so(
            steps in prop::collection::vec((0..2_000_u64, 1..12_u32, 0..3_u32), 1..40),
        ) {
            let (quotas, mut windows, mut now) = (both(), Windows::default(), 0);
            for (pause, least, more) in steps {
                now += pause;
                let (before, at) = (windows.clone(), millis(now));
                let wanted = Wanted { least, most: least + more };
                let taken = windows.take(&quotas, 1, at, wanted);
                let needed = least.min(SHORT.limit);
                prop_assert!(taken.granted == 0 || taken.granted >= needed);
                let left = |at| {
                    windows.clone().take(&quotas, 1, at, Wanted { least: 1, most: 0 }).left
                };
                prop_assert_eq!(left(at), taken.left);
                let enough = if taken.granted == 0 { needed } else { taken.left + 1 };
                if taken.more_in > Duration::ZERO {
                    let then = at + taken.more_in;
                    prop_assert!(left(then) >= enough && left(then - millis(1)) < enough);
                }
                if taken.granted == 0 {
                    prop_assert_eq!(windows.clone().0, before_resized(before));
                }
            }
        }
    }

    fn before_resized(Windows(mut before): Windows) -> Vec<Window> {
        before.resize(2, Window::default());
        before
    }

    /// The checks above notice a window that is not counted, whichever it is.
    #[test]
    fn each_window_is_needed() {
        let burst = [(0, 8), (100, 8), (100, 8)];
        assert!(!keeps(&used(&LONG.into(), &burst)));
        let steady = (0..12).map(|_| (2_500, 8)).collect::<Vec<_>>();
        assert!(!keeps(&used(&SHORT.into(), &steady)));
        assert!(keeps(&used(&both(), &burst)) && keeps(&used(&both(), &steady)));
    }

    #[test]
    fn the_tightest_window_is_told() {
        let (quotas, mut windows) = (both(), Windows::default());
        let taken = windows.take(&quotas, 1, Duration::ZERO, 3.into());
        assert_eq!((taken.left, taken.tightest), (5, 1), "of eight, not of thirty");
        for second in [3, 6, 9] {
            windows.take(&quotas, 1, Duration::from_secs(second), 8.into());
        }
        let at = Duration::from_secs(12);
        let refused = windows.take(&quotas, 1, at, 8.into());
        assert_eq!((refused.granted, refused.left, refused.tightest), (0, 3, 0));
        // Until the first three and two of the next eight do not count any more.
        assert_eq!(refused.more_in, Duration::from_secs(3 + 66 - 12));
    }

    #[test]
    fn what_costs_more_than_a_window_has_takes_all_of_it() {
        let (quotas, mut windows) = (both(), Windows::default());
        assert_eq!(windows.take(&quotas, 1, Duration::ZERO, 100.into()).left, 0);
        let mut half = Windows::default();
        let wanted = |cost| Wanted { least: cost, most: cost };
        assert_eq!(half.take(&quotas, 2, Duration::ZERO, wanted(4)).granted, 4);
        assert_eq!(half.take(&quotas, 2, Duration::ZERO, wanted(1)).granted, 0, "a part of two");
    }
}
