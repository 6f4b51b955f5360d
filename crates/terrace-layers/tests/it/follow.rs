//! `Follow`: goes on after failures, begins anew when it must, finds what is refused.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{
    Batch, BoxFuture, ChangeLog, Changes, Checkpoint, Deadline, Error, ErrorKind, Follower,
    LogPosition, Logged, Position, PositionLost, Record, Result, Runtime, Timestamp, Version,
};
use terrace_layers::{Follow, FollowOptions, Following};
use tokio::sync::watch;

/// A log of so many changes, the first of which are gone.
#[derive(Debug)]
struct Log {
    end: watch::Sender<u64>,
    floor: AtomicUsize,
    /// What it was told, and from where on it keeps everything for who is told of.
    told: watch::Sender<Vec<(String, u64)>>,
    trimmed: AtomicUsize,
    failing: AtomicUsize,
}

impl ChangeLog for Log {
    fn name(&self) -> Arc<str> {
        "log".into()
    }

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

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut end = self.end.subscribe();
            let more = end.wait_for(|end| *end > position.offset);
            let _either_way = Runtime::system().within(deadline, more).await;
            Ok(())
        })
    }

    fn keep_for<'a>(
        &'a self,
        follower: &'a str,
        position: LogPosition,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let trimmed = self.trimmed.load(Ordering::SeqCst) as u64;
            if position.offset > 0 && position.offset < trimmed {
                return Err(PositionLost::error("begin anew"));
            }
            self.told.send_modify(|told| told.push((follower.to_owned(), position.offset)));
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
        ancestry: None,
    }
}

#[derive(Debug, Default)]
struct Copy {
    place: Mutex<Checkpoint>,
    /// The most changes that it takes at once.
    most: Option<usize>,
    applied: watch::Sender<Vec<u64>>,
    begun: AtomicUsize,
}

impl Follower for Copy {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async { Ok(self.place.lock().unwrap().clone()) })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let mut place = self.place.lock().unwrap();
            assert_eq!(*place, batch.from, "it goes on where the follower is");
            if self.most.is_some_and(|most| batch.changes.len() > most) {
                return Err(Error::new(ErrorKind::Unavailable, "not in time"));
            }
            *place = batch.to.clone();
            let numbers = batch.changes.iter().map(|change| change.version.get());
            self.applied.send_modify(|applied| applied.extend(numbers));
            Ok(true)
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            *self.place.lock().unwrap() = Checkpoint::beginning(log);
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
    let (failing, floor, trimmed) = (AtomicUsize::new(failing), 0.into(), 0.into());
    let (end, told) = (watch::Sender::new(0), watch::Sender::default());
    let log = Log { end, floor, told, trimmed, failing };
    (Arc::new(log), Arc::new(Copy::default()))
}

async fn applied(copy: &Copy, count: usize) -> Vec<u64> {
    let mut applied = copy.applied.subscribe();
    applied.wait_for(|applied| applied.len() >= count).await.unwrap().clone()
}

fn start(log: &Arc<Log>, copy: &Arc<Copy>, options: FollowOptions) -> Following {
    let (log, copy) = (Arc::clone(log), Arc::clone(copy));
    Follow::new("test", log, copy, options, Runtime::system()).start()
}

