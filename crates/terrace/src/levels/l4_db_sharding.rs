//! Level 4: several databases, each with a part of the keys.

use std::sync::Arc;

use terrace_core::{BoxFuture, Key, Result, Runtime, Store};
use terrace_layers::{
    Around, CacheAside, CacheAsideOptions, Coalesce, CoalesceOptions, ConcurrencyLimit,
    ConcurrencyLimitOptions, ShardRouter, ShardRouterOptions, SingleFlight,
};

use super::edge::edge;
use super::engines::FarCache;
use super::{Engines, Level, ShardEngines, Stack, Staleness};
use crate::http::{Documents, Records, Shards, documents};
use crate::traces::spans;

impl Shards for ShardRouter {
    fn shard_of(&self, key: &Key) -> Option<u16> {
        ShardRouter::shard_of(self, key)
    }
}

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 4,
    name: "4-db-sharding",
    title: "Database sharding",
    guarantee: "A key lives on one shard, and is as safe and as fresh there as on level 2, also while \
                it moves to another; a shard that is down takes no other shard's keys with it.",
    staleness: Staleness::None,
    costs: "No transaction over keys of several shards; a list asks all of them.",
    when: "One database cannot hold the data, or cannot take the writes.",
    picture: "\
  requests ──▶ CacheAside ──▶ far cache (hit: done)
                   │ miss
                   ▼
              ShardRouter: 16384 slots ──▶ shard 0: level 1
                                      ├──▶ shard 1: level 1
                                      └──▶ shard 2: level 1
  every call names its shard's epoch; a shard that has given slots up refuses an old one",
    cached: true,
    cache_is_optional: true,
    shards: Some(|config| (&config.shards.urls, config.shards.count)),
    stacks: [
        (
            "embedded",
            "Observe(Timeout(SingleFlight(CacheAside(memory, \
             ShardRouter(3 x ConcurrencyLimit(Coalesce(sqlite)))))))",
        ),
        (
            "local, servers",
            "Observe(Timeout(SingleFlight(CacheAside(redis, \
             ShardRouter(3 x ConcurrencyLimit(Coalesce(postgres)))))))",
        ),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    let (opener, around) = (engines.shard_opener(), around(engines.runtime()));
    let shards = shards(engines, opener, around).await?;
    let mut store = spans(Arc::clone(&shards) as _);
    if engines.has_cache(&LEVEL) {
        store = cached(engines, &shards).await?.0;
    }
    let records = Records { shards: Some(shards), ..Records::of(edge(engines, store)) };
    Ok(Stack::of(Documents::of(&documents::L4, records)))
}

/// Batches for a shard.
pub(super) fn batches(shard: Arc<dyn Store>, runtime: &Runtime) -> Arc<dyn Store> {
    // One lane: with several databases at work, a second one would only make batches smaller.
    let options = CoalesceOptions { read_lanes: 1, ..CoalesceOptions::default() };
    spans(Arc::new(Coalesce::new(shard, options, runtime.clone())))
}

/// What is around each shard.
fn around(runtime: &Runtime) -> Around {
    let on = runtime.clone();
    Arc::new(move |shard| {
        let store = batches(shard, &on);
        // A cap a shard: who waits for a dead one must not keep the others' callers out.
        let options = ConcurrencyLimitOptions::default();
        spans(Arc::new(ConcurrencyLimit::new(store, &options, on.clone())))
    })
}

/// The shards behind their router.
pub(super) async fn shards(
    engines: &Engines,
    opener: Arc<ShardEngines>,
    around: Around,
) -> Result<Arc<ShardRouter>> {
    // Which key lives where is the shards' word; this instance keeps a copy of it.
    let addresses = engines.shards()?;
    let shards = ShardRouter::open(
        &addresses,
        engines.partitioner()?,
        opener,
        around,
        ShardRouterOptions::default(),
        engines.runtime().clone(),
    );
    Ok(Arc::new(shards.await?))
}

/// One far cache for all shards, so that a key which moves stays cached.
pub(super) async fn cached(
    engines: &Engines,
    shards: &Arc<ShardRouter>,
) -> Result<(Arc<dyn Store>, FarCache)> {
    let runtime = engines.runtime();
    let far = engines.far_cache(&shards.cluster().await).await?;
    let (cache, options) = (Arc::clone(&far.cache), CacheAsideOptions::default());
    let (store, generations) = (spans(Arc::clone(shards) as _), Arc::clone(shards) as _);
    let store = CacheAside::new(store, cache, generations, options, runtime.clone());
    // Above the cache: whoever waited for a load finds it there. One load a key.
    let store = SingleFlight::new(spans(Arc::new(store)), runtime.clone());
    Ok((spans(Arc::new(store)), far))
}
