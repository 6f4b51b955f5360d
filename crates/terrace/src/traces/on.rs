//! The spans of this process.

use std::sync::{Arc, OnceLock};

use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{
    Link, SpanBuilder, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample,
};
use terrace_core::{BoxFuture, ReadModel, Result, Runtime, Spawn, Store, Task};

use super::accepted::Accepted;
use super::export::{Counts, Exporting};
use super::layer::Spanned;
use super::projection::SpannedModel;
use crate::config::TracesConfig;
use crate::http::{Middleware, Spans};

static TRACING: OnceLock<Tracing> = OnceLock::new();

/// What spans are made with.
#[derive(Debug)]
pub(crate) struct Tracing {
    pub(crate) tracer: SdkTracer,
    pub(crate) counts: Arc<Counts>,
    pub(super) accepted: Accepted,
    exporting: Exporting,
}

impl Tracing {
    /// The work as a span below this one.
    pub(super) async fn under<T>(
        &self,
        parent: &Context,
        span: SpanBuilder,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let span = self.tracer.build_with_context(span, parent);
        let open = Open(parent.with_span(span));
        let result = work.with_context(open.0.clone()).await;
        if let Err(error) = &result {
            let span = open.0.span();
            span.set_attribute(KeyValue::new("error.type", error.kind().to_string()));
            span.set_status(Status::error(""));
        }
        result
    }

    /// The work as the beginning of a trace that goes on from others; no span if it does not.
    pub(super) async fn linked<T>(
        &self,
        name: String,
        links: Vec<Link>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if links.is_empty() {
            return work.await;
        }
        let span = SpanBuilder::from_name(name).with_kind(SpanKind::Consumer).with_links(links);
        self.under(&Context::new(), span, work).await
    }
}

/// A span that ends when this is dropped: also when its caller went away, and though tasks hold on to it.
pub(crate) struct Open(pub(crate) Context);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

/// Makes spans from now on, where the settings name a collector.
///
/// # Errors
/// `Invalid` for an address that is no URL; `Internal` when there can be no thread more.
pub(crate) fn start(config: &TracesConfig) -> Result<()> {
    if config.endpoint.is_empty() {
        return Ok(());
    }
    let resource = Resource::builder_empty()
        .with_service_name("terrace")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let (queue, exporting) = Exporting::start(&config.endpoint, &resource)?;
    let counts = exporting.counts();
    let provider = SdkTracerProvider::builder()
        .with_sampler(Requests::one_in(config.sample_one_in))
        .with_span_processor(queue)
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("terrace");
    let _ = TRACING.set(Tracing { tracer, counts, accepted: Accepted::default(), exporting });
    Ok(())
}

/// What spans are made with, where there is a collector.
fn active() -> Option<&'static Tracing> {
    TRACING.get()
}

/// The system's runtime. What is spawned for a traced request is a part of its trace.
pub(crate) fn runtime() -> Runtime {
    let system = Runtime::system();
    match active() {
        Some(_) => system.clone().spawned_by(Arc::new(InTrace(system))),
        None => system,
    }
}

/// Makes a span of each request.
pub(crate) fn guard() -> Option<Arc<dyn Middleware>> {
    active().map(|tracing| Arc::new(Spans::new(tracing)) as _)
}

/// A layer of which each call is a span, where it is a part of a traced request.
pub(crate) fn spans(store: Arc<dyn Store>) -> Arc<dyn Store> {
    match active() {
        Some(tracing) => Arc::new(Spanned::new(store, tracing)),
        None => store,
    }
}

/// The same for a layer of which what it accepts is applied later.
pub(crate) fn spans_of_later(store: Arc<dyn Store>) -> Arc<dyn Store> {
    match active() {
        Some(tracing) => Arc::new(Spanned::applied_later(store, tracing)),
        None => store,
    }
}

/// A read model of which what is projected is a span, where it is a write of a traced request.
pub(crate) fn spans_of_projection(model: Arc<dyn ReadModel>) -> Arc<dyn ReadModel> {
    match active() {
        Some(tracing) => Arc::new(SpannedModel::new(model, tracing)),
        None => model,
    }
}

/// Sends what has ended, for a second at most.
pub(crate) fn end() {
    if let Some(tracing) = active() {
        tracing.exporting.end();
    }
}

/// Spawns what a traced request needs within its trace.
#[derive(Debug)]
struct InTrace(Runtime);

impl Spawn for InTrace {
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) -> Task {
        let context = Context::current();
        match context.span().is_recording() {
            true => self.0.spawn(name, work.with_context(context)),
            false => self.0.spawn(name, work),
        }
    }
}

/// Which traces are kept: as the client decided, else one in so many; what applies the writes of traced
/// requests is traced, too.
#[derive(Clone, Debug)]
struct Requests(Sampler);

impl Requests {
    fn one_in(many: u32) -> Self {
        let ratio = Sampler::TraceIdRatioBased(1.0 / f64::from(many));
        Self(Sampler::ParentBased(Box::new(ratio)))
    }
}

impl ShouldSample for Requests {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let sampled = self.0.should_sample(parent, trace, name, kind, attributes, links);
        match links.is_empty() {
            true => sampled,
            false => SamplingResult { decision: SamplingDecision::RecordAndSample, ..sampled },
        }
    }
}
