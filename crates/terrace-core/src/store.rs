//! The contract: five methods, batches first, one error type.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{
    Deadline, Durability, Error, ErrorKind, Idempotency, Inspection, Key, Outcome, Page,
    Precondition, Read, Receipt, Record, Result, Scan, Token, Value, Version, Write,
};

/// Something that keeps records. Leaf stores talk to an engine; layers are stores around stores.
///
/// Object safe, so that a stack is a value: `Arc<dyn Store>`. `Display` prints the stack
/// (`NearCache(CacheAside(redis, Coalesce(postgres)))`).
///
/// **Cancellation.** Every future may be dropped at any point. A dropped read leaves nothing behind.
/// A dropped write was applied whole or not at all, and what must follow an applied write (emptying
/// caches) happens all the same.
pub trait Store: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Answers one [`Read`] a key, in the order asked; a missing key has no record and is no error.
    /// A key may be asked for twice; no keys, no answers.
    ///
    /// # Errors
    /// Every kind but `OutcomeUnknown`. An error stands for all keys of the batch.
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>>;

    /// Applies the writes in order and answers one [`Receipt`] a write. A key may be written twice;
    /// the later write wins and both receipts have their own version. A failed precondition is a
    /// receipt, not an error, and stops no other write. A leaf applies a batch in one transaction.
    ///
    /// # Errors
    /// An error says that nothing was applied, except [`ErrorKind::OutcomeUnknown`], which says that
    /// nobody knows.
    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>>;

    /// Answers the records after a cursor in byte order of their keys.
    ///
    /// # Errors
    /// As [`Store::read`].
    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>>;

    /// Answers health, counters and structure of this store and all below it. Never fails and takes
    /// no longer than a second: a part that does not answer is reported as down.
    fn inspect(&self) -> BoxFuture<'_, Inspection>;

    /// Ends background work, finishes what was accepted and closes connections. Calls after the
    /// first do nothing; other methods answer `Unavailable` afterwards.
    ///
    /// # Errors
    /// What could not be finished.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// What the level promises on its own.
    #[default]
    Default,
    /// At least as new as every write acknowledged before the read began.
    Strong,
    /// At most this old.
    MaxStale(Duration),
}

/// How to read. The default asks for nothing and waits without end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// How fresh the answer must be.
    pub consistency: Consistency,
    /// The answer must be at least as new as this, when present.
    pub token: Option<Token>,
    /// The moment by which there must be an answer.
    pub deadline: Deadline,
}

impl ReadOptions {
    /// A strong read by this deadline.
    pub fn strong(deadline: Deadline) -> Self {
        Self { consistency: Consistency::Strong, token: None, deadline }
    }

    /// Whether the client asked for nothing beyond what the level promises.
    pub fn is_default(&self) -> bool {
        self.consistency == Consistency::Default && self.token.is_none()
    }
}

/// How to write. The default asks for what the level promises and waits without end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// The durability that must be reached before the receipt; `None` is what the level promises.
    pub durability: Option<Durability>,
    /// Makes a repeated request answer the first result again, for 24 hours.
    pub idempotency: Option<Arc<Idempotency>>,
    /// The moment by which there must be an answer.
    pub deadline: Deadline,
}

/// Conveniences over one key. They are not part of [`Store`], so no layer has to override them.
pub trait StoreExt: Store {
    /// The record, if there is one, with default options.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move { Ok(self.get_read(key, &ReadOptions::default()).await?.record) })
    }

    /// The full answer for one key.
    fn get_read<'a>(&'a self, key: &'a Key, how: &'a ReadOptions) -> BoxFuture<'a, Result<Read>> {
        Box::pin(async move { one(self.read(std::slice::from_ref(key), how).await?) })
    }

    /// Writes a value without a precondition.
    fn put(&self, key: Key, value: Value) -> BoxFuture<'_, Result<Receipt>> {
        self.write_one(Write::put(key, value))
    }

    /// Removes a record without a precondition.
    fn delete(&self, key: Key) -> BoxFuture<'_, Result<Receipt>> {
        self.write_one(Write::delete(key))
    }

    /// Applies one write with default options.
    fn write_one(&self, write: Write) -> BoxFuture<'_, Result<Receipt>> {
        Box::pin(async move { one(self.write(vec![write], &WriteOptions::default()).await?) })
    }

    /// Writes a value if the record still has this version; `false` when it has another.
    fn put_if(&self, key: Key, value: Value, version: Version) -> BoxFuture<'_, Result<bool>> {
        let write = Write::put(key, value).when(Precondition::Version(version));
        Box::pin(
            async move { Ok(self.write_one(write).await?.outcome != Outcome::PreconditionFailed) },
        )
    }
}

impl<S: Store + ?Sized> StoreExt for S {}

/// The single answer to a batch of one.
///
/// # Errors
/// [`ErrorKind::Internal`] when a store broke the contract and answered none or several.
pub fn one<T>(answers: Vec<T>) -> Result<T> {
    let count = answers.len();
    match <[T; 1]>::try_from(answers) {
        Ok([answer]) => Ok(answer),
        Err(_) => Err(Error::new(ErrorKind::Internal, "a store broke its contract")
            .with("answers", count.to_string())
            .with("asked", "1")),
    }
}
