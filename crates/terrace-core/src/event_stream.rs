//! The port of streams on which changes are published for others.

use std::fmt;

use futures_util::future::BoxFuture;

use crate::{Inspection, LogPosition, Logged, Result};

/// A stream that keeps events in the order of their positions and takes each position once.
pub trait EventStream: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The last position published, by whoever published it: where to go on.
    ///
    /// # Errors
    /// `Unavailable` when the broker cannot be reached.
    fn last(&self) -> BoxFuture<'_, Result<LogPosition>>;

    /// Publishes events in rising order, all or none; `false`, and nothing is published, unless the
    /// last one is still this: another was faster, or the stream has lost its end.
    ///
    /// # Errors
    /// As [`EventStream::last`], which then tells whether they were published.
    fn publish<'a>(
        &'a self,
        last: LogPosition,
        events: &'a [Logged],
    ) -> BoxFuture<'a, Result<bool>>;

    /// As [`Store::inspect`](crate::Store::inspect).
    fn inspect(&self) -> BoxFuture<'_, Inspection>;
}

/// The name of an event on the wire, in answers and in streams: `epoch-offset`.
pub fn event_id(position: LogPosition) -> String {
    format!("{}-{}", position.epoch, position.offset)
}
