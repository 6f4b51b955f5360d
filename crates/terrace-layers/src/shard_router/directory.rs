//! All shards that this instance has found, and what each said of itself last.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::history::origin;
use terrace_core::{
    Backoff, BoxFuture, Breaker, Deadline, Error, ErrorKind, Member, Pass, Result, Runtime, Shard,
    ShardState, Store, Trip, Version,
};

use super::Partitioner;
use super::map::{ShardMap, Tally, View};

/// Opens shards by their addresses.
pub trait ShardOpener: fmt::Debug + Send + Sync + 'static {
    /// The shard at an address: a URL, a path, or what else the opener has given out.
    fn open<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Arc<dyn Shard>>>;

    /// Called now and then by who serves: makes what others wait for in [`ShardOpener::open`].
    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// What is put around the records of each shard: batches, limits.
pub type Around = Arc<dyn Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync>;

/// See the [module](self).
pub(super) struct Directory {
    pub(super) partitioner: Arc<dyn Partitioner>,
    pub(super) opener: Arc<dyn ShardOpener>,
    around: Around,
    runtime: Runtime,
    nodes: Vec<Node>,
    generation: u64,
}

/// One shard, found or looked for.
pub(super) struct Node {
    pub(super) address: String,
    pub(super) shard: Option<Arc<dyn Shard>>,
    /// As it was at the last look that succeeded.
    pub(super) state: Option<ShardState>,
    /// Why the last look failed.
    pub(super) failure: Option<Error>,
    /// Whether a failing one is asked again.
    pub(super) breaker: Breaker,
    tally: Arc<Tally>,
}

impl Directory {
    /// How long one shard may take to say what it has.
    const PATIENCE: Duration = Duration::from_millis(500);
    /// The same for one that is looked at for the first time, which may have to connect first.
    const FIRST_PATIENCE: Duration = Duration::from_secs(3);
    /// How long a shard may take to be opened.
    const OPEN_WITHIN: Duration = Duration::from_secs(10);
    /// How long a shard that failed is left alone, so that it does not hold up looks at the others.
    const REST: Duration = Duration::from_millis(900);

    pub(super) fn new(
        addresses: &[String],
        partitioner: Arc<dyn Partitioner>,
        opener: Arc<dyn ShardOpener>,
        around: Around,
        runtime: Runtime,
    ) -> Self {
        let nodes = addresses.iter().map(|address| Node::at(address, &runtime)).collect();
        Self { partitioner, opener, around, runtime, nodes, generation: 0 }
    }

    /// Looks at all shards, opens those that were not known, and draws the map. `before` lends its
    /// stores to shards that are as they were.
    pub(super) async fn look(&mut self, before: Option<&ShardMap>) -> Result<ShardMap> {
        self.look_at_all().await;
        let members = self.members();
        let mut missing = false;
        for Member { number, address } in &members {
            if self.has(*number) {
                continue;
            }
            if !self.nodes.iter().any(|node| node.address == *address) {
                self.nodes.push(Node::at(address, &self.runtime));
                self.look_at_all().await;
            }
            missing |= !self.has(*number);
        }
        self.drop_former(&members);
        let states = self.states(&members);
        for state in &states {
            if state.partitioner != self.partitioner.to_string() {
                return Err(Error::invalid(
                    "the shards share out keys in another way than the settings say; set \
                     shards.partitioner to what the shards have",
                )
                .with("shards", state.partitioner.clone()));
            }
        }
        self.check_cluster(&states)?;
        self.generation += 1;
        let views = self.views(&members, before);
        let partitioner = Arc::clone(&self.partitioner);
        let map = ShardMap::new(partitioner, &states, views, !missing, self.generation);
        Ok(map.after(before, self.runtime.now()))
    }

    /// Databases of two sets must not be mixed, or keys are written to where nobody else looks.
    fn check_cluster(&self, states: &[ShardState]) -> Result<()> {
        let Some(first) = states.first() else { return Ok(()) };
        let of_another =
            |node: &&Node| node.member().is_some_and(|state| state.cluster != first.cluster);
        match self.nodes.iter().find(of_another) {
            Some(node) => Err(foreign(&node.address)),
            None => Ok(()),
        }
    }

    fn has(&self, number: u16) -> bool {
        self.nodes.iter().filter_map(Node::member).any(|state| state.number == number)
    }

    async fn look_at_all(&mut self) {
        let (runtime, opener) = (&self.runtime, &self.opener);
        let due = self.nodes.iter_mut().filter_map(|node| {
            let pass = node.breaker.admit()?;
            Some(node.look(pass, &**opener, runtime))
        });
        join_all(due).await;
    }

