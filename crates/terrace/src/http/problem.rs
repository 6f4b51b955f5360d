//! Answers that say what went wrong: problem documents (RFC 9457).

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use terrace_core::{Error, ErrorKind};

use super::call::Call;
use super::json::Object;
use super::reply::{Reply, full};
use super::request_id::RequestId;
use super::trace_id::TraceId;

/// One way in which a request can fail, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    InvalidInput,
    MalformedRequest,
    UnknownPath,
    RecordMissing,
    MethodNotAllowed,
    BodyTimeout,
    PreconditionFailed,
    BodyTooLarge,
    UriTooLong,
    UnsupportedMediaType,
    HeadersTooLarge,
    Unauthenticated,
    Forbidden,
    RateLimited,
    Overloaded,
    Unavailable,
    DeadlineExceeded,
    OutcomeUnknown,
    Corrupt,
    Internal,
}

impl Kind {
    /// Every kind, in the order in which the documentation lists them.
    pub(crate) const ALL: [Self; 20] = [
        Self::InvalidInput,
        Self::MalformedRequest,
        Self::UnknownPath,
        Self::RecordMissing,
        Self::MethodNotAllowed,
        Self::BodyTimeout,
        Self::PreconditionFailed,
        Self::BodyTooLarge,
        Self::UriTooLong,
        Self::UnsupportedMediaType,
        Self::HeadersTooLarge,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::RateLimited,
        Self::Overloaded,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::OutcomeUnknown,
        Self::Corrupt,
        Self::Internal,
    ];

    /// The status, the name in `type`, and the title: the one place that decides them.
    pub(crate) fn facts(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::InvalidInput => (S::UNPROCESSABLE_ENTITY, "invalid-input", "Invalid input"),
            Self::MalformedRequest => (S::BAD_REQUEST, "malformed-request", "Malformed request"),
            Self::UnknownPath => (S::NOT_FOUND, "unknown-path", "Unknown path"),
            Self::RecordMissing => (S::NOT_FOUND, "record-missing", "No such record"),
            Self::MethodNotAllowed => {
                (S::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")
            }
            Self::BodyTimeout => (S::REQUEST_TIMEOUT, "body-timeout", "The body came too slowly"),
            Self::PreconditionFailed => {
                (S::PRECONDITION_FAILED, "precondition-failed", "Precondition failed")
            }
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large"),
            Self::UriTooLong => (S::URI_TOO_LONG, "uri-too-long", "URI too long"),
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The body is not plain JSON")
            }
            Self::HeadersTooLarge => (
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers-too-large",
                "Request headers too large",
            ),
            Self::Unauthenticated => (S::UNAUTHORIZED, "unauthenticated", "Not authenticated"),
            Self::Forbidden => (S::FORBIDDEN, "forbidden", "Not allowed"),
            Self::RateLimited => (S::TOO_MANY_REQUESTS, "rate-limited", "Rate limited"),
            Self::Overloaded => (S::SERVICE_UNAVAILABLE, "overloaded", "Overloaded"),
            Self::Unavailable => (S::SERVICE_UNAVAILABLE, "unavailable", "Unavailable"),
            Self::DeadlineExceeded => {
                (S::GATEWAY_TIMEOUT, "deadline-exceeded", "The deadline passed")
            }
            Self::OutcomeUnknown => {
                (S::GATEWAY_TIMEOUT, "outcome-unknown", "Nobody knows whether it was applied")
            }
            Self::Corrupt => (S::INTERNAL_SERVER_ERROR, "corrupt", "Stored data is damaged"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "A defect of Terrace"),
        }
    }

    /// What a client does about it.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::InvalidInput => "Change what `detail` names; the same request fails again.",
            Self::MalformedRequest => {
                "Send HTTP/1.1 with one `Host`; the connection may be closed."
            }
            Self::UnknownPath => {
                "Look the path up in /openapi.json; write a slash in a key as %2F."
            }
            Self::RecordMissing => "There is no record under this key.",
            Self::MethodNotAllowed => "Use a method of the `Allow` header.",
            Self::BodyTimeout => "Send the whole body within the limit, in a new request.",
            Self::PreconditionFailed => "Read the record again, decide anew, send its new ETag.",
            Self::BodyTooLarge => "Send less at once.",
            Self::UriTooLong => "A key has at most 255 characters.",
            Self::UnsupportedMediaType => {
                "Send JSON with `Content-Type: application/json`, not compressed."
            }
            Self::HeadersTooLarge => "Send fewer or shorter headers.",
            Self::Unauthenticated => "Send a valid API key.",
            Self::Forbidden => "This key may not do this; ask for another.",
            Self::RateLimited | Self::Overloaded => "Wait as long as `Retry-After` says.",
            Self::Unavailable => "Nothing was changed; try again after `Retry-After`.",
            Self::DeadlineExceeded => "Nothing was changed; try again.",
            Self::OutcomeUnknown => {
                "Read the record, or repeat the request with the same `Idempotency-Key`."
            }
            Self::Corrupt => "Restore the record; the log has the request's id.",
            Self::Internal => "Report it with the request's id; the log has the cause.",
        }
    }

    /// The headers that its answer may have beside those of every answer.
    pub(crate) fn headers(self) -> &'static [&'static str] {
        match self {
            Self::RateLimited | Self::Overloaded | Self::Unavailable => &["Retry-After"],
            Self::Unauthenticated => &["WWW-Authenticate"],
            Self::RecordMissing => &["Terrace-Origin", "Terrace-Token"],
            Self::PreconditionFailed => &["ETag", "Terrace-Origin", "Terrace-Token"],
            _ => &[],
        }
    }

    /// Whether the answer tells when to come back.
    fn has_retry_after(self) -> bool {
        self.headers().contains(&"Retry-After")
    }
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidInput => Self::InvalidInput,
            ErrorKind::Unavailable | ErrorKind::Moved => Self::Unavailable,
            ErrorKind::Overloaded => Self::Overloaded,
            ErrorKind::DeadlineExceeded => Self::DeadlineExceeded,
            ErrorKind::OutcomeUnknown => Self::OutcomeUnknown,
            ErrorKind::Unauthenticated => Self::Unauthenticated,
            ErrorKind::Forbidden => Self::Forbidden,
            ErrorKind::RateLimited => Self::RateLimited,
            ErrorKind::Corrupt => Self::Corrupt,
            // A kind that this function does not know yet is a defect here.
            _ => Self::Internal,
        }
    }
}

