//! The documents' API: `/write`, `/read/{key}` and what each level adds to them, described by data.

use std::fmt;

use terrace_core::{Inspection, Read, Receipt};

use utoipa::openapi::schema::Schema;

use super::schema::{Field, Shape};

mod clear;
mod levels;
mod parts;
mod read;
mod statistics;
mod write;

pub(crate) use levels::face;

use super::endpoint::Endpoint;

/// What is particular to a level in the documents' API.
pub(crate) struct DocumentsFace {
    /// Which level.
    level: u8,
    /// The message of a write.
    written: &'static str,
    /// Whether answers name the shard.
    sharded: bool,
    /// The message of `PUT /write`, where there is one.
    updated: Option<&'static str>,
    /// The message for a missing key.
    missing: &'static str,
    /// Fields that a write adds.
    write_fields: &'static [Field<Receipt>],
    /// Fields that a read adds.
    read_fields: &'static [Field<Read>],
    /// Whether a read tells how often its key was read.
    counts_reads: bool,
    /// Fields that `/health` adds.
    pub(crate) health_fields: &'static [Field<Inspection>],
    /// Endpoints that answer numbers.
    statistics: &'static [Statistics],
    /// Whether there is `/clear-cache`.
    clears: bool,
}

/// An endpoint that answers numbers out of the inspection of the stack.
struct Statistics {
    path: &'static str,
    summary: &'static str,
    fields: &'static [Field<Inspection>],
}

/// The rows of the table for this face.
pub(crate) fn endpoints(face: &'static DocumentsFace) -> Vec<Endpoint> {
    // Rows of one path stand together.
    let mut table = vec![write::endpoint(face)];
    table.extend(face.updated.map(|message| write::update(face, message)));
    table.push(read::endpoint(face));
    table.extend(face.statistics.iter().map(statistics::endpoint));
    table.extend(face.clears.then(clear::endpoint));
    table
}

/// `shard_id`, as answers of a level with shards have it.
fn shard_id() -> (&'static str, Schema) {
    ("shard_id", Shape::Count.schema("The shard that has the key."))
}

/// The name under which the documentation lists these endpoints.
const GROUP: &str = "Documents";

impl fmt::Debug for DocumentsFace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentsFace({})", self.level)
    }
}
