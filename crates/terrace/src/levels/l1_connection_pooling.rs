//! Level 1: a few connections that stay open, and batches that form by themselves.

use std::sync::Arc;

use terrace_core::{BoxFuture, Result, Store};
use terrace_layers::{Coalesce, CoalesceOptions};

use super::edge::edge;
use super::engines::{Connections, Database};
use super::{Engines, Level, Stack, Staleness};
use crate::http::{Documents, Records, documents};
use crate::traces::spans;

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 1,
    name: "1-connection-pooling",
    title: "Connection pooling",
    guarantee: "As level 0; a full pool answers 503 in time instead of waiting.",
    staleness: Staleness::None,
    costs: "A pool to size; a failing batch is tried again in halves.",
    when: "Any service that runs for longer than a day.",
    picture: "\
  requests ──▶ Coalesce ──▶ pool ──▶ database
               what arrives while a batch is in flight
               forms the next one; one fsync serves them all",
    cached: false,
    cache_is_optional: false,
    shards: None,
    stacks: [
        ("embedded", "Observe(Timeout(Coalesce(sqlite)))"),
        ("local, servers", "Observe(Timeout(Coalesce(postgres)))"),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    let (store, _) = base(engines).await?;
    let records = Records::of(edge(engines, store));
    Ok(Stack::of(Documents::of(&documents::L1, records)))
}

/// The bottom of every higher level: batches over pooled connections.
pub(super) async fn base(engines: &Engines) -> Result<(Arc<dyn Store>, Database)> {
    // Connections outlive requests: no handshake, and statements stay prepared.
    let database = engines.database(Connections::Pooled).await?;
    // Many callers share one round trip and, for writes, one fsync.
    let store = Arc::clone(&database.store);
    let store = Coalesce::new(store, CoalesceOptions::default(), engines.runtime().clone());
    Ok((spans(Arc::new(store)), database))
}
