//! Documents in MongoDB.

use terrace_core::Result;

use super::{DocumentEngine, Engines};

/// The documents at this URL.
#[cfg(feature = "mongodb")]
pub(super) async fn documents(of: &Engines, url: &str) -> Result<DocumentEngine> {
    use std::sync::Arc;

    use terrace_core::{Error, ErrorKind, Store as _};
    use terrace_layers::SummaryStore;
    use terrace_stores::mongodb::{MongoDocuments, MongoOptions};

    let documents = MongoDocuments::connect(MongoOptions::new(url), of.runtime.clone()).await?;
    let generations = documents.generations();
    // Nothing may be cached of a collection that has not said which one it is.
    if generations.history().is_none_or(|name| name.is_empty()) {
        documents.close().await?;
        let message = "the document server cannot be reached; check MONGODB_URL, and that it runs";
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    let (store, follower) = documents.summaries();
    let summaries = SummaryStore { store, follower };
    Ok(DocumentEngine { documents: Arc::new(documents), generations, summaries })
}

/// The same for a program that was built without its driver.
#[cfg(not(feature = "mongodb"))]
pub(super) async fn documents(_: &Engines, _: &str) -> Result<DocumentEngine> {
    Err(terrace_core::Error::invalid(
        "this terrace was built without MongoDB's driver; build it with --features mongodb",
    ))
}
