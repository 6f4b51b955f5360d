//! What reads and writes do differently when several calls become one.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use terrace_core::{
    BatchItem, BoxFuture, Change, Consistency, Deadline, Error, ErrorKind, Key, LockedKeys, Merge,
    Read, ReadOptions, Receipt, Result, Store, Write, WriteOptions,
};

/// Reads of one consistency.
#[derive(Debug)]
pub(crate) struct Reads {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) consistency: Consistency,
}

impl Merge for Reads {
    type Part = Key;
    type Answer = Read;
    const OPERATION: &'static str = "read";

    /// Keys are small and counted.
    fn bytes(_: &[Key]) -> usize {
        0
    }

    fn send<'a>(
        &'a self,
        batch: &'a mut [BatchItem<Self>],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<Vec<Read>>>> {
        Box::pin(async move {
            let consistency = self.consistency;
            let how = ReadOptions { consistency, deadline, ..ReadOptions::default() };
            if let [only] = batch {
                return Ok(vec![self.inner.read(&only.parts, &how).await?]);
            }
            let (keys, places) = unique(batch);
            let reads = self.inner.read(&keys, &how).await?;
            if reads.len() != keys.len() {
                return Err(Self::lost());
            }
            if keys.len() == places.len() {
                return cut(batch, reads.into_iter()).ok_or_else(Self::lost);
            }
            // Some key was asked for by several callers: its answer is copied to each.
            let copies = places.into_iter().map(|place| reads[place].clone());
            cut(batch, copies).ok_or_else(Self::lost)
        })
    }

    fn expired() -> Error {
        Deadline::exceeded().during(Self::OPERATION)
    }

    fn lost() -> Error {
        Error::new(ErrorKind::Internal, "a defect ended this read; try again and report it")
            .during(Self::OPERATION)
    }
}

/// Writes without idempotency key and with the level's own durability.
#[derive(Debug)]
pub(crate) struct Writes {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) locked: Arc<LockedKeys>,
}

impl Merge for Writes {
    type Part = Write;
    type Answer = Receipt;
    const OPERATION: &'static str = "write";

    fn bytes(batch: &[Write]) -> usize {
        let value = |write: &Write| match &write.change {
            Change::Put(value) => value.as_str().len(),
            Change::Delete => 0,
        };
        batch.iter().map(|write| write.key.as_str().len() + value(write)).sum()
    }

    fn send<'a>(
        &'a self,
        batch: &'a mut [BatchItem<Self>],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<Vec<Receipt>>>> {
        Box::pin(async move {
            let how = WriteOptions { deadline, ..WriteOptions::default() };
            if let [only] = batch {
                let writes = mem::take(&mut only.parts);
                return Ok(vec![self.write(writes, &how).await?]);
            }
            let mut writes = Vec::with_capacity(weight(batch));
            // Copied, because a refused batch is split and tried again.
            writes.extend(batch.iter().flat_map(|item| &item.parts).cloned());
            let receipts = self.write(writes, &how).await?;
            if receipts.len() != weight(batch) {
                return Err(Self::lost());
            }
            cut(batch, receipts.into_iter()).ok_or_else(Self::lost)
        })
    }

    fn is_about(batch: &[Write], locked: &[Key]) -> bool {
        batch.iter().any(|write| locked.contains(&write.key))
    }

    fn expired() -> Error {
        let message = "the deadline passed while the write was under way: it may or may not have \
                       been applied; read the key, or repeat with an Idempotency-Key";
        Error::new(ErrorKind::OutcomeUnknown, message).during(Self::OPERATION)
    }

    /// Nobody knows how far a write came that ended in a defect, so it must not be `Internal`,
    /// which says that nothing was applied.
    fn lost() -> Error {
        let message = "a defect ended this write, which may or may not have been applied; read the \
                       key, or repeat with an Idempotency-Key, and report it";
        Error::new(ErrorKind::OutcomeUnknown, message).during(Self::OPERATION)
    }
}

impl Writes {
    /// Writes, and notes which keys are locked, and which no longer.
    async fn write(&self, writes: Vec<Write>, how: &WriteOptions) -> Result<Vec<Receipt>> {
        let were_locked = self.locked.among(writes.iter().map(|write| &write.key));
        let done = self.inner.write(writes, how).await;
        match &done {
            Ok(_) => self.locked.remove(&were_locked),
            Err(error) => self.locked.add(error),
        }
        done
    }
}

/// How many parts the items have together.
fn weight<M: Merge>(batch: &[BatchItem<M>]) -> usize {
    batch.iter().map(|item| item.parts.len()).sum()
}

/// Each key once, and for every key asked its place among them.
fn unique(batch: &[BatchItem<Reads>]) -> (Vec<Key>, Vec<usize>) {
    let asked = weight(batch);
    let mut keys = Vec::with_capacity(asked);
    let mut places = Vec::with_capacity(asked);
    let mut known = HashMap::with_capacity(asked);
    for key in batch.iter().flat_map(|item| &item.parts) {
        let place = *known.entry(key).or_insert_with(|| {
            keys.push(key.clone());
            keys.len() - 1
        });
        places.push(place);
    }
    (keys, places)
}

/// The answers of each item, or `None` when there are too few.
fn cut<M: Merge>(
    batch: &[BatchItem<M>],
    mut answers: impl Iterator<Item = M::Answer>,
) -> Option<Vec<Vec<M::Answer>>> {
    batch
        .iter()
        .map(|item| {
            let mut own = Vec::with_capacity(item.parts.len());
            own.extend(answers.by_ref().take(item.parts.len()));
            (own.len() == item.parts.len()).then_some(own)
        })
        .collect()
}
