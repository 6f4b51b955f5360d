//! `Replicator`: goes on after failures, begins anew when it must.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{
    BoxFuture, ChangeLog, Changes, Deadline, Error, ErrorKind, Follower, LogPosition, Logged,
    Position, PositionLost, Record, Result, Runtime, Timestamp, Version,
};
use terrace_layers::{Replicator, ReplicatorOptions};
use tokio::sync::watch;

/// A log of so many changes, the first of which are gone.
#[derive(Debug)]
struct Log {
    end: watch::Sender<u64>,
    floor: AtomicUsize,
    failing: AtomicUsize,
}

impl ChangeLog for Log {
    fn place_of(&self, position: Position) -> LogPosition {
        LogPosition { epoch: 0, offset: position.get() }
    }

    fn position_of(&self, place: LogPosition) -> Position {
        Position::new(place.offset)
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            let fails = |left: usize| left.checked_sub(1);
            if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
                return Err(Error::new(ErrorKind::Unavailable, "the test says so"));
            }
            let floor = self.floor.load(Ordering::SeqCst) as u64;
            if position.offset > 0 && position.offset < floor {
                return Err(PositionLost::error("begin anew"));
            }
            let end = *self.end.borrow();
            let last = end.min(position.offset + limit as u64);
            let changes = (position.offset + 1..=last).map(change).collect();
            let position = LogPosition { epoch: 0, offset: last };
            Ok(Changes { changes, position, more: last < end })
        })
    }

    fn wait(&self, position: LogPosition, _: Deadline) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let _ = self.end.subscribe().wait_for(|end| *end > position.offset).await;
            Ok(())
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async { Ok(LogPosition { epoch: 0, offset: *self.end.borrow() }) })
    }
}

fn change(number: u64) -> Logged {
    let at = Timestamp::UNIX_EPOCH;
    let (key, version) = (key(format!("k{number}")), Version::new(number));
    let record = Record {
        key: key.clone(),
        value: value(number.to_string()),
        version,
        created_at: at,
        updated_at: at,
    };
    Logged {
        position: LogPosition { epoch: 0, offset: number },
        key,
        version,
        record: Some(record),
    }
}

#[derive(Debug, Default)]
struct Copy {
    place: Mutex<LogPosition>,
    applied: watch::Sender<Vec<u64>>,
    begun: AtomicUsize,
}

impl Follower for Copy {
    fn followed(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async { Ok(*self.place.lock().unwrap()) })
    }

    fn apply(&self, from: LogPosition, changes: Changes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut place = self.place.lock().unwrap();
            assert_eq!(*place, from, "it goes on where the follower is");
            *place = changes.position;
            let numbers = changes.changes.iter().map(|change| change.version.get());
            self.applied.send_modify(|applied| applied.extend(numbers));
            Ok(())
        })
    }

    fn begin_anew(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            *self.place.lock().unwrap() = LogPosition::default();
            self.begun.fetch_add(1, Ordering::SeqCst);
            self.applied.send_modify(Vec::clear);
            Ok(())
        })
    }
}

macro_rules! shows {
    ($($name:ident)*) => { $(
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )* };
}
shows! { Log Copy }

fn set_up(failing: usize) -> (Arc<Log>, Arc<Copy>) {
    let failing = AtomicUsize::new(failing);
    let log = Log { end: watch::Sender::new(0), floor: AtomicUsize::new(0), failing };
    (Arc::new(log), Arc::new(Copy::default()))
}

async fn applied(copy: &Copy, count: usize) -> Vec<u64> {
    let mut applied = copy.applied.subscribe();
    applied.wait_for(|applied| applied.len() >= count).await.unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn everything_is_applied_once_in_order_whatever_fails() {
    let (log, copy) = set_up(3);
    let options = ReplicatorOptions { batch: 3, ..ReplicatorOptions::default() };
    let (from, to) = (Arc::clone(&log), Arc::clone(&copy));
    let replicator = Replicator::start(from, to, options, Runtime::system());
    log.end.send_replace(10);
    assert_eq!(applied(&copy, 10).await, (1..=10).collect::<Vec<_>>());
    log.end.send_replace(11);
    assert_eq!(applied(&copy, 11).await.last(), Some(&11));
    assert_eq!(replicator.applied(), 11);
    replicator.stop().await;
    log.end.send_replace(12);
    Runtime::system().sleep(Duration::from_secs(60)).await;
    assert_eq!(copy.applied.borrow().len(), 11, "it has ended");
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_stayed_away_too_long_begins_anew() {
    let (log, copy) = set_up(0);
    log.end.send_replace(10);
    *copy.place.lock().unwrap() = LogPosition { epoch: 0, offset: 2 };
    log.floor.store(5, Ordering::SeqCst);
    let (from, to) = (Arc::clone(&log), Arc::clone(&copy));
    let _replicator = Replicator::start(from, to, Default::default(), Runtime::system());
    assert_eq!(applied(&copy, 10).await.len(), 10);
    assert_eq!(copy.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn changes_are_held_back_for_the_delay() {
    let (log, copy) = set_up(0);
    let delay = Duration::from_secs(7);
    let options = ReplicatorOptions { delay, ..ReplicatorOptions::default() };
    let (from, to) = (Arc::clone(&log), Arc::clone(&copy));
    let _replicator = Replicator::start(from, to, options, Runtime::system());
    let begun = Runtime::system().now();
    log.end.send_replace(1);
    applied(&copy, 1).await;
    let taken = Runtime::system().now() - begun;
    assert!(taken >= delay && taken < delay * 2);
}
