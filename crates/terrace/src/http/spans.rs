//! A span for each request, as OpenTelemetry's conventions for HTTP servers have it.
//!
//! It has the method, the route as the documentation has it, and the status: never the path, a key, a client
//! or its address. `url.path`, which the conventions ask for, is therefore left out. The name of the request is
//! in the log, beside the trace.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;

use hyper::header::HeaderMap;
use opentelemetry::context::FutureExt as _;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use terrace_core::{BoxFuture, Inspection};
use tracing::Instrument as _;

use super::call::Call;
use super::middleware::{Middleware, Next};
use super::reply::Answer;
use super::routes::Route;
use super::trace_id::{TRACEPARENT, TraceId};
use crate::traces::{Open, Tracing};

/// Makes a span of each request, below the client's where it names one.
#[derive(Debug)]
pub(crate) struct Spans {
    tracing: &'static Tracing,
    /// Made once the routes are known, which is before the first request.
    routes: OnceLock<Vec<Named>>,
}

/// What the spans of a route have in common.
#[derive(Debug)]
struct Named {
    name: String,
    attributes: Vec<KeyValue>,
}

impl Spans {
    pub(crate) fn new(tracing: &'static Tracing) -> Self {
        Self { tracing, routes: OnceLock::new() }
    }
}

impl Named {
    fn of(route: &Route) -> Self {
        let method = route.method.as_ref().map(|method| method.as_str().to_owned());
        let known = method.clone().unwrap_or_else(|| "_OTHER".to_owned());
        let mut attributes = vec![KeyValue::new("http.request.method", known)];
        attributes.extend(route.path.map(|path| KeyValue::new("http.route", path)));
        let name = method.unwrap_or_else(|| "HTTP".to_owned());
        let name = [Some(name.as_str()), route.path].into_iter().flatten().collect::<Vec<_>>();
        Self { name: name.join(" "), attributes }
    }
}

impl Middleware for Spans {
    fn learn(&self, routes: &[Route]) {
        let _ = self.routes.set(routes.iter().map(Named::of).collect());
    }

    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
        let named = self.routes.get().and_then(|routes| routes.get(next.route()));
        let Some(Named { name, attributes }) = named else { return next.run(call) };
        let scheme = if call.app.tls.is_some() { "https" } else { "http" };
        let attributes = attributes.iter().cloned().chain([
            KeyValue::new("url.scheme", scheme),
            KeyValue::new("terrace.level", call.app.name),
        ]);
        let span = SpanBuilder::from_name(name.clone()).with_kind(SpanKind::Server);
        let span = span.with_attributes(attributes);
        let parent = Sent(&call.parts.headers);
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &parent);
        let span = self.tracing.tracer.build_with_context(span, &parent);
        let open = Open(Context::new().with_span(span));
        let trace = open.0.span().span_context().trace_id();
        let trace = TraceId::new(u128::from_be_bytes(trace.to_bytes()));
        call.trace = Some(trace);
        if !open.0.span().is_recording() {
            return next.run(call);
        }
        // What is logged meanwhile says of which request.
        let lines =
            tracing::info_span!("request", request_id = call.id.as_str(), trace_id = %trace);
        Box::pin(async move {
            let work = async { next.run(call).await };
            let answer = work.with_context(open.0.clone()).instrument(lines).await;
            let status = match &answer {
                Ok(reply) => reply.status(),
                Err(problem) => problem.status(),
            };
            let span = open.0.span();
            span.set_attribute(KeyValue::new(
                "http.response.status_code",
                i64::from(status.as_u16()),
            ));
            if status.is_server_error() {
                span.set_attribute(KeyValue::new("error.type", status.as_str().to_owned()));
                span.set_status(Status::error(""));
            }
            answer
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Option<Inspection>> {
        let counts = &self.tracing.counts;
        let part = Inspection::new("traces")
            .counter("exported", counts.exported.load(Relaxed))
            .counter("dropped", counts.dropped.load(Relaxed));
        Box::pin(async move { Some(part) })
    }
}

/// What a client says of its trace. Its `tracestate` is its own affair.
struct Sent<'a>(&'a HeaderMap);

impl Extractor for Sent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (TRACEPARENT == key).then(|| self.0.get(TRACEPARENT)?.to_str().ok()).flatten()
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}
