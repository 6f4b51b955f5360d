//! Who may call now, and who waits.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{
    Deadline, Error, ErrorKind, Inspection, Line, Load, Refused, Result, Runtime, Unit,
    WriteOptions,
};
use tokio::sync::{Notify, oneshot};

use super::ConcurrencyLimitOptions;
use super::aimd::Aimd;

/// What a call is; who comes first has the turn first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Reads and writes of keys.
    Keys,
    /// Whatever looks through many records: lists, searches, counts.
    Lists,
}

/// A call that wants a turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    class: Class,
    /// How many keys or writes it has.
    keys: usize,
    /// Whether it is never refused for having waited.
    patient: bool,
    deadline: Deadline,
}

impl Wish {
    /// A read of so many keys.
    pub(super) fn read(keys: usize, deadline: Deadline) -> Self {
        Self { class: Class::Keys, keys, patient: false, deadline }
    }

    /// So many writes.
    pub(super) fn write(writes: usize, how: &WriteOptions) -> Self {
        Self { patient: how.background, ..Self::read(writes, how.deadline) }
    }

    /// A list, or what is like one.
    pub(super) fn list(deadline: Deadline) -> Self {
        Self { class: Class::Lists, ..Self::read(1, deadline) }
    }
}

/// Who may call a database now, and who waits: what a [`ConcurrencyLimit`](super::ConcurrencyLimit) gives
/// the calls of a store, also for what is asked of the same database beside its store.
#[derive(Debug)]
pub struct Turns {
    running: Mutex<Running>,
    /// By class.
    lines: [Line<oneshot::Sender<Turn>>; 2],
    /// Calls in the lines, or about to be. Read under the lock of what is running, or changes are missed.
    waiting: AtomicUsize,
    max_waiting: usize,
    max_wait: Duration,
    /// Somebody has ended or left; told once it is closed.
    ended: Notify,
    rejected: AtomicU64,
    shed: AtomicU64,
    runtime: Runtime,
}

#[derive(Debug)]
struct Running {
    limit: Aimd,
    /// By class.
    counts: [u32; 2],
    /// Lists that have had a turn.
    lists: u64,
    is_closed: bool,
}

impl Running {
    /// Lists have this part of the turns, and one at least.
    const LISTS: u32 = 4;

    fn has_room(&self, class: Class) -> bool {
        let limit = self.limit.limit();
        let [keys, lists] = self.counts;
        let fits = class == Class::Keys || lists < (limit / Self::LISTS).max(1);
        keys + lists < limit && fits
    }
}

/// The right to one call, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    /// None when it was taken back.
    turns: Option<Arc<Turns>>,
    class: Class,
    keys: usize,
    begun: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.end(self);
        }
    }
}

/// A call that waits, counted until it is dropped.
struct Waiting<'a>(&'a Turns);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        self.0.tell_if_closed(&self.0.running());
    }
}

impl Turns {
    /// All of them free.
    pub fn new(options: &ConcurrencyLimitOptions, runtime: Runtime) -> Self {
        let ConcurrencyLimitOptions { max_waiting, max_wait, .. } = *options;
        let limit = Aimd::new(options);
        let line = || Line::new(Load::parts(max_waiting), 0);
        Self {
            running: Mutex::new(Running { limit, counts: [0; 2], lists: 0, is_closed: false }),
            lines: [line(), line()],
            waiting: AtomicUsize::new(0),
            max_waiting,
            max_wait,
            ended: Notify::new(),
            rejected: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            runtime,
        }
    }

    /// Reads so many keys when it is its turn. None are read for nobody, and without a turn.
    ///
    /// # Errors
    /// As a [`ConcurrencyLimit`](super::ConcurrencyLimit) answers, and then the work was not begun; else
    /// those of the work.
    pub async fn read<T>(
        self: &Arc<Self>,
        keys: usize,
        deadline: Deadline,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        // Whether a database is well is asked with no keys, and must not stand behind requests.
        let _turn = match keys {
            0 => None,
            keys => Some(self.take(Wish::read(keys, deadline)).await?),
        };
        work.await
    }

