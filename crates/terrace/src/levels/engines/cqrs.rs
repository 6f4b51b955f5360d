//! The two databases of level 7, and the stream.

use std::sync::{Arc, PoisonError};

use terrace_core::history::log_of;
use terrace_core::{ChangeLog, Follower, ReadModel, Result};
use terrace_layers::{CommandSide, CqrsOptions, FollowOptions};
use terrace_stores::redis::{RedisStream, RedisStreamOptions};
use terrace_stores::{
    PostgresOptions, PostgresReadModel, PostgresStore, SqliteOptions, SqliteReadModel, SqliteStore,
};

use super::broker::broker_name;
use super::servers::Servers;
use super::{Connections, Engines, lock};
use crate::config::millis;

/// What a program without the command side's own log would be told.
fn no_log() -> terrace_core::Error {
    let message = "the change log is missing from the write database; restart Terrace";
    terrace_core::Error::new(terrace_core::ErrorKind::Unavailable, message)
}

/// What looks after a projection beside the process that serves.
#[derive(Debug)]
pub struct QuerySide {
    /// The command side's log.
    pub log: Arc<dyn ChangeLog>,
    /// What is made of it.
    pub model: Arc<dyn ReadModel>,
    /// How to project.
    pub options: FollowOptions,
}

impl Engines {
    /// The log and the read model, also while another process serves them.
    ///
    /// # Errors
    /// What cannot be reached, and the next step.
    pub async fn query_side(&self) -> Result<QuerySide> {
        let side = self.commands().await?;
        let model = self.read_model().await?;
        Ok(QuerySide { log: side.log, model, options: self.cqrs_options().projection })
    }

    /// The database that takes commands, with its log. Its files are this process's own.
    pub(in super::super) async fn command_side(&self) -> Result<CommandSide> {
        if let Servers::Embedded { directory, locks } = &*self.servers {
            let lock = lock(directory, self.level)?;
            locks.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
        }
        self.commands().await
    }

    async fn commands(&self) -> Result<CommandSide> {
        match &*self.servers {
            Servers::Embedded { directory, .. } => {
                let path = directory.join(format!("l{}.sqlite", self.level));
                let options = SqliteOptions { change_log: true, ..SqliteOptions::new(path) };
                let store = SqliteStore::open(options, self.runtime.clone())?;
                let log = store.log()?.ok_or_else(no_log)?;
                let histories = store.histories();
                Ok(CommandSide { store: Arc::new(store), histories, log: Arc::new(log) })
            }
            Servers::Urls { database, .. } | Servers::Local { database, .. } => {
                let url = match self.config.cqrs.write_url.as_str() {
                    "" => database,
                    url => url,
                };
                let mut options = self.postgres_options(url, Connections::Pooled);
                options.change_log = true;
                let store = PostgresStore::connect(options, self.runtime.clone()).await?;
                let log = store.log().await?.ok_or_else(no_log)?;
                let histories = store.histories();
                Ok(CommandSide { store: Arc::new(store), histories, log: Arc::new(log) })
            }
        }
    }

    /// The database that answers queries.
    pub(in super::super) async fn read_model(&self) -> Result<Arc<dyn ReadModel>> {
        match &*self.servers {
            Servers::Embedded { directory, .. } => {
                let path = directory.join(format!("l{}-read.sqlite", self.level));
                let options = SqliteOptions::new(path);
                Ok(Arc::new(SqliteReadModel::open(options, self.runtime.clone())?))
            }
            Servers::Urls { database, .. } | Servers::Local { database, .. } => {
                let config = &self.config.cqrs;
                let (url, own) = match (config.read_url.as_str(), config.write_url.as_str()) {
                    ("", "") => (database.as_str(), false),
                    ("", url) => (url, false),
                    (url, _) => (url, true),
                };
                let options = self.postgres_options(url, Connections::Pooled);
                let schema = match (own, self.shared) {
                    // A database of its own has plain names.
                    (true, false) => options.schema.clone(),
                    (_, true) => format!("{}_read", options.schema),
                    (false, false) => "terrace_read".to_owned(),
                };
                let options = PostgresOptions { schema, ..options };
                let model = PostgresReadModel::connect(options, self.runtime.clone()).await?;
                Ok(Arc::new(model))
            }
        }
    }

    /// Where events are published for others, when there is a broker.
    pub(in super::super) fn event_stream(
        &self,
        side: &CommandSide,
    ) -> Result<Option<Arc<dyn Follower>>> {
        let config = &self.config.cqrs;
        match &*self.servers {
            Servers::Embedded { .. } => Ok(None),
            Servers::Urls { cache, .. } | Servers::Local { cache, .. } if cache.is_empty() => {
                Ok(None)
            }
            Servers::Urls { cache, .. } | Servers::Local { cache, .. } => {
                let key = match config.stream.as_str() {
                    // Positions of a log that is begun anew begin anew.
                    "" => {
                        let events = broker_name("terrace:events", ':', &side.histories.name());
                        format!("{events}:{}", log_of(&side.log.name()))
                    }
                    chosen => broker_name(chosen, ':', &side.histories.name()),
                };
                let max_events = config.stream_max_events;
                let options =
                    RedisStreamOptions { max_events, ..RedisStreamOptions::new(cache, key) };
                let stream = RedisStream::new(options, self.runtime.clone())?;
                Ok(Some(Arc::new(stream)))
            }
        }
    }

    pub(in super::super) fn cqrs_options(&self) -> CqrsOptions {
        let config = &self.config.cqrs;
        CqrsOptions {
            wait: millis(config.wait_ms),
            flush: millis(config.count_flush_ms),
            projection: FollowOptions { batch: config.batch, pace: millis(config.pace_ms) },
        }
    }
}
