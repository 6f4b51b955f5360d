//! Level 9: several regions, each with all records, which follow each other.

use std::sync::Arc;

use terrace_core::{
    BoxFuture, Conflict, Deadline, Inspection, Key, Receipt, RegionName, Result, Runtime, Store,
    Version,
};
use terrace_layers::{
    CacheAside, CacheAsideOptions, Coalesce, CoalesceOptions, ConcurrencyLimit,
    ConcurrencyLimitOptions, GeoRouter, GeoRouterOptions, RegionLink, RegionParts, SingleFlight,
};

use super::edge::edge;
use super::engines::RegionEngine;
use super::{Engines, Level, Stack, Staleness};
use crate::http::{Documents, Face, Geography, Records, Regions, Whole, documents};
use crate::traces::spans;

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 9,
    name: "9-global-distributed",
    title: "Global distribution",
    guarantee: "A write is on disk in its region and arrives in every other one; all regions come to the \
                same records, and each update that was lost to another is listed.",
    staleness: Staleness::Unbounded,
    costs: "A database and a cache for each region; a read without a token may be behind other regions, \
            and two regions may write one key at once.",
    when: "Users on several continents, or a region that may be lost.",
    picture: "\
  requests ──▶ GeoRouter ─┬─▶ us-east:  level 2 ◀──┐
   X-Region, or where     ├─▶ eu-west:  level 2 ◀──┤ each follows the log of each other one;
   the client is          └─▶ asia-pac: level 2 ◀──┘ its cache is told
  a region that is down: the next one answers, and says so",
    cached: true,
    cache_is_optional: false,
    shards: None,
    stacks: [
        (
            "embedded",
            "Observe(Timeout(GeoRouter(3 x SingleFlight(CacheAside(memory, \
             ConcurrencyLimit(Coalesce(sqlite)))))))",
        ),
        (
            "local, servers",
            "Observe(Timeout(GeoRouter(3 x SingleFlight(CacheAside(redis, \
             ConcurrencyLimit(Coalesce(postgres)))))))",
        ),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    let (runtime, here) = (engines.runtime().clone(), engines.here()?);
    let (replicates, everywhere) = engines.replication();
    let mut ways = Vec::new();
    let regions = engines.regions().await?;
    let parts = regions.iter().enumerate().map(|(place, region)| {
        let reached = regions.iter().map(|to| way(&mut ways, &to.links[place], &runtime));
        let reached = reached.collect::<Vec<_>>();
        RegionParts {
            name: region.options.name,
            id: region.options.id,
            links: reached.iter().map(|way| Arc::clone(&way.link)).collect(),
            // What is written here by others its own cache is told of.
            cache: Some(Arc::clone(&reached[place].cache)),
            // Where each region has instances of its own, each follows into its own.
            follows: everywhere || region.options.name == here,
        }
    });
    let parts = parts.collect();
    let options = GeoRouterOptions { replicates, ..GeoRouterOptions::default() };
    let router = GeoRouter::start(parts, here, engines.homes()?, options, runtime)?;
    let router = Arc::new(router);
    let geography = Arc::new(engines.geography()?);
    let store = edge(engines, spans(Arc::clone(&router) as _));
    let whole = Arc::new(Located { store: Arc::clone(&store), geography: Arc::clone(&geography) });
    let records = Records { geography: Some(geography), ..Records::of(store) };
    let documents = Documents::of(&documents::L9, records);
    let stack = Stack::of(Documents { regions: Some(Arc::clone(&router) as _), ..documents });
    let faces = stack.faces.into_iter().chain([Face::Regions(router)]).collect();
    Ok(Stack { faces, whole })
}

/// A region's whole stack, as it is reached from somewhere.
#[derive(Clone)]
struct ReachedRegion {
    engine: Arc<RegionEngine>,
    cache: Arc<CacheAside>,
    link: Arc<RegionLink>,
}

/// Level 2 over the engines of a region; one stack where several reach it by the same way.
fn way(
    known: &mut Vec<ReachedRegion>,
    engine: &Arc<RegionEngine>,
    runtime: &Runtime,
) -> ReachedRegion {
    if let Some(way) = known.iter().find(|way| Arc::ptr_eq(&way.engine, engine)) {
        return way.clone();
    }
    // One lane: with several databases at work, a second one would only make batches smaller.
    let options = CoalesceOptions { read_lanes: 1, ..CoalesceOptions::default() };
    let store = Coalesce::new(Arc::clone(&engine.database) as _, options, runtime.clone());
    // A dead cache sends every read here: the cap keeps the database alive.
    let store = spans(Arc::new(store));
    let store = ConcurrencyLimit::new(store, &ConcurrencyLimitOptions::default(), runtime.clone());
    let turns = Arc::clone(store.turns());
    let (cache, generations) = (Arc::clone(&engine.cache), Arc::clone(&engine.database) as _);
    let plain = CacheAsideOptions::default();
    let cache_timeout = plain.cache_timeout + 2 * engine.away;
    let options = CacheAsideOptions { cache_timeout, ..plain };
    let cache =
        CacheAside::new(spans(Arc::new(store)), cache, generations, options, runtime.clone());
    let cache = Arc::new(cache);
    // Above the cache: whoever waited for a load finds it there. One load a key.
    let store = SingleFlight::new(spans(Arc::clone(&cache) as _), runtime.clone());
    let store = spans(Arc::new(store));
    let database = Arc::clone(&engine.database);
    let link = Arc::new(RegionLink::new(store, database, runtime.clone()).sharing(&turns));
    known.push(ReachedRegion { engine: Arc::clone(engine), cache, link });
    known[known.len() - 1].clone()
}

/// The stack, with what tells where clients are.
#[derive(Debug)]
struct Located {
    store: Arc<dyn Store>,
    geography: Arc<Geography>,
}

impl Whole for Located {
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async {
            let tree = self.store.inspect().await;
            match self.geography.inspect() {
                Some(places) => tree.helped_by(places),
                None => tree,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Store::close(&*self.store)
    }
}

impl Regions for GeoRouter {
    fn names(&self) -> Vec<RegionName> {
        GeoRouter::names(self)
    }

    fn confirmed<'a>(
        &'a self,
        key: &'a Key,
        receipt: &'a Receipt,
        by: Deadline,
    ) -> BoxFuture<'a, Vec<RegionName>> {
        Box::pin(GeoRouter::confirmed(self, key, receipt, by))
    }

    fn conflicts<'a>(
        &'a self,
        region: Option<RegionName>,
        after: Option<(Key, Version)>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Conflict>>> {
        Box::pin(GeoRouter::conflicts(self, region, after, limit))
    }
}
