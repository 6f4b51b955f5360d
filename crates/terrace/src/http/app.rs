//! What all requests share: the store, the routes made from the table, and the counters.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt as _;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use terrace_core::{Key, Origin, Runtime, Store};

use super::call::Call;
use super::documents::DocumentsFace;
use super::problem::{Kind, Problem};
use super::reply::{Answer, Reply};
use super::request_id::{RequestIds, X_REQUEST_ID};
use super::routes::Routes;
use super::{
    ClearCache, LevelInfo, Limits, Queries, Service, Shards, body, documents, openapi, operations,
    records,
};

/// The service, ready to answer.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) level: LevelInfo,
    pub(crate) face: Option<&'static DocumentsFace>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) caches: Vec<Arc<dyn ClearCache>>,
    pub(crate) shards: Option<Arc<dyn Shards>>,
    pub(crate) queries: Option<Arc<dyn Queries>>,
    pub(crate) limits: Limits,
    pub(crate) runtime: Runtime,
    pub(crate) pages: openapi::Pages,
    pub(crate) draining: AtomicBool,
    panics: AtomicU64,
    ids: RequestIds,
    routes: Routes,
}

impl App {
    /// Builds the routes and the documents from one table.
    pub(crate) fn new(service: Service) -> Self {
        let Service { level, store, caches, shards, queries, limits, runtime } = service;
        let face = documents::face(level.number);
        let mut table = Vec::new();
        table.extend(face.map(documents::endpoints).unwrap_or_default());
        table.extend(records::endpoints(level.queues()));
        table.extend(queries.iter().flat_map(|_| super::queries::endpoints()));
        table.extend(operations::endpoints(face));
        Self {
            pages: openapi::Pages::new(&level, &table),
            routes: Routes::new(&table),
            draining: AtomicBool::new(false),
            panics: AtomicU64::new(0),
            ids: RequestIds::new(&runtime),
            level,
            face,
            store,
            caches,
            shards,
            queries,
            limits,
            runtime,
        }
    }

    /// The number of the shard that an answer for a key came from; a cache keeps none, so it is the
    /// one that has the key now.
    pub(crate) fn shard_of(&self, key: &Key, origin: Origin) -> Option<u16> {
        origin.shard.or_else(|| self.shards.as_ref()?.shard_of(key))
    }

    /// Answers one request, whatever happens.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let (parts, body) = request.into_parts();
        let id = self.ids.of(&parts.headers);
        let mut call = Call { app: Arc::clone(&self), parts, body: Some(body) };
        let outcome = AssertUnwindSafe(self.run(&mut call)).catch_unwind().await;
        let answer = outcome.unwrap_or_else(|panic| Err(self.panicked(&*panic)));
        let mut reply = match answer {
            Ok(reply) => reply,
            Err(problem) => {
                if let Some(body) = call.body.take() {
                    body::discard(body, &call.parts.headers, &self.limits, &self.runtime).await;
                }
                problem.into_reply(&id)
            }
        };
        reply.headers_mut().insert(X_REQUEST_ID, id.into_header());
        reply
    }

    async fn run(&self, call: &mut Call) -> Answer {
        self.check_head(call)?;
        let handler = self.routes.find(&call.parts.method, call.parts.uri.path())?;
        handler(call).await
    }

    /// Limits that can be told with a problem document. Far larger requests are refused by the HTTP
    /// parser, without one.
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
