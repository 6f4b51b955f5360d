//! One move: copy, catch up, compare, and then group by group.

use std::sync::Arc;

use terrace_core::{ChangeLog, Checkpoint, Follower, Plan, Result, Shard, SlotSet};

use super::{Progress, Resharding};
use crate::Partitioner;
use crate::follow::{Follow, FollowOptions};
use crate::live_copy::{FirstCopy, Selected, Selects, keep};

/// Slots that go from one shard to another now.
pub(super) struct Way {
    pub(super) from: u16,
    pub(super) to: u16,
    /// Those that are not there yet.
    pub(super) slots: SlotSet,
    pub(super) giver: Arc<dyn Shard>,
    pub(super) taker: Arc<dyn Shard>,
    pub(super) log: Arc<dyn ChangeLog>,
    /// The name under which the taker keeps its place.
    source: String,
    pub(super) partitioner: Arc<dyn Partitioner>,
}

impl Way {
    pub(super) fn selects(&self) -> Selects {
        let (slots, partitioner) = (self.slots.clone(), Arc::clone(&self.partitioner));
        Arc::new(move |key| slots.contains(partitioner.slot(key)))
    }
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
        self.follow(&way)?.catch_up().await?;
        self.compare(&way).await?;
        self.hand_over_all(plan, &way).await
    }

    async fn way(&self, from: u16, to: u16, slots: &SlotSet) -> Result<Way> {
        let (giver, taker) = (self.node(from)?, self.node(to)?);
        Ok(Way {
            from,
            to,
            slots: slots.without(&taker.state.owned),
            giver: Arc::clone(&giver.shard),
            taker: Arc::clone(&taker.shard),
            source: format!("{}:{from}", giver.state.cluster),
            log: giver.shard.keep_log().await?,
            partitioner: Arc::clone(&self.partitioner),
        })
    }

    fn epoch_of(&self, number: u16) -> Result<u64> {
        Ok(self.node(number)?.state.epoch)
    }

    /// What takes the giver's rows over, under the taker's epoch of now.
    pub(super) fn taking(&self, way: &Way) -> Result<Arc<dyn Follower>> {
        Ok(way.taker.follower(self.epoch_of(way.to)?, &way.source))
    }

    /// The giver's log, followed into the taker under its epoch of now.
    pub(super) fn follow(&self, way: &Way) -> Result<Follow> {
        let (selects, copier) = (way.selects(), copier(way.to));
        let log = Selected { log: Arc::clone(&way.log), selects, copier };
        let (follower, runtime) = (self.taking(way)?, self.runtime.clone());
        let options = FollowOptions::default();
        Ok(Follow::new("resharding", Arc::new(log), follower, options, runtime))
    }

    /// Lets the giver follow the taker from here on, before the taker has anything of its own: who
    /// writes one of these keys there begins later, and so stands after the head. Where
    /// it has, and its log is another one by now, the way back begins with a copy.
    async fn keep_way_back(&self, way: &Way, slots: &SlotSet) -> Result<()> {
        let log = way.taker.keep_log().await?;
        let source = format!("{}:{}", self.node(way.to)?.state.cluster, way.to);
        let back = way.giver.follower(self.epoch_of(way.from)?, &source);
        let known = back.checkpoint().await?;
        let begun = !self.node(way.to)?.state.owned.within(slots).is_empty();
        if begun || known.is_in(&log.name()) {
            return Ok(());
        }
        let head = log.head().await?;
        log.keep_for(&copier(way.from), head).await?;
        let start = Checkpoint::beginning(&*log.name()).at(head);
        keep(&*back, known, start, Vec::new()).await
    }

    /// The first copy, from where it was left. Where it begins, what the taker has of these slots is left
    /// over from earlier; it goes.
    async fn copy(&self, way: &Way) -> Result<()> {
        let follower = self.taking(way)?;
        let known = follower.checkpoint().await?;
        let is_begun = known.is_in(&way.log.name()) && (known.complete || known.copied.is_some());
        if !is_begun {
            self.forget_leftovers(way).await?;
        }
        let copy = FirstCopy {
            from: &*way.giver,
            log: &*way.log,
            to: &*follower,
            selects: way.selects(),
            batch: self.options.batch,
            rest_percent: self.options.rest_percent,
            runtime: &self.runtime,
        };
        let (from, to) = (way.from, way.to);
        copy.run(|rows| (self.watch)(Progress::Copying { from, to, rows })).await
    }

    async fn forget_leftovers(&self, way: &Way) -> Result<()> {
        let (selects, epoch) = (way.selects(), self.epoch_of(way.to)?);
        let mut rows = way.taker.rows(None, None).await?;
        loop {
            let some = rows.next().await?;
            if some.is_empty() {
                return Ok(());
            }
            let old = some.into_iter().map(|row| row.key).filter(|key| selects(key));
            let old = old.collect::<Vec<_>>();
            if !old.is_empty() {
                way.taker.forget(epoch, old).await?;
            }
        }
    }
}

/// What the log of a giver calls this taker, until [`terrace_core::Shard::end_log`].
fn copier(taker: u16) -> String {
    format!("resharding into {taker}")
}
