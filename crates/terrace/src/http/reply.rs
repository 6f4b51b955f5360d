//! Answers, their bodies, and the headers that every answer of a store has.

use std::borrow::Cow;
use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Either, Full};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use terrace_core::{Durability, Origin, Tier, Token, Value};

use super::json::Object;
use super::problem::Problem;

/// An answer.
pub(crate) type Reply = Response<Body>;

/// What an answer holds: all of it, with its `Content-Length`, or what comes for as long as the client
/// takes it, such as events.
pub(crate) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, Infallible>>;

/// What a handler answers.
pub(crate) type Answer = Result<Reply, Problem>;

/// Where an answer came from.
pub(crate) const TERRACE_ORIGIN: HeaderName = HeaderName::from_static("terrace-origin");
/// How safe a write is.
pub(crate) const TERRACE_DURABILITY: HeaderName = HeaderName::from_static("terrace-durability");
/// Proof of what a client has seen.
pub(crate) const TERRACE_TOKEN: HeaderName = HeaderName::from_static("terrace-token");
/// How fresh an answer must be.
pub(crate) const TERRACE_CONSISTENCY: HeaderName = HeaderName::from_static("terrace-consistency");

/// A cache of the web may keep an answer, but asks each time whether it still holds, which costs a
/// 304 without a body where there is an ETag. Anything laxer would take back what the levels promise;
/// without a word, some caches keep an answer for minutes.
pub(crate) const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

const PRIMARY: HeaderValue = HeaderValue::from_static("primary");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A body in one piece.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Either::Left(Full::new(bytes.into()))
}

/// 200 with a JSON object.
pub(crate) fn json(object: Object) -> Reply {
    let mut reply = Response::new(full(object.finish()));
    reply.headers_mut().insert(header::CONTENT_TYPE, JSON);
    reply
}

/// 200 with a document, as it is kept.
pub(crate) fn document(document: &Value) -> Reply {
    let mut reply = Response::new(full(Bytes::copy_from_slice(document.as_str().as_bytes())));
    reply.headers_mut().insert(header::CONTENT_TYPE, JSON);
    reply
}

/// No body.
pub(crate) fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(full(Bytes::new()));
    *reply.status_mut() = status;
    reply
}

/// Where an answer came from, as clients see it.
pub(crate) fn origin_words(origin: Origin) -> Cow<'static, str> {
    match (origin.tier, origin.shard, origin.replica) {
        (Tier::Database, ..) if let Some(region) = origin.region => {
            Cow::Owned(format!("region:{region}"))
        }
        (Tier::Near, ..) => "near".into(),
        (Tier::Far, ..) => "far".into(),
        (Tier::Journal, ..) => "journal".into(),
        (Tier::ReadModel, ..) => "read-model".into(),
        (Tier::Database, None, None) => "primary".into(),
        (Tier::Database, Some(shard), _) => Cow::Owned(format!("shard:{shard}")),
        (Tier::Database, None, Some(replica)) => Cow::Owned(format!("replica:{replica}")),
    }
}

/// Headers that a store's answer adds to a reply or a problem.
pub(crate) trait WithHeaders: Sized {
    /// Sets one header.
    fn with(self, name: HeaderName, value: HeaderValue) -> Self;

    /// `Terrace-Origin`.
    fn with_origin(self, origin: Origin) -> Self {
        let value = match origin_words(origin) {
            Cow::Borrowed(word) => HeaderValue::from_static(word),
            // Words and numbers are always valid, and the text is taken over without a copy.
            Cow::Owned(text) => {
                HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(PRIMARY)
            }
        };
        self.with(TERRACE_ORIGIN, value)
    }

    /// `Terrace-Durability`.
    fn with_durability(self, durability: Durability) -> Self {
        self.with(TERRACE_DURABILITY, HeaderValue::from_static(durability.as_str()))
    }

    /// `Terrace-Token`, unless the token says nothing.
    fn with_token(self, token: &Token) -> Self {
        if token.is_empty() {
            return self;
        }
        // Its characters are always valid in a header, and the text is taken over without a copy.
        match HeaderValue::from_maybe_shared(Bytes::from(token.to_text())) {
            Ok(value) => self.with(TERRACE_TOKEN, value),
            Err(_) => self,
        }
    }
}

impl WithHeaders for Reply {
    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers_mut().insert(name, value);
        self
    }
}

impl WithHeaders for Problem {
    fn with(self, name: HeaderName, value: HeaderValue) -> Self {
        self.header(name, value)
    }
}
