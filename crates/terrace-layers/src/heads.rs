//! Where the log ended, and when: how old a projection is that has come to a place in it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::LogPosition;

/// Everything that was acknowledged before a moment is at or before its place.
#[derive(Debug, Default)]
pub(crate) struct Heads(Mutex<VecDeque<(LogPosition, Instant)>>);

impl Heads {
    /// The least time between two of them: one is noted with each read, and those of many reads would
    /// push out what a projection has yet to come to. An age is told too high by this much at most.
    const APART: Duration = Duration::from_millis(50);
    /// Those of a minute.
    const MOST: usize = 1200;

    pub(crate) fn note(&self, head: LogPosition, asked: Instant) {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match heads.back_mut() {
            Some((known, at)) if *known >= head => *at = (*at).max(asked),
            Some((_, at)) if asked < *at + Self::APART => {}
            _ => heads.push_back((head, asked)),
        }
        if heads.len() > Self::MOST {
            heads.pop_front();
        }
    }

    /// How old an answer of this checkpoint may be; `None` when nobody knows.
    pub(crate) fn age(&self, checkpoint: LogPosition, now: Instant) -> Option<Duration> {
        let heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let past = heads.partition_point(|(head, _)| *head <= checkpoint);
        let (_, at) = heads.get(past.checked_sub(1)?)?;
        Some(now.saturating_duration_since(*at))
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::Runtime;

    use super::*;

    #[test]
    fn a_projection_is_as_old_as_the_last_end_that_it_has_come_to() {
        let at = |offset| LogPosition { epoch: 0, offset };
        let (heads, now) = (Heads::default(), Runtime::seeded(1).now());
        let second = Duration::from_secs(1);
        assert_eq!(heads.age(at(9), now), None);
        heads.note(at(5), now);
        heads.note(at(8), now + second);
        heads.note(at(8), now + second * 2);
        assert_eq!(heads.age(at(4), now + second * 3), None);
        assert_eq!(heads.age(at(7), now + second * 3), Some(second * 3));
        assert_eq!(heads.age(at(8), now + second * 3), Some(second));
    }

    #[test]
    fn many_reads_leave_what_was_noted_a_while_ago() {
        let (heads, now) = (Heads::default(), Runtime::seeded(1).now());
        let read = |number: u64| {
            (LogPosition { epoch: 0, offset: number }, now + Duration::from_millis(number))
        };
        for number in 1..=10_000 {
            let (head, asked) = read(number);
            heads.note(head, asked);
        }
        let (behind, end) = (read(5_000).0, read(10_000).1);
        let age = heads.age(behind, end);
        let told = Duration::from_millis(5_000)..=Duration::from_millis(5_100);
        assert!(age.is_some_and(|age| told.contains(&age)), "{age:?}");
    }
}
