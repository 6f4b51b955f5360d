//! What is measured of requests, and `/metrics`.
//!
//! [`Metrics`] is a guard: the outermost, so that it sees what clients are answered, refusals of other
//! guards included. What it has counted, and the [`Inspection`] of all that is served, becomes a [`Page`]
//! at each scrape. Labels are names of routes and parts, so there are as many as there are of those,
//! whatever clients send.

mod documented;
mod meanings;
mod page;
mod parts;
mod requests;

use std::sync::{Arc, OnceLock};
use std::thread;

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use terrace_core::{BoxFuture, Error, ErrorKind, Inspection};

use super::call::Call;
use super::endpoint::{Described, Endpoint, Needs};
use super::face::{Face, Whole};
use super::middleware::{Middleware, Next};
use super::operations::GROUP;
use super::reply::{Answer, WithHeaders as _, full};
use super::routes::Route;
use super::schema::Shape;
use page::Page;
use requests::Requests;

/// Measures all requests of a level.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Made once the routes are known, which is before the first request.
    requests: OnceLock<Requests>,
}

impl Middleware for Metrics {
    fn learn(&self, routes: &[Route]) {
        let _ = self.requests.set(Requests::of(routes));
    }

    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
        let Some(requests) = self.requests.get() else { return next.run(call) };
        Box::pin(async move {
            let (begun, open) = (call.app.runtime.now(), Open { requests, route: next.route() });
            let answer = next.run(call).await;
            let took = call.app.runtime.now().saturating_duration_since(begun);
            let status = match &answer {
                Ok(reply) => reply.status(),
                Err(problem) => problem.status(),
            };
            open.requests.note(open.route, status, Some(took));
            answer
        })
    }

    fn face(self: Arc<Self>) -> Option<Face> {
        Some(Face::Metrics(self))
    }

    fn inspect(&self) -> BoxFuture<'_, Option<Inspection>> {
        let answered = self.requests.get().map_or(0, Requests::answered);
        Box::pin(async move { Some(Inspection::new("metrics").counter("requests", answered)) })
    }
}

/// A request that is not answered yet.
struct Open<'a> {
    requests: &'a Requests,
    route: usize,
}

impl Drop for Open<'_> {
    /// A panic becomes a 500 further out.
    fn drop(&mut self) {
        if thread::panicking() {
            self.requests.note(self.route, StatusCode::INTERNAL_SERVER_ERROR, None);
        }
    }
}

/// What a scrape looks at.
#[derive(Debug)]
struct Measured {
    metrics: Arc<Metrics>,
    whole: Arc<dyn Whole>,
}

/// The rows of the table.
pub(crate) fn endpoints(metrics: &Arc<Metrics>, whole: &Arc<dyn Whole>) -> Vec<Endpoint> {
    let measured = Measured { metrics: Arc::clone(metrics), whole: Arc::clone(whole) };
    let text = Described {
        status: StatusCode::OK,
        meaning: "One line for each figure.",
        content: Some(("text/plain", Shape::Text.schema(""))),
        headers: &[],
    };
    let endpoint = Endpoint::new(&Arc::new(measured), Method::GET, "/metrics", |measured, _| {
        Box::pin(scrape(measured))
    });
    let endpoint = endpoint
        .summary(GROUP, "All figures, for Prometheus")
        .open_to(Needs::Figures)
        .description("The text format 0.0.4. Figures are of this instance, since its start.")
        .described(text);
    vec![endpoint]
}

async fn scrape(measured: &Measured) -> Answer {
    let tree = measured.whole.inspect().await;
    let mut page = Page::default();
    parts::add(&tree, &mut page);
    if let Some(requests) = measured.metrics.requests.get() {
        documented::add(&tree, requests, &mut page);
    }
    let text = page.text().map_err(|error| {
        Error::new(ErrorKind::Internal, "the figures cannot be written").caused_by(error)
    })?;
    let content_type = HeaderValue::from_static(Page::CONTENT_TYPE);
    let reply = Response::new(full(text)).with(CONTENT_TYPE, content_type);
    Ok(reply.with(CACHE_CONTROL, HeaderValue::from_static("no-store")))
}

