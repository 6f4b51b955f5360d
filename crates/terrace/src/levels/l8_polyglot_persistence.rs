//! Level 8: transactions in a SQL database, documents in a document store, one cache for both.

use std::sync::Arc;

use futures_util::future::join3;
use terrace_core::{BoxFuture, Documents, Inspection, Ledger as _, Result, Runtime, Status, Store};
use terrace_layers::{
    CacheAside, CacheAsideOptions, CachedLedger, DocumentSide, Late, LayeredDocuments,
    SingleFlight, Summaries,
};

use super::edge::edge;
use super::engines::DocumentEngine;
use super::{Engines, Level, Stack, Staleness};
use crate::http::{self, Face, Polyglot, Whole};
use crate::traces::spans;

/// See the [module](self).
pub(super) static LEVEL: Level = Level {
    number: 8,
    name: "8-polyglot-persistence",
    title: "Polyglot persistence",
    guarantee: "Each fact has one owner: transactions are exact in the SQL database, documents come back \
                as they were written; what one store needs of the other follows its change log.",
    staleness: Staleness::None,
    costs: "Three engines to run; nothing is atomic over two of them.",
    when: "Kinds of data that one engine does not serve well.",
    picture: "\
  transactions ──▶ CachedLedger ──▶ SQL database: transactions, accounts, their change log
                        │                                                       │
  documents ──▶ CacheAside ──▶ far cache (hit: done)                            │ Follow
                        │ miss                                                  ▼
                        └──▶ document store: documents,              summaries of accounts",
    cached: true,
    cache_is_optional: false,
    shards: None,
    stacks: [
        (
            "embedded",
            "SingleFlight(CacheAside(memory, ConcurrencyLimit(sqlite))), \
             Observe(Timeout(SingleFlight(CacheAside(memory, sqlite))))",
        ),
        (
            "local, servers",
            "SingleFlight(CacheAside(redis, ConcurrencyLimit(postgres))), \
             Observe(Timeout(SingleFlight(CacheAside(redis, mongodb))))",
        ),
    ],
    guarded: false,
    build: |engines| Box::pin(build(engines)) as BoxFuture<'_, _>,
};

async fn build(engines: &Engines) -> Result<Stack> {
    engines.claim()?;
    let runtime = engines.runtime();
    // Each engine may be down when the level starts: the others serve.
    let on = engines.clone();
    let open = move || Box::pin(ledger(on.clone())) as BoxFuture<'static, _>;
    let ledger = Arc::new(Late::open(http::TRANSACTIONS, open, runtime).await?);
    let on = engines.clone();
    let open = move || Box::pin(documents(on.clone())) as BoxFuture<'static, _>;
    let documents = Arc::new(Late::open(http::DOCUMENTS, open, runtime).await?);
    let summaries = summaries(&ledger, &documents, runtime).await?;
    let all = Arc::new(Polyglot::new(ledger, Arc::clone(&documents) as _, summaries));
    let whole = Arc::new(Parts { all: Arc::clone(&all), documents });
    Ok(Stack { faces: vec![Face::Polyglot(all)], whole })
}

/// The owner of transactions, with its lists in the cache.
async fn ledger(engines: Engines) -> Result<Arc<CachedLedger>> {
    let ledger = engines.ledger().await?;
    let far = engines.far_cache(&ledger.histories().name()).await?;
    Ok(Arc::new(CachedLedger::new(ledger, far.cache, engines.runtime().clone())))
}

/// The owner of documents, behind the same cache.
async fn documents(engines: Engines) -> Result<DocumentSide> {
    let DocumentEngine { documents, generations, summaries } = engines.documents().await?;
    let history = generations.history();
    let far = engines.far_cache(history.as_deref().unwrap_or_default()).await?;
    let runtime = engines.runtime().clone();
    // Both engines bound their calls and who waits for them: a dead cache sends every read here.
    let store = spans(Arc::clone(&documents) as _);
    // Fills are ordered by version, so a slow reader cannot bring an old document back.
    let options = CacheAsideOptions::default();
    let store = CacheAside::new(store, far.cache, generations, options, runtime.clone());
    // Above the cache: whoever waited for a load finds it there. One load per key.
    let store = SingleFlight::new(spans(Arc::new(store)), runtime);
    let layers = edge(&engines, spans(Arc::new(store)));
    let documents = Arc::new(LayeredDocuments::new(layers, documents)) as Arc<dyn Documents>;
    Ok(DocumentSide { documents, summaries })
}

/// What follows the ledger into the document store, as soon as both are there.
async fn summaries(
    ledger: &Arc<Late<Arc<CachedLedger>>>,
    documents: &Arc<Late<DocumentSide>>,
    runtime: &Runtime,
) -> Result<Arc<Late<Summaries>>> {
    let (ledger, documents, on) = (Arc::clone(ledger), Arc::clone(documents), runtime.clone());
    let open = move || {
        let (ledger, documents, on) = (Arc::clone(&ledger), Arc::clone(&documents), on.clone());
        let start = async move {
            let (ledger, side) = (Arc::clone(ledger.get()?), documents.get()?);
            Ok(Summaries::start(ledger, side.summaries.clone(), on))
        };
        Box::pin(start) as BoxFuture<'static, _>
    };
    Ok(Arc::new(Late::open("summaries", open, runtime).await?))
}

/// All of the level, as one thing to look at and to end.
#[derive(Debug)]
struct Parts {
    all: Arc<Polyglot>,
    documents: Arc<Late<DocumentSide>>,
}

impl Whole for Parts {
    /// The level is down when neither transactions nor documents can be read or written.
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async {
            let Polyglot { ledger, summaries, .. } = &*self.all;
            let summaries = summaries.inspect_with(|it| Box::pin(async { it.inspect() }));
            let (ledger, documents, summaries) = join3(
                ledger.inspect_with(|ledger| ledger.inspect()),
                self.documents.inspect(),
                summaries,
            )
            .await;
            let down = ledger.status.min(documents.status) == Status::Down;
            let tree = Inspection::new("polyglot")
                .helped_by(ledger.instance(http::TRANSACTIONS))
                .helped_by(documents.instance(http::DOCUMENTS))
                .helped_by(summaries);
            if down { tree.status(Status::Down, "") } else { tree }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Polyglot { ledger, summaries, .. } = &*self.all;
            if let Some(summaries) = summaries.end().await {
                summaries.stop().await;
            }
            let ledger = match ledger.end().await {
                Some(ledger) => ledger.close().await,
                None => Ok(()),
            };
            self.documents.close().await.and(ledger)
        })
    }
}
