//! Which replica: the less busy of two drawn at random.
//!
//! Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.

use std::time::{Duration, Instant};

use terrace_core::Position;

use super::Shared;
use super::table::{Seat, Table};

/// What a read wants of a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// It shows all up to here.
    pub(super) reached: Position,
    /// It is no older than this.
    pub(super) within: Duration,
}

impl Shared {
    /// A replica that grants the wish and is none of `tried`.
    pub(super) fn pick(&self, table: &Table, wish: Wish, tried: Option<usize>) -> Option<usize> {
        let now = self.runtime.now();
        let random = self.runtime.random();
        let fits = |number: usize| {
            Some(number) != tried
                && table.seats[number].as_ref().is_some_and(|seat| self.grants(seat, wish, now))
        };
        let one = draw(&table.replicas, random, fits)?;
        let another = |number: usize| number != one && fits(number);
        let two = draw(&table.replicas, random >> 21, another).unwrap_or(one);
        let chosen = if self.outstanding(two) < self.outstanding(one) { two } else { one };
        // One that comes back hands on what is beyond its share.
        #[expect(clippy::cast_precision_loss, reason = "11 bits fit an f64")]
        let ticket = (random >> 53) as f64 / 2048.0;
        let share = |number: usize| {
            table.seats[number].as_ref().map_or(1.0, |seat| seat.share(now, self.options.ramp))
        };
        if ticket < share(chosen) {
            return Some(chosen);
        }
        let full = |number| number != chosen && fits(number) && share(number) >= 1.0;
        draw(&table.replicas, random >> 42, full).or(Some(chosen))
    }

    fn grants(&self, seat: &Seat, wish: Wish, now: Instant) -> bool {
        #[cfg(feature = "mutants")]
        match self.mutant {
            Some(super::Mutant::IgnoresTokens) => return true,
            Some(super::Mutant::TrustsLag) => return seat.has_reached(wish.reached),
            _ => {}
        }
        seat.has_reached(wish.reached) && seat.age(now).is_some_and(|age| age <= wish.within)
    }
}

/// The first that fits, from a random place on.
fn draw(all: &[usize], random: u64, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let count = all.len() as u64;
    let start = usize::try_from((random & 0x1f_ffff) % count.max(1)).unwrap_or(0);
    let (before, after) = all.split_at(start.min(all.len()));
    after.iter().chain(before).copied().find(|&number| fits(number))
}