/// The help of figures of which nobody has written what they mean.
#[cfg(test)]
pub(crate) fn unexplained(tree: &Inspection) -> Vec<String> {
    let mut page = Page::default();
    parts::add(tree, &mut page);
    let text = page.text().expect("a text");
    text.lines()
        .filter(|line| line.starts_with("# HELP") && line.contains("` of `"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use futures_util::FutureExt as _;
    use hyper::Request;
    use terrace_core::{MemoryStore, Runtime, Store};

    use super::*;
    use crate::http::app::App;
    use crate::http::problem::{Kind, Problem};
    use crate::http::{Documents, Guards, Limits, Records, Service, documents};

    /// A guard that lets some requests through.
    #[derive(Debug)]
    struct Bouncer;

    impl Middleware for Bouncer {
        fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
            match call.parts.uri.path() {
                "/read/often" => {
                    Box::pin(async { Err(Problem::new(Kind::RateLimited, "not so fast")) })
                }
                "/read/defect" => Box::pin(async { panic!("a defect") }),
                _ => next.run(call),
            }
        }
    }

    fn measured() -> (Arc<Metrics>, Arc<App>, Arc<dyn Whole>) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let documents = Documents::of(&documents::L0, Records::of(Arc::clone(&store)));
        let metrics = Arc::new(Metrics::default());
        let guards = Guards::new(vec![Arc::clone(&metrics) as _, Arc::new(Bouncer)]);
        let whole = guards.before(Arc::new(store));
        let service = Service {
            name: "0-single-db",
            faces: guards.faces().chain([Face::Documents(Arc::new(documents))]).collect(),
            whole: Arc::clone(&whole),
            guards,
            limits: Limits { uri_bytes: 100, ..Limits::default() },
            tls: None,
            runtime: Runtime::system(),
        };
        (metrics, Arc::new(App::new(service)), whole)
    }

    async fn ask(app: &Arc<App>, method: &str, path: &str) {
        let request = Request::builder().method(method).uri(path).header("host", "a").body(());
        let (parts, ()) = request.expect("a request").into_parts();
        let mut call = Call::new(app, parts, None, None);
        let _ = AssertUnwindSafe(app.run(&mut call)).catch_unwind().await;
    }

    #[tokio::test]
    async fn what_is_refused_or_fails_is_counted_like_any_other() {
        let (metrics, app, whole) = measured();
        let long = format!("/read/{}", "x".repeat(100));
        for path in ["/read/a", "/read/often", "/read/often", "/read/defect", "/nothing", &long] {
            ask(&app, "GET", path).await;
        }
        for method in ["POST", "DELETE", "BREW"] {
            ask(&app, method, "/read/a").await;
        }
        let mut page = Page::default();
        let requests = metrics.requests.get().expect("the routes are known");
        documented::add(&whole.inspect().await, requests, &mut page);
        let said = page.text().expect("a text");
        for line in [
            "http_requests_total{method=\"GET\",endpoint=\"/read/{key}\",status=\"200\"} 1",
            "http_requests_total{method=\"GET\",endpoint=\"/read/{key}\",status=\"429\"} 2",
            "http_requests_total{method=\"GET\",endpoint=\"/read/{key}\",status=\"500\"} 1",
            "http_requests_total{method=\"GET\",endpoint=\"other\",status=\"404\"} 1",
            "http_requests_total{method=\"GET\",endpoint=\"other\",status=\"414\"} 1",
            "http_requests_total{method=\"POST\",endpoint=\"other\",status=\"405\"} 1",
            "http_requests_total{method=\"other\",endpoint=\"other\",status=\"405\"} 2",
            "http_request_duration_seconds_count{method=\"GET\",endpoint=\"/read/{key}\"} 3",
            "rate_limit_exceeded_total 2",
        ] {
            assert!(said.lines().any(|said| said == line), "{line} is not in\n{said}");
        }
        let tree = whole.inspect().await;
        assert_eq!(tree.find("metrics").and_then(|part| part.number("requests")), Some(9));
    }
}
