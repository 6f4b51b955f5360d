//! Level 3: reads from replicas that are new enough.

use std::sync::Arc;

use terrace_core::{BoxFuture, Result};
use terrace_layers::{CacheAside, CacheAsideOptions, SingleFlight};

use super::edge::edge;
use super::{Engines, Level, Stack, Staleness};
use crate::http::{Documents, Records, documents};
use crate::traces::spans;

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 3,
    name: "3-read-replicas",
    title: "Read replicas",
    guarantee: "A client that sends its token back reads its own writes and never goes back in time, \
                whichever replica answers; without a token a read is at most 5 s old, and after an \
                acknowledged write not older than it while the cache can be reached.",
    staleness: Staleness::AtMost { part: "replica-router", fact: "max_lag" },
    costs: "Servers to run and to watch; a promotion loses what the promoted replica had not \
            received, unless commits wait for it.",
    when: "Reads outgrow one database, or must go on when it is down.",
    picture: "\
  requests ──▶ SingleFlight ──▶ CacheAside ──▶ far cache (hit: done)
                                    │ miss
                                    ▼
                              ReplicaRouter ──▶ a ConcurrencyLimit each
                     writes, strong reads │ reads
                                    ▼                        ▼
                                 primary ──── log ────▶ replica 1, 2, ...",
    cached: true,
    cache_is_optional: true,
    shards: None,
    stacks: [
        (
            "embedded",
            "Observe(Timeout(SingleFlight(CacheAside(memory, ReplicaRouter(\
             ConcurrencyLimit(Coalesce(sqlite)), ConcurrencyLimit(Coalesce(sqlite)), \
             ConcurrencyLimit(Coalesce(sqlite)))))))",
        ),
        (
            "local, servers",
            "Observe(Timeout(SingleFlight(CacheAside(redis, ReplicaRouter(\
             ConcurrencyLimit(Coalesce(postgres)), ConcurrencyLimit(Coalesce(postgres)), \
             ConcurrencyLimit(Coalesce(postgres)))))))",
        ),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    // Chooses a server for each request: by its place in the log, its lag, and how busy it is.
    let replicated = engines.replicated().await?;
    let router = Arc::new(replicated.router);
    let mut store = spans(Arc::clone(&router) as _);
    if engines.has_cache(&LEVEL) {
        let runtime = engines.runtime();
        let far = engines.far_cache(&replicated.history).await?;
        // A replica may be behind a write that was acknowledged: the tombstone in the cache tells,
        // and the primary is asked instead.
        let options = CacheAsideOptions { over_replicas: true, ..CacheAsideOptions::default() };
        let cached = CacheAside::new(store, far.cache, router, options, runtime.clone());
        // Above the cache: whoever waited for a load finds it there. One load a key.
        store = spans(Arc::new(SingleFlight::new(spans(Arc::new(cached)), runtime.clone())));
    }
    let records = Records::of(edge(engines, store));
    Ok(Stack::of(Documents::of(&documents::L3, records)))
}
