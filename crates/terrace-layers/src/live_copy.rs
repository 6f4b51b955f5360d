//! A copy of a database, or of a part of it, that is made while it is in use and takes its place.
//!
//! 1. **First copy**: the rows of one snapshot; what was committed before it and is not in it comes
//!    from the log, followed from a head noted at a moment without a write under way.
//! 2. **Follow**: a [`Follow`](crate::Follow) brings the copy to the end of the log.
//! 3. **Compare**, at one position.
//! 4. **Cut over** ([`cut_over`]): nobody writes to the original any more (the fence), the copy comes to
//!    its end (the tail), the copy is taken. When the tail does not arrive in time, the original goes on.
//!
//! Each step keeps its place in the copy, so that whoever finds it after a crash goes on from there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{
    Batch, BoxFuture, ChangeLog, Changes, Checkpoint, Deadline, Error, ErrorKind, Follower, Key,
    LogPosition, Logged, Position, Result, Rows, Runtime, Shard,
};

/// How long the log may take to tell its head, at a moment without writes.
const HEAD_WITHIN: Duration = Duration::from_secs(2);

/// Which keys are copied.
pub(crate) type Selects = Arc<dyn Fn(&Key) -> bool + Send + Sync>;

/// A log without the changes of keys that are not copied.
pub(crate) struct Selected {
    pub(crate) log: Arc<dyn ChangeLog>,
    pub(crate) selects: Selects,
    /// What the log calls who copies. Several databases may, each at its own place.
    pub(crate) copier: String,
}

impl ChangeLog for Selected {
    fn name(&self) -> Arc<str> {
        self.log.name()
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(async move {
            let mut page = self.log.after(position, limit).await?;
            page.changes.retain(|change| (self.selects)(&change.key));
            Ok(page)
        })
    }

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        self.log.wait(position, deadline)
    }

    fn keep_for<'a>(&'a self, _: &'a str, position: LogPosition) -> BoxFuture<'a, Result<()>> {
        self.log.keep_for(&self.copier, position)
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        self.log.head()
    }

    fn place_of(&self, position: Position) -> LogPosition {
        self.log.place_of(position)
    }

    fn position_of(&self, place: LogPosition) -> Position {
        self.log.position_of(place)
    }
}

impl std::fmt::Display for Selected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.log.fmt(f)
    }
}

impl std::fmt::Debug for Selected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Selected({})", self.log)
    }
}

/// The first copy of rows from one database into another.
pub(crate) struct FirstCopy<'a> {
    pub(crate) from: &'a dyn Shard,
    pub(crate) log: &'a dyn ChangeLog,
    pub(crate) to: &'a dyn Follower,
    pub(crate) selects: Selects,
    /// Rows that are copied at once.
    pub(crate) batch: usize,
    /// How long to pause after each batch, as a share of the time that it took.
    pub(crate) rest_percent: u32,
    pub(crate) runtime: &'a Runtime,
}

