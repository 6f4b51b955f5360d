//! The journal in NATS JetStream.

use std::sync::Arc;

use terrace_core::{Journal, Result};
use terrace_stores::{NatsJournal, NatsJournalOptions};

use super::Engines;
use crate::config::seconds;

impl Engines {
    pub(super) async fn nats_journal(&self, history: &str, url: &str) -> Result<Arc<dyn Journal>> {
        let config = &self.config.journal;
        let options = NatsJournalOptions {
            namespace: self.journal_namespace(history, '-'),
            limits: self.journal_limits(),
            replicas: config.replicas,
            takeover: seconds(config.takeover_seconds),
            ..NatsJournalOptions::new(url)
        };
        Ok(Arc::new(NatsJournal::connect(options, self.runtime.clone()).await?))
    }
}
