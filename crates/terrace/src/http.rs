//! The HTTP side of a level: faces over ports, and knowledge of no engine.
//!
//! - [`Service`] is what is served: the [`Face`]s of a level, and limits;
//! - [`serve`] runs it on a listener until it is told to stop, and then finishes what it began;
//! - the documents' API (`/write`, `/read/{key}`, ...) differs from level to level and is described
//!   by data; the record API (`/v1/records`) is the same everywhere;
//! - routes, `/openapi.json` and `/docs` are made from one table, so they cannot differ.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::Runtime;

mod analytics;
mod app;
mod authenticate;
mod body;
mod call;
mod canary;
mod client_address;
mod client_name;
mod connection;
mod docs;
pub mod documents;
mod endpoint;
mod etag;
mod face;
mod fetched;
mod fields;
mod front_caches;
mod geography;
mod headers;
mod http_date;
mod in_process;
mod json;
mod live;
mod metrics;
mod middleware;
mod openapi;
mod operations;
mod path;
mod places;
mod polyglot;
mod problem;
mod queries;
mod rate_limit;
mod records;
mod refusals;
mod regions;
mod reply;
mod request_id;
mod routes;
mod schema;
mod secure;
mod server;
#[cfg(feature = "otlp")]
mod spans;
mod tls;
mod trace_id;

pub(crate) use authenticate::Authenticate;
pub use canary::ClientShare;
pub(crate) use canary::{Canary, CanaryOptions};
pub use client_address::TrustedProxies;
pub use documents::{Documents, DocumentsFace};
pub use face::{Analytics, ClearCache, Face, Queries, Regions, Shards, Whole};
pub(crate) use front_caches::{FrontCaches, TellFrontCaches};
pub use geography::{ClientPlaces, Geography};
pub(crate) use live::doorman;
pub use metrics::Metrics;
#[cfg(test)]
pub(crate) use metrics::unexplained;
pub use middleware::Guards;
pub(crate) use middleware::Middleware;
pub use polyglot::Polyglot;
pub(crate) use polyglot::{DOCUMENTS, TRANSACTIONS};
pub(crate) use rate_limit::RateLimit;
pub use records::{Records, Values};
pub(crate) use reply::origin_words;
pub use server::{bind, serve};
#[cfg(feature = "otlp")]
pub(crate) use spans::Spans;
pub(crate) use tls::Pair;
pub use tls::{PairFiles, Tls};

/// What is served.
#[derive(Clone, Debug)]
pub struct Service {
    /// The level's name on the wire, such as `5-multi-tier-cache`.
    pub name: &'static str,
    /// Its endpoints.
    pub faces: Vec<Face>,
    /// All that is behind them.
    pub whole: Arc<dyn Whole>,
    /// What stands before them.
    pub guards: Guards,
    /// What a client may use up.
    pub limits: Limits,
    /// The certificate, where connections are over TLS.
    pub tls: Option<Tls>,
    /// Clock, random numbers and background work.
    pub runtime: Runtime,
}

/// What a client may use up, and how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most connections at a time; further ones wait in the listener's queue. Default 10 000.
    pub connections: usize,
    /// The most requests at a time of one connection, over HTTP/2; the client hears of it and waits.
    /// Default 100.
    pub streams: u32,
    /// The most bytes of a path with its query (414). Default 8 KiB.
    pub uri_bytes: usize,
    /// The most bytes of all request headers (431). Default 32 KiB. A head of more than 100 headers
    /// or twice these bytes ends the connection.
    pub header_bytes: usize,
    /// The most bytes of a request body (413). Default 2 MiB.
    pub body_bytes: usize,
    /// The most bytes of a value, at most and by default 1 MiB (422).
    pub value_bytes: usize,
    /// From a request's first byte to the end of its headers; then the connection is closed. The
    /// handshake of TLS counts as a part of the first one. Default 10 s.
    pub header_time: Duration,
    /// How long a connection may lie idle between requests; over HTTP/2 also how long its last answers
    /// may take to be fetched. Default 75 s: longer than the 60 s after which the usual load balancers
    /// close theirs, so that they use none that is being closed.
    pub idle_time: Duration,
    /// How long a body may take (408). Default 10 s.
    pub body_time: Duration,
    /// How long the store may take for a request (504): the deadline it is given. Default 5 s.
    pub request_time: Duration,
    /// How long a client may take nothing of an answer; then the connection is closed, or over HTTP/2
    /// this one answer is given up. Default 10 s.
    pub write_stall_time: Duration,
    /// How long requests in flight may take to end after the service was told to stop. Default
    /// 10 s.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            streams: 100,
            uri_bytes: 8 * 1024,
            header_bytes: 32 * 1024,
            body_bytes: 2 * 1024 * 1024,
            value_bytes: terrace_core::Value::MAX_BYTES,
            header_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(75),
            body_time: Duration::from_secs(10),
            request_time: Duration::from_secs(5),
            write_stall_time: Duration::from_secs(10),
            drain_time: Duration::from_secs(10),
        }
    }
}
