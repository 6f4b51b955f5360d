//! One move: copy, catch up, compare, and then group by group.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use terrace_core::shard::KeptLog;
use terrace_core::{
    Changes, Follow, Key, LogPosition, Logged, Plan, PositionLost, Result, Rows, Shard, SlotSet,
};

use super::{Progress, Resharding};
use crate::Partitioner;

/// Slots that go from one shard to another now.
pub(super) struct Way {
    pub(super) from: u16,
    pub(super) to: u16,
    /// Those that are not there yet.
    pub(super) slots: SlotSet,
    pub(super) giver: Arc<dyn Shard>,
    pub(super) taker: Arc<dyn Shard>,
    pub(super) log: KeptLog,
    /// The name under which the taker keeps its place.
    pub(super) source: String,
    pub(super) partitioner: Arc<dyn Partitioner>,
    pub(super) batch: usize,
}

impl Resharding {
    /// Makes all moves of the plan, one after the other.
    pub(super) async fn run(&mut self, plan: &Plan) -> Result<()> {
        for it in &plan.moves {
            let (from, to) = if plan.back { (it.to, it.from) } else { (it.from, it.to) };
            self.make(plan, from, to, &it.slots).await?;
        }
        self.tell_moved(plan);
        Ok(())
    }

    pub(super) fn tell_moved(&self, plan: &Plan) {
        let of = plan.moves.iter().map(|it| it.slots.len()).sum();
        (self.watch)(Progress::Moved { slots: self.moved(plan), of });
    }

    async fn make(&mut self, plan: &Plan, from: u16, to: u16, slots: &SlotSet) -> Result<()> {
        let left = slots.without(&self.node(to)?.state.owned);
        self.take_back(to, from, &left).await?;
        self.take_back(from, to, &left).await?;
        let way = self.way(from, to, slots).await?;
        if way.slots.is_empty() {
            return Ok(());
        }
        self.keep_way_back(&way, slots).await?;
        self.copy(&way).await?;
        way.catch_up(self.epoch_of(to)?).await?;
        self.compare(&way).await?;
        self.hand_over_all(plan, &way).await
    }

    async fn way(&self, from: u16, to: u16, slots: &SlotSet) -> Result<Way> {
        let (giver, taker) = (self.node(from)?, self.node(to)?);
        let log = giver.shard.keep_log().await?;
        Ok(Way {
            from,
            to,
            slots: slots.without(&taker.state.owned),
            giver: Arc::clone(&giver.shard),
            taker: Arc::clone(&taker.shard),
            source: format!("{}:{from}", giver.state.cluster),
            log,
            partitioner: Arc::clone(&self.partitioner),
            batch: self.options.batch,
        })
    }

    pub(super) fn epoch_of(&self, number: u16) -> Result<u64> {
        Ok(self.node(number)?.state.epoch)
    }

    /// Lets the giver follow the taker from here on, before the taker has anything of its own: who
    /// writes one of these keys there begins later, and so stands after the head. Where
    /// it has, and its log is another one by now, the way back begins with a copy.
    async fn keep_way_back(&self, way: &Way, slots: &SlotSet) -> Result<()> {
        let log = way.taker.keep_log().await?;
        let source = format!("{}:{}", self.node(way.to)?.state.cluster, way.to);
        let known = way.giver.followed(&source).await?;
        let begun = !self.node(way.to)?.state.owned.within(slots).is_empty();
        if begun || known.is_some_and(|follow| follow.log == *log.name) {
            return Ok(());
        }
        let start = Follow { log: log.name.to_string(), complete: true, ..Follow::default() };
        let start = start.at(log.log.head().await?);
        way.giver.apply(self.epoch_of(way.from)?, &source, Vec::new(), start).await
    }

