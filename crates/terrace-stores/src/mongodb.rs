//! Documents in MongoDB 5 or newer, or in a server that speaks its protocol.
//!
//! # What is there
//! In the database that the URL names, else `polyglot_db`:
//! - the collection of the documents, `documents` unless told otherwise, with rows
//!   `{key, data, version, created_at, updated_at}`. `data` is the document as BSON, times are microseconds
//!   since 1970. `words` has the words
//!   that a search finds it by, `requests` the requests of the last day that wrote it. A deleted document
//!   leaves a row with `deleted: true` and its version for a week. There is one row a key: a unique index
//!   holds that.
//! - `terrace_meta`: the history and the generation of each collection, and how far it follows others.
//! - `terrace_idempotency`: requests that may be repeated, and what they came to.
//!
//! A collection of rows `{key, data}` alone is taken over as it is: a row without a version has version
//! 1, and is indexed in the background. What BSON has and JSON has not, as dates and decimals, is answered
//! as a readable string, and stays as it is until somebody writes the document. A program that changes
//! `data` beside Terrace must remove `version` and `words`, else caches and searches keep the old content.
//!
//! # How a write is made
//! MongoDB has no sequences, and a standalone server has no transactions. So a write reads the row's
//! version and replaces the row under the condition that it still has it; who is second reads again. A
//! version is one above the row's, and no less than the milliseconds since 2020 times 8192: so it also
//! grows where rows were removed by hand, as far as the clocks of the instances agree, and stays exact in
//! JSON until 2054.
//!
//! A write of which nobody knows whether it was applied is ended by the same condition: its row is given
//! another version, and the generation is raised.
//!
//! Each call runs in a task of its own, and only the wait for it ends with the caller or its deadline:
//! futures of the driver that are dropped can leave it broken (RUST-937). Few calls run at a time; the
//! driver's own queue has no bound. A call that has no end is dropped after 20 s together with the whole
//! client, and the next one gets a new client.
//!
//! # Durability
//! Writes are made with `w: majority, j: true`. Receipts say `replicated` where the server belongs to a
//! replica set of three or more, else `committed`. Reads ask the primary, with read concern `majority` in
//! a replica set. A standalone server is taken, and called so in the inspection.

mod bson;
mod check;
mod doubts;
mod failure;
mod follow;
mod generations;
mod history;
mod link;
mod options;
mod query;
mod requests;
mod row;
mod server;
mod store;
mod upkeep;
mod versions;
mod write;
mod writing;

pub use options::MongoOptions;
pub use store::MongoDocuments;
