//! Level 5: a cache in this process in front of the shared one.

use std::sync::Arc;

use terrace_core::{BoxFuture, Result};
use terrace_layers::NearCache;

use super::edge::edge;
use super::{Engines, Level, Stack, Staleness, l2_read_cache};
use crate::http::{ClearCache, Documents, Records, documents};
use crate::traces::spans;

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 5,
    name: "5-multi-tier-cache",
    title: "Multi-tier cache",
    guarantee: "As level 2; a write through any instance empties the near caches of all, within 2 s \
                even when the channel between them dies silently.",
    staleness: Staleness::None,
    costs: "Memory in every instance, and a channel between them.",
    when: "The shared cache is the bottleneck, or a millisecond is too much.",
    picture: "\
  requests ──▶ NearCache (hit: done) ──▶ level 2
                   ▲
                   └── numbered invalidations of all instances,
                       a gap or silence empties it",
    cached: true,
    cache_is_optional: false,
    shards: None,
    stacks: [
        (
            "embedded",
            "Observe(Timeout(NearCache(SingleFlight(CacheAside(memory, ConcurrencyLimit(Coalesce(sqlite)))))))",
        ),
        (
            "local, servers",
            "Observe(Timeout(NearCache(SingleFlight(CacheAside(redis, ConcurrencyLimit(Coalesce(postgres)))))))",
        ),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    let (store, far, database) = l2_read_cache::base(engines).await?;
    // Answers without leaving the process; believes the far cache's channel, and only while it hears
    // it, and nothing from before the database's generation.
    let (options, runtime) = (engines.near_cache_options(), engines.runtime().clone());
    let near = NearCache::new(store, far.feed, database.generations(), options, runtime);
    let near = Arc::new(near);
    let records = Records::of(edge(engines, spans(Arc::clone(&near) as _)));
    let caches = vec![near as _, Arc::new(far.cache) as _];
    Ok(Stack::of(Documents { caches, ..Documents::of(&documents::L5, records) }))
}

impl ClearCache for NearCache {
    /// Empties this instance's; the far cache's message empties the others'.
    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        NearCache::clear(self);
        Box::pin(async { Ok(()) })
    }
}