    /// The first copy, from where it was left.
    async fn copy(&self, way: &Way) -> Result<()> {
        let epoch = self.epoch_of(way.to)?;
        let (mut follow, mut rows) = match way.place().await? {
            Some(follow) if follow.complete => return Ok(()),
            Some(follow) => {
                let after = follow.copied.as_ref().map(Key::new).transpose()?;
                (follow, way.giver.rows(after, None).await?)
            }
            None => self.begin_copy(way, epoch).await?,
        };
        let (mut looked_at, mut begun) = (0, self.runtime.now());
        let mut waiting = Vec::new();
        loop {
            let some = rows.next().await?;
            let ended = some.is_empty();
            looked_at += some.len() as u64;
            if let Some(last) = some.last() {
                follow.copied = Some(last.key.as_str().to_owned());
            }
            waiting.extend(way.only_moving(some));
            if waiting.len() >= way.batch || ended {
                follow.complete = ended;
                let batch = std::mem::take(&mut waiting);
                way.taker.apply(epoch, &way.source, batch, follow.clone()).await?;
                let (from, to) = (way.from, way.to);
                (self.watch)(Progress::Copying { from, to, rows: looked_at });
                self.rest(begun).await;
                begun = self.runtime.now();
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// What the taker has of these slots is left over from earlier; it goes. Then, at a moment without
    /// a write under way, the log's head is noted and the snapshot taken. (At another moment a write
    /// under way could stand before the head and end after the snapshot.)
    async fn begin_copy(&self, way: &Way, epoch: u64) -> Result<(Follow, Box<dyn Rows>)> {
        let mut rows = way.taker.rows(None, None).await?;
        loop {
            let some = rows.next().await?;
            if some.is_empty() {
                break;
            }
            let old = way.only_moving(some).map(|row| row.key).collect::<Vec<_>>();
            if !old.is_empty() {
                way.taker.forget(epoch, old).await?;
            }
        }
        let start = Follow { log: way.log.name.to_string(), ..Follow::default() };
        let head = Mutex::new(LogPosition::default());
        let note = Box::pin(async {
            let now = way.log.log.head().await?;
            *head.lock().unwrap_or_else(PoisonError::into_inner) = now;
            Ok(())
        });
        let rows = way.giver.rows(None, Some(note)).await?;
        let start = start.at(head.into_inner().unwrap_or_else(PoisonError::into_inner));
        way.taker.apply(epoch, &way.source, Vec::new(), start.clone()).await?;
        Ok((start, rows))
    }

    async fn rest(&self, since: Instant) {
        let took = self.runtime.now().saturating_duration_since(since);
        self.runtime.sleep(took * self.options.rest_percent / 100).await;
    }
}

impl Way {
    pub(super) fn moves(&self, key: &Key) -> bool {
        self.slots.contains(self.partitioner.slot(key))
    }

    fn only_moving(&self, rows: Vec<Logged>) -> impl Iterator<Item = Logged> {
        rows.into_iter().filter(|row| self.moves(&row.key))
    }

    /// The taker's place in the giver's log, unless it is in another log than there is now.
    async fn place(&self) -> Result<Option<Follow>> {
        let follow = self.taker.followed(&self.source).await?;
        Ok(follow.filter(|follow| follow.log == *self.log.name))
    }

    /// Follows the log until there is nothing more to see just now.
    pub(super) async fn catch_up(&self, epoch: u64) -> Result<()> {
        while self.step(epoch).await?.more {}
        Ok(())
    }

    /// Follows the log to its head as of now.
    pub(super) async fn catch_up_to_head(&self, epoch: u64) -> Result<()> {
        let head = self.log.log.head().await?;
        loop {
            let Changes { position, more, .. } = self.step(epoch).await?;
            if position >= head && !more {
                return Ok(());
            }
            if !more {
                // A transaction of somebody else holds the horizon back; its end wakes this.
                self.log.log.wait(position, terrace_core::Deadline::NEVER).await?;
            }
        }
    }

    /// Applies the next changes; they are empty in what is answered.
    async fn step(&self, epoch: u64) -> Result<Changes> {
        let follow = self.place().await?.unwrap_or_default();
        let before = follow.position();
        let Changes { changes, position, more } = match self.log.log.after(before, 1000).await {
            Err(error) if PositionLost::caused(&error) => {
                // Copied anew at the next attempt.
                self.taker.apply(epoch, &self.source, Vec::new(), Follow::default()).await?;
                return Err(error);
            }
            answer => answer?,
        };
        let rows = self.only_moving(changes).collect::<Vec<_>>();
        if !rows.is_empty() || more || position != before {
            self.taker.apply(epoch, &self.source, rows, follow.at(position)).await?;
        }
        Ok(Changes { changes: Vec::new(), position: position.max(LogPosition::default()), more })
    }
}
