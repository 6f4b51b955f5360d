//! What belongs to a database on a broker that others use, too.

use std::sync::Arc;

use terrace_core::history::lineage;
use terrace_core::{Error, Journal, Result};
use terrace_stores::{RedisJournal, RedisJournalOptions};

use super::Engines;
use crate::config::seconds;

impl Engines {
    /// The journal before a database, on the broker with this URL.
    pub(super) async fn broker_journal(
        &self,
        history: &str,
        url: &str,
    ) -> Result<Arc<dyn Journal>> {
        let config = &self.config.journal;
        if config.engine == "nats" || (config.engine == "auto" && url.starts_with("nats:")) {
            if url.is_empty() {
                return Err(Error::invalid(
                    "a journal in NATS needs a server; set JOURNAL_URL=nats://host:4222",
                ));
            }
            return self.nats_journal(history, url).await;
        }
        if url.is_empty() {
            return Err(Error::invalid(
                "a journal needs a server; set JOURNAL_URL=redis://host:6379 (with appendfsync \
                 always, and not the cache's)",
            ));
        }
        let options = RedisJournalOptions {
            namespace: self.journal_namespace(history, ':'),
            limits: self.journal_limits(),
            takeover: seconds(config.takeover_seconds),
            ..RedisJournalOptions::new(url)
        };
        Ok(Arc::new(RedisJournal::connect(options, self.runtime.clone()).await?))
    }

    #[cfg(not(feature = "nats"))]
    async fn nats_journal(&self, _: &str, _: &str) -> Result<Arc<dyn Journal>> {
        Err(Error::invalid(
            "this build has no NATS; build with `cargo build --release --features nats`",
        ))
    }

    /// What all keys or streams of the journal before a database begin with.
    pub(super) fn journal_namespace(&self, history: &str, between: char) -> String {
        broker_name(&format!("{}-journal", self.namespace()), between, history)
    }
}

/// The name of what a database has on a broker: its journal, its stream of events. It ends with the
/// database's lineage, so that a copy of the database on the same broker, with the same settings, has
/// another; and it stays over a failover.
pub(crate) fn broker_name(prefix: &str, between: char, history: &str) -> String {
    format!("{prefix}{between}{}", lineage(history))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_keeps_the_name_and_a_copy_has_another() {
        let name = |history| broker_name("terrace-journal", ':', history);
        assert_eq!(name("pg-3f2a1b4c5d6e.1"), "terrace-journal:pg-3f2a1b4c5d6e");
        assert_eq!(name("pg-3f2a1b4c5d6e.1"), name("pg-3f2a1b4c5d6e.2"));
        assert_ne!(name("pg-3f2a1b4c5d6e.1"), name("pg-aaaaaaaaaaaa.1"));
        assert_eq!(name("db-3f2a1b4c"), "terrace-journal:db-3f2a1b4c", "of today");
    }
}
