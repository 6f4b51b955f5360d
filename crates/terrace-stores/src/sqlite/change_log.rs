//! The committed changes of a file: its records in the order of their versions.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use terrace_core::{
    BoxFuture, ChangeLog, Changes, Deadline, LogPosition, Position, PositionLost, Result,
};

use super::job::{LogPart, ReadJob};
use super::shared::Shared;

/// How often a follower that waits looks for what other processes have written to the file.
const OTHERS_EVERY: Duration = Duration::from_millis(50);

/// The change log of a [`SqliteStore`](super::SqliteStore), for one follower; from
/// [`SqliteStore::change_log`](super::SqliteStore::change_log).
///
/// SQLite has one writer at a time. It draws the versions within its transaction, so they are in the
/// order of commits, and a deleted record stays as a tombstone. So the records by version *are* the
/// log, with nothing written twice: it leaves out every change that a later one of its key has
/// superseded. A [`LogPosition`] is a version, its epoch 0. Rows that people insert, change, rename or
/// remove draw versions by triggers and are in the log, too.
///
/// A follower that comes back after its tombstones were collected (7 days, by default) is told to
/// begin anew. One that is at its first copy is not: tombstones from before it began are none of its
/// concern.
///
/// Rows that this file itself has from another log keep their versions, and those may lie before
/// what a follower of this file has seen: follow the origin, not the copy.
#[derive(Debug)]
pub struct SqliteChangeLog {
    shared: Arc<Shared>,
    copy: Mutex<Option<Copy>>,
}

/// The first copy of a follower: where the log stood when it began, and how far it has come.
#[derive(Clone, Copy, Debug)]
struct Copy {
    began_at: u64,
    position: u64,
}

impl SqliteChangeLog {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, copy: Mutex::new(None) }
    }

    async fn part(&self, after: u64, limit: usize) -> Result<LogPart> {
        let ask = |reply| ReadJob::Log { after, limit, reply };
        let part = self.shared.ask(ask, 0, Deadline::NEVER).await;
        part.map_err(|error| error.during("read the change log"))
    }

    async fn changes(&self, position: LogPosition, limit: usize) -> Result<Changes> {
        if position.epoch > 0 {
            return Err(lost());
        }
        let after = position.offset;
        let part = self.part(after, limit.max(1)).await?;
        let last = part.changes.last().map_or(after, |change| change.position.offset);
        let reached = if part.more { last } else { last.max(part.head) };
        // A position beyond the head is of a file that was restored to an earlier time.
        if after > part.head || !self.is_complete(after, &part, reached) {
            return Err(lost());
        }
        let position = LogPosition { epoch: 0, offset: reached };
        Ok(Changes { changes: part.changes, position, more: part.more })
    }

    /// Whether nothing is missing after this position, and notes how far the follower now is.
    fn is_complete(&self, after: u64, part: &LogPart, reached: u64) -> bool {
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        if after == 0 {
            *copy = Some(Copy { began_at: part.head, position: 0 });
        }
        match copy.as_mut().filter(|copy| copy.position == after && after < copy.began_at) {
            Some(copy) if part.floor <= copy.began_at => {
                copy.position = reached;
                true
            }
            _ => part.floor <= after,
        }
    }
}

impl Shared {
    /// How far the file has come.
    pub(super) async fn head(&self, deadline: Deadline) -> Result<LogPosition> {
        let ask = |reply| ReadJob::Log { after: u64::MAX >> 1, limit: 0, reply };
        let part = self.ask(ask, 0, deadline).await?;
        Ok(LogPosition { epoch: 0, offset: part.head })
    }
}

fn lost() -> terrace_core::Error {
    PositionLost::error(
        "the database no longer has what follows this position: its tombstones were collected, or \
         it was restored to an earlier time; begin anew",
    )
}

impl ChangeLog for SqliteChangeLog {
    fn name(&self) -> Arc<str> {
        self.shared.histories.name()
    }

    fn place_of(&self, position: Position) -> LogPosition {
        LogPosition { epoch: 0, offset: position.get() }
    }

    fn position_of(&self, place: LogPosition) -> Position {
        Position::new(place.offset)
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(self.changes(position, limit))
    }

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let runtime = &self.shared.runtime;
            let mut commits = self.shared.commits.subscribe();
            loop {
                // Asked after subscribing: a commit in between is seen by one of the two.
                if self.head().await? != position || deadline.passed(runtime.now()) {
                    return Ok(());
                }
                let until = deadline.min(Deadline::at(runtime.now() + OTHERS_EVERY));
                let _ = runtime.within(until, commits.changed()).await;
            }
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async move { self.shared.head(Deadline::NEVER).await })
    }
}

impl fmt::Display for SqliteChangeLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite({})", self.shared.options.path.display())
    }
}
