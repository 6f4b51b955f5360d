//! The journal of the mode in force.

use std::path::Path;
use std::sync::Arc;

use terrace_core::{Error, ErrorKind, Journal, JournalLimits, Result, Sequence};
use terrace_lab::{Persistence, RedisOptions};
use terrace_layers::{FlusherOptions, WriteBufferOptions};
use terrace_stores::{RedisJournal, RedisJournalOptions, SqliteJournal, SqliteJournalOptions};

use super::broker::broker_name;
use super::{Connections, Database, Engines, Rows, Servers};
use crate::config::{millis, seconds};

impl Engines {
    /// The journal before this database. One that is new goes on above what the rows carry.
    pub(in crate::levels) async fn journal(&self, database: &Database) -> Result<Arc<dyn Journal>> {
        let journal = self.open_journal(&database.history).await?;
        let progress = journal.progress().await;
        if progress.as_ref().is_ok_and(|progress| progress.last > Sequence::NONE) {
            return Ok(journal);
        }
        let floor = match &database.rows {
            Rows::Sqlite(store) => store.furthest()?,
            Rows::Postgres(store) => store.furthest().await?,
        };
        match journal.raise(floor).await {
            // It heeds the floor when it can be reached.
            Err(error) if progress.is_err() && error.kind() == ErrorKind::Unavailable => {}
            raised => raised?,
        }
        Ok(journal)
    }

    /// The journal, for somebody who does not need the database, but its name.
    pub(in crate::levels) async fn journal_alone(&self) -> Result<Arc<dyn Journal>> {
        if let Servers::Embedded { directory, .. } = &*self.servers {
            return self.sqlite_journal(directory);
        }
        let database = self.database(Connections::PerRequest).await?;
        let journal = self.open_journal(&database.history).await;
        database.store.close().await?;
        journal
    }

    async fn open_journal(&self, history: &str) -> Result<Arc<dyn Journal>> {
        let config = &self.config.journal;
        match (config.engine.as_str(), &*self.servers) {
            ("auto", Servers::Embedded { directory, .. }) if config.url.is_empty() => {
                self.sqlite_journal(directory)
            }
            ("sqlite", Servers::Embedded { directory, .. } | Servers::Local { directory, .. }) => {
                self.sqlite_journal(directory)
            }
            ("sqlite", Servers::Urls { .. }) => Err(Error::invalid(
                "a journal in a file of one machine does not fit servers that other machines use; \
                 set journal.engine to redis or nats",
            )),
            ("nats", _) => self.nats_journal(history).await,
            ("auto", _) if config.url.starts_with("nats:") => self.nats_journal(history).await,
            _ => {
                let url = self.journal_url().await?;
                let options = RedisJournalOptions {
                    namespace: self.journal_namespace(history, ':'),
                    limits: self.limits(),
                    takeover: seconds(config.takeover_seconds),
                    command_timeout: millis(config.command_timeout_ms),
                    ..RedisJournalOptions::new(url)
                };
                let journal = RedisJournal::connect(options, self.runtime.clone()).await?;
                Ok(Arc::new(journal))
            }
        }
    }

    /// What all keys or streams of the journal before a database begin with.
    pub(super) fn journal_namespace(&self, history: &str, between: char) -> String {
        let prefix = match self.config.journal.namespace.as_str() {
            "" => "terrace-journal",
            chosen => chosen,
        };
        broker_name(prefix, between, history)
    }

    fn sqlite_journal(&self, directory: &Path) -> Result<Arc<dyn Journal>> {
        let options = SqliteJournalOptions {
            limits: self.limits(),
            takeover: seconds(self.config.journal.takeover_seconds),
            ..SqliteJournalOptions::new(directory.join(format!("l{}-journal.sqlite", self.level)))
        };
        Ok(Arc::new(SqliteJournal::open(options, self.runtime.clone())?))
    }

    async fn journal_url(&self) -> Result<String> {
        let url = &self.config.journal.url;
        match &*self.servers {
            _ if !url.is_empty() => Ok(url.clone()),
            // One of its own: a flush of each append would hold up the cache, and a cache may evict.
            Servers::Local { directory, private, .. } => {
                let options = RedisOptions {
                    persistence: Persistence::AofAlways,
                    ..RedisOptions::new(directory.join(format!("l{}-journal", self.level)))
                };
                Ok(private.redis(options).await?.url())
            }
            Servers::Urls { cache, .. } if !cache.is_empty() => Ok(cache.clone()),
            Servers::Urls { .. } | Servers::Embedded { .. } => Err(Error::new(
                ErrorKind::InvalidInput,
                "a journal needs a server; set JOURNAL_URL=redis://host:6379 (with appendfsync \
                 always, and not the cache's)",
            )),
        }
    }

    pub(super) fn limits(&self) -> JournalLimits {
        let config = &self.config.journal;
        JournalLimits { writes: config.max_writes, bytes: config.max_bytes }
    }

    pub(in crate::levels) fn write_buffer_options(&self) -> WriteBufferOptions {
        let config = &self.config.journal;
        WriteBufferOptions {
            max_age: seconds(config.max_age_seconds),
            patience: millis(config.patience_ms),
            drain: millis(config.drain_ms),
            flusher: (config.flusher == "inside").then(FlusherOptions::default),
            ..WriteBufferOptions::default()
        }
    }
}
