//! Opens the shards of one level by their addresses.

use std::sync::Arc;

use terrace_core::{BoxFuture, Result, Shard};
use terrace_layers::ShardOpener;

use super::Engines;

/// An address is shared by all instances, so it names the same database for each:
///
/// - `postgres://...`: that database, its default schema;
/// - `schema:2`: a schema of the one database that the settings name;
/// - `private:2`: a server that the local mode runs;
/// - else, in the embedded mode: a file.
#[derive(Debug)]
pub struct ShardEngines {
    pub(super) engines: Engines,
    /// Whether each counts what is changed in it.
    pub(super) counted: bool,
}

impl ShardOpener for ShardEngines {
    fn open<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Arc<dyn Shard>>> {
        self.engines.mode.shard(&self.engines, address, self.counted)
    }

    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.engines.mode.tend_shards(&self.engines).await {
                tracing::warn!(%error, "a private server that is waited for cannot be started");
            }
        })
    }
}
