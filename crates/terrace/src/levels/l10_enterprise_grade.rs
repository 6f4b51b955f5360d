//! Level 10: shards behind two caches, and guards before all of it.

use std::sync::Arc;

use terrace_core::{BoxFuture, Deadline, Inspection, Result, RollupQuery, Runtime, Store};
use terrace_layers::{
    Around, ByShard, CircuitBreaker, CircuitBreakerOptions, ConcurrencyLimit,
    ConcurrencyLimitOptions, FillOnWrite, NearCache, Retry, RetryOptions, Rollups,
};

use super::edge::edge;
use super::{Engines, Level, Stack, Staleness, l4_db_sharding};
use crate::http::{Analytics, Documents, Face, Records, Whole, documents};
use crate::traces::spans;

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 10,
    name: "10-enterprise-grade",
    title: "Enterprise grade",
    guarantee: "As safe as level 4 and as fresh as level 5; what is written is in the caches before \
                the answer.",
    staleness: Staleness::None,
    costs: "A write also reads its record back; all that levels 4 and 5 cost.",
    when: "Level 5 is what you need, and one database cannot hold it.",
    picture: "\
  requests ──▶ FillOnWrite ──▶ NearCache (hit: done) ──▶ CacheAside ──▶ far cache (hit: done)
                                                             │ miss
                                                             ▼
                                                         ShardRouter ──▶ shard 0, shard 1
  each shard: Retry ──▶ CircuitBreaker ──▶ ConcurrencyLimit ──▶ level 1
  a write commits below, empties its key in all caches, and is read back into them
  each shard counts what its change log says (Rollups)",
    cached: true,
    cache_is_optional: false,
    shards: Some(|config| (&config.enterprise.shard_urls, 2)),
    stacks: [
        (
            "embedded",
            "Observe(Timeout(FillOnWrite(NearCache(SingleFlight(CacheAside(memory, \
             ShardRouter(2 x Retry(CircuitBreaker(ConcurrencyLimit(Coalesce(sqlite)))))))))))",
        ),
        (
            "local, servers",
            "Observe(Timeout(FillOnWrite(NearCache(SingleFlight(CacheAside(redis, \
             ShardRouter(2 x Retry(CircuitBreaker(ConcurrencyLimit(Coalesce(postgres)))))))))))",
        ),
    ],
    guarded: true,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    let (opener, around) = (engines.counting_opener(), around(engines.runtime()));
    let shards = l4_db_sharding::shards(engines, opener, around).await?;
    let (store, far) = l4_db_sharding::cached(engines, &shards).await?;
    // Answers without leaving the process, as at level 5; a raise on any shard empties it.
    let (options, runtime) = (engines.near_cache_options(), engines.runtime().clone());
    let near = NearCache::new(store, far.feed, Arc::clone(&shards) as _, options, runtime.clone());
    // Above the near cache, which forgets a key when it is written.
    let store = FillOnWrite::new(spans(Arc::new(near)), runtime);
    let store = edge(engines, spans(Arc::new(store)));
    let environment = engines.environment().into();
    // Beside the stack: no request waits for it.
    let rollups = Rollups::start(Arc::clone(&shards), engines.runtime().clone()).await;
    let rollups = Arc::new(rollups);
    let (inner, counts) = (Arc::clone(&store), Arc::clone(&rollups));
    let whole = Arc::new(Enterprise { store: inner, rollups: counts, environment });
    let records = Records { shards: Some(shards), ..Records::of(store) };
    let Stack { faces, .. } = Stack::of(Documents::of(&documents::L10, records));
    let faces = faces.into_iter().chain([Face::Analytics(rollups)]).collect();
    Ok(Stack { faces, whole })
}

/// What is around each shard.
fn around(runtime: &Runtime) -> Around {
    let on = runtime.clone();
    Arc::new(move |shard| {
        let store = l4_db_sharding::batches(shard, &on);
        // As many callers as the shard can serve in time; the others are refused early.
        let options = ConcurrencyLimitOptions::default();
        let store = spans(Arc::new(ConcurrencyLimit::new(store, &options, on.clone())));
        // Above the limit: who is refused by an open one waits for no turn.
        let options = CircuitBreakerOptions::default();
        let store = spans(Arc::new(CircuitBreaker::new(store, options, on.clone())));
        // The one place in which a failed call is made again. A budget for each shard.
        spans(Arc::new(Retry::new(store, RetryOptions::default(), on.clone())))
    })
}

/// The stack, with what it is used for.
#[derive(Debug)]
struct Enterprise {
    store: Arc<dyn Store>,
    rollups: Arc<Rollups>,
    environment: Arc<str>,
}

impl Whole for Enterprise {
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async {
            let inner = self.store.inspect().await;
            let tree = Inspection::new("enterprise").text("environment", &self.environment);
            tree.needs(inner).helped_by(self.rollups.inspect())
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.rollups.stop().await;
            Store::close(&*self.store).await
        })
    }
}

impl Analytics for Rollups {
    fn counts<'a>(
        &'a self,
        query: &'a RollupQuery,
        by: Deadline,
    ) -> BoxFuture<'a, Result<ByShard>> {
        Box::pin(Rollups::counts(self, query, by))
    }
}
