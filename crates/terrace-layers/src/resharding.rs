//! Moves slots between shards while they are in use.
//!
//! ```text
//!            announce          copy, catch up, compare           all slots moved
//!  no plan ───────────▶ plan ─────────────────────────▶ moving ─────────────────▶ moved
//!     ▲                                                   │  ▲                      │ │
//!     │                                              back │  │ resume          back │ │ finish
//!     │                                                   ▼  │                      │ ▼
//!     └──────────────── tidied up ◀── finishing ◀── moved back ◀────────────────────┘ finishing
//!
//!  one group of slots:  owned by the giver ─ fence ─▶ on its way ─ take ─▶ owned by the taker
//! ```
//!
//! **The rule.** A group of slots changes hands in four steps: the giver's *fence* (it owns them no
//! more; its epoch grows; writes that were let in have ended), the *tail* (what the giver's change
//! log holds up to its head is applied to the taker), the *results* of idempotent requests, and the
//! *take* (the taker owns them; its versions go on above the giver's; its epoch grows).
//!
//! **Why nothing is lost.** What was acknowledged under the giver was committed before its fence, so it
//! is in the log before the head that is read after the fence. **Nothing is doubled**: no slot ever has
//! two owners, lists leave out what a shard does not own, and who has it applies rows by version.
//! **Nothing is stale**: a call under an old epoch is refused by giver and taker alike, and the taker
//! answers only after it has the tail.
//!
//! **Kill -9 at any point.** All state is in the shards. Whoever goes on first writes a new epoch into
//! every one of them, so that whatever the dead one still had on its way is refused; what is on its way
//! then is what a shard has given and no shard owns.

mod begin;
mod compare;
mod finish;
mod handover;
mod moves;
mod plan;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::shard::Reserved;
use terrace_core::{
    Error, ErrorKind, Member, Plan, Result, Runtime, Shard, ShardState, SlotSet, Version,
};

use crate::{Partitioner, ShardOpener, partitioner};

pub use plan::{Change, Share};

/// How [`Resharding`] goes about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReshardingOptions {
    /// How many slots change hands at once. While they do, which takes a few milliseconds, their keys
    /// are waited for. 64.
    pub group: usize,
    /// Rows that are copied at once. 500.
    pub batch: usize,
    /// How long to pause after each batch, as a share of the time that it took, so that the shards
    /// have time for others. 100 %.
    pub rest_percent: u32,
    /// How long the taker may need for the tail before the giver has its slots back. 2 s.
    pub fence: Duration,
    /// How often a group is tried before the work ends, to be resumed later. 5.
    pub tries: u32,
}

impl Default for ReshardingOptions {
    fn default() -> Self {
        Self { group: 64, batch: 500, rest_percent: 100, fence: Duration::from_secs(2), tries: 5 }
    }
}

/// What is being done, for whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many rows of a shard have been looked at, and copied if they move.
    Copying {
        /// The shard that gives.
        from: u16,
        /// The shard that takes.
        to: u16,
        /// Rows looked at.
        rows: u64,
    },
    /// Counts and digests are compared.
    Comparing {
        /// The shard that gives.
        from: u16,
        /// The shard that takes.
        to: u16,
    },
    /// So many slots of the plan are where they shall be.
    Moved {
        /// Slots that have arrived.
        slots: usize,
        /// Slots of the plan.
        of: usize,
    },
    /// Rows that a shard has given up are removed.
    Tidying {
        /// The shard.
        shard: u16,
        /// Rows removed.
        rows: u64,
    },
}

/// Whoever watches.
pub type Watch = Arc<dyn Fn(Progress) + Send + Sync>;

/// The work of moving slots. One at a time for a set of shards.
pub struct Resharding {
    nodes: BTreeMap<u16, Node>,
    partitioner: Arc<dyn Partitioner>,
    opener: Arc<dyn ShardOpener>,
    options: ReshardingOptions,
    watch: Watch,
    runtime: Runtime,
    reserved: BTreeMap<u16, Reserved>,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

/// Broken variants, for tests that prove that they would notice.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Takes slots before it has the tail.
    TakesEarly,
    /// Takes slots before they were given.
    NoFence,
}

