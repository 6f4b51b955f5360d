//! Which replica: the less busy of two drawn at random.
//!
//! Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.

use std::time::{Duration, Instant};

use terrace_core::{BreakerState, Pass};

use super::Shared;
use super::freshness::Wish;
use super::table::{Seat, Table};

/// A replica that was chosen for a read.
pub(super) struct Picked {
    pub(super) number: usize,
    /// None where all rest, and one is asked all the same: that says nothing to its breaker.
    pub(super) pass: Option<Pass>,
}

impl Shared {
    /// How long a replica that comes back takes to its full share of the reads.
    const RAMP: Duration = Duration::from_secs(10);

    /// A replica that grants the wish and is none of `tried`.
    pub(super) fn pick(&self, table: &Table, wish: Wish, tried: Option<usize>) -> Option<Picked> {
        let (now, random) = (self.runtime.now(), self.runtime.random());
        let granted = self.granted(table, wish);
        let fits = |number: usize| Some(number) != tried && granted(number);
        let one = draw(&table.replicas, random, fits)?;
        let another = |number: usize| number != one && fits(number);
        let two = draw(&table.replicas, random >> 21, another).unwrap_or(one);
        let chosen = if self.outstanding(two) < self.outstanding(one) { two } else { one };
        let other = |number: usize| number != chosen && fits(number);
        // One that comes back hands on what is beyond its share.
        #[expect(clippy::cast_precision_loss, reason = "11 bits fit an f64")]
        let ticket = (random >> 53) as f64 / 2048.0;
        let share = |number: usize| table.seats[number].as_ref().map_or(1.0, |it| it.share(now));
        let full = |number| other(number) && share(number) >= 1.0;
        let chosen = match ticket < share(chosen) {
            true => chosen,
            false => draw(&table.replicas, random >> 42, full).unwrap_or(chosen),
        };
        // Last, for whoever is admitted as a probe is asked. Of the reads that come at once after a
        // rest the others go where no probe is needed.
        let admit = |number: usize| self.members[number].breaker.admit();
        let pass = admit(chosen);
        if pass.is_some() || self.all_rest(table) {
            return Some(Picked { number: chosen, pass });
        }
        let closed = |number: usize| number != chosen && fits(number) && self.is_closed(number);
        let number = draw(&table.replicas, random >> 42, closed)?;
        Some(Picked { number, pass: Some(admit(number)?) })
    }

    /// Whether some replica grants the wish.
    pub(super) fn is_granted(&self, table: &Table, wish: Wish) -> bool {
        table.replicas.iter().copied().any(self.granted(table, wish))
    }

    fn granted<'a>(&'a self, table: &'a Table, wish: Wish) -> impl Fn(usize) -> bool + 'a {
        let (now, all_rest) = (self.runtime.now(), self.all_rest(table));
        move |number| {
            (all_rest || !self.rests(number))
                && table.seats[number].as_ref().is_some_and(|seat| seat.grants(wish, now))
        }
    }

    /// Its reads have failed a moment ago.
    fn rests(&self, number: usize) -> bool {
        self.members[number].breaker.state() == BreakerState::Open
    }

    /// Its reads have not failed lately.
    fn is_closed(&self, number: usize) -> bool {
        self.members[number].breaker.state() == BreakerState::Closed
    }

    /// Then none does: a replica that fails some reads is better than none.
    fn all_rest(&self, table: &Table) -> bool {
        table.replicas.iter().all(|&number| self.rests(number))
    }
}

impl Seat {
    /// Its share of the reads, 0.1 to 1, while it comes back.
    fn share(&self, now: Instant) -> f64 {
        self.returned.map_or(1.0, |returned| {
            let since = now.saturating_duration_since(returned);
            (0.1 + 0.9 * since.as_secs_f64() / Shared::RAMP.as_secs_f64()).min(1.0)
        })
    }
}

/// The first that fits, from a random place on.
fn draw(all: &[usize], random: u64, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let count = all.len() as u64;
    let start = usize::try_from((random & 0x1f_ffff) % count.max(1)).unwrap_or(0);
    let (before, after) = all.split_at(start.min(all.len()));
    after.iter().chain(before).copied().find(|&number| fits(number))
}
