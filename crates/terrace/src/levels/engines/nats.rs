//! The journal in NATS JetStream, where this build has it.

use std::sync::Arc;

use terrace_core::{Error, Journal, Result};

use super::Engines;

#[cfg(not(feature = "nats"))]
impl Engines {
    pub(super) async fn nats_journal(&self, _: &str) -> Result<Arc<dyn Journal>> {
        Err(Error::invalid(
            "this build has no NATS; build with `cargo build --release --features nats`",
        ))
    }
}

#[cfg(feature = "nats")]
impl Engines {
    pub(super) async fn nats_journal(&self, history: &str) -> Result<Arc<dyn Journal>> {
        let config = &self.config.journal;
        let url = match &*self.servers {
            _ if !config.url.is_empty() => config.url.clone(),
            super::Servers::Local { directory, private, .. } => {
                let directory = directory.join(format!("l{}-nats", self.level));
                private.nats(terrace_lab::NatsOptions::new(directory)).await?.url()
            }
            super::Servers::Urls { .. } | super::Servers::Embedded { .. } => {
                return Err(Error::invalid(
                    "a journal in NATS needs a server; set JOURNAL_URL=nats://host:4222",
                ));
            }
        };
        let options = terrace_stores::NatsJournalOptions {
            namespace: self.journal_namespace(history, '-'),
            limits: self.limits(),
            replicas: config.replicas,
            takeover: crate::config::seconds(config.takeover_seconds),
            command_timeout: crate::config::millis(config.command_timeout_ms),
            ..terrace_stores::NatsJournalOptions::new(url)
        };
        Ok(Arc::new(terrace_stores::NatsJournal::connect(options, self.runtime.clone()).await?))
    }
}