/// A shard, and what it said of itself last.
struct Node {
    shard: Arc<dyn Shard>,
    state: ShardState,
}

impl Resharding {
    /// Finds the shards by some of their addresses. Changes nothing.
    ///
    /// # Errors
    /// When a shard cannot be reached: slots move only while all of them can.
    pub async fn open(
        addresses: &[String],
        opener: Arc<dyn ShardOpener>,
        options: ReshardingOptions,
        watch: Watch,
        runtime: Runtime,
    ) -> Result<Self> {
        let (mut nodes, mut former) = (BTreeMap::new(), None);
        for address in addresses {
            let shard = opener.open(address).await?;
            if let Some(state) = shard.state().await? {
                let node = Node { shard, state };
                match node.state.is_member() {
                    true => drop(nodes.insert(node.state.number, node)),
                    // All that is named may have been removed; it knows who the others were.
                    false => former = Some(node),
                }
            }
        }
        if nodes.is_empty() {
            nodes.extend(former.map(|node| (node.state.number, node)));
        }
        let Some(latest) = latest(&nodes) else {
            return Err(Error::invalid("there are no shards yet; start the level once"));
        };
        let partitioner = partitioner(&latest.partitioner)?;
        let mut this = Self {
            nodes,
            partitioner,
            opener,
            options,
            watch,
            runtime,
            reserved: BTreeMap::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        this.meet().await?;
        Ok(this)
    }

    /// Opens the shards that the others know, and lets go of those that are none any more; whether
    /// there was one to open.
    async fn meet(&mut self) -> Result<bool> {
        let Some(latest) = latest(&self.nodes).cloned() else { return Ok(false) };
        // A new shard that was announced to some may be known to them alone. One that was removed and
        // missed its last word still has the plan of then, and has no say.
        let moves = |state: &ShardState| state.plan.as_ref().map(|plan| plan.moves.clone());
        let mut members = latest.members.clone();
        let others = self.nodes.values().filter(|node| moves(&node.state) == moves(&latest));
        let others = others.flat_map(|node| &node.state.members);
        let news = others.filter(|it| latest.plan.is_some() && !members.contains(it));
        members.extend(news.cloned().collect::<Vec<_>>());
        let is_one = |number| members.iter().any(|member| member.number == number);
        self.nodes.retain(|number, node| node.state.is_member() && is_one(*number));
        let mut opened = false;
        for Member { number, address } in members {
            if self.nodes.contains_key(&number) {
                continue;
            }
            let shard = self.opener.open(&address).await?;
            let state = shard.state().await?.filter(|it| it.number == number && it.is_member());
            let state = state.ok_or_else(|| lost(number))?;
            self.nodes.insert(number, Node { shard, state });
            opened = true;
        }
        if self.nodes.values().any(|node| node.state.cluster != latest.cluster) {
            return Err(Error::invalid(
                "the databases are shards of two sets; correct the addresses of the shards",
            ));
        }
        Ok(opened)
    }

    /// The plan that was begun and not finished, if there is one. What only a new shard knows, which no
    /// other knows of, was not begun.
    pub fn plan(&self) -> Option<&Plan> {
        let known = self.nodes.iter().filter(|(number, _)| self.is_known(**number));
        known.map(|(_, node)| node).find_map(|node| node.state.plan.as_ref())
    }

    /// Whether another shard knows this one, or there is no other.
    fn is_known(&self, number: u16) -> bool {
        let mut others = self.nodes.iter().filter(|(other, _)| **other != number).peekable();
        let knows = |node: &Node| node.state.members.iter().any(|it| it.number == number);
        others.peek().is_none() || others.any(|(_, node)| knows(node))
    }

    /// The shards by number, with how many slots each has.
    pub fn shares(&self) -> Vec<Share> {
        let share = |(number, node): (&u16, &Node)| Share {
            number: *number,
            slots: node.state.owned.clone(),
        };
        self.nodes.iter().map(share).collect()
    }

    /// A broken variant.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn broken(mut self, mutant: Mutant) -> Self {
        self.mutant = Some(mutant);
        self
    }

