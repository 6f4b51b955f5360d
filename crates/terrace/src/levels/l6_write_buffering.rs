//! Level 6: writes are acknowledged by a journal and applied later, in batches.

use std::sync::Arc;

use terrace_core::history::journal_of;
use terrace_core::{BoxFuture, Journal, Result, Store};
use terrace_layers::{Flusher, FlusherOptions, WriteBuffer};

use super::edge::edge;
use super::{Engines, Level, Stack, Staleness, l1_connection_pooling, l2_read_cache};
use crate::http::{Documents, Records, documents};
use crate::traces::spans_of_later;

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 6,
    name: "6-write-buffering",
    title: "Write buffering",
    guarantee: "An acknowledged write is on disk in the journal, is applied once and in the order of \
                its key, and is read at once where it was written, and everywhere with its token.",
    staleness: Staleness::None,
    costs: "A journal to run; a write has no version until it is applied.",
    when: "Writes come in bursts, or must be accepted while the database is down.",
    picture: "\
  write ──▶ journal ──▶ acknowledged        read ──▶ writes that wait ──▶ level 2
               │ claim                                 (a hit: done)
               ▼
            Flusher ──▶ level 2 ──▶ WHERE seq < new seq ──▶ settle",
    cached: true,
    cache_is_optional: false,
    shards: None,
    stacks: [
        (
            "embedded",
            "Observe(Timeout(WriteBuffer(sqlite, SingleFlight(CacheAside(memory, ConcurrencyLimit(Coalesce(sqlite)))))))",
        ),
        (
            "local, servers",
            "Observe(Timeout(WriteBuffer(redis, SingleFlight(CacheAside(redis, ConcurrencyLimit(Coalesce(postgres)))))))",
        ),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    let (store, database) = l1_connection_pooling::base(engines).await?;
    // Below the buffer: the flusher writes through the cache, so its invalidations follow commits.
    let (store, _) = l2_read_cache::over(engines, store, &database).await?;
    let journal = engines.journal(&database).await?;
    let history = journal_of(&database.history);
    let (options, runtime) = (engines.write_buffer_options(), engines.runtime().clone());
    // Acknowledges, shows what waits, and runs the flusher unless that runs apart.
    let store =
        WriteBuffer::open(store, database.generations(), journal, history, options, runtime).await;
    let records =
        Records { queues: true, ..Records::of(edge(engines, spans_of_later(Arc::new(store)))) };
    Ok(Stack::of(Documents::of(&documents::L6, records)))
}

/// The flusher alone, with what it works on.
#[derive(Debug)]
pub struct FlusherApart {
    /// It.
    pub flusher: Flusher,
    /// Where it takes writes from.
    pub journal: Arc<dyn Journal>,
    /// Where it applies them.
    pub store: Arc<dyn Store>,
}

/// Starts the flusher of this level without anything to serve.
///
/// # Errors
/// What stands in the way of the engines.
pub async fn flusher(engines: &Engines) -> Result<FlusherApart> {
    let (store, database) = l1_connection_pooling::base(engines).await?;
    let (store, _) = l2_read_cache::over(engines, store, &database).await?;
    let journal = engines.journal(&database).await?;
    let (options, runtime) = (FlusherOptions::default(), engines.runtime().clone());
    let flusher =
        Flusher::start(Arc::clone(&journal), Arc::clone(&store), options, runtime, Arc::new(()));
    Ok(FlusherApart { flusher, journal, store })
}

/// The journal of this level alone.
///
/// # Errors
/// What stands in the way of the engines.
pub async fn journal(engines: &Engines) -> Result<Arc<dyn Journal>> {
    engines.journal_alone().await
}
