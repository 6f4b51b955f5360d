//! How posts become one.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use terrace_core::ledger::{Posted, Posting};
use terrace_core::{
    BatchItem, BoxFuture, Deadline, Error, ErrorKind, Key, LockedKeys, Merge, Result,
};

use super::super::worker::Worker;
use super::post::PostBatch;

/// Posts without idempotency key.
pub(super) struct Posts {
    pub(super) worker: Worker,
    pub(super) locked: Arc<LockedKeys>,
}

impl std::fmt::Debug for Posts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Posts")
    }
}

impl Posts {
    /// Posts, and notes whose accounts are locked, and whose no longer.
    async fn post(&self, batch: &[Posting], deadline: Deadline) -> Result<Vec<Posted>> {
        let were_locked = self.locked.among(batch.iter().map(|posting| &posting.user));
        let work = PostBatch { batch, request: None, again: AtomicBool::new(false) };
        let done = self.worker.perform(&work, deadline).await;
        match &done {
            Ok(_) => self.locked.remove(&were_locked),
            Err(error) => self.locked.add(error),
        }
        done
    }
}

impl Merge for Posts {
    type Part = Posting;
    type Answer = Posted;
    const OPERATION: &'static str = "post";

    fn bytes(batch: &[Posting]) -> usize {
        batch.iter().map(|it| it.user.as_str().len() + it.kind.as_str().len()).sum()
    }

    fn send<'a>(
        &'a self,
        batch: &'a mut [BatchItem<Self>],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<Vec<Posted>>>> {
        Box::pin(async move {
            if let [only] = batch {
                return Ok(vec![self.post(&only.parts, deadline).await?]);
            }
            let all = batch.iter().flat_map(|item| &item.parts).cloned().collect::<Vec<_>>();
            let mut posted = self.post(&all, deadline).await?.into_iter();
            let cut = |item: &BatchItem<Self>| posted.by_ref().take(item.parts.len()).collect();
            Ok(batch.iter().map(cut).collect())
        })
    }

    fn is_about(batch: &[Posting], locked: &[Key]) -> bool {
        batch.iter().any(|posting| locked.contains(&posting.user))
    }

    fn expired() -> Error {
        let message = "the deadline passed while the transaction was being posted: it may or may not \
                       have been; read the user's transactions, or repeat with an Idempotency-Key";
        Error::new(ErrorKind::OutcomeUnknown, message).during(Self::OPERATION)
    }

    fn lost() -> Error {
        let message = "a defect ended this post, which may or may not have been applied; read the \
                       user's transactions, or repeat with an Idempotency-Key, and report it";
        Error::new(ErrorKind::OutcomeUnknown, message).during(Self::OPERATION)
    }
}
