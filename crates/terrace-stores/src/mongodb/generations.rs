//! What caches may believe of a collection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use terrace_core::{BoxFuture, Deadline, Generations, Key, Proof, Result, Runtime, Task, Token};
use tokio::sync::watch;

use super::store::Shared;

/// How often the history and the generation are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The generations of a collection; from [`MongoDocuments::generations`](super::MongoDocuments::generations).
#[derive(Debug)]
pub(super) struct MongoGenerations {
    shared: Arc<Shared>,
}

impl MongoGenerations {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Generations for MongoGenerations {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.shared.histories.admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.shared.histories.looked_at()
    }

    fn history(&self) -> Option<Arc<str>> {
        Some(self.shared.histories.name()).filter(|name| !name.is_empty())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.histories.changes()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.shared.look(Deadline::NEVER))
    }

    fn raise<'a>(&'a self, _: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.shared.raise())
    }
}

/// Looks until the task is dropped.
pub(super) fn keep_looking(runtime: &Runtime, shared: Arc<Shared>) -> Task {
    let clock = runtime.clone();
    runtime.keep("mongodb-look", move || {
        let (clock, shared) = (clock.clone(), Arc::clone(&shared));
        async move {
            loop {
                clock.sleep(LOOK).await;
                // A server that is down is told of by every call, and by the inspection.
                if let Err(error) = shared.look(Deadline::at(clock.now() + LOOK)).await {
                    tracing::debug!(%error, "the generation of the documents was not looked at");
                    continue;
                }
                let until = Deadline::at(clock.now() + LOOK);
                match clock.within(until, shared.settle_doubts()).await {
                    Some(Ok(())) => {}
                    Some(Err(error)) => tracing::debug!(%error, "writes are still in doubt"),
                    None => tracing::debug!("writes are still in doubt"),
                }
            }
        }
    })
}
