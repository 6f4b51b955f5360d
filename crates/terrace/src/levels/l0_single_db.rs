//! Level 0: one database, a connection for every request.

use terrace_core::{BoxFuture, Result};

use super::edge::edge;
use super::engines::Connections;
use super::{Engines, Level, Stack, Staleness};
use crate::http::{Documents, Records, documents};
use crate::traces::spans;

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 0,
    name: "0-single-db",
    title: "Single database",
    guarantee: "Acknowledged writes are on disk; every key is linearizable.",
    staleness: Staleness::None,
    costs: "Every request pays for a new connection.",
    when: "Scripts, prototypes, a few requests a second.",
    picture: "\
  request ──▶ connect ──▶ database
              (a new connection, closed after the answer)",
    cached: false,
    cache_is_optional: false,
    shards: None,
    stacks: [
        ("embedded", "Observe(Timeout(sqlite))"),
        ("local, servers", "Observe(Timeout(postgres))"),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    // Nothing is shared between requests: that is the level, and its price.
    let database = engines.database(Connections::PerRequest).await?;
    let records = Records::of(edge(engines, spans(database.store)));
    Ok(Stack::of(Documents::of(&documents::L0, records)))
}
