//! What caches may believe of a collection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use terrace_core::{BoxFuture, Deadline, Generations, Key, Proof, Result, Runtime, Task, Token};
use tokio::sync::watch;

use super::query::CollectionRows;
use super::store::Shared;
use super::write;

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

impl Shared {
    /// Raises the generation.
    pub(super) async fn raise(&self) -> Result<()> {
        let raise = || async {
            let history = self.history();
            let work = |rows: CollectionRows| async move { history.raise(&rows.session).await };
            self.run(Deadline::NEVER, work).await
        };
        self.histories.raise(raise).await?;
        self.look(Deadline::NEVER).await
    }

    /// Ends doubts about writes, see [`Doubts`](super::doubts::Doubts), and raises the generation if there
    /// were any. Those whose key is being written stay.
    pub(super) async fn settle_doubts(&self) -> Result<()> {
        /// As many as can be ended before the next look.
        const AT_ONCE: usize = 50;
        let mut doubt = self.writers.doubts.take(AT_ONCE);
        let mut ended = Vec::new();
        for key in doubt.keys().clone() {
            let Some(line) = self.writers.free_line(&key) else { continue };
            let (writers, of) = (Arc::clone(&self.writers), key.clone());
            let work = |rows: CollectionRows| async move {
                let _line = line;
                write::fence(&rows, &writers, &of).await
            };
            self.run(Deadline::NEVER, work).await?;
            ended.push(key);
        }
        if !ended.is_empty() {
            self.raise().await?;
            ended.iter().for_each(|key| doubt.settle(key));
        }
        Ok(())
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
