//! Level 7: commands to one database, queries from another that follows it.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::read_model::{Activity, Counted, Row};
use terrace_core::{BoxFuture, Key, Result};
use terrace_layers::{Coalesce, CoalesceOptions, CommandSide, Cqrs, CqrsOptions};

use super::edge::edge;
use super::{Engines, Level, Stack, Staleness};
use crate::http::{Documents, Queries, Records, documents};
use crate::traces::{spans, spans_of_later, spans_of_projection};

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 7,
    name: "7-cqrs",
    title: "CQRS",
    guarantee: "Every acknowledged command is projected once into the read database; a read with the \
                token of a write sees it, or comes from the write database.",
    staleness: Staleness::Unbounded,
    costs: "A second database; every change is written to a log; a read without a token may be \
            behind.",
    when: "Questions that the write database should not answer: search, counts, activity.",
    picture: "\
  commands ──▶ Coalesce ──▶ write database: records, and the log of commands
                                  │ by transaction, below the horizon
                        Relay ◀───┴───▶ Projector: a batch and its checkpoint
                 (Redis stream)              ▼       in one transaction
  queries ──────────────────────────▶ read database: search, top, activity",
    cached: true,
    cache_is_optional: false,
    shards: None,
    stacks: [
        ("embedded", "Observe(Timeout(Cqrs(Coalesce(sqlite), sqlite)))"),
        ("local, servers", "Observe(Timeout(Cqrs(Coalesce(postgres), postgres)))"),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    let runtime = engines.runtime();
    let side = engines.command_side().await?;
    let model = spans_of_projection(engines.read_model().await?);
    // Events have their names by the log, so the broker may be down.
    let stream = engines.event_stream(&side)?;
    // Many commands share one fsync; each has its event all the same.
    let store = Coalesce::new(side.store, CoalesceOptions::default(), runtime.clone());
    let side = CommandSide { store: spans_of_later(Arc::new(store)), ..side };
    // Follows the log into the read database, and answers from there.
    let cqrs = Arc::new(Cqrs::new(side, model, stream, CqrsOptions::default(), runtime.clone()));
    let records = Records::of(edge(engines, spans(Arc::clone(&cqrs) as _)));
    let documents = Documents::of(&documents::L7, records);
    Ok(Stack::of(Documents { queries: Some(cqrs), ..documents }))
}

impl Queries for Cqrs {
    fn read_count(&self, key: &Key) -> u64 {
        Cqrs::read_count(self, key)
    }

    fn search<'a>(&'a self, words: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<Row>>> {
        Box::pin(Cqrs::search(self, words, limit))
    }

    fn top(&self, by: Counted, limit: usize) -> BoxFuture<'_, Result<Vec<Row>>> {
        Box::pin(Cqrs::top(self, by, limit))
    }

    fn activity(&self, bucket: Duration, limit: usize) -> BoxFuture<'_, Result<Vec<Activity>>> {
        Box::pin(Cqrs::activity(self, bucket, limit))
    }
}