#[tokio::test(start_paused = true)]
async fn everything_is_applied_once_in_order_whatever_fails() {
    let (log, copy) = set_up(3);
    let following = start(&log, &copy, FollowOptions { batch: 3, ..FollowOptions::default() });
    log.end.send_replace(10);
    assert_eq!(applied(&copy, 10).await, (1..=10).collect::<Vec<_>>());
    log.end.send_replace(11);
    assert_eq!(applied(&copy, 11).await.last(), Some(&11));
    assert_eq!(following.follow().inspect().number("changes"), Some(11));
    following.stop().await;
    log.end.send_replace(12);
    Runtime::system().sleep(Duration::from_secs(60)).await;
    assert_eq!(copy.applied.borrow().len(), 11, "it has ended");
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_stayed_away_too_long_begins_anew() {
    let (log, copy) = set_up(0);
    log.end.send_replace(10);
    let second = LogPosition { epoch: 0, offset: 2 };
    *copy.place.lock().unwrap() = Checkpoint::beginning("log").at(second);
    log.floor.store(5, Ordering::SeqCst);
    let _following = start(&log, &copy, FollowOptions::default());
    assert_eq!(applied(&copy, 10).await.len(), 10);
    assert_eq!(copy.begun.load(Ordering::SeqCst), 1);
}

/// Nothing tells such a log later that the follower has missed something.
#[tokio::test(start_paused = true)]
async fn a_follower_that_the_log_no_longer_keeps_anything_for_begins_anew() {
    let (log, copy) = set_up(0);
    log.end.send_replace(10);
    let second = LogPosition { epoch: 0, offset: 2 };
    *copy.place.lock().unwrap() = Checkpoint::beginning("log").at(second);
    log.trimmed.store(5, Ordering::SeqCst);
    let _following = start(&log, &copy, FollowOptions::default());
    assert_eq!(applied(&copy, 10).await.len(), 10);
    assert_eq!(copy.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_log_is_told_how_far_the_follower_is() {
    let (log, copy) = set_up(0);
    log.end.send_replace(10);
    let _following = start(&log, &copy, FollowOptions { batch: 3, ..FollowOptions::default() });
    applied(&copy, 10).await;
    let told = async |count: usize| {
        let mut told = log.told.subscribe();
        let told = told.wait_for(|told| told.len() >= count).await.unwrap();
        told.iter().map(|(name, place)| format!("{name} {place}")).collect::<Vec<_>>()
    };
    assert_eq!(told(1).await, ["test Copy 0"], "before the first read");
    let begun = Runtime::system().now();
    assert_eq!(told(2).await[1..], ["test Copy 10"]);
    assert!(Runtime::system().now() - begun > Duration::from_secs(55), "once a minute");
    let seventh = LogPosition { epoch: 0, offset: 7 };
    *copy.place.lock().unwrap() = Checkpoint::beginning("log").at(seventh);
    assert_eq!(told(3).await[2..], ["test Copy 7"], "and when it has gone back");
}

/// A crash of the follower's database takes its last commits back while the log is quiet.
#[tokio::test(start_paused = true)]
async fn a_follower_that_has_lost_its_end_is_brought_up_again() {
    let (log, copy) = set_up(0);
    log.end.send_replace(10);
    let _following = start(&log, &copy, FollowOptions::default());
    applied(&copy, 10).await;
    let seventh = LogPosition { epoch: 0, offset: 7 };
    *copy.place.lock().unwrap() = Checkpoint::beginning("log").at(seventh);
    copy.applied.send_modify(|applied| applied.truncate(7));
    let begun = Runtime::system().now();
    assert_eq!(applied(&copy, 10).await, (1..=10).collect::<Vec<_>>());
    assert!(Runtime::system().now() - begun < Duration::from_secs(1), "the log said nothing");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_at_once_is_applied_in_parts() {
    let (log, _) = set_up(0);
    let copy = Arc::new(Copy { most: Some(10), ..Copy::default() });
    log.end.send_replace(100);
    let _following = start(&log, &copy, FollowOptions::default());
    assert_eq!(applied(&copy, 100).await, (1..=100).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_comes_within_the_pace_is_one_batch() {
    let (log, copy) = set_up(0);
    let pace = Duration::from_secs(7);
    let following = start(&log, &copy, FollowOptions { pace, ..FollowOptions::default() });
    log.end.send_replace(1);
    applied(&copy, 1).await;
    let begun = Runtime::system().now();
    for end in 2..=5 {
        log.end.send_replace(end);
        Runtime::system().sleep(Duration::from_secs(1)).await;
    }
    applied(&copy, 5).await;
    let taken = Runtime::system().now() - begun;
    assert!(taken >= Duration::from_secs(6) && taken <= pace, "{taken:?}");
    assert_eq!(following.follow().inspect().number("batches"), Some(2));
}

/// Else a follower that is behind would never catch up with a log that grows faster than its batches.
#[tokio::test(start_paused = true)]
async fn what_waits_already_is_applied_without_a_pause() {
    let (log, copy) = set_up(0);
    let options = FollowOptions { batch: 10, pace: Duration::from_secs(7) };
    log.end.send_replace(100);
    let begun = Runtime::system().now();
    let _following = start(&log, &copy, options);
    applied(&copy, 100).await;
    assert!(Runtime::system().now() - begun < Duration::from_secs(7));
}
