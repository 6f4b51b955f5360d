//! One log that several follow in one process: what one of them has read answers the others.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use terrace_core::read_model::Difference;
use terrace_core::{
    BoxFuture, ChangeLog, Changes, Deadline, HeldBack, LogPosition, Logged, Position, Result,
};

/// Keeps the last changes that were read. They are all that lies between two positions, so a follower
/// that stands between them is answered from here; one that stands at the end, or far behind, reads.
#[derive(Debug)]
pub(super) struct SharedLog {
    log: Arc<dyn ChangeLog>,
    recent: Mutex<Recent>,
}

/// All changes after `from`, up to `to`.
#[derive(Debug, Default)]
struct Recent {
    /// The name of the log that they are of.
    log: Arc<str>,
    from: LogPosition,
    to: LogPosition,
    changes: VecDeque<Logged>,
    /// Of their values.
    bytes: usize,
    /// Whether the log went on when the last was read.
    more: bool,
    /// How often the log may have become another.
    logs: u64,
}

impl SharedLog {
    pub(super) fn new(log: Arc<dyn ChangeLog>) -> Self {
        Self { log, recent: Mutex::default() }
    }

    /// What is kept of the log in its database's present life.
    fn recent(&self) -> MutexGuard<'_, Recent> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let log = self.log.name();
        if recent.log != log {
            *recent = recent.anew(log);
        }
        recent
    }
}

impl Recent {
    const MOST: usize = 4096;
    const MOST_BYTES: usize = 16 << 20;

    fn anew(&self, log: Arc<str>) -> Self {
        Self { log, logs: self.logs + 1, ..Self::default() }
    }

    fn after(&self, position: LogPosition, limit: usize) -> Option<Changes> {
        if position < self.from || self.to <= position {
            return None;
        }
        let begin = self.changes.partition_point(|change| change.position <= position);
        let mut end = self.changes.len().min(begin.saturating_add(limit.max(1)));
        // Changes at one position always come in one answer.
        let last = self.changes.get(end.checked_sub(1)?)?.position;
        while self.changes.get(end).is_some_and(|change| change.position == last) {
            end += 1;
        }
        let changes = self.changes.range(begin..end).cloned().collect::<Vec<_>>();
        let whole = end == self.changes.len();
        let position = if whole { self.to } else { last };
        (!changes.is_empty()).then_some(Changes { changes, position, more: self.more || !whole })
    }

    fn keep(&mut self, from: LogPosition, page: &Changes) {
        if page.changes.is_empty() || page.position <= self.to {
            return;
        }
        if from != self.to {
            let (log, logs) = (Arc::clone(&self.log), self.logs);
            *self = Self { log, from, logs, ..Self::default() };
        }
        self.to = page.position;
        self.more = page.more;
        self.bytes += page.changes.iter().map(bytes).sum::<usize>();
        self.changes.extend(page.changes.iter().cloned());
        while self.changes.len() > Self::MOST || self.bytes > Self::MOST_BYTES {
            let Some(first) = self.changes.pop_front() else { break };
            self.bytes -= bytes(&first);
            self.from = first.position;
            while let Some(same) = self.changes.pop_front_if(|it| it.position == first.position) {
                self.bytes -= bytes(&same);
            }
        }
    }
}

fn bytes(change: &Logged) -> usize {
    change.record.as_ref().map_or(0, |record| record.value.as_str().len())
}

impl ChangeLog for SharedLog {
    fn name(&self) -> Arc<str> {
        self.log.name()
    }

    fn place_of(&self, position: Position) -> LogPosition {
        self.log.place_of(position)
    }

    fn position_of(&self, place: LogPosition) -> Position {
        self.log.position_of(place)
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            let (known, logs) = {
                let recent = self.recent();
                (recent.after(position, limit), recent.logs)
            };
            if let Some(known) = known {
                return Ok(known);
            }
            let read = self.log.after(position, limit).await;
            let mut recent = self.recent();
            match &read {
                Ok(page) if recent.logs == logs => recent.keep(position, page),
                // Read before another found that the log is another.
                Ok(_) => {}
                Err(_) => *recent = recent.anew(Arc::clone(&recent.log)),
            }
            drop(recent);
            read
        })
    }

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        self.log.wait(position, deadline)
    }

    fn keep_for<'a>(
        &'a self,
        follower: &'a str,
        position: LogPosition,
    ) -> BoxFuture<'a, Result<()>> {
        self.log.keep_for(follower, position)
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        self.log.head()
    }

    fn held_back(&self, position: LogPosition) -> BoxFuture<'_, Result<Option<HeldBack>>> {
        self.log.held_back(position)
    }

    fn compare_with_records(&self, mend: bool) -> BoxFuture<'_, Result<Difference>> {
        self.log.compare_with_records(mend)
    }
}

