//! `GET /v1/records/{key}`, and `HEAD`, which is the same without the body.

use std::sync::Arc;

use hyper::header::{AGE, CACHE_CONTROL, ETAG, HeaderValue, LAST_MODIFIED};
use hyper::{Method, StatusCode};
use terrace_core::{Read, Record, Version};
use utoipa::openapi::path::ParameterIn;

use super::{Records, Values};
use crate::http::call::Call;
use crate::http::endpoint::{Described, Endpoint};
use crate::http::etag::{Conditions, etag};
use crate::http::front_caches::shared;
use crate::http::http_date;
use crate::http::problem::{Kind, Problem};
use crate::http::reply::{self, Answer, REVALIDATE, Reply, WithHeaders};
use crate::http::schema::Shape;

const HEADERS: &[&str] =
    &["ETag", "Last-Modified", "Age", "Cache-Control", "Terrace-Origin", "Terrace-Token"];

/// What a request says with a `Last-Modified` that it got; an ETag is exact.
pub(super) const UNMODIFIED_SINCE: &str =
    "Without If-Match: 412 when the record was written after this second. An ETag is exact.";

pub(super) fn endpoint(records: &Arc<Records>) -> Endpoint {
    let values = records.values;
    Endpoint::new(records, Method::GET, values.path_of_one(), |records, call| {
        Box::pin(get(records, call))
    })
    .summary(values.group(), values.word("Read a record", "Read a document"))
    .reads()
    .checks_keys()
    .parameter(
        ParameterIn::Header,
        "If-None-Match",
        Shape::Tags,
        "ETags that the client has; 304 when one is current.",
    )
    .parameter(
        ParameterIn::Header,
        "If-Match",
        Shape::Tags,
        "ETags that the client expects; 412 when none is current.",
    )
    .parameter(
        ParameterIn::Header,
        "If-Modified-Since",
        Shape::Text,
        "Without If-None-Match: 304 when the record was not written after this second.",
    )
    .parameter(ParameterIn::Header, "If-Unmodified-Since", Shape::Text, UNMODIFIED_SINCE)
    .answers(StatusCode::OK, "What is under the key.", values.answer(), HEADERS)
    .described(Described {
        status: StatusCode::NOT_MODIFIED,
        meaning: "The client has it.",
        content: None,
        headers: HEADERS,
    })
    .problems(&[Kind::RecordMissing, Kind::PreconditionFailed])
}

async fn get(records: &Records, call: &mut Call) -> Answer {
    let key = call.key()?;
    let how = call.read_options()?;
    let headers = &call.parts.headers;
    let conditions = match Conditions::are_in(headers) {
        true => Conditions::of(headers)?,
        false => Conditions::default(),
    };
    let read = records.read_one(call, &key, &how).await?;
    if !conditions.is_expected(read.record.as_ref()) {
        let current = read.record.as_ref().map(|record| record.version);
        return Err(proven(failed(&conditions, current), &read));
    }
    let Some(record) = &read.record else { return Err(proven(missing(), &read)) };
    let reply = if conditions.is_news(record) {
        records.values.reply(record)
    } else {
        reply::empty(StatusCode::NOT_MODIFIED)
    };
    let reply = proven(described(reply, record, &read), &read);
    // What waits for its version is on its way to becoming everybody's.
    if record.version == Version::NONE || records.values != Values::Texts {
        return Ok(reply);
    }
    Ok(shared(call, &key, reply))
}

/// The problem of a key without a record.
pub(super) fn missing() -> Problem {
    Problem::new(Kind::RecordMissing, "there is no record under this key")
}

/// The problem of conditions that do not hold; says what is current.
pub(super) fn failed(conditions: &Conditions, current: Option<Version>) -> Problem {
    match current {
        Some(version) if conditions.has_other_tags() => {
            let detail = format!(
                "If-Match has an ETag that Terrace never gave, as a proxy that compresses answers \
                 makes it (W/\"{version}\", \"{version}-gzip\"); the record has \"{version}\": send that, \
                 and let the proxy leave ETags as they are"
            );
            Problem::new(Kind::PreconditionFailed, detail).header(ETAG, etag(version))
        }
        Some(version) => {
            let detail = format!("the record has version {version}; read it and decide anew");
            Problem::new(Kind::PreconditionFailed, detail).header(ETAG, etag(version))
        }
        None => Problem::new(
            Kind::PreconditionFailed,
            "there is no record under this key; to create one, send If-None-Match: *",
        ),
    }
}

fn described(reply: Reply, record: &Record, read: &Read) -> Reply {
    // A write that waits to be applied has no version yet.
    let reply = match record.version {
        Version::NONE => reply,
        version => reply.with(ETAG, etag(version)),
    };
    let reply =
        reply.with(AGE, HeaderValue::from(read.age.as_secs())).with(CACHE_CONTROL, REVALIDATE);
    match http_date::write(record.updated_at) {
        Some(date) => reply.with(LAST_MODIFIED, date),
        None => reply,
    }
}

fn proven<T: WithHeaders>(answer: T, read: &Read) -> T {
    answer.with_origin(read.origin).with_token(&read.token)
}
