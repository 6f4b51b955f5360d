//! How a plan begins, and how all shards learn of it.

use std::collections::BTreeMap;

use terrace_core::{Error, ErrorKind, Member, Plan, Result, ShardState, SlotSet, Version};

use super::plan::{Change, Share, even};
use super::{Node, Resharding};

impl Resharding {
    /// The plan for a change. Changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] while another plan is not finished, for a shard that is none, and
    /// when nothing would move.
    pub fn draw(&self, change: &Change) -> Result<Plan> {
        if self.plan().is_some() {
            return Err(Error::invalid(
                "slots are being moved already; use --resume, --back or --finish first",
            ));
        }
        let mut shares = self.shares();
        let mut plan = Plan::default();
        match change {
            Change::Rebalance => {}
            Change::Remove(number) => {
                self.node(*number).map_err(|error| error.into_kind(ErrorKind::InvalidInput))?;
                if shares.len() < 2 {
                    return Err(Error::invalid("the last shard cannot be removed"));
                }
                plan.removes = Some(*number);
            }
            Change::Add(_) => {
                let number = self.next_number();
                shares.push(Share { number, slots: SlotSet::default() });
                plan.adds = Some(number);
            }
        }
        plan.moves = even(&shares, plan.removes);
        if plan.moves.is_empty() && plan.removes.is_none() {
            return Err(Error::invalid(
                "every shard has its share already; nothing is to be moved",
            ));
        }
        Ok(plan)
    }

    /// Begins the change and goes on until all slots are where they shall be.
    ///
    /// # Errors
    /// As [`Resharding::draw`]; then what has stopped it, and it can be resumed.
    pub async fn begin(&mut self, change: &Change) -> Result<()> {
        self.reserve().await?;
        let plan = self.draw(change)?;
        if let (Change::Add(address), Some(number)) = (change, plan.adds) {
            self.add(number, address, &plan).await?;
        }
        self.announce(&plan).await?;
        self.run(&plan).await
    }

    /// Makes an empty database a shard without slots.
    async fn add(&mut self, number: u16, address: &str, plan: &Plan) -> Result<()> {
        let shard = self.opener.open(address).await?;
        let like = self.nodes.values().map(|node| &node.state).max_by_key(|state| state.epoch);
        let Some(like) = like.cloned() else { return Ok(()) };
        let known = shard.state().await?;
        if known.is_none() && !shard.rows(None, None).await?.next().await?.is_empty() {
            return Err(Error::invalid("the database of a new shard must be empty; name another"));
        }
        let mut members = like.members.clone();
        members.push(Member { number, address: address.to_owned() });
        let new = ShardState {
            number,
            epoch: self.next_epoch(),
            owned: SlotSet::default(),
            given: SlotSet::default(),
            members,
            plan: Some(plan.clone()),
            ..like
        };
        let (cluster, state) = (new.cluster.clone(), shard.found(new).await?);
        let ours = state.cluster == cluster && state.number == number && state.owned.is_empty();
        if !ours {
            return Err(Error::invalid(
                "the database of the new shard is, or was, another shard; name an empty database",
            ));
        }
        self.nodes.insert(number, Node { shard, state });
        Ok(())
    }

    /// One that no shard has or had.
    fn next_number(&self) -> u16 {
        let states = self.nodes.values().map(|node| &node.state);
        states.map(|it| it.next.max(it.number.saturating_add(1))).max().unwrap_or(0)
    }

    /// The right to move slots, on all shards; then what they say now, since somebody else may have
    /// had it until a moment ago.
    pub(super) async fn reserve(&mut self) -> Result<()> {
        loop {
            for (number, node) in &self.nodes {
                if !self.reserved.contains_key(number) {
                    self.reserved.insert(*number, node.shard.reserve().await?);
                }
            }
            for number in self.numbers() {
                self.look(number).await?;
            }
            if !self.meet().await? {
                return self.check_owners();
            }
        }
    }

    /// No slot has two owners, or what one of them acknowledges is lost.
    fn check_owners(&self) -> Result<()> {
        let mut all = SlotSet::default();
        for node in self.nodes.values() {
            let twice = all.within(&node.state.owned);
            if !twice.is_empty() {
                let message = "slots have two owners, so nothing is moved: one of the databases was \
                               restored, or has lost its end; decide which has the newer records, and \
                               report this";
                return Err(
                    Error::new(ErrorKind::Corrupt, message).with("slots", twice.to_string())
                );
            }
            all = all.with(&node.state.owned);
        }
        Ok(())
    }

    /// Writes the plan into all shards, each under a new epoch: what another process has still on its
    /// way to them is refused from now on, and every instance learns of new members. What was given
    /// and has arrived is no longer on its way.
    pub(super) async fn announce(&mut self, plan: &Plan) -> Result<()> {
        let members = self.nodes.values().flat_map(|node| &node.state.members);
        let members = members.map(|member| (member.number, member.clone()));
        let all = members.collect::<BTreeMap<_, _>>().into_values().collect::<Vec<_>>();
        // First the epochs, then the look: who was on its way to an owner has arrived, or never will.
        let next = self.next_number();
        for number in self.numbers() {
            let members = all.clone();
            self.look(number).await?;
            // What was founded for another plan and never announced had no part in it.
            let other = self.node(number)?.state.plan.as_ref();
            let other = other.filter(|_| plan.adds != Some(number));
            let differs = |it: &Plan| it.moves != plan.moves || (it.finishing && !plan.finishing);
            if other.is_some_and(differs) {
                return Err(Error::new(ErrorKind::Unavailable, "somebody else moves slots"));
            }
            self.change(number, Version::NONE, |state| {
                state.plan = Some(plan.clone());
                state.members = members;
                state.next = next;
            })
            .await?;
        }
        self.check_owners()?;
        let owned =
            self.nodes.values().fold(SlotSet::default(), |all, node| all.with(&node.state.owned));
        for number in self.numbers() {
            let owned = owned.clone();
            self.change(number, Version::NONE, |state| state.given = state.given.without(&owned))
                .await?;
        }
        Ok(())
    }

    pub(super) fn numbers(&self) -> Vec<u16> {
        self.nodes.keys().copied().collect()
    }

    /// What a shard says of itself now.
    async fn look(&mut self, number: u16) -> Result<()> {
        let state = self.node(number)?.shard.state().await?;
        let state = state.ok_or_else(|| super::lost(number))?;
        if let Some(node) = self.nodes.get_mut(&number) {
            node.state = state;
        }
        Ok(())
    }
}
