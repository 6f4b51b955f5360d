//! What `ShardRouter` says of itself and of each shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::{Breaker, Deadline, Error, Fact, Inspection, PartKind, Shard, Status, Unit};

use super::Shared;
use super::directory::Node;
use super::map::{ShardMap, Tally};

impl Shared {
    /// How many hot keys are shown.
    const HOT: usize = 5;

    /// Slots that are longer on their way do not arrive: what moves them has died.
    const ON_THEIR_WAY: Duration = Duration::from_secs(3);

    pub(super) async fn inspect(&self) -> Inspection {
        let map = self.map.load_full();
        let within = Deadline::at(self.runtime.now() + Duration::from_millis(900));
        let directory = match self.runtime.within(within, self.directory.lock()).await {
            Some(directory) => directory,
            None => return Inspection::new("shard-router").status(Status::Degraded, "busy"),
        };
        let known = directory.nodes().iter().filter_map(|node| {
            let number = node.number()?;
            Some((number, Asked::of(node)))
        });
        let mut known = known.collect::<Vec<_>>();
        let lost = directory.nodes().iter().filter(|node| is_lost(node)).count();
        let partitioner = directory.partitioner.to_string();
        drop(directory);
        known.sort_by_key(|(number, ..)| *number);
        let shards = known
            .into_iter()
            .map(|(number, asked)| self.inspect_shard(&map, within, number, asked));
        let shards = join_all(shards).await;
        let down = shards.iter().filter(|shard| shard.status == Status::Down).count() + lost;
        let all = shards.len() + lost;
        let hot = self.hot.top(Self::HOT).into_iter();
        let hot = hot.map(|(key, count)| (key.as_str().to_owned(), count)).collect();
        let mut tree = Inspection::new("shard-router")
            .text("partitioner", partitioner)
            .counter("moved", self.moved.load(Ordering::Relaxed))
            .gauge("slots_on_their_way", map.slots_of(None) as u64, Unit::Count)
            .gauge("shards", all as u64, Unit::Count)
            .fact("hot_keys", Fact::Numbers(hot));
        tree = match down {
            0 if map.incomplete_for(self.runtime.now()) > Self::ON_THEIR_WAY => {
                let note = "slots do not arrive where they go; run terrace reshard --resume";
                tree.status(Status::Degraded, note)
            }
            0 => tree,
            down if down >= all => tree.status(Status::Down, "no shard answers"),
            _ => tree.status(Status::Degraded, "a shard does not answer; its keys are 503"),
        };
        shards.into_iter().fold(tree, |tree, shard| match down >= all {
            true => tree.needs(shard),
            false => tree.helped_by(shard),
        })
    }
}

impl Shared {
    async fn inspect_shard(
        &self,
        map: &ShardMap,
        within: Deadline,
        number: u16,
        asked: Asked,
    ) -> Inspection {
        let view = map.view_of(number);
        let tally = view.map(|view| &view.tally);
        let count = |of: fn(&Tally) -> &AtomicU64| {
            tally.map_or(0, |tally| of(tally).load(Ordering::Relaxed))
        };
        let tree = Inspection::of(PartKind::Shard, "shard")
            .instance(format!("shard {number}"))
            .gauge("number", number.into(), Unit::Count)
            .gauge("slots", map.slots_of(Some(number)) as u64, Unit::Count)
            .counter("reads", count(|tally| &tally.reads))
            .counter("writes", count(|tally| &tally.writes))
            .times("call_time", tally.map(|tally| tally.times.times()).unwrap_or_default());
        let tree = asked.breaker.show(tree);
        let Some(shard) = asked.shard else {
            return tree.status(Status::Down, "a shard cannot be reached");
        };
        let runtime = &self.runtime;
        // With what is put around it, once it is in use.
        let inspected = view.map_or_else(|| shard.inspect(), |view| view.store.inspect());
        let (inner, size) =
            tokio::join!(runtime.within(within, inspected), runtime.within(within, shard.size()));
        let tree = match size {
            Some(Ok(size)) => tree.gauge("records", size, Unit::Count),
            _ => tree,
        };
        let down = || {
            Inspection::of(PartKind::Database, "database").status(Status::Down, "does not answer")
        };
        let tree = tree.needs(inner.unwrap_or_else(down));
        match asked.failure {
            Some(error) => tree.status(Status::Down, error.message().to_owned()),
            None => tree,
        }
    }
}

/// What looks at a shard have told.
struct Asked {
    shard: Option<Arc<dyn Shard>>,
    failure: Option<Error>,
    breaker: Breaker,
}

impl Asked {
    fn of(node: &Node) -> Self {
        let (shard, failure) = (node.shard.clone(), node.failure.clone());
        Self { shard, failure, breaker: node.breaker.clone() }
    }
}

/// Named, and never found to be a shard.
fn is_lost(node: &Node) -> bool {
    node.number().is_none() && node.failure.is_some()
}
