//! The documents' API: `/write`, `/read/{key}` and what each level adds to them, described by data.

use std::fmt;
use std::sync::Arc;

use terrace_core::{Inspection, Read, Receipt};
use utoipa::openapi::schema::Schema;

use super::endpoint::Endpoint;
use super::face::{ClearCache, Queries, Regions, Whole};
use super::operations::HealthFields;
use super::records::Records;
use super::schema::{Field, Shape};

mod clear;
mod enterprise;
mod levels;
mod parts;
mod read;
mod regional;
mod statistics;
mod write;

pub use enterprise::L10;
pub(crate) use enterprise::{breakers, by_shard, shard_name};
pub use levels::{L0, L1, L2, L3, L4, L5, L6, L7, L9};

/// The documents' API of a level, over its records.
#[derive(Debug)]
pub struct Documents {
    /// What is particular to the level.
    pub face: &'static DocumentsFace,
    /// What is read and written.
    pub records: Arc<Records>,
    /// What `POST /clear-cache` empties, nearest first; there is no such endpoint where it is empty.
    pub caches: Vec<Arc<dyn ClearCache>>,
    /// What knows how often a key was read, where a read tells it.
    pub queries: Option<Arc<dyn Queries>>,
    /// What tells which regions have confirmed a write, where there are several.
    pub regions: Option<Arc<dyn Regions>>,
}

impl Documents {
    /// Records without more.
    pub fn of(face: &'static DocumentsFace, records: Records) -> Self {
        Self { face, records: Arc::new(records), caches: Vec::new(), queries: None, regions: None }
    }

    /// The rows of the table.
    pub(crate) fn endpoints(this: &Arc<Self>, whole: &Arc<dyn Whole>) -> Vec<Endpoint> {
        let face = this.face;
        if let Some(regions) = &this.regions {
            return regional::endpoints(this, regions, whole);
        }
        if let Some(endpoints) = face.endpoints {
            return endpoints(this, whole);
        }
        // Rows of one path stand together.
        let mut table = vec![write::endpoint(this)];
        table.extend(face.updated.map(|message| write::update(this, message)));
        table.push(read::endpoint(this));
        table.extend(face.statistics.iter().map(|about| statistics::endpoint(whole, about)));
        table.extend((!this.caches.is_empty()).then(|| clear::endpoint(this)));
        table
    }

    /// What it adds to `/health`.
    pub(crate) fn health_fields(&self) -> HealthFields {
        self.face.health_fields
    }
}

/// The rows of a level whose answers have another form.
type OwnEndpoints = fn(&Arc<Documents>, &Arc<dyn Whole>) -> Vec<Endpoint>;

/// What is particular to a level in the documents' API.
pub struct DocumentsFace {
    /// The rows, where they are other ones than those that the fields below describe.
    endpoints: Option<OwnEndpoints>,
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
    /// Fields that `/health` adds.
    health_fields: HealthFields,
    /// Endpoints that answer numbers.
    statistics: &'static [Statistics],
}

/// An endpoint that answers numbers out of the inspection of the stack.
struct Statistics {
    path: &'static str,
    summary: &'static str,
    fields: &'static [Field<Inspection>],
}

/// `shard_id`, as answers of a level with shards have it.
fn shard_id() -> (&'static str, Schema) {
    ("shard_id", Shape::Count.schema("The shard that has the key."))
}

/// The name under which the documentation lists these endpoints.
const GROUP: &str = "Documents";

impl fmt::Debug for DocumentsFace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DocumentsFace")
    }
}
