//! Documents in MongoDB, or in the server that the machine has in its place: the contract, and what the
//! store promises beyond it.

#![allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

mod doubts;
mod follow;
mod histories;
mod instances;
mod outages;
mod repeats;
#[cfg(feature = "sqlite")]
mod same_bytes;
mod taken_over;
mod turns;

use std::sync::Arc;

use mongodb::Database;
use mongodb::options::ClientOptions;
use terrace_core::Runtime;
use terrace_core::testkit::DocumentsFixture;
use terrace_lab::testing;
use terrace_stores::{MongoDocuments, MongoOptions};

async fn connect(url: &str) -> Arc<MongoDocuments> {
    Arc::new(MongoDocuments::connect(MongoOptions::new(url), Runtime::system()).await.unwrap())
}

/// Another client of the same database.
async fn by_hand(url: &str) -> Database {
    let options = ClientOptions::parse(url).await.unwrap();
    mongodb::Client::with_options(options).unwrap().default_database().unwrap()
}

async fn on_a_server() -> DocumentsFixture {
    DocumentsFixture::new(connect(&testing::fresh_documents()).await)
}

terrace_core::document_contract!(on_a_server);
