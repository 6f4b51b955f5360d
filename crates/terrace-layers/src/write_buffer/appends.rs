//! How writes get into the journal: many callers' at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use terrace_core::{
    Append, BatchItem, Batcher, BoxFuture, Deadline, Durability, Error, ErrorKind, Merge, Origin,
    Outcome, Position, Receipt, Result, Sequence, Span, Token, Version, Write, WriteOptions,
};

use super::{Shared, TOO_OLD};

/// Appends requests as one call of the journal.
#[derive(Debug)]
pub(super) struct Appends {
    pub(super) shared: Arc<Shared>,
}

/// Where a request went.
#[derive(Clone, Debug)]
pub(super) struct Done {
    epoch: u64,
    durability: Durability,
    span: Result<Span>,
}

impl Merge for Appends {
    type Part = Append;
    type Answer = Done;
    const OPERATION: &'static str = "write";

    fn bytes(parts: &[Append]) -> usize {
        parts.iter().flat_map(|part| &part.writes).map(Write::bytes).sum()
    }

    fn send<'a>(
        &'a self,
        batch: &'a mut [BatchItem<Self>],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<Vec<Done>>>> {
        Box::pin(async move {
            let shared = &self.shared;
            let requests: Vec<Append> =
                batch.iter().flat_map(|item| item.parts.iter().cloned()).collect();
            let work = shared.journal.append(requests);
            // What was sent may have arrived, whether or not somebody still waits for the answer.
            let appended = shared.runtime.within(deadline, work).await;
            let appended = appended.unwrap_or_else(|| Err(Self::expired()))?;
            let parts = batch.iter().flat_map(|item| &item.parts);
            let fresh: Vec<_> = parts
                .zip(&appended.spans)
                .filter_map(|(part, span)| match span {
                    Ok(span) if !span.repeated => Some((span.first, part.writes.as_slice())),
                    _ => None,
                })
                .collect();
            let writes: usize = fresh.iter().map(|(_, writes)| writes.len()).sum();
            shared.queued.fetch_add(writes as u64, Ordering::Relaxed);
            // Before anybody is answered: who reads after an answer finds the write here or below.
            let known = shared.until_begun(appended.epoch, shared.patience(deadline)).await;
            known.map_err(|_| Self::expired())?;
            shared.horizon.add_own(&appended, &fresh);
            let (epoch, durability) = (appended.epoch, appended.durability);
            let mut spans = appended.spans.into_iter();
            let answers = batch.iter().map(|item| {
                let spans = spans.by_ref().take(item.parts.len());
                spans.map(|span| Done { epoch, durability, span }).collect()
            });
            Ok(answers.collect())
        })
    }

    fn expired() -> Error {
        Error::new(
            ErrorKind::OutcomeUnknown,
            "the journal did not answer in time and may or may not have accepted the write; repeat \
             it with its Idempotency-Key, or read the record later",
        )
        .during(Self::OPERATION)
    }

    fn lost() -> Error {
        Self::expired()
    }
}

impl Shared {
    /// Puts writes into the journal.
    pub(super) async fn append(
        &self,
        appends: &Arc<Batcher<Appends>>,
        writes: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        let age = self.horizon.age();
        if age > self.options.max_age {
            self.refused.fetch_add(1, Ordering::Relaxed);
            let refused = Error::new(ErrorKind::Overloaded, TOO_OLD).during("write");
            return Err(refused.retry_after(Duration::from_secs(5)));
        }
        let count = writes.len() as u64;
        let request = Append { writes, idempotency: how.idempotency.clone() };
        let done = terrace_core::one(
            appends.call(vec![request], how.deadline).await.inspect_err(|error| {
                if error.kind() == ErrorKind::Overloaded {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
            })?,
        )?;
        let Span { first, repeated } = done.span?;
        if repeated {
            let last = first.plus(count.max(1)).before();
            self.look_up_repeat(done.epoch, last, how.deadline).await;
        }
        // A life of the database that ends may take with it what was applied: such a token is lost.
        let life = self.caches.history().map(|name| Token::of(name, Position::NONE));
        let token = |sequence| {
            let mut token = self.horizon.token(done.epoch, sequence);
            life.iter().for_each(|life| token.merge(life));
            token
        };
        let receipt = |number| Receipt {
            outcome: Outcome::Queued,
            version: Version::NONE,
            durability: done.durability,
            token: token(first.plus(number)),
            origin: Origin::JOURNAL,
            event: None,
            cached: false,
        };
        Ok((0..count).map(receipt).collect())
    }

    /// Makes visible here what was accepted by an instance, or for an answer, that is gone.
    async fn look_up_repeat(&self, epoch: u64, last: Sequence, deadline: Deadline) {
        if let Err(error) = self.catch_up(epoch, last, self.patience(deadline)).await {
            tracing::warn!(%error, "a repeated write is accepted and cannot be looked up; a read \
                            without its token may not show it until it is applied");
        }
    }
}