    /// Does what looks through many records when it is its turn: behind all reads and writes that wait,
    /// and in a quarter of the turns at most.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn list<T>(
        self: &Arc<Self>,
        deadline: Deadline,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let _turn = self.take(Wish::list(deadline)).await?;
        work.await
    }

    /// A turn for one call. Cancellation safe: whoever goes away leaves the line, or gives the turn back.
    ///
    /// # Errors
    /// `Overloaded` when too many wait, or it has waited for `max_wait`; `DeadlineExceeded`; `Unavailable`
    /// once it is closed. The call was not made.
    pub(super) async fn take(self: &Arc<Self>, wish: Wish) -> Result<Turn> {
        let Wish { class, keys, patient, deadline } = wish;
        if let Some(turn) = self.at_once(class, keys)? {
            return Ok(turn);
        }
        let (grant, granted) = oneshot::channel();
        let _waiting = self.wait()?;
        let entered = self.lines[class as usize].enter(grant, Load { parts: 1, bytes: 0 });
        let (mut ticket, _) = entered.map_err(|refused| match refused {
            Refused::Full => self.full(),
            Refused::Closed => closed(),
        })?;
        // A turn may have ended meanwhile.
        self.hand_on();
        let now = self.runtime.now();
        let own = now.checked_add(self.max_wait).filter(|_| !patient);
        let own = own.map_or(Deadline::NEVER, Deadline::at);
        match self.runtime.within(own.min(deadline), granted).await {
            Some(Ok(mut turn)) => {
                ticket.answered();
                turn.keys = keys;
                Ok(turn)
            }
            Some(Err(_)) => Err(closed()),
            None if deadline.passed(self.runtime.now()) => Err(Deadline::exceeded()),
            None => {
                self.shed.fetch_add(1, Ordering::Relaxed);
                Err(overloaded())
            }
        }
    }

    /// One for whom nobody has to wait.
    fn at_once(self: &Arc<Self>, class: Class, keys: usize) -> Result<Option<Turn>> {
        let mut running = self.running();
        if running.is_closed {
            return Err(closed());
        }
        if self.waiting.load(Ordering::Acquire) > 0 || !running.has_room(class) {
            return Ok(None);
        }
        Ok(Some(self.turn(&mut running, class, keys)))
    }

    fn turn(self: &Arc<Self>, running: &mut Running, class: Class, keys: usize) -> Turn {
        running.counts[class as usize] += 1;
        running.lists += u64::from(class == Class::Lists);
        Turn { turns: Some(Arc::clone(self)), class, keys, begun: self.runtime.now() }
    }

    fn wait(&self) -> Result<Waiting<'_>> {
        let waiting = Waiting(self);
        if self.waiting.fetch_add(1, Ordering::AcqRel) < self.max_waiting {
            return Ok(waiting);
        }
        Err(self.full())
    }

    fn full(&self) -> Error {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        overloaded()
    }

    fn end(self: &Arc<Self>, turn: &Turn) {
        let mut running = self.running();
        let full = running.counts.iter().sum::<u32>() >= running.limit.limit();
        running.counts[turn.class as usize] -= 1;
        // How long a list takes says how long it is.
        if turn.class == Class::Keys {
            running.limit.ended(turn.begun, self.runtime.now(), turn.keys, full);
        }
        drop(running);
        self.hand_on();
    }

    /// Gives the turns that there are to those who wait, lists last.
    fn hand_on(self: &Arc<Self>) {
        loop {
            let mut running = self.running();
            if self.waiting.load(Ordering::Acquire) == 0 {
                return self.tell_if_closed(&running);
            }
            let next = [Class::Keys, Class::Lists].into_iter().find_map(|class| {
                let mut grants = Vec::new();
                if running.has_room(class) {
                    self.lines[class as usize].take(&mut grants, Load::parts(1));
                }
                Some((class, grants.pop()?))
            });
            let Some((class, grant)) = next else { return self.tell_if_closed(&running) };
            // Whoever takes it knows of how many keys it is.
            let turn = self.turn(&mut running, class, 1);
            drop(running);
            if let Err(mut turn) = grant.send(turn) {
                // Its caller is just leaving.
                turn.turns = None;
                self.running().counts[class as usize] -= 1;
            }
        }
    }

    fn tell_if_closed(&self, running: &Running) {
        if running.is_closed {
            self.ended.notify_waiters();
        }
    }

    /// Accepts nobody more, and waits until everybody who was accepted has had a turn.
    pub(super) async fn close(&self) {
        self.running().is_closed = true;
        self.lines.iter().for_each(Line::close);
        loop {
            let ended = self.ended.notified();
            let running = self.running().counts.iter().sum::<u32>();
            if running == 0 && self.waiting.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Adds who runs and who waits.
    pub fn show(&self, tree: Inspection) -> Inspection {
        let running = self.running();
        let (limit, [keys, lists]) = (running.limit.limit(), running.counts);
        let (lowered, listed) = (running.limit.times_lowered, running.lists);
        drop(running);
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        tree.fact("max_waiting", self.max_waiting)
            .gauge("limit", limit.into(), Unit::Count)
            .gauge("in_use", (keys + lists).into(), Unit::Count)
            .gauge("in_use_by_lists", lists.into(), Unit::Count)
            .gauge("waiting", self.waiting.load(Ordering::Acquire) as u64, Unit::Count)
            .counter("lists", listed)
            .counter("rejected", count(&self.rejected))
            .counter("shed", count(&self.shed))
            .counter("lowered", lowered)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        // Every change is complete when a panic could happen, so poison means nothing.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn overloaded() -> Error {
    let message = "too many calls are waiting for the database; try again a little later";
    Error::new(ErrorKind::Overloaded, message).retry_after(Duration::from_secs(1))
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is closed")
}
