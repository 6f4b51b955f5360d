//! Spans of requests and of the layers that handle them, for a collector of OpenTelemetry.
//!
//! There are two places in which spans are made. [`Spans`](crate::http::Spans) is a guard that makes one
//! for each request. [`layer::Spanned`] is a store around a store, which makes one for each call that is a
//! part of a traced request; composition puts it around each layer by [`spans`]. The parent of a span is
//! the current [`Context`](opentelemetry::Context), which is set while a future is polled and goes along
//! into tasks. Layers, stores and the contract know nothing of all this.
//!
//! What has ended goes into a bounded queue, which a thread of its own empties ([`export`]): a collector
//! that is slow or dead costs spans, and no request any time.
//!
//! As with the log, there is one of it in a process. Without a collector no store is wrapped and no guard
//! stands before the endpoints; without the feature `otlp` there is nothing to wrap them with.

#[cfg(feature = "otlp")]
mod accepted;
#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod layer;
#[cfg(feature = "otlp")]
mod on;
#[cfg(feature = "otlp")]
mod projection;
#[cfg(feature = "otlp")]
pub(crate) use on::{
    Open, Tracing, end, guard, runtime, spans, spans_of_later, spans_of_projection, start,
};

#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(not(feature = "otlp"))]
pub(crate) use off::{end, guard, runtime, spans, spans_of_later, spans_of_projection, start};

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use terrace_core::{MemoryStore, Store};

    #[test]
    fn without_a_collector_nothing_stands_in_the_way() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        for same in [super::spans(Arc::clone(&store)), super::spans_of_later(Arc::clone(&store))] {
            assert!(Arc::ptr_eq(&store, &same));
        }
        assert!(super::guard().is_none());
    }
}
