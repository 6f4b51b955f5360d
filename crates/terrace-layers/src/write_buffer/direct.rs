//! Writes that are applied before they are answered.

use std::sync::atomic::Ordering;

use std::time::Duration;

use terrace_core::{
    Append, Deadline, Durability, Error, ErrorKind, Key, Receipt, Result, Write, WriteOptions,
};

use super::Shared;

impl Shared {
    /// Applies writes once every earlier write of their keys is applied.
    pub(super) async fn write_through(
        &self,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        let keys: Vec<_> = batch.iter().map(|write| write.key.clone()).collect();
        self.claim_key(how).await.map_err(|error| error.during("write"))?;
        self.settle(&keys, how.deadline).await.map_err(|error| error.during("write"))?;
        self.direct.fetch_add(batch.len() as u64, Ordering::Relaxed);
        // Committed is what the store below promises on its own.
        let beyond = how.durability.filter(|wanted| *wanted > Durability::Committed);
        let how = WriteOptions { durability: beyond, ..how.clone() };
        self.inner.write(batch, &how).await
    }

    /// Takes the request's idempotency key in the journal, too, so that it cannot stand for a queued
    /// write beside this one. Who had it for this very request is answered by the store below.
    async fn claim_key(&self, how: &WriteOptions) -> Result<()> {
        if how.idempotency.is_none() {
            return Ok(());
        }
        let claim = Append { writes: Vec::new(), idempotency: how.idempotency.clone() };
        let work = self.journal.append(vec![claim]);
        let claimed = match self.runtime.within(self.patience(how.deadline), work).await {
            Some(claimed) => claimed.map_err(|error| match error.kind() {
                // Nothing is written by it, so nothing is unknown of the request.
                ErrorKind::OutcomeUnknown => error.into_kind(ErrorKind::Unavailable),
                _ => error,
            })?,
            None => return Err(silent()),
        };
        self.horizon.add_own(&claimed, &[]);
        terrace_core::one(claimed.spans)?.map(drop)
    }

    /// Returns once every write of these keys that was acknowledged before is applied.
    ///
    /// # Errors
    /// `Unavailable` when the journal cannot be asked; `Overloaded` when it takes too long.
    pub(super) async fn settle(&self, keys: &[Key], deadline: Deadline) -> Result<()> {
        let limit = self.patience(deadline);
        let progress = match self.refresh(limit).await {
            Err(error) if error.kind() == ErrorKind::DeadlineExceeded => return Err(silent()),
            progress => progress?,
        };
        let target = self.horizon.latest_of(keys, progress.last);
        match self.runtime.within(limit, self.horizon.until_applied(target)).await {
            Some(true) => Ok(()),
            // A write that went ahead of an earlier one would be undone by it.
            Some(false) | None => Err(behind()),
        }
    }
}

fn silent() -> Error {
    let message = "the journal does not answer, and nothing was changed; try again";
    Error::new(ErrorKind::Unavailable, message)
}

pub(super) fn behind() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "earlier writes of this record are not applied yet, and nothing was changed; try again a \
         little later",
    )
    .retry_after(Duration::from_secs(1))
}
