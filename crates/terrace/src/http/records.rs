//! The record API, the same on every level that keeps records.

use terrace_core::Value;

mod batch_read;
mod batch_write;
mod delete;
mod get;
mod list;
mod precondition;
mod put;

use super::Limits;
use super::endpoint::Endpoint;
use super::fields::{self, Raw};
use super::problem::Problem;
use super::schema::{Shape, object};

/// The rows of the table for this face.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get::endpoint(),
        put::endpoint(),
        delete::endpoint(),
        list::endpoint(),
        batch_read::endpoint(),
        batch_write::endpoint(),
    ]
}

/// The name under which the documentation lists these endpoints.
const GROUP: &str = "Records";

/// The most keys or writes of one batch.
const MAX_BATCH: usize = 1000;

/// The most bytes of values in one answer: 1000 records may have a gigabyte of them, and an answer
/// is built in memory.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

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

/// The schema of a record.
fn record_schema() -> utoipa::openapi::schema::Schema {
    object(&[
        ("key", Shape::Key.schema("")),
        ("value", Shape::Value.schema("")),
        ("version", Shape::Count.schema(VERSION)),
        ("created_at", Shape::Time.schema("Survives updates, starts anew after a delete.")),
        ("updated_at", Shape::Time.schema("When this version was written.")),
    ])
    .build()
    .into()
}

const VERSION: &str = "Grows with every write of the key, for ever; the number in the ETag.";

/// What a write reached, as words on the wire.
const DURABILITIES: Shape = Shape::Word(&["accepted", "journaled", "committed", "replicated"]);
