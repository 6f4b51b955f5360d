//! The one error type of every store and layer.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Key;

/// What every fallible call of this crate answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Kinds of failure, one for each way in which a caller would act differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is wrong and stays wrong: change it.
    InvalidInput,
    /// A part is down or cannot be reached. Nothing was applied.
    Unavailable,
    /// A limit is reached (pool, queue, concurrency). Nothing was applied; come back later.
    Overloaded,
    /// The deadline passed before the work began or while nothing could have been applied.
    DeadlineExceeded,
    /// The write left, the answer did not come: it may or may not have been applied.
    OutcomeUnknown,
    /// Nobody said who is asking.
    Unauthenticated,
    /// Who is asking may not do this.
    Forbidden,
    /// Who is asking has used up the allowance.
    RateLimited,
    /// The shard that was asked no longer has what it had under the caller's map, or has more.
    /// Nothing was applied: look the keys up in a new map.
    Moved,
    /// What was read back is not what a store can have written.
    Corrupt,
    /// A defect of Terrace.
    Internal,
}

impl ErrorKind {
    /// Whether the same request may succeed later. True for [`OutcomeUnknown`](Self::OutcomeUnknown)
    /// too, but there a retry is safe only with an idempotency key or a precondition.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Unavailable
                | Self::Overloaded
                | Self::DeadlineExceeded
                | Self::OutcomeUnknown
                | Self::RateLimited
                | Self::Moved
        )
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidInput => "invalid input",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::OutcomeUnknown => "outcome unknown",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate limited",
            Self::Moved => "moved",
            Self::Corrupt => "corrupt",
            Self::Internal => "internal",
        })
    }
}

/// A failure: its kind, a message for the person who asked, and for the log where and why.
///
/// The message says what is wrong and what to do next. It may be shown to a client, so it never
/// holds a driver's text, an address or a secret; those belong in the source. Errors are cheap to
/// clone, because one failed batch answers many waiting callers.
///
/// ```
/// # use terrace_core::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::Unavailable, "the database cannot be reached; try again")
///     .during("read")
///     .with("store", "postgres");
/// assert!(error.is_retryable());
/// assert_eq!(error.message(), "the database cannot be reached; try again");
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    operation: &'static str,
    context: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
    locked: Option<Arc<[Key]>>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind; the message is for the person who asked.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            operation: "",
            context: Vec::new(),
            retry_after: None,
            locked: None,
            source: None,
        }))
    }

    /// An [`ErrorKind::InvalidInput`] with this message.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// Puts before the message where it was found.
    #[must_use]
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        let message = format!("{place}: {}", self.0.message);
        self.inner().message = message.into();
        self
    }

    /// Names the operation that failed, unless something nearer to the failure already did.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        if self.0.operation.is_empty() {
            self.inner().operation = operation;
        }
        self
    }

    /// Adds a fact for the log.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.inner().context.push((name, value.into()));
        self
    }

    /// Keeps what caused it, for the log only.
    #[must_use]
    pub fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.inner().source = Some(Arc::new(source));
        self
    }

    /// Says how long to wait before the next try.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.inner().retry_after = Some(wait);
        self
    }

    /// Says that rows of the batch are locked by another session, and nothing was applied: those of these
    /// keys, and a batch without them may go through; or of some that nobody can name.
    #[must_use]
    pub fn locked(mut self, keys: impl Into<Arc<[Key]>>) -> Self {
        self.inner().locked = Some(keys.into());
        self
    }

    /// The same failure seen as another kind, for layers that know more than their inner store.
    #[must_use]
    pub fn into_kind(mut self, kind: ErrorKind) -> Self {
        self.inner().kind = kind;
        self
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What is wrong and what to do next; may be shown to a client.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The operation that failed, or "" when nobody named it.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// How long to wait before the next try, when the failing part knows.
    pub fn wait(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the part that was asked did not do its work, and would not have done another request's: it
    /// cannot be reached, or did not answer in time. What the request itself is the reason of is none, nor is
    /// a limit, nor a row that somebody holds.
    pub fn is_outage(&self) -> bool {
        let kind = matches!(
            self.kind(),
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::OutcomeUnknown
        );
        kind && self.0.locked.is_none()
    }

    /// See [`locked`](Self::locked): the keys, if they have a name; `None` when it is another failure.
    pub fn locked_keys(&self) -> Option<&[Key]> {
        self.0.locked.as_deref()
    }

    /// A fact for the log, by its name.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.0.context.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// See [`ErrorKind::is_retryable`].
    pub fn is_retryable(&self) -> bool {
        self.kind().is_retryable()
    }

    /// What the log knows beyond the message: the facts and the chain of causes, in one line. For the
    /// operator, not for clients; empty when there is nothing.
    pub fn particulars(&self) -> String {
        let facts = self.0.context.iter().map(|(name, value)| format!("{name} {value}"));
        let mut all: Vec<String> = facts.collect();
        let mut source = self.source();
        while let Some(cause) = source {
            all.push(cause.to_string());
            source = cause.source();
        }
        all.join(": ")
    }

    fn inner(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }
}

impl fmt::Display for Error {
    /// One line for a log: kind, operation, message, context, and the chain of causes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.kind)?;
        if !self.0.operation.is_empty() {
            write!(f, " during {}", self.0.operation)?;
        }
        write!(f, ": {}", self.0.message)?;
        for (name, value) in &self.0.context {
            write!(f, ", {name}={value}")?;
        }
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl PartialEq for Error {
    /// Two errors are the same to a caller when their kind and message are.
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.message() == other.message()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_names_everything_and_a_message_only_what_clients_may_see() {
        let error = Error::new(ErrorKind::Unavailable, "try again")
            .during("read")
            .during("outer")
            .with("shard", "2")
            .caused_by(std::io::Error::other("connection refused"));
        assert_eq!(
            error.to_string(),
            "unavailable during read: try again, shard=2: connection refused"
        );
        assert_eq!(error.message(), "try again");
        assert_eq!(error.particulars(), "shard 2: connection refused");
    }

    #[test]
    fn a_changed_clone_leaves_the_original_alone() {
        let error = Error::invalid("bad");
        let other = error.clone().into_kind(ErrorKind::Internal);
        assert_eq!((error.kind(), other.kind()), (ErrorKind::InvalidInput, ErrorKind::Internal));
    }
}
