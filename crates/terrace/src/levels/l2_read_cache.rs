//! Level 2: a shared cache in front of the database.

use std::sync::Arc;

use terrace_core::{BoxFuture, Result, Store};
use terrace_layers::{
    CacheAside, CacheAsideOptions, ConcurrencyLimit, ConcurrencyLimitOptions, SingleFlight,
};

use super::edge::edge;
use super::engines::{Database, FarCache};
use super::{Engines, Level, Stack, Staleness, l1_connection_pooling};
use crate::http::{Documents, Records, documents};
use crate::traces::spans;

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 2,
    name: "2-read-cache",
    title: "Read cache",
    guarantee: "A read after an acknowledged write never returns an older value while the cache can \
                be reached; without it, reads come from the database.",
    staleness: Staleness::None,
    costs: "A second engine; a write also empties its key in the cache.",
    when: "Most requests are reads, and many of them of the same keys.",
    picture: "\
  requests ──▶ SingleFlight ──▶ CacheAside ──▶ far cache (hit: done)
                                    │ miss
                                    ▼
                              ConcurrencyLimit ──▶ level 1
  a write commits below, then leaves a tombstone with its version in the cache",
    cached: true,
    cache_is_optional: false,
    shards: None,
    stacks: [
        (
            "embedded",
            "Observe(Timeout(SingleFlight(CacheAside(memory, ConcurrencyLimit(Coalesce(sqlite))))))",
        ),
        (
            "local, servers",
            "Observe(Timeout(SingleFlight(CacheAside(redis, ConcurrencyLimit(Coalesce(postgres))))))",
        ),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    let (store, _, _) = base(engines).await?;
    let records = Records::of(edge(engines, store));
    Ok(Stack::of(Documents::of(&documents::L2, records)))
}

/// The far cache over level 1, as the higher levels use it.
pub(super) async fn base(engines: &Engines) -> Result<(Arc<dyn Store>, FarCache, Database)> {
    let (store, database) = l1_connection_pooling::base(engines).await?;
    let (store, far) = over(engines, store, &database).await?;
    Ok((store, far, database))
}

/// The far cache over a store of this database.
pub(super) async fn over(
    engines: &Engines,
    store: Arc<dyn Store>,
    database: &Database,
) -> Result<(Arc<dyn Store>, FarCache)> {
    let far = engines.far_cache(&database.history).await?;
    let runtime = engines.runtime();
    // A dead cache sends every read here: the cap keeps the database alive.
    let store = ConcurrencyLimit::new(store, &ConcurrencyLimitOptions::default(), runtime.clone());
    // Fills are ordered by version, so a slow reader cannot bring an old value back.
    let cache = Arc::clone(&far.cache);
    let options = CacheAsideOptions::default();
    let generations = database.generations();
    let store = spans(Arc::new(store));
    let store = CacheAside::new(store, cache, generations, options, runtime.clone());
    // Above the cache: whoever waited for a load finds it there. One load a key.
    let store = SingleFlight::new(spans(Arc::new(store)), runtime.clone());
    Ok((spans(Arc::new(store)), far))
}
