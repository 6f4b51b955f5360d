//! What the settings say of each engine and layer.

use terrace_core::JournalLimits;
use terrace_layers::{FlusherOptions, NearCacheOptions, WriteBufferOptions};
use terrace_stores::PostgresOptions;
use terrace_stores::postgres::{ConnectionSource, PoolOptions};

use super::{Connections, Engines};
use crate::config::{millis, seconds};

impl Engines {
    /// A database, in the level's schema where others use the database, too.
    pub(super) fn postgres_options(&self, url: &str, by: Connections) -> PostgresOptions {
        let config = &self.config.database;
        let source = match by {
            // As many as a small server takes; further requests wait.
            Connections::PerRequest => ConnectionSource::PerRequest { limit: 32 },
            Connections::Pooled => ConnectionSource::Pooled(PoolOptions {
                min: config.pool_min,
                max: config.pool_max,
                acquire_timeout: millis(config.acquire_timeout_ms),
                ..PoolOptions::default()
            }),
        };
        let schema = config.schema.clone();
        let mut options = PostgresOptions { source, schema, ..PostgresOptions::new(url) };
        // No request waits longer for its answer; work beside the requests is not cut shorter for it.
        let longest = millis(self.config.server.request_timeout_ms);
        options.statement_timeout = options.statement_timeout.max(longest);
        if self.shared {
            options.schema = format!("{}_l{}", self.schemas(), self.level);
        }
        options
    }

    /// What the names of schemas begin with where there are several.
    pub(super) fn schemas(&self) -> &str {
        match self.config.database.schema.as_str() {
            "public" => "terrace",
            named => named,
        }
    }

    /// The same for a database that is one shard's alone.
    pub(super) fn in_default_schema(&self, url: &str) -> PostgresOptions {
        let schema = self.config.database.schema.clone();
        PostgresOptions { schema, ..self.postgres_options(url, Connections::Pooled) }
    }

    /// What all that is kept on servers which others may use begins with.
    pub(super) fn namespace(&self) -> &str {
        &self.config.stores.namespace
    }

    pub(in crate::levels) fn near_cache_options(&self) -> NearCacheOptions {
        let config = &self.config.cache;
        NearCacheOptions {
            max_bytes: config.near_max_bytes,
            max_entries: Some(config.near_max_records),
            ttl: seconds(config.near_ttl_seconds),
            ..NearCacheOptions::default()
        }
    }

    pub(super) fn journal_limits(&self) -> JournalLimits {
        let config = &self.config.journal;
        JournalLimits { writes: config.max_writes, bytes: config.max_bytes }
    }

    pub(in crate::levels) fn write_buffer_options(&self) -> WriteBufferOptions {
        let inside = self.config.journal.flusher == "inside";
        WriteBufferOptions {
            flusher: inside.then(FlusherOptions::default),
            ..WriteBufferOptions::default()
        }
    }
}
