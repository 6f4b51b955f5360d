//! A batch of writes: in turn, once for a request that is repeated, and what is answered.

use std::sync::Arc;

use terrace_core::{
    Error, ErrorKind, Idempotency, Origin, Outcome, Position, Receipt, Result, Token, Version,
    Write, WriteOptions,
};

use super::query::CollectionRows;
use super::requests::{self, Claim};
use super::store::Shared;
use super::write::{self, Outcomes, Prepared, Writers};

impl Shared {
    pub(super) async fn write(
        &self,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        how.deadline.check(self.link.runtime.now())?;
        if self.follows {
            let message = "summaries are written by what follows the ledger; write to the ledger";
            return Err(Error::invalid(message));
        }
        let prepared = write::prepare(batch, how.idempotency.as_deref())?;
        let durability = self.ready(how.deadline).await?.durability();
        if prepared.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = loop {
            match self.write_in_turn(prepared.clone(), how).await? {
                Some(outcomes) => break outcomes,
                None => self.link.runtime.sleep(requests::PAUSE).await,
            }
        };
        let shown = |version: Version| match version {
            Version::UNKNOWN => Position::NONE,
            version => Position::new(version.get()),
        };
        let most = outcomes.iter().map(|(_, version)| shown(*version)).max();
        let token = Token::of(self.histories.name(), most.unwrap_or(Position::NONE));
        let receipt = |(outcome, version)| Receipt {
            outcome,
            version,
            durability,
            token: token.clone(),
            origin: Origin::PRIMARY,
            event: None,
            cached: false,
        };
        Ok(outcomes.into_iter().map(receipt).collect())
    }

    /// Writes; nothing while another one is at the same request.
    async fn write_in_turn(
        &self,
        batch: Vec<Prepared>,
        how: &WriteOptions,
    ) -> Result<Option<requests::Results>> {
        // First the lines of the keys: who waits there takes no turn from others.
        let lines = self.link.wait(how.deadline, self.writers.lines(&batch)).await?;
        let (writers, request) = (Arc::clone(&self.writers), how.idempotency.clone());
        let work = |rows: CollectionRows| async move {
            let _lines = lines;
            let doubt = writers.doubts.guard(write::keys(&batch), &rows.session);
            let done = match request {
                None => settled(write::apply(&rows, &writers, batch).await).map(Some),
                Some(request) => once(&rows, &writers, batch, &request).await,
            };
            match done {
                Ok(done) => Ok((done, doubt)),
                Err(error) => {
                    if error.kind() != ErrorKind::OutcomeUnknown {
                        doubt.settle_all();
                    }
                    Err(error)
                }
            }
        };
        // Who does not take the answer was told that nobody knows.
        let (done, doubt) = self.run(how.deadline, work).await?;
        if !done.iter().flatten().any(|(outcome, _)| *outcome == Outcome::Unknown) {
            doubt.settle_all();
        }
        Ok(done)
    }
}

/// Applies the writes unless the request was made before; nothing while another one is at it.
async fn once(
    rows: &CollectionRows,
    writers: &Arc<Writers>,
    batch: Vec<Prepared>,
    request: &Idempotency,
) -> Result<Option<requests::Results>> {
    let held = match requests::claim(&rows.session, request).await? {
        Claim::Done(results) => return Ok(Some(results)),
        Claim::Held(held) => held,
        Claim::Theirs => return Ok(None),
    };
    let outcomes = write::apply(rows, writers, batch).await;
    if outcomes.iter().any(Result::is_err) {
        held.give_back().await;
        return settled(outcomes).map(Some);
    }
    let results = settled(outcomes)?;
    if let Err(error) = held.keep(&results).await {
        // The writes are done, and each row knows the request: a repeat finds them.
        tracing::warn!(%error, "the result of a request could not be kept");
    }
    Ok(Some(results))
}

/// What is answered: an error only when nothing was applied, or nobody knows of the only write.
fn settled(outcomes: Outcomes) -> Result<requests::Results> {
    let changed = outcomes.iter().any(|outcome| match outcome {
        Ok((outcome, _)) => outcome.is_applied(),
        Err(error) => error.kind() == ErrorKind::OutcomeUnknown,
    });
    if outcomes.len() == 1 || !changed {
        return outcomes.into_iter().collect();
    }
    let told = outcomes.into_iter().map(|outcome| match outcome {
        Ok(answer) => answer,
        Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
            (Outcome::Unknown, Version::UNKNOWN)
        }
        Err(error) => {
            tracing::debug!(%error, "a write of a batch was not applied");
            (Outcome::Unavailable, Version::NONE)
        }
    });
    Ok(told.collect())
}