    /// Goes on with the plan that was begun, until all of its slots are where they shall be.
    ///
    /// # Errors
    /// What has stopped it; it can be resumed. [`ErrorKind::InvalidInput`] when there is no plan.
    pub async fn resume(&mut self) -> Result<()> {
        self.reserve().await?;
        let plan = self.begun()?;
        self.announce(&plan).await?;
        match plan.finishing {
            true => self.tidy(&plan).await,
            false => self.run(&plan).await,
        }
    }

    /// Moves what has moved back to where it was.
    ///
    /// # Errors
    /// As [`Resharding::resume`]; also after [`Resharding::finish`] has begun.
    pub async fn back(&mut self) -> Result<()> {
        self.reserve().await?;
        let plan = self.begun()?;
        if plan.finishing {
            return Err(Error::invalid("the way back has been given up; resume to tidy up"));
        }
        // Settles who gave what is on its way, before directions change.
        self.announce(&plan).await?;
        let plan = Plan { back: true, ..plan };
        self.announce(&plan).await?;
        self.run(&plan).await
    }

    /// Gives the way back up and removes what the shards have and do not own.
    ///
    /// # Errors
    /// As [`Resharding::resume`]; also while slots are not where they shall be.
    pub async fn finish(&mut self) -> Result<()> {
        self.reserve().await?;
        let plan = self.begun()?;
        self.announce(&plan).await?;
        if self.moved(&plan) < plan.moves.iter().map(|it| it.slots.len()).sum() {
            return Err(Error::invalid("slots are still to be moved; resume first"));
        }
        let plan = Plan { finishing: true, ..plan };
        self.announce(&plan).await?;
        self.tidy(&plan).await
    }

    fn begun(&self) -> Result<Plan> {
        let none =
            || Error::invalid("nothing is being moved; begin with --add, --remove or --rebalance");
        self.plan().cloned().ok_or_else(none)
    }

    fn node(&self, number: u16) -> Result<&Node> {
        self.nodes.get(&number).ok_or_else(|| lost(number))
    }

    /// The next epoch: above all.
    fn next_epoch(&self) -> u64 {
        self.nodes.values().map(|node| node.state.epoch).max().unwrap_or(0) + 1
    }

    /// Writes a new state into a shard, under a new epoch; answers its latest version.
    async fn change(
        &mut self,
        number: u16,
        floor: Version,
        of: impl FnOnce(&mut ShardState),
    ) -> Result<Version> {
        let epoch = self.next_epoch();
        let node = self.node(number)?;
        let mut state = node.state.clone();
        of(&mut state);
        state.epoch = epoch;
        let latest = node.shard.change(node.state.epoch, state.clone(), floor).await;
        let latest = latest.map_err(|error| match error.kind() {
            ErrorKind::Moved => Error::new(ErrorKind::Unavailable, "somebody else changes a shard"),
            _ => error,
        })?;
        if let Some(node) = self.nodes.get_mut(&number) {
            node.state = state;
        }
        Ok(latest)
    }

    /// How many slots of the plan are where they shall be.
    fn moved(&self, plan: &Plan) -> usize {
        let there = |it: &terrace_core::Move| {
            let goal = if plan.back { it.from } else { it.to };
            let owned = self.nodes.get(&goal).map(|node| node.state.owned.within(&it.slots));
            owned.as_ref().map_or(0, SlotSet::len)
        };
        plan.moves.iter().map(there).sum()
    }
}

/// What the shard says that changed last.
fn latest(nodes: &BTreeMap<u16, Node>) -> Option<&ShardState> {
    nodes.values().map(|node| &node.state).max_by_key(|state| state.epoch)
}

fn lost(number: u16) -> Error {
    let message = "a shard is not where the others know it, or has lost what it knew of itself";
    Error::new(ErrorKind::Unavailable, message).with("shard", number.to_string())
}

impl fmt::Debug for Resharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owned = self.nodes.iter().map(|(number, node)| (number, node.state.owned.len()));
        f.debug_map().entries(owned).finish()
    }
}
