//! Natural batching: single keys that come while others are on their way leave together.
//!
//! A key that comes alone leaves at once; under load the server answers one command of dozens of
//! keys instead of dozens of commands, and so does the driver. See [`Batcher`].

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Weak};

use terrace_core::{
    BatchItem, BatchLimits, Batcher, BoxFuture, Deadline, Error, Load, Merge, Result, one,
};

use super::Shared;
use super::failure::Down;

/// The most keys of one command: a longer one holds up everybody else's.
pub(super) const CHUNK: usize = 128;

/// With 64 readers a read cost 4.4 µs of this process with one lane, 3.1 with two, 3.5 with four, and
/// 7 without batches; a second one also spares a read the wait for a whole round trip before it leaves.
const LIMITS: BatchLimits = BatchLimits {
    lanes: 2,
    batch: Load { parts: CHUNK, bytes: usize::MAX },
    waiting: Load { parts: 16 * 1024, bytes: 64 * 1024 * 1024 },
};

/// A kind of question about one key.
pub(super) trait Question: fmt::Debug + Sized + Send + Sync + 'static {
    type Answer: fmt::Debug + Send + 'static;

    /// What it sends along.
    fn bytes(&self) -> usize;

    /// Asks many at once; answers them in their order, or fails all with a retryable error.
    fn ask(shared: &Shared, questions: Vec<Self>) -> BoxFuture<'_, Result<Vec<Self::Answer>>>;
}

/// The questions of one kind that have not left yet.
pub(super) type Batches<Q> = Arc<Batcher<Together<Q>>>;

/// Sends questions of one kind.
#[derive(Debug)]
pub(super) struct Together<Q> {
    shared: Weak<Shared>,
    kind: PhantomData<fn(Q)>,
}

impl<Q: Question> Merge for Together<Q> {
    type Part = Q;
    type Answer = Q::Answer;
    const OPERATION: &'static str = "cache";

    fn bytes(parts: &[Q]) -> usize {
        parts.iter().map(Q::bytes).sum()
    }

    fn send<'a>(
        &'a self,
        batch: &'a mut [BatchItem<Self>],
        _: Deadline,
    ) -> BoxFuture<'a, Result<Vec<Vec<Q::Answer>>>> {
        Box::pin(async move {
            let shared = self.shared.upgrade().ok_or_else(|| Down::Closed.error())?;
            // What fails is retryable, so no batch is split and sent again.
            let questions = batch.iter_mut().flat_map(|item| std::mem::take(&mut item.parts));
            let answers = Q::ask(&shared, questions.collect()).await?;
            Ok(answers.into_iter().map(|answer| vec![answer]).collect())
        })
    }

    fn expired() -> Error {
        Down::Silent.error()
    }

    fn lost() -> Error {
        Down::Unreachable.error()
    }
}

impl Shared {
    pub(super) fn batches<Q: Question>(
        this: &Weak<Self>,
        runtime: &terrace_core::Runtime,
    ) -> Batches<Q> {
        Batcher::new(Together { shared: this.clone(), kind: PhantomData }, LIMITS, runtime.clone())
    }

    /// What came of this question. May be dropped at any point: before it has left it never does.
    pub(super) async fn ask<Q: Question>(
        &self,
        batches: &Batches<Q>,
        question: Q,
    ) -> Result<Q::Answer> {
        self.link.live()?;
        // Nothing waits longer than the commands before it, each of which has its own time.
        one(batches.call(vec![question], Deadline::NEVER).await?)
    }
}
