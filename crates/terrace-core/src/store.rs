//! The contract: five methods, batches first, one error type.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{
    Deadline, Durability, Error, ErrorKind, Idempotency, Inspection, Key, Outcome, Page,
    Precondition, Read, Receipt, Record, RegionName, Result, Scan, Token, Value, Version, Write,
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
    /// A key may be asked for twice; no keys, no answers. More values than the [`Budget`] holds are
    /// refused before they are loaded.
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

    /// Answers the records after a cursor in byte order of their keys. A page ends early where its
    /// values reach [`Page::MAX_BYTES`].
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

/// How many bytes of values the answer of one read may have; the default sets no limit.
///
/// A store stops where they are more, before it loads them: what is refused costs no memory. A limit is
/// at least [`Value::MAX_BYTES`], so the read of one key is always answered.
///
/// ```
/// # use terrace_core::{Budget, Value};
/// let budget = Budget::bytes(16 * Value::MAX_BYTES);
/// assert!(budget.holds(16) && !budget.holds(17));
/// assert!(Budget::default().holds(1000));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    limit: usize,
    left: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { limit: usize::MAX, left: usize::MAX }
    }
}

impl Budget {
    /// At most so many bytes of values.
    pub const fn bytes(limit: usize) -> Self {
        let limit = if limit < Value::MAX_BYTES { Value::MAX_BYTES } else { limit };
        Self { limit, left: limit }
    }

    /// Whether it holds so many values, however large they are.
    pub const fn holds(self, values: usize) -> bool {
        values <= self.left / Value::MAX_BYTES
    }

    /// How many bytes are left.
    pub const fn left(self) -> usize {
        self.left
    }

    /// Takes the bytes of a value off.
    ///
    /// # Errors
    /// [`Budget::exceeded`] when they are more than is left.
    pub fn spend(&mut self, bytes: usize) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| self.exceeded())?;
        Ok(())
    }

    /// The error of a read whose answer would be too large.
    pub fn exceeded(&self) -> Error {
        Error::invalid(format!(
            "the values of these keys have more than {} bytes together, and an answer holds no more; \
             ask for fewer keys at once",
            self.limit
        ))
    }
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
    /// How large the answer of [`Store::read`] may be; pages have their own bound.
    pub budget: Budget,
    /// Where to read, where there are several regions; `None` where the client is.
    pub region: Option<RegionName>,
}

impl ReadOptions {
    /// A strong read by this deadline.
    pub fn strong(deadline: Deadline) -> Self {
        Self { consistency: Consistency::Strong, deadline, ..Self::default() }
    }

    /// The same for what is left to read, when these answers are there.
    ///
    /// # Errors
    /// [`Budget::exceeded`] when they are too large already.
    pub fn after<'r>(&self, answers: impl IntoIterator<Item = &'r Read>) -> Result<Cow<'_, Self>> {
        if self.budget == Budget::default() {
            return Ok(Cow::Borrowed(self));
        }
        let mut budget = self.budget;
        for record in answers.into_iter().filter_map(|read| read.record.as_ref()) {
            budget.spend(record.value.as_str().len())?;
        }
        Ok(Cow::Owned(Self { budget, ..self.clone() }))
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
    /// Where to write, where there are several regions; `None` where the client is.
    pub region: Option<RegionName>,
    /// With [`Durability::Replicated`]: whether every region must have it, or most of them.
    pub everywhere: bool,
    /// Whether it was acknowledged before, so that nobody waits for it and nobody would repeat it: it
    /// waits for its turn until the deadline where others are refused for want of capacity.
    pub background: bool,
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
