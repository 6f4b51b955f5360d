//! How a group of slots changes hands. See the [module above](super) for the rule.

use terrace_core::{BoxFuture, Plan, Result, SlotSet, Version};

use super::Resharding;
use super::moves::Way;
use crate::live_copy::{Cutover, cut_over};

impl Resharding {
    /// What a shard has given and the other has not taken, it takes back: it lacks nothing, and who was on
    /// the way to take it comes with an old epoch. The taker's own is what it gave before the plan was
    /// turned round. The giver's is what a crash left between fence and take: until the copy is complete
    /// and compared, these keys can be used.
    pub(super) async fn take_back(
        &mut self,
        number: u16,
        other: u16,
        slots: &SlotSet,
    ) -> Result<()> {
        let own = self.node(number)?.state.given.within(slots);
        let own = own.without(&self.node(other)?.state.owned);
        if own.is_empty() {
            return Ok(());
        }
        self.change(number, Version::NONE, |state| {
            state.owned = state.owned.with(&own);
            state.given = state.given.without(&own);
        })
        .await
        .map(drop)
    }

    /// A group at a time.
    pub(super) async fn hand_over_all(&mut self, plan: &Plan, way: &Way) -> Result<()> {
        let left = self.node(way.from)?.state.owned.within(&way.slots).iter().collect::<Vec<_>>();
        for group in left.chunks(self.options.group.max(1)) {
            let group = group.iter().copied().collect::<SlotSet>();
            self.hand_over(way, &group).await?;
            self.tell_moved(plan);
        }
        Ok(())
    }

    async fn hand_over(&mut self, way: &Way, group: &SlotSet) -> Result<()> {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::NoFence) {
            self.follow(way)?.catch_up_to_head().await?;
            let none = Version::NONE;
            self.change(way.to, none, |state| state.owned = state.owned.with(group)).await?;
            self.change(way.from, none, |state| state.owned = state.owned.without(group)).await?;
            return Ok(());
        }
        let (fence, tries, runtime) =
            (self.options.fence, self.options.tries, self.runtime.clone());
        let mut sides = Sides { this: self, way, group, floor: Version::NONE };
        cut_over(&mut sides, fence, tries, &runtime).await
    }
}

/// A group of slots on its way from giver to taker.
struct Sides<'a> {
    this: &'a mut Resharding,
    way: &'a Way,
    group: &'a SlotSet,
    /// The giver's latest version at the fence.
    floor: Version,
}

impl Cutover for Sides<'_> {
    fn prepare(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.this.follow(self.way)?.catch_up().await.map(drop) })
    }

    fn fence(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let fence = self.this.change(self.way.from, Version::NONE, |state| {
                state.owned = state.owned.without(self.group);
                state.given = self.group.clone();
            });
            self.floor = fence.await?;
            Ok(())
        })
    }

    /// What the giver's log holds, and the results of requests that must not be done again.
    fn tail(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            #[cfg(feature = "mutants")]
            if self.this.mutant == Some(super::Mutant::TakesEarly) {
                return Ok(());
            }
            self.this.follow(self.way)?.catch_up_to_head().await?;
            let results = self.way.giver.results(self.group).await?;
            let epoch = self.this.node(self.way.to)?.state.epoch;
            self.way.taker.keep_results(epoch, results).await
        })
    }

    fn take(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let take = self.this.change(self.way.to, self.floor, |state| {
                state.owned = state.owned.with(self.group);
                state.given = state.given.without(self.group);
            });
            take.await.map(drop)
        })
    }

    fn give_back(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let back = self.this.change(self.way.from, Version::NONE, |state| {
                state.owned = state.owned.with(self.group);
                state.given = SlotSet::default();
            });
            back.await.map(drop)
        })
    }
}