    /// The shards that there are, as the one knows that changed last.
    fn members(&self) -> Vec<Member> {
        let latest = self.nodes.iter().filter_map(Node::member).max_by_key(|state| state.epoch);
        // All that is left may be a shard that was removed; it knows who the others were.
        let any = || self.nodes.iter().find_map(|node| node.state.as_ref());
        latest.or_else(any).map(|state| state.members.clone()).unwrap_or_default()
    }

    /// Lets go of shards that are none any more.
    fn drop_former(&mut self, members: &[Member]) {
        let is_one = |it: &ShardState| {
            it.is_member() && members.iter().any(|known| known.number == it.number)
        };
        let is_former = |node: &mut Node| node.state.as_ref().is_some_and(|state| !is_one(state));
        for former in self.nodes.extract_if(.., is_former).filter_map(|node| node.shard) {
            // Requests under the old map are refused by it, or end with the connections.
            self.runtime
                .spawn("close a former shard", async move {
                    if let Err(error) = former.close().await {
                        tracing::debug!(%error, "a former shard did not close in order");
                    }
                })
                .detach();
        }
    }

    fn states(&self, members: &[Member]) -> Vec<ShardState> {
        let states = self.nodes.iter().filter_map(Node::member);
        let states = states.filter(|state| members.iter().any(|it| it.number == state.number));
        states.cloned().collect()
    }

    fn views(&self, members: &[Member], before: Option<&ShardMap>) -> BTreeMap<u16, View> {
        let mut views = BTreeMap::new();
        for node in &self.nodes {
            let (Some(state), Some(shard)) = (node.member(), &node.shard) else { continue };
            if !members.iter().any(|member| member.number == state.number) {
                continue;
            }
            let (number, epoch) = (state.number, state.epoch);
            let known = before.and_then(|map| map.view_of(number));
            let store = match known.filter(|view| view.epoch == epoch) {
                Some(same) => Arc::clone(&same.store),
                None => (self.around)(shard.at(epoch)),
            };
            let (generations, tally) = (shard.generations(), Arc::clone(&node.tally));
            views.insert(number, View { number, epoch, store, generations, tally });
        }
        views
    }

    /// Makes the configured databases the shards of a new set, unless they are shards already. Any
    /// number of instances may do it at once: each step is done by the first, and the same by all.
    pub(super) async fn found(&mut self) -> Result<()> {
        self.look_at_all().await;
        let known = self.nodes.iter().filter_map(|node| node.state.as_ref());
        if known.clone().any(|state| state.founded) {
            return Ok(());
        }
        if let Some(failed) = self.nodes.iter().find_map(|node| node.failure.clone()) {
            // Who is missing now may have been founded with others.
            return Err(failed);
        }
        self.check_each_once()?;
        let addresses = self.nodes.iter().map(|node| node.address.clone());
        let members = addresses.zip(0..).map(|(address, number)| Member { number, address });
        let first = ShardState {
            cluster: format!("shards-{:012x}", self.runtime.random() >> 16),
            partitioner: self.partitioner.to_string(),
            members: members.collect(),
            epoch: 1,
            ..ShardState::default()
        };
        let first = self.make_shard(0, first).await?;
        let count = u16::try_from(first.members.len()).unwrap_or(u16::MAX);
        if first.members.len() != self.nodes.len() {
            return Err(Error::invalid(
                "the first shard was made one of another number of shards, which never came to be; \
                 start once with that number",
            )
            .with("shards", count.to_string()));
        }
        for number in 1..self.nodes.len() {
            self.make_shard(number, first.clone()).await?;
        }
        let founded = ShardState { founded: true, epoch: 2, ..first };
        match self.shard(0)?.change(1, founded, Version::NONE).await {
            // Another instance was faster.
            Err(error) if error.kind() != ErrorKind::Moved => Err(error),
            _ => {
                self.look_at_all().await;
                Ok(())
            }
        }
    }

    /// Notes in all shards that are reached that the set is whole, so that who starts later learns it from
    /// any one of them. A shard that is missed is told at another start.
    pub(super) async fn note_founded(&self) {
        for node in &self.nodes {
            let (Some(shard), Some(known)) = (&node.shard, node.member()) else { continue };
            if known.founded {
                continue;
            }
            // Under the same epoch: nothing has moved, and nobody's map or plan is out of date.
            let whole = ShardState { founded: true, ..known.clone() };
            if let Err(error) = shard.change(known.epoch, whole, Version::NONE).await {
                tracing::debug!(%error, "a shard is not told that its set is whole");
            }
        }
    }

