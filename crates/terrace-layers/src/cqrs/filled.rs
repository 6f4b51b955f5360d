//! Whether a read model that began anew has come again to where it was.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::LogPosition;

/// What is known of a read model by its checkpoints.
///
/// One that begins anew, because its log did or because somebody emptied it, is right from its first
/// change on and lacks all that it has yet to come to. So its answers count again from where the log ended
/// when it was noticed. It is noticed by a place in another log, or before one where it was a while ago.
#[derive(Debug, Default)]
pub(super) struct Filled(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    log: Arc<str>,
    /// Answers before this place do not count.
    floor: LogPosition,
    /// Whether the floor is where the log ended, and the model has yet to come to it.
    is_filling: bool,
    /// Where it was then; becomes the floor after a while, in which no answer is on its way.
    mark: (LogPosition, Instant),
}

/// What to do with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts.
    Counts,
    /// It does not.
    Lacks,
    /// It does not, and the end of the log is wanted: see [`Filled::fills_to`].
    BeganAnew,
}

impl Filled {
    /// For how long an answer may be on its way. Those of one moment come from snapshots that are as far
    /// apart.
    const ON_ITS_WAY: Duration = Duration::from_secs(5);

    /// What to do with an answer of this place in this log.
    pub(super) fn judge(&self, log: &Arc<str>, place: LogPosition, now: Instant) -> Verdict {
        let mut known = self.known();
        let Some(known) = &mut *known else {
            // Of what was before the start nothing is known.
            *known = Some(Known::new(log, place, false, (place, now)));
            return Verdict::Counts;
        };
        if known.log != *log || (place < known.floor && !known.is_filling) {
            return Verdict::BeganAnew;
        }
        if place < known.floor {
            return Verdict::Lacks;
        }
        if known.is_filling || now.saturating_duration_since(known.mark.1) >= Self::ON_ITS_WAY {
            known.is_filling = false;
            (known.floor, known.mark) = (known.floor.max(known.mark.0), (place, now));
        }
        Verdict::Counts
    }

    /// The model counts again from here on, the end of the log after it was noticed.
    pub(super) fn fills_to(&self, log: &Arc<str>, end: LogPosition, now: Instant) {
        let start = (LogPosition::default(), now);
        *self.known() = Some(Known::new(log, end, true, start));
    }

    /// Whether it is known to lack something.
    pub(super) fn lacks(&self) -> bool {
        self.known().as_ref().is_some_and(|known| known.is_filling)
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn new(
        log: &Arc<str>,
        floor: LogPosition,
        is_filling: bool,
        mark: (LogPosition, Instant),
    ) -> Self {
        Self { log: Arc::clone(log), floor, is_filling, mark }
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::Runtime;

    use super::*;

    fn at(epoch: u64) -> LogPosition {
        LogPosition { epoch, offset: 0 }
    }

    #[test]
    fn a_model_that_began_anew_counts_from_the_end_of_its_log() {
        let (filled, now) = (Filled::default(), Runtime::seeded(1).now());
        let (log, other): (Arc<str>, Arc<str>) = ("log".into(), "other".into());
        assert_eq!(filled.judge(&log, at(5), now), Verdict::Counts);
        assert_eq!(filled.judge(&log, at(6), now), Verdict::Counts);
        assert_eq!(filled.judge(&log, at(5), now), Verdict::Counts, "an answer on its way");
        assert_eq!(filled.judge(&other, at(0), now), Verdict::BeganAnew);
        assert_eq!(filled.judge(&log, at(9), now), Verdict::Counts, "not noticed yet");
        filled.fills_to(&other, at(7), now);
        assert!(filled.lacks());
        assert_eq!(filled.judge(&other, at(6), now), Verdict::Lacks);
        assert_eq!(filled.judge(&other, at(7), now), Verdict::Counts);
        assert!(!filled.lacks());
    }

    #[test]
    fn one_that_was_emptied_is_noticed_by_its_place() {
        let (filled, mut now) = (Filled::default(), Runtime::seeded(1).now());
        let log: Arc<str> = "log".into();
        for place in 1..=10 {
            assert_eq!(filled.judge(&log, at(place), now), Verdict::Counts);
            now += Duration::from_secs(2);
        }
        assert_eq!(filled.judge(&log, at(0), now), Verdict::BeganAnew);
        filled.fills_to(&log, at(11), now);
        assert_eq!(filled.judge(&log, at(10), now), Verdict::Lacks);
        assert_eq!(filled.judge(&log, at(11), now), Verdict::Counts);
    }

    #[test]
    fn an_empty_log_is_come_to_at_once() {
        let (filled, now) = (Filled::default(), Runtime::seeded(1).now());
        let log: Arc<str> = "log".into();
        assert_eq!(filled.judge(&log, at(0), now), Verdict::Counts);
        filled.fills_to(&log, at(0), now);
        assert_eq!(filled.judge(&log, at(0), now), Verdict::Counts, "there is nothing to come to");
    }
}