impl fmt::Display for SharedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.log.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::testkit::key;
    use terrace_core::{Key, PositionLost, Version};
    use tokio::sync::oneshot;

    use super::*;

    fn at(offset: u64) -> LogPosition {
        LogPosition { epoch: 1, offset }
    }

    fn page(offsets: &[u64], to: u64) -> Changes {
        let change = |&offset: &u64| Logged {
            position: at(offset),
            key: Key::clone(&key("k")),
            version: Version::new(offset),
            record: None,
            ancestry: None,
        };
        Changes { changes: offsets.iter().map(change).collect(), position: at(to), more: false }
    }

    fn offsets(changes: Option<Changes>) -> Option<(Vec<u64>, u64, bool)> {
        let of = |changes: &Changes| changes.changes.iter().map(|it| it.position.offset).collect();
        changes.map(|changes| (of(&changes), changes.position.offset, changes.more))
    }

    #[test]
    fn who_stands_within_is_answered_and_nobody_else() {
        let mut recent = Recent::default();
        recent.keep(at(10), &page(&[11, 12, 12, 14], 15));
        recent.keep(at(15), &page(&[16], 16));
        assert_eq!(offsets(recent.after(at(9), 10)), None, "something before may be missing");
        assert_eq!(offsets(recent.after(at(10), 10)), Some((vec![11, 12, 12, 14, 16], 16, false)));
        assert_eq!(offsets(recent.after(at(10), 2)), Some((vec![11, 12, 12], 12, true)));
        assert_eq!(offsets(recent.after(at(13), 1)), Some((vec![14], 14, true)));
        assert_eq!(offsets(recent.after(at(16), 10)), None, "there may be more by now");
        // Who is far behind changes nothing, who is ahead begins anew.
        recent.keep(at(0), &page(&[1, 2], 2));
        assert_eq!(offsets(recent.after(at(1), 10)), None);
        recent.keep(at(20), &page(&[21], 21));
        assert_eq!(offsets(recent.after(at(15), 10)), None);
        assert_eq!(offsets(recent.after(at(20), 10)), Some((vec![21], 21, false)));
    }

    #[test]
    fn what_is_forgotten_is_forgotten_by_the_position() {
        let mut recent = Recent::default();
        let many = (0..Recent::MOST as u64 + 1).map(|number| number / 2 + 1).collect::<Vec<_>>();
        recent.keep(at(0), &page(&many, 9999));
        assert_eq!(offsets(recent.after(at(0), 1)), None);
        assert_eq!(offsets(recent.after(at(1), 1)), Some((vec![2, 2], 2, true)));
    }

    /// A log whose answers the test gives, in the order of the questions.
    #[derive(Debug)]
    struct Scripted(Mutex<VecDeque<oneshot::Receiver<Result<Changes>>>>);

    impl fmt::Display for Scripted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("scripted")
        }
    }

    impl ChangeLog for Scripted {
        fn name(&self) -> Arc<str> {
            "log".into()
        }

        fn place_of(&self, position: terrace_core::Position) -> LogPosition {
            LogPosition { epoch: position.get(), offset: u64::MAX }
        }

        fn position_of(&self, place: LogPosition) -> terrace_core::Position {
            terrace_core::Position::new(place.epoch)
        }

        fn after(&self, _: LogPosition, _: usize) -> BoxFuture<'_, Result<Changes>> {
            let answer = self.0.lock().unwrap().pop_front().unwrap();
            Box::pin(async { answer.await.unwrap() })
        }

        fn wait(&self, _: LogPosition, _: Deadline) -> BoxFuture<'_, Result<()>> {
            Box::pin(async { Ok(()) })
        }

        fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
            Box::pin(async { Ok(LogPosition::default()) })
        }
    }

    /// One follower finds that the log is another, while an answer of the old one is on its way to
    /// the other.
    #[tokio::test]
    async fn what_was_read_of_a_lost_log_is_not_kept() {
        let (gates, answers): (Vec<_>, VecDeque<_>) = (0..3).map(|_| oneshot::channel()).unzip();
        let log = SharedLog::new(Arc::new(Scripted(Mutex::new(answers))));
        let [late, lost, new] = <[_; 3]>::try_from(gates).unwrap();
        let late_read = log.after(at(10), 10);
        let lost_read = async {
            lost.send(Err(PositionLost::error("restored"))).unwrap();
            assert!(log.after(at(5), 10).await.is_err());
            late.send(Ok(page(&[11], 11))).unwrap();
        };
        let (late_read, ()) = tokio::join!(late_read, lost_read);
        assert_eq!(offsets(late_read.ok()), Some((vec![11], 11, false)));
        new.send(Ok(page(&[20], 20))).unwrap();
        let read = log.after(at(10), 10).await;
        assert_eq!(offsets(read.ok()), Some((vec![20], 20, false)), "asked anew");
    }
}
