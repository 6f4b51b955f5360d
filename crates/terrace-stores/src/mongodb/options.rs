//! What can be set, with units and defaults.

use std::time::Duration;

/// How to keep documents in MongoDB.
#[derive(Clone, PartialEq, Eq)]
pub struct MongoOptions {
    /// `mongodb://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE?replicaSet=NAME`. Without a database it is
    /// `polyglot_db`. Its read preference, read concern and write concern do not count.
    pub url: String,
    /// The collection. Default: `documents`.
    pub collection: String,
    /// The most connections to each server, and calls at a time; lists, searches and counts have an eighth
    /// of them, at least one. Default: 32.
    pub max_connections: u32,
    /// The most calls that wait for their turn; one more is refused as overloaded. Default: 4096.
    pub max_waiting: usize,
    /// How long a call waits for a server that can take it. Default: 2 s.
    pub selection_timeout: Duration,
    /// How long the row of a deleted document is kept. Default: 7 days.
    pub tombstones_kept_for: Duration,
}

impl MongoOptions {
    /// The database of a URL that names none.
    pub const DATABASE: &str = "polyglot_db";

    /// The defaults, for this URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            collection: "documents".to_owned(),
            max_connections: 32,
            max_waiting: 4096,
            selection_timeout: Duration::from_secs(2),
            tombstones_kept_for: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

impl std::fmt::Debug for MongoOptions {
    /// Without the URL, which has a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MongoOptions").field("collection", &self.collection).finish_non_exhaustive()
    }
}
