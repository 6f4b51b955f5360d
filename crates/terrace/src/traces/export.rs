//! From spans that have ended to a collector, on a thread of its own.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc as threads};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use hyper::header::CONTENT_TYPE;
use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message as _;
use terrace_core::{Deadline, Error, ErrorKind, Result, Runtime};
use tokio::sync::{mpsc, watch};

use crate::config::redacted;
use crate::outbound::Remote;

/// Spans that wait to be sent: 4 MiB or so. More are dropped.
const QUEUE: usize = 4096;
/// The most spans of one request to the collector.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of the process waits for what has ended to be sent.
const LAST: Duration = Duration::from_secs(1);
/// Bytes of an answer.
const ANSWER: usize = 64 * 1024;
/// Where OTLP/HTTP has its traces.
const PATH: &str = "/v1/traces";

/// What became of spans that have ended.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Taken by the collector.
    pub(crate) exported: AtomicU64,
    /// Lost: the queue was full, or the collector did not take them.
    pub(crate) dropped: AtomicU64,
}

/// Takes spans that have ended, and lets nobody wait.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// [`Exporting::end`] does it, which knows how long it may take.
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The thread that sends them.
#[derive(Debug)]
pub(super) struct Exporting {
    counts: Arc<Counts>,
    stop: watch::Sender<bool>,
    /// Told of its end by being cut off.
    ended: Mutex<threads::Receiver<()>>,
}

impl Exporting {
    /// Starts to send to this collector. Whether it can be reached does not matter.
    ///
    /// # Errors
    /// `Invalid` for an address that is no URL; `Internal` when there can be no thread more.
    pub(super) fn start(endpoint: &str, resource: &Resource) -> Result<(Queue, Self)> {
        let endpoint = endpoint.trim_end_matches('/');
        let path = if endpoint.ends_with(PATH) { "" } else { PATH };
        let collector = Remote::at(&format!("{endpoint}{path}"))?.ok_or_else(|| {
            let shown = redacted(endpoint);
            Error::invalid(format!("traces.endpoint is {shown:?}; give http://host:4318"))
        })?;
        let no_thread = |error| {
            Error::new(ErrorKind::Internal, "the thread of traces cannot be started")
                .caused_by(error)
        };
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let tokio = tokio.map_err(no_thread)?;
        let ((spans, queue), (stop, stopping)) = (mpsc::channel(QUEUE), watch::channel(false));
        let (alive, ended) = threads::channel();
        let counts = Arc::<Counts>::default();
        let export = Export {
            collector,
            resource: resource.into(),
            queue,
            stopping,
            counts: Arc::clone(&counts),
            runtime: Runtime::system(),
            fails: false,
        };
        let work = move || {
            let _alive: threads::Sender<()> = alive;
            tokio.block_on(export.run());
        };
        thread::Builder::new().name("traces".to_owned()).spawn(work).map_err(no_thread)?;
        let queue = Queue { spans, counts: Arc::clone(&counts) };
        Ok((queue, Self { counts, stop, ended: Mutex::new(ended) }))
    }

    /// What became of the spans.
    pub(super) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Sends what has ended by now, for a second at most: a collector that does not answer must not keep
    /// the process. Blocks the thread.
    pub(super) fn end(&self) {
        self.stop.send_replace(true);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(LAST);
    }
}

/// What the thread does.
struct Export {
    collector: Remote,
    resource: ResourceAttributesWithSchema,
    queue: mpsc::Receiver<SpanData>,
    stopping: watch::Receiver<bool>,
    counts: Arc<Counts>,
    runtime: Runtime,
    fails: bool,
}

impl Export {
    /// Until it is to end and nothing waits.
    async fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let stops = tokio::select! {
                _ = self.queue.recv_many(&mut batch, BATCH) => false,
                _ = self.stopping.wait_for(|stop| *stop) => true,
            };
            if !stops && batch.len() < BATCH {
                tokio::select! {
                    () = self.runtime.sleep(LINGER) => {}
                    _ = self.stopping.wait_for(|stop| *stop) => {}
                }
            }
            while batch.len() < BATCH
                && let Ok(span) = self.queue.try_recv()
            {
                batch.push(span);
            }
            if !batch.is_empty() {
                self.send(std::mem::take(&mut batch)).await;
            } else if stops {
                return;
            }
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let deadline = Deadline::at(self.runtime.now() + PATIENCE);
        let sent = self.runtime.within(deadline, self.post(batch)).await;
        let late = || Err("it does not answer".to_owned());
        let (refused, why) = match sent.unwrap_or_else(late) {
            Ok(refused) => (refused.min(count), None),
            Err(why) => (count, Some(why)),
        };
        self.counts.exported.fetch_add(count - refused, Relaxed);
        self.counts.dropped.fetch_add(refused, Relaxed);
        match (why, self.fails) {
            (Some(why), false) => tracing::warn!(why, "the collector of traces takes none"),
            (None, true) => tracing::info!("the collector of traces takes them again"),
            (Some(_), true) | (None, false) => return,
        }
        self.fails = !self.fails;
    }

    /// Answers how many the collector refuses.
    async fn post(&self, batch: Vec<SpanData>) -> std::result::Result<u64, String> {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let request = Request::post(self.collector.path());
        let request = request.header(CONTENT_TYPE, "application/x-protobuf");
        let mut connection = self.collector.connect().await?;
        let answer = connection.send(request, Bytes::from(body), ANSWER).await?;
        if !answer.status().is_success() {
            return Err(format!("it answers {}", answer.status()));
        }
        let told = ExportTraceServiceResponse::decode(answer.into_body());
        let refused = told.ok().and_then(|told| told.partial_success);
        Ok(refused.map_or(0, |it| u64::try_from(it.rejected_spans).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[test]
    fn a_full_queue_loses_spans_and_lets_nobody_wait() {
        let ((spans, mut queue), counts) = (mpsc::channel(2), Arc::<Counts>::default());
        let processor = Queue { spans, counts: Arc::clone(&counts) };
        let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
        let tracer = provider.tracer("test");
        for _ in 0..5 {
            tracer.start("a span").end();
        }
        assert_eq!(counts.dropped.load(Relaxed), 3);
        assert!(queue.try_recv().is_ok());
        tracer.start("a span").end();
        assert_eq!(counts.dropped.load(Relaxed), 3);
    }
}