impl FirstCopy<'_> {
    /// Copies from where it was left, or from the beginning; nothing when it is complete. Tells how many
    /// rows were looked at.
    pub(crate) async fn run(&self, watch: impl Fn(u64)) -> Result<()> {
        let known = self.to.checkpoint().await?;
        let (mut place, mut rows) = match known.is_in(&self.log.name()) {
            true if known.complete => return Ok(()),
            true if known.copied.is_some() => {
                let after = known.copied.as_ref().map(Key::new).transpose()?;
                (known, self.from.rows(after, None).await?)
            }
            _ => self.begin(known).await?,
        };
        let (mut looked_at, mut begun) = (0, self.runtime.now());
        let (mut waiting, mut copied) = (Vec::new(), place.copied.clone());
        loop {
            let some = rows.next().await?;
            let ended = some.is_empty();
            looked_at += some.len() as u64;
            if let Some(last) = some.last() {
                copied = Some(last.key.as_str().to_owned());
            }
            waiting.extend(some.into_iter().filter(|row| (self.selects)(&row.key)));
            if waiting.len() >= self.batch || ended {
                let to = Checkpoint { copied: copied.clone(), complete: ended, ..place.clone() };
                place = self.apply(place, to, std::mem::take(&mut waiting)).await?;
                watch(looked_at);
                self.rest(begun).await;
                begun = self.runtime.now();
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// At a moment without a write under way, the log's head is noted and the snapshot taken. (At another
    /// moment a write under way could stand before the head and end after the snapshot.)
    async fn begin(&self, known: Checkpoint) -> Result<(Checkpoint, Box<dyn Rows>)> {
        let head = Mutex::new(LogPosition::default());
        let deadline = Deadline::at(self.runtime.now() + HEAD_WITHIN);
        let note = Box::pin(async {
            // Writers wait for this, so it is bounded.
            let now = self.runtime.within(deadline, self.log.head()).await;
            let now = now.unwrap_or_else(|| Err(Deadline::exceeded()))?;
            *head.lock().unwrap_or_else(PoisonError::into_inner) = now;
            Ok(())
        });
        let rows = self.from.rows(None, Some(note)).await?;
        let position = head.into_inner().unwrap_or_else(PoisonError::into_inner);
        let log = self.log.name().to_string();
        let start = Checkpoint { log, position, ..Checkpoint::default() };
        let start = self.apply(known, start, Vec::new()).await?;
        Ok((start, rows))
    }

    async fn apply(
        &self,
        from: Checkpoint,
        to: Checkpoint,
        changes: Vec<Logged>,
    ) -> Result<Checkpoint> {
        keep(self.to, from, to.clone(), changes).await?;
        Ok(to)
    }

    async fn rest(&self, since: Instant) {
        let took = self.runtime.now().saturating_duration_since(since);
        self.runtime.sleep(took * self.rest_percent / 100).await;
    }
}

/// Applies rows and moves a checkpoint that nobody else moves.
pub(crate) async fn keep(
    follower: &dyn Follower,
    from: Checkpoint,
    to: Checkpoint,
    changes: Vec<Logged>,
) -> Result<()> {
    let batch = Batch { from, to, changes, ..Batch::default() };
    match follower.apply(&batch).await? {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Unavailable, "somebody else makes the same copy")),
    }
}

/// The sides of a cutover, and what each step does there.
pub(crate) trait Cutover: Send {
    /// What can be done before the fence need not be done behind it.
    fn prepare(&mut self) -> BoxFuture<'_, Result<()>>;
    /// From here on nobody writes to the original.
    fn fence(&mut self) -> BoxFuture<'_, Result<()>>;
    /// The copy comes to where the original has ended.
    fn tail(&mut self) -> BoxFuture<'_, Result<()>>;
    /// From here on the copy is the original.
    fn take(&mut self) -> BoxFuture<'_, Result<()>>;
    /// The original goes on. Nobody has been asked to take the copy.
    fn give_back(&mut self) -> BoxFuture<'_, Result<()>>;
}

/// Cuts over, within this time behind the fence; tries again so many times.
///
/// # Errors
/// What stopped the last try; the original goes on. When `take` has failed, nobody knows which one does.
pub(crate) async fn cut_over(
    sides: &mut dyn Cutover,
    within: Duration,
    tries: u32,
    runtime: &Runtime,
) -> Result<()> {
    let mut left = tries.max(1);
    loop {
        sides.prepare().await?;
        sides.fence().await?;
        let deadline = Deadline::at(runtime.now() + within);
        let tail = runtime.within(deadline, sides.tail()).await;
        let Err(error) = tail.unwrap_or_else(|| Err(held_back())) else {
            return sides.take().await;
        };
        sides.give_back().await?;
        left -= 1;
        if left == 0 || !error.is_retryable() {
            return Err(error);
        }
    }
}

pub(crate) fn held_back() -> Error {
    let message = "the copy did not come to the end of the change log in time, as while a long \
                   transaction in the database holds it back; end that, and resume";
    Error::new(ErrorKind::DeadlineExceeded, message)
}