/// A failure on its way to the client. Boxed, so that the good answers stay small.
#[derive(Debug)]
pub(crate) struct Problem(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    detail: Cow<'static, str>,
    wait: Option<Duration>,
    headers: HeaderMap,
    cause: Option<Error>,
}

impl Problem {
    /// A failure found at the edge; `detail` says what is wrong and what to do.
    pub(crate) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            detail: detail.into(),
            wait: None,
            headers: HeaderMap::new(),
            cause: None,
        }))
    }

    /// A request that is wrong and stays wrong.
    pub(crate) fn invalid(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::InvalidInput, detail)
    }

    /// A key of some records alone was used for others.
    pub(crate) fn not_these_records() -> Self {
        Self::new(Kind::Forbidden, "this API key may not touch these records; use one that may")
    }

    /// The status of the answer.
    pub(crate) fn status(&self) -> StatusCode {
        self.0.kind.facts().0
    }

    /// Adds a header to the answer.
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    /// Says how long to wait before the next try.
    pub(crate) fn retry_after(mut self, wait: Duration) -> Self {
        self.0.wait = Some(wait);
        self
    }

    /// The headers of the answer.
    pub(crate) fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.0.headers
    }

    /// Puts where it was found before the detail: `writes[3]: key is empty`.
    pub(crate) fn within(mut self, place: &str) -> Self {
        self.0.detail = format!("{place}: {}", self.0.detail).into();
        self
    }

    /// The answer to a request.
    pub(crate) fn into_reply(self, to: &Call) -> Reply {
        self.into_response(&to.id, to.trace()).map(full)
    }

    /// The answer with the bytes of its body.
    pub(crate) fn into_response(self, id: &RequestId, trace: Option<TraceId>) -> Response<Bytes> {
        let inner = *self.0;
        inner.log(id, trace);
        let (status, slug, title) = inner.kind.facts();
        let body = Object::with_capacity(192 + inner.detail.len())
            .field("type", &format_args!("/docs#{slug}"))
            .field("title", title)
            .field("status", &status.as_u16())
            .field("detail", &*inner.detail)
            .field("request_id", id.as_str())
            .finish();
        let mut reply = Response::new(body);
        *reply.status_mut() = status;
        *reply.headers_mut() = inner.headers;
        let headers = reply.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        headers.insert(header::CACHE_CONTROL, NO_STORE);
        if inner.kind.has_retry_after() {
            let wait = inner.wait.unwrap_or(Duration::from_secs(1));
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait).max(1)));
        }
        if inner.kind == Kind::Unauthenticated {
            headers.entry(header::WWW_AUTHENTICATE).or_insert(CHALLENGE);
        }
        reply
    }
}

/// Seconds, with a part of one as a whole.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"terrace\"");

impl Inner {
    /// Defects and unknown outcomes are for the operator; what a part lacks, that part has logged.
    fn log(&self, id: &RequestId, trace: Option<TraceId>) {
        let Some(error) = &self.cause else { return };
        let (request_id, trace_id) = (id.as_str(), trace.map(tracing::field::display));
        match self.kind {
            Kind::Corrupt | Kind::Internal => {
                tracing::error!(request_id, trace_id, %error, "request failed");
            }
            // The audit log; how many lines there are, whoever refuses has seen to.
            Kind::Unauthenticated | Kind::Forbidden => {
                tracing::info!(target: "audit", request_id, trace_id, %error, "refused");
            }
            Kind::OutcomeUnknown => {
                tracing::debug!(request_id, trace_id, %error, "outcome unknown");
            }
            _ => tracing::debug!(request_id, trace_id, %error, "request refused"),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let mut problem = Self::new(error.kind().into(), error.message().to_owned());
        problem.0.wait = error.wait();
        problem.0.cause = Some(error);
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_name_and_an_error_status() {
        let mut names = Kind::ALL.map(|kind| kind.facts().1).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
        assert!(Kind::ALL.iter().all(|kind| kind.facts().0.as_u16() >= 400));
    }
}
