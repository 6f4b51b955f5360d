//! Amounts of money: exact, with two decimals.

use std::fmt;
use std::ops::Add;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// An amount in hundredths. What one transaction may have is bounded by [`Amount::LIMIT`]; a sum may
/// be larger.
///
/// ```
/// # use terrace_core::ledger::Amount;
/// let amount: Amount = "12.5".parse()?;
/// assert_eq!((amount.cents(), amount.to_string().as_str()), (1250, "12.50"));
/// assert_eq!("-1e2".parse::<Amount>()?.cents(), -10_000);
/// assert!("0.001".parse::<Amount>().is_err() && "100000000".parse::<Amount>().is_err());
/// # Ok::<(), terrace_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i64);

impl Amount {
    /// The largest amount of one transaction, either way: 99 999 999.99.
    pub const LIMIT: Self = Self(9_999_999_999);

    /// An amount, or a sum of some.
    pub const fn of_cents(cents: i64) -> Self {
        Self(cents)
    }

    /// In hundredths.
    pub const fn cents(self) -> i64 {
        self.0
    }

    /// Refuses what is beyond [`Amount::LIMIT`], as a sum may be.
    ///
    /// # Errors
    /// `InvalidInput`, as for a text.
    pub fn check(self) -> Result<()> {
        if self.0.unsigned_abs() > Self::LIMIT.0.unsigned_abs() { Err(refused()) } else { Ok(()) }
    }
}

impl Add for Amount {
    type Output = Self;

    /// A sum; nine hundred million transactions of the largest amount have one.
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

fn refused() -> Error {
    Error::invalid(
        "amount must be a decimal number with at most two decimals, from -99999999.99 to 99999999.99",
    )
}

impl FromStr for Amount {
    type Err = Error;

    /// Reads the text of a JSON number, exactly: no float is made of it.
    ///
    /// # Errors
    /// `InvalidInput` for what is no number, has more than two decimals, or is beyond
    /// [`Amount::LIMIT`].
    fn from_str(text: &str) -> Result<Self> {
        Ok(Self(cents(text).ok_or_else(refused)?))
    }
}

fn cents(text: &str) -> Option<i64> {
    let (number, exponent) = match text.split_once(['e', 'E']) {
        // More than these digits change nothing that is in bounds.
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    let dot = number.len() > whole.len();
    if whole.is_empty() || (dot && fraction.is_empty()) || !is_number(whole) || !is_number(fraction)
    {
        return None;
    }
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    // The power of ten of the last digit that counts, in hundredths.
    let dropped = digits.len() - digits.trim_end_matches('0').len();
    let power = i64::from(exponent) - i64::try_from(fraction.len()).ok()?
        + i64::try_from(dropped).ok()?
        + 2;
    if !(0..=10).contains(&power) || significant.len() > 10 {
        return None;
    }
    let power = u32::try_from(power).ok()?;
    let cents = significant.parse::<i64>().ok()?.checked_mul(10_i64.pow(power))?;
    (cents <= Amount::LIMIT.0).then_some(if negative { -cents } else { cents })
}

impl fmt::Display for Amount {
    /// With two decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let cents = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:02}", cents / 100, cents % 100)
    }
}

impl Serialize for Amount {
    /// As its text: a number of JSON would be read as a float.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    /// Of a sum, too, which may be beyond [`Amount::LIMIT`].
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        let cents = text.replacen('.', "", 1).parse().ok();
        let exact = text.split_once('.').is_some_and(|(_, decimals)| decimals.len() == 2);
        cents.filter(|_| exact).map(Self).ok_or_else(|| serde::de::Error::custom("no amount"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_amount_is_read_as_it_is_written(cents in -9_999_999_999_i64..=9_999_999_999) {
            let amount = Amount::of_cents(cents);
            prop_assert_eq!(amount.to_string().parse::<Amount>().unwrap(), amount);
            let stored = serde_json::to_string(&amount).unwrap();
            prop_assert_eq!(serde_json::from_str::<Amount>(&stored).unwrap(), amount);
        }

        #[test]
        fn an_exponent_moves_the_point(cents in -9_999_999_999_i64..=9_999_999_999) {
            prop_assert_eq!(format!("{cents}e-2").parse::<Amount>().unwrap().cents(), cents);
            let thousandth = format!("{cents}0.0e-003");
            prop_assert_eq!(thousandth.parse::<Amount>().unwrap().cents(), cents);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-+0-9.eE]{0,12}") {
            let _ = text.parse::<Amount>();
        }
    }

    #[test]
    fn what_is_not_exact_is_refused() {
        for text in [
            "",
            "-",
            ".5",
            "5.",
            "1.001",
            "1e-3",
            "100000000",
            "99999999.991",
            "1e99",
            "1e999999999999",
            "NaN",
            "Infinity",
            "+1",
            "1 ",
            "0x1",
            "--1",
            "1e",
            "1_0",
            "١",
        ] {
            assert!(text.parse::<Amount>().is_err(), "{text}");
        }
        for (text, cents) in
            [("-0", 0), ("0e999", 0), ("1.000", 100), ("99999999.99", 9_999_999_999)]
        {
            assert_eq!(text.parse::<Amount>().unwrap().cents(), cents, "{text}");
        }
    }
}
