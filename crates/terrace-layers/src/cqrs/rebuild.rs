//! A projection made anew beside the one that answers.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use terrace_core::read_model::{Difference, Projection};
use terrace_core::{
    BoxFuture, ChangeLog, Changes, Deadline, Error, ErrorKind, Follower, LogPosition, Position,
    ReadModel, Result, Runtime,
};

use crate::follow::{Follow, FollowOptions};
use crate::live_copy::{Cutover, cut_over};

/// How long the live projection may stand still for the last part.
const PAUSE: Duration = Duration::from_secs(10);

/// Builds the read model anew beside the one that answers, compares both at one position, and lets the
/// new one answer from then on when `swap` says so. The log itself is compared with the records first:
/// what was changed past it is counted as different, and logged when `swap` says so, so that every
/// follower hears of it.
///
/// # Errors
/// What stopped it; the old one goes on answering.
pub async fn rebuild(
    log: Arc<dyn ChangeLog>,
    model: &dyn ReadModel,
    swap: bool,
    options: FollowOptions,
    runtime: Runtime,
) -> Result<Difference> {
    let unlogged = log.compare_with_records(swap).await?;
    let (live, next) = (model.follower(Projection::Live), model.follower(Projection::Next));
    next.begin_anew(&log.name()).await?;
    let bounded = Arc::new(UpTo { log, end: Mutex::default() });
    let follow = Follow::new("rebuild", Arc::clone(&bounded) as _, next, options, runtime.clone());
    let mut sides = Sides { model, live, bounded, follow, swap, found: None };
    cut_over(&mut sides, PAUSE, 20, &runtime).await?;
    let found = sides.found.ok_or_else(|| stopped("another rebuild has just ended"))?;
    Ok(together(unlogged, found))
}

/// What two comparisons found: of the log with the records, and of the read models.
fn together(log: Difference, models: Difference) -> Difference {
    const EXAMPLES: usize = 10;
    let mut examples = [log.examples, models.examples].concat();
    examples.sort_unstable();
    examples.dedup();
    examples.truncate(EXAMPLES);
    let differing = log.differing + models.differing;
    Difference { keys: models.keys.max(log.keys), differing, examples }
}

fn stopped(why: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, why)
}

struct Sides<'a> {
    model: &'a dyn ReadModel,
    live: Arc<dyn Follower>,
    bounded: Arc<UpTo>,
    follow: Follow,
    swap: bool,
    found: Option<Difference>,
}

impl Sides<'_> {
    /// The next projection comes to where the live one is, never further.
    async fn meet(&mut self) -> Result<()> {
        let live = self.live.checkpoint().await?;
        if !live.is_in(&self.bounded.name()) {
            return Err(stopped("the read model follows another log now"));
        }
        *self.bounded.end.lock().unwrap_or_else(PoisonError::into_inner) = live.position;
        self.follow.catch_up().await.map(drop)
    }
}

impl Cutover for Sides<'_> {
    fn prepare(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.meet())
    }

    fn fence(&mut self) -> BoxFuture<'_, Result<()>> {
        self.model.pause(PAUSE)
    }

    fn tail(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.meet().await?;
            // Somebody may read the tables that are to go; then it is tried again.
            self.found = self.model.finish_rebuild(self.swap).await?;
            self.found.as_ref().map(drop).ok_or_else(|| stopped("another rebuild has just ended"))
        })
    }

    fn take(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn give_back(&mut self) -> BoxFuture<'_, Result<()>> {
        self.model.pause(Duration::ZERO)
    }
}

/// A log that ends at a place. Not for a log that leaves out superseded changes: those may end later.
#[derive(Debug)]
struct UpTo {
    log: Arc<dyn ChangeLog>,
    end: Mutex<LogPosition>,
}

impl UpTo {
    fn end(&self) -> LogPosition {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChangeLog for UpTo {
    fn name(&self) -> Arc<str> {
        self.log.name()
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            let end = self.end();
            if position >= end {
                return Ok(Changes { position, ..Changes::default() });
            }
            let mut page = self.log.after(position, limit).await?;
            if page.position >= end {
                page.changes.retain(|change| change.position <= end);
                (page.position, page.more) = (end, false);
            }
            Ok(page)
        })
    }

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        self.log.wait(position, deadline)
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async { Ok(self.end()) })
    }

    fn place_of(&self, position: Position) -> LogPosition {
        self.log.place_of(position)
    }

    fn position_of(&self, place: LogPosition) -> Position {
        self.log.position_of(place)
    }
}

impl fmt::Display for UpTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.log.fmt(f)
    }
}