    /// Before anything is written: each shard is a database of its own, whatever it is called. A copy of
    /// another is not, as tokens of the one would be those of a lost life to the other.
    fn check_each_once(&self) -> Result<()> {
        let mut seen = BTreeMap::new();
        for node in &self.nodes {
            let Some(shard) = &node.shard else { continue };
            let origin = origin(&shard.history()).to_owned();
            if let Some(other) = seen.insert(origin, &node.address) {
                let message = "two shards are the same database, or one is a copy of the other; give \
                               each a new, empty one of its own";
                let error = Error::invalid(message).with("shard", host(&node.address).to_owned());
                return Err(error.with("and", host(other).to_owned()));
            }
        }
        Ok(())
    }

    async fn make_shard(&self, index: usize, like: ShardState) -> Result<ShardState> {
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        let count = u16::try_from(like.members.len()).unwrap_or(u16::MAX);
        let owned = self.partitioner.share(count).into_iter().nth(index).unwrap_or_default();
        let cluster = like.cluster.clone();
        let found = self.shard(index)?.found(ShardState { number, owned, ..like }).await?;
        let same = found.number == number && (index == 0 || found.cluster == cluster);
        if same { Ok(found) } else { Err(foreign(&self.nodes[index].address)) }
    }

    fn shard(&self, index: usize) -> Result<&Arc<dyn Shard>> {
        let shard = self.nodes.get(index).and_then(|node| node.shard.as_ref());
        shard.ok_or_else(|| Error::new(ErrorKind::Unavailable, "a shard cannot be reached"))
    }

    /// All members by number, each as it was opened.
    pub(super) fn shards(&self) -> BTreeMap<u16, Option<Arc<dyn Shard>>> {
        let shard = |number| {
            let of = |node: &&Node| node.number() == Some(number);
            self.nodes.iter().find(of).and_then(|node| node.shard.clone())
        };
        self.members().into_iter().map(|member| (member.number, shard(member.number))).collect()
    }

    /// All that was found, for inspection.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}

fn foreign(address: &str) -> Error {
    let error = Error::invalid(
        "a database is a shard of another set, or named twice; correct the addresses of the shards",
    );
    error.with("shard", host(address).to_owned())
}

/// An address without a user and a password.
fn host(address: &str) -> &str {
    address.rsplit_once('@').map_or(address, |(_, host)| host)
}

impl Node {
    fn at(address: &str, runtime: &Runtime) -> Self {
        let pauses = Backoff::new(Directory::REST, Directory::REST);
        Self {
            address: address.to_owned(),
            shard: None,
            state: None,
            failure: None,
            // Of looks once a second no share would say anything in time.
            breaker: Breaker::new(Trip::InARow(1), pauses, runtime.clone()),
            tally: Arc::new(Tally::new(runtime.clone())),
        }
    }

    pub(super) fn number(&self) -> Option<u16> {
        self.state.as_ref().map(|state| state.number)
    }

    /// What it said, if it is a shard still.
    fn member(&self) -> Option<&ShardState> {
        self.state.as_ref().filter(|state| state.is_member())
    }

    async fn look(&mut self, pass: Pass, opener: &dyn ShardOpener, runtime: &Runtime) {
        let looked = self.try_look(opener, runtime).await;
        let _ = match looked.is_ok() {
            true => pass.succeeded(),
            false => pass.failed(),
        };
        match looked {
            Ok(Some(state)) => {
                // A look that was overtaken by a later one is no news.
                let news = self.state.as_ref().is_none_or(|known| known.epoch < state.epoch);
                if news {
                    self.state = Some(state);
                }
                self.failure = None;
            }
            Ok(None) => self.failure = None,
            Err(error) => {
                tracing::debug!(%error, "a shard does not say what it has");
                self.failure = Some(error);
            }
        }
    }

    async fn try_look(
        &mut self,
        opener: &dyn ShardOpener,
        runtime: &Runtime,
    ) -> Result<Option<ShardState>> {
        let mut patience = Directory::PATIENCE;
        let shard = match &self.shard {
            Some(shard) => Arc::clone(shard),
            None => {
                let deadline = Deadline::at(runtime.now() + Directory::OPEN_WITHIN);
                let opened = runtime.within(deadline, opener.open(&self.address)).await;
                let shard = opened.unwrap_or_else(|| Err(Deadline::exceeded()))?;
                self.shard = Some(Arc::clone(&shard));
                patience = Directory::FIRST_PATIENCE;
                shard
            }
        };
        let deadline = Deadline::at(runtime.now() + patience);
        let asked = runtime.within(deadline, shard.state()).await;
        asked.unwrap_or_else(|| Err(Deadline::exceeded()))
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = self.nodes.iter().map(Node::number);
        f.debug_list().entries(numbers).finish()
    }
}
