//! A span for each call of a layer.

use std::fmt;
use std::sync::Arc;

use opentelemetry::trace::{SpanBuilder, SpanKind, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};
use terrace_core::{
    BoxFuture, Inspection, Key, Page, Precondition, Read, ReadOptions, Receipt, Result, Scan,
    Store, Write, WriteOptions,
};

use super::on::Tracing;

/// Makes a span of each call that is a part of a traced request; other calls go through.
///
/// The span has the layer's name, what is called, how many keys, and the kind of an error: never a key. A
/// call of a flusher is the beginning of a trace, with links to the requests whose writes it applies.
#[derive(Debug)]
pub(super) struct Spanned {
    inner: Arc<dyn Store>,
    /// The layer's, without what is below it.
    name: String,
    tracing: &'static Tracing,
    /// Whether what it accepts is applied later.
    is_applied_later: bool,
}

impl Spanned {
    /// Around this layer.
    pub(super) fn new(inner: Arc<dyn Store>, tracing: &'static Tracing) -> Self {
        let stack = inner.to_string();
        let name = stack.split('(').next().unwrap_or(&stack).to_owned();
        Self { inner, name, tracing, is_applied_later: false }
    }

    /// Around a layer of which what it accepts is applied later.
    pub(super) fn applied_later(inner: Arc<dyn Store>, tracing: &'static Tracing) -> Self {
        Self { is_applied_later: true, ..Self::new(inner, tracing) }
    }

    /// A call as a span below the current one, if that is kept.
    async fn in_trace<T>(
        &self,
        operation: &str,
        keys: Option<usize>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let parent = Context::current();
        match parent.span().is_recording() {
            true => self.tracing.under(&parent, self.span(operation, keys), work).await,
            false => work.await,
        }
    }

    fn span(&self, operation: &str, keys: Option<usize>) -> SpanBuilder {
        let span = SpanBuilder::from_name(format!("{} {operation}", self.name));
        let keys =
            keys.map(|keys| KeyValue::new("terrace.keys", i64::try_from(keys).unwrap_or(i64::MAX)));
        span.with_kind(SpanKind::Internal).with_attributes(keys)
    }

    /// The flusher's call: it has no request of its own.
    async fn apply(&self, batch: Vec<Write>, how: &WriteOptions) -> Result<Vec<Receipt>> {
        let places = batch.iter().filter_map(|write| match &write.precondition {
            Precondition::After(place) => Some((&write.key, (0, place.sequence.get()))),
            _ => None,
        });
        let (links, keys) = self.tracing.accepted.applied(places);
        let work = async { self.inner.write(batch, how).await };
        let receipts = self.tracing.linked(format!("{} write", self.name), links, work).await?;
        // One that failed comes again.
        self.tracing.accepted.forget(&keys);
        Ok(receipts)
    }
}

impl fmt::Display for Spanned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Spanned {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        // Called within the span: a layer may go on to the next one before it is polled.
        let work = async { self.inner.read(keys, how).await };
        Box::pin(self.in_trace("read", Some(keys.len()), work))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            let keys = batch.len();
            if !Context::current().span().is_recording() {
                return self.apply(batch, how).await;
            }
            let note = self.is_applied_later.then(|| self.tracing.accepted.note(&batch));
            let work = async { self.inner.write(batch, how).await };
            let result = self.in_trace("write", Some(keys), work).await;
            if let Some(note) = note {
                note.ended(&result);
            }
            result
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.in_trace("scan", None, async { self.inner.scan(scan, how).await }))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.inner.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}
