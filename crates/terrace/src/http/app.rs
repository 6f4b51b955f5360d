//! What all requests share: the routes made from the table, the limits, and the counters.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, DATE, HOST, HeaderMap, HeaderValue,
};
use hyper::{Request, Version};
use terrace_core::Runtime;

use super::call::Call;
use super::docs::Pages;
use super::endpoint::Endpoint;
use super::face::Face;
use super::front_caches::is_for_all;
use super::geography::Geography;
use super::middleware::{Guards, Next};
use super::problem::{Kind, Problem};
use super::reply::{Answer, REVALIDATE, Reply};
use super::request_id::{RequestIds, X_REQUEST_ID};
use super::routes::Routes;
use super::tls::Tls;
use super::{Limits, Service, body, http_date, operations};

/// The service, ready to answer.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) name: &'static str,
    pub(crate) limits: Limits,
    pub(crate) runtime: Runtime,
    pub(crate) pages: Pages,
    pub(crate) draining: AtomicBool,
    /// The certificate, where connections are over TLS.
    pub(crate) tls: Option<Tls>,
    /// Where requests may go.
    pub(crate) geography: Option<Arc<Geography>>,
    panics: AtomicU64,
    pub(super) ids: RequestIds,
    routes: Routes,
    guards: Guards,
}

impl App {
    /// Builds the routes and the documents from one table.
    pub(crate) fn new(service: Service) -> Self {
        let Service { name, faces, whole, guards, limits, tls, runtime } = service;
        let mut table = faces.iter().flat_map(|face| face.endpoints(&whole)).collect::<Vec<_>>();
        let health = faces.iter().map(Face::health_fields).collect();
        let operations = operations::endpoints(whole, health);
        // A face may have a page of its own at `/`.
        let taken = table.iter().map(|row: &Endpoint| row.path).collect::<Vec<_>>();
        table.extend(operations.into_iter().filter(|row| !taken.contains(&row.path)));
        let table = table.into_iter().map(|it| guards.describe(it)).collect::<Vec<_>>();
        let routes = Routes::new(&table);
        guards.learn(routes.all());
        Self {
            pages: Pages::new(name, &table),
            routes,
            draining: AtomicBool::new(false),
            tls,
            panics: AtomicU64::new(0),
            ids: RequestIds::new(&runtime),
            guards,
            geography: faces.iter().find_map(Face::geography),
            name,
            limits,
            runtime,
        }
    }

    /// Answers one request, whatever happens.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Option<IpAddr>,
    ) -> Reply {
        let (parts, body) = request.into_parts();
        let mut call = Call::new(&self, parts, Some(body), peer);
        let outcome = AssertUnwindSafe(self.run(&mut call)).catch_unwind().await;
        let answer = outcome.unwrap_or_else(|panic| Err(self.panicked(&*panic)));
        let mut reply = match answer {
            Ok(reply) => reply,
            Err(problem) => {
                if let Some(body) = call.body.take() {
                    body::discard(body, &call.parts.headers, &self.limits, &self.runtime).await;
                }
                problem.into_reply(&call)
            }
        };
        if !is_for_all(&reply) {
            reply.headers_mut().insert(X_REQUEST_ID, call.id.into_header());
        }
        reply.headers_mut().entry(CACHE_CONTROL).or_insert(REVALIDATE);
        reply
    }

    /// The last answer of a connection on which something came that is no request, as it is sent.
    pub(super) fn refusal(&self, problem: Problem) -> Bytes {
        let id = self.ids.of(&HeaderMap::new());
        let mut reply = problem.into_response(&id, None);
        let length = HeaderValue::from(reply.body().len());
        let date = http_date::write(self.runtime.wall());
        let headers = reply.headers_mut();
        headers.insert(X_REQUEST_ID, id.into_header());
        headers.insert(CONTENT_LENGTH, length);
        headers.insert(CONNECTION, body::CLOSE);
        date.and_then(|date| headers.insert(DATE, date));
        let mut bytes = format!("HTTP/1.1 {}\r\n", reply.status()).into_bytes();
        for (name, value) in reply.headers() {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(reply.body());
        bytes.into()
    }

    /// The chain without what no request may do without.
    pub(super) async fn run(&self, call: &mut Call) -> Answer {
        let method = &call.parts.method;
        let found = match self.check_head(call) {
            Ok(()) => self.routes.find(method, call.parts.uri.path()),
            Err(problem) => self.routes.refused(method, problem),
        };
        Next::new(&self.guards, found).run(call).await
    }

    /// What is wrong with a head that the HTTP library has read; others see [`App::refusal`].
    fn check_head(&self, call: &Call) -> Result<(), Problem> {
        let uri = &call.parts.uri;
        let length = uri.path().len() + uri.query().map_or(0, str::len);
        let limit = self.limits.uri_bytes;
        if length > limit {
            let detail = format!("the path and query are longer than {limit} bytes; shorten them");
            return Err(Problem::new(Kind::UriTooLong, detail));
        }
        let fields = call.parts.headers.iter();
        let length =
            fields.map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
        let limit = self.limits.header_bytes;
        if length > limit {
            let detail = format!("the headers are longer than {limit} bytes; send fewer");
            return Err(Problem::new(Kind::HeadersTooLarge, detail));
        }
        // RFC 9112, section 3.2: whoever reads another of two hosts would be led elsewhere.
        let mut hosts = call.parts.headers.get_all(HOST).iter();
        if hosts.next().is_none() && call.parts.version == Version::HTTP_11 {
            let detail = "the header Host is missing; send the name of the server in it";
            return Err(Problem::new(Kind::MalformedRequest, detail));
        }
        if hosts.next().is_some() {
            return Err(Problem::new(Kind::MalformedRequest, "Host is there twice; send it once"));
        }
        if call.parts.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
            return Err(Problem::invalid("Content-Length is there twice; send it once"));
        }
        Ok(())
    }

    /// A panic ends one request, not the connection's neighbours.
    fn panicked(&self, panic: &(dyn std::any::Any + Send)) -> Problem {
        let total = self.panics.fetch_add(1, Ordering::Relaxed) + 1;
        let message = panic.downcast_ref::<&str>().copied();
        let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let error = terrace_core::Error::new(
            terrace_core::ErrorKind::Internal,
            "this request met a defect of Terrace; report it with the request's id",
        );
        error
            .with("panic", message.unwrap_or("without a message"))
            .with("panics_total", total.to_string())
            .into()
    }
}
