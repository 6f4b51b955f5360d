//! The record API, the same on every level that keeps records.

use std::sync::Arc;

use hyper::StatusCode;
use terrace_core::{Budget, Key, Page, Receipt, Value};

mod batch_read;
mod batch_write;
mod delete;
mod get;
mod list;
mod port;
mod precondition;
mod put;
mod values;

pub use port::Records;
pub use values::Values;
pub(crate) use values::{any_document, document};

use super::Limits;
use super::endpoint::Endpoint;
use super::fields::{self, Raw};
use super::json::Object;
use super::problem::Problem;
use super::regions::{confirming, placed};
use super::reply::{self, Reply, WithHeaders as _};
use super::schema::{Shape, object};

/// The rows of the table for this face.
pub(crate) fn endpoints(records: &Arc<Records>) -> Vec<Endpoint> {
    let mut table = vec![
        get::endpoint(records),
        put::endpoint(records),
        delete::endpoint(records),
        list::endpoint(records),
    ];
    if records.values == Values::Texts {
        table.extend([batch_read::endpoint(records), batch_write::endpoint(records)]);
    }
    let Some(geography) = &records.geography else { return table };
    let placed = table.into_iter().map(|endpoint| placed(endpoint, geography.regions()));
    placed.map(|it| if it.writes_records() { confirming(it) } else { it }).collect()
}

/// The most keys or writes of one batch.
const MAX_BATCH: usize = 1000;

/// How much the answer of a batch of reads holds: 1000 records may have a gigabyte of values, and an
/// answer is built in memory.
const ANSWER: Budget = Budget::bytes(Page::MAX_BYTES);

/// Reads a value within the configured limit.
///
/// # Errors
/// 422 that names the field.
pub(crate) fn value(name: &str, raw: Raw<'_>, limits: &Limits) -> Result<Value, Problem> {
    let text = fields::text(name, raw)?;
    let limit = limits.value_bytes;
    if text.len() > limit {
        let detail = format!("{name} is larger than {limit} bytes of UTF-8; send less");
        return Err(Problem::invalid(detail));
    }
    Ok(Value::new(text)?)
}

const VERSION: &str = "Grows with every write of the key, for ever; the number in the ETag. 0 while \
     the write waits to be applied.";

/// What a queued write answers: it has no version yet.
fn queued_schema() -> utoipa::openapi::schema::Schema {
    object(&[
        ("key", Shape::Key.schema("")),
        ("durability", DURABILITIES.schema("How safe it is now.")),
        ("token", Shape::Text.schema("Send it as Terrace-Token to read at least this.")),
    ])
    .build()
    .into()
}

/// The answer of an endpoint whose writes may be queued.
fn queueing(endpoint: Endpoint, records: &Records) -> Endpoint {
    let headers = &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"];
    let meaning = "The journal has it; it is applied later and has no version yet.";
    match records.queues {
        true => endpoint.answers(StatusCode::ACCEPTED, meaning, queued_schema(), headers),
        false => endpoint,
    }
}

/// 202 for a write that was queued.
fn queued(key: &Key, receipt: &Receipt) -> Reply {
    let answer = Object::with_capacity(128 + key.as_str().len())
        .field("key", key.as_str())
        .field("durability", receipt.durability.as_str())
        .field("token", &receipt.token.to_string());
    let mut reply = reply::json(answer)
        .with_origin(receipt.origin)
        .with_durability(receipt.durability)
        .with_token(&receipt.token);
    *reply.status_mut() = StatusCode::ACCEPTED;
    reply
}

/// What a write reached, as words on the wire.
pub(crate) const DURABILITIES: Shape =
    Shape::Word(&["accepted", "journaled", "committed", "replicated"]);
