//! How a plan ends: what shards have and do not own is removed, then the plan.

use terrace_core::{Error, ErrorKind, Plan, Result, SLOTS, Version};

use super::{Progress, Resharding};

impl Resharding {
    pub(super) async fn tidy(&mut self, plan: &Plan) -> Result<()> {
        // What is on its way must not be taken for a leftover.
        let owned = self.nodes.values().map(|node| node.state.owned.len()).sum::<usize>();
        if owned != usize::from(SLOTS) {
            return Err(Error::new(ErrorKind::Unavailable, "slots are on their way; try again"));
        }
        for number in self.numbers() {
            self.tidy_shard(number).await?;
        }
        for node in self.nodes.values() {
            node.shard.end_log().await?;
        }
        let gone = match plan.back {
            true => plan.adds,
            false => plan.removes,
        };
        // The one that goes is last: until then it knows what is left to do.
        let mut numbers = self.numbers();
        numbers.sort_by_key(|number| Some(*number) == gone);
        for number in numbers {
            self.change(number, Version::NONE, |state| {
                state.plan = None;
                state.members.retain(|member| Some(member.number) != gone);
            })
            .await?;
        }
        self.reserved.clear();
        Ok(())
    }

    async fn tidy_shard(&self, number: u16) -> Result<()> {
        let node = self.node(number)?;
        let (shard, owned, epoch) = (&node.shard, &node.state.owned, node.state.epoch);
        let mut rows = shard.rows(None, None).await?;
        let mut removed = 0;
        loop {
            let some = rows.next().await?;
            if some.is_empty() {
                return Ok(());
            }
            let foreign = some.into_iter().map(|row| row.key);
            let foreign = foreign.filter(|key| !owned.contains(self.partitioner.slot(key)));
            let foreign = foreign.collect::<Vec<_>>();
            if !foreign.is_empty() {
                let begun = self.runtime.now();
                removed += foreign.len() as u64;
                shard.forget(epoch, foreign).await?;
                (self.watch)(Progress::Tidying { shard: number, rows: removed });
                let took = self.runtime.now().saturating_duration_since(begun);
                self.runtime.sleep(took * self.options.rest_percent / 100).await;
            }
        }
    }
}
