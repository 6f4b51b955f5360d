//! The versions of regions: a hybrid logical clock of 53 bits.
//!
//! ```text
//!  52           13 12      6 5       0
//! +---------------+---------+---------+
//! | milliseconds  | counter | region  |
//! | since 2020    |         | 1 to 63 |
//! +---------------+---------+---------+
//! ```
//!
//! The time and the counter are one number that grows: more than 128 versions in a millisecond run ahead
//! of the clock, at most as far as the writes did (Kulkarni et al., "Logical Physical Clocks", OPODIS
//! 2014, with the counter below the time instead of beside it). The layout lasts until 2054.

use jiff::Timestamp;

use super::RegionId;
use crate::{Error, Result, Version};

impl Version {
    /// How many regions the layout has room for.
    pub const REGIONS: u8 = 63;
    /// How far the next version of a region is from the one before.
    pub const STEP: u64 = 64;
    /// Milliseconds from 1970 to the beginning of 2020, UTC.
    pub const SINCE: i64 = 1_577_836_800_000;

    const BELOW_TIME: u32 = 13;
    const LATEST_MILLIS: i64 = (1 << 40) - 1;

    /// Before every version that a region draws at this time or later, as far as its clock is right; of no
    /// region.
    pub fn at(time: Timestamp) -> Self {
        let millis = (time.as_millisecond() - Self::SINCE).clamp(0, Self::LATEST_MILLIS);
        Self(millis.unsigned_abs() << Self::BELOW_TIME)
    }

    /// The next version of a region: above this one, and not below the clock.
    ///
    /// ```
    /// # use terrace_core::{RegionId, Timestamp, Version};
    /// # let (now, region) = (Timestamp::from_millisecond(1_600_000_000_000).unwrap(), RegionId::new(3)?);
    /// let first = Version::NONE.next_in(region, now);
    /// assert_eq!((first.region(), first.time()), (Some(region), now));
    /// let earlier = Timestamp::from_millisecond(1_500_000_000_000).unwrap();
    /// assert!(first.next_in(region, earlier) > first, "a clock that was set back");
    /// # Ok::<(), terrace_core::Error>(())
    /// ```
    #[must_use]
    pub fn next_in(self, region: RegionId, now: Timestamp) -> Self {
        let floor = self.max(Self::at(now));
        let same_tick = floor.0 / Self::STEP * Self::STEP + u64::from(region.get());
        Self(if same_tick > floor.0 { same_tick } else { same_tick + Self::STEP })
    }

    /// The region that drew it; `None` for a point in time ([`Version::at`]).
    pub const fn region(self) -> Option<RegionId> {
        RegionId::known((self.0 % Self::STEP) as u8)
    }

    /// Refuses what is no [`Version::at`] a time.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
    pub fn check_horizon(self) -> Result<()> {
        match self.region() {
            None => Ok(()),
            Some(_) => Err(Error::invalid("a horizon is a time, not the version of a region")),
        }
    }

    /// When it was drawn, by the clock of its region.
    pub fn time(self) -> Timestamp {
        let millis = i64::try_from(self.0 >> Self::BELOW_TIME).unwrap_or(Self::LATEST_MILLIS);
        Timestamp::from_millisecond(millis + Self::SINCE).unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_next_version_is_higher_and_of_its_region(
            last in 0_u64..(1 << 52), region in 1_u8..=63, millis in 0_i64..2_650_000_000_000
        ) {
            let region = RegionId::new(region).unwrap();
            let now = Timestamp::from_millisecond(millis).unwrap();
            let last = Version::new(last);
            let next = last.next_in(region, now);
            prop_assert!(next > last && next > Version::at(now));
            prop_assert_eq!(next.region(), Some(region));
            prop_assert!(next.get() <= last.max(Version::at(now)).get() + Version::STEP);
            prop_assert_eq!(Version::of_row(next.get() as i64), Some(next));
        }
    }

    #[test]
    fn the_layout_lasts_until_2054() {
        let last: Timestamp = "2054-11-01T00:00:00Z".parse().unwrap();
        let region = RegionId::new(63).unwrap();
        let version = Version::NONE.next_in(region, last);
        assert_eq!(version.time(), last);
        assert!(version.get() < 1 << 53);
    }
}
