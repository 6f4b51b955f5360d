//! `PUT /v1/records/{key}`.

use std::sync::Arc;

use hyper::header::ETAG;
use hyper::{Method, StatusCode};
use terrace_core::{Outcome, Write};
use utoipa::openapi::path::ParameterIn;

use super::get::UNMODIFIED_SINCE;
use super::{DURABILITIES, Records, VERSION, precondition, queued, queueing};
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::etag::etag;
use crate::http::json::Object;
use crate::http::problem::Kind;
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Shape, object};

const HEADERS: &[&str] = &["ETag", "Terrace-Origin", "Terrace-Durability", "Terrace-Token"];

pub(super) fn endpoint(records: &Arc<Records>) -> Endpoint {
    let answer = object(&[
        ("key", Shape::Key.schema("")),
        ("version", Shape::Count.schema(VERSION)),
        ("durability", DURABILITIES.schema("How safe it is now.")),
        ("token", Shape::Text.schema("Send it as Terrace-Token to read at least this.")),
    ])
    .build();
    let values = records.values;
    let (request, example) = values.request();
    let endpoint = Endpoint::new(records, Method::PUT, values.path_of_one(), |records, call| {
        Box::pin(put(records, call))
    });
    queueing(conditional(endpoint), records)
        .summary(
            values.group(),
            values.word("Create or replace a record", "Create or replace a document"),
        )
        .takes(request, example)
        .writes()
        .checks_keys()
        .answers(
            StatusCode::OK,
            "There was a record; it has the new value.",
            answer.clone(),
            HEADERS,
        )
        .answers(StatusCode::CREATED, "There was no record; now there is.", answer, HEADERS)
}

/// Adds the conditions that a write of one record understands.
pub(super) fn conditional(endpoint: Endpoint) -> Endpoint {
    endpoint
        .parameter(
            ParameterIn::Header,
            "If-Match",
            Shape::Tags,
            "Write only if the record has one of these ETags, or with `*` if there is a record.",
        )
        .parameter(
            ParameterIn::Header,
            "If-None-Match",
            Shape::Tags,
            "Write only if the record has none of these ETags, or with `*` if there is no record.",
        )
        .parameter(ParameterIn::Header, "If-Unmodified-Since", Shape::Text, UNMODIFIED_SINCE)
        .problems(&[Kind::PreconditionFailed])
}

async fn put(records: &Records, call: &mut Call) -> Answer {
    let key = call.key()?;
    let body = call.json().await?;
    let value = records.values.read(&body, &call.app.limits)?;
    let how = call.write_options(&body)?;
    let receipt = precondition::apply(records, call, Write::put(key.clone(), value), &how).await?;
    if receipt.outcome == Outcome::Queued {
        return Ok(queued(&key, &receipt));
    }
    let token = receipt.token.to_string();
    let answer = Object::with_capacity(128 + key.as_str().len())
        .field("key", key.as_str())
        .field("version", &receipt.version.get())
        .field("durability", receipt.durability.as_str())
        .field("token", &token);
    let mut reply = reply::json(answer);
    if receipt.outcome == Outcome::Created {
        *reply.status_mut() = StatusCode::CREATED;
    }
    Ok(reply
        .with(ETAG, etag(receipt.version))
        .with_origin(receipt.origin)
        .with_durability(receipt.durability)
        .with_token(&receipt.token))
}
