//! How a group of slots changes hands. See the [module above](super) for the rule.

use terrace_core::{Deadline, Error, ErrorKind, Plan, Result, SlotSet, Version};

use super::Resharding;
use super::moves::Way;

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
        let mut tries = 0;
        loop {
            // What can be done before the fence need not be done behind it.
            way.catch_up(self.epoch_of(way.to)?).await?;
            #[cfg(feature = "mutants")]
            if self.mutant == Some(super::Mutant::NoFence) {
                way.catch_up_to_head(self.epoch_of(way.to)?).await?;
                let none = Version::NONE;
                self.change(way.to, none, |state| state.owned = state.owned.with(group)).await?;
                self.change(way.from, none, |state| state.owned = state.owned.without(group))
                    .await?;
                return Ok(());
            }
            let floor = self
                .change(way.from, Version::NONE, |state| {
                    state.owned = state.owned.without(group);
                    state.given = group.clone();
                })
                .await?;
            match self.tail(way, group).await {
                Ok(()) => return self.take(way, group, floor).await,
                // Nobody has been asked to take them, so they can go back.
                Err(error) => {
                    self.change(way.from, Version::NONE, |state| {
                        state.owned = state.owned.with(group);
                        state.given = SlotSet::default();
                    })
                    .await?;
                    tries += 1;
                    if tries >= self.options.tries || !error.is_retryable() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// What the giver's log holds, and the results of requests that must not be done again.
    async fn tail(&self, way: &Way, group: &SlotSet) -> Result<()> {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::TakesEarly) {
            return Ok(());
        }
        let epoch = self.epoch_of(way.to)?;
        let tail = async {
            way.catch_up_to_head(epoch).await?;
            let results = way.giver.results(group).await?;
            way.taker.keep_results(epoch, results).await
        };
        let deadline = Deadline::at(self.runtime.now() + self.options.fence);
        self.runtime.within(deadline, tail).await.unwrap_or_else(|| Err(held_back()))
    }

    async fn take(&mut self, way: &Way, group: &SlotSet, floor: Version) -> Result<()> {
        self.change(way.to, floor, |state| {
            state.owned = state.owned.with(group);
            state.given = state.given.without(group);
        })
        .await
        .map(drop)
    }
}

pub(super) fn held_back() -> Error {
    let message = "the taker did not come to the end of the change log in time, as while a long \
                   transaction in the database holds it back; end that, and resume";
    Error::new(ErrorKind::DeadlineExceeded, message)
}
