//! What the cache says of itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use terrace_core::{Deadline, Inspection, PartKind, Status, Unit};

use super::Shared;

/// How long an inspection waits for the server.
const PATIENCE: Duration = Duration::from_millis(300);

/// What happened since the start, in this instance.
#[derive(Debug, Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    fills: AtomicU64,
    invalidations: AtomicU64,
    errors: AtomicU64,
    malformed: AtomicU64,
}

impl Counters {
    pub(super) fn hit(&self) {
        self.hits.fetch_add(1, Relaxed);
    }

    pub(super) fn miss(&self) {
        self.misses.fetch_add(1, Relaxed);
    }

    pub(super) fn fills(&self, count: usize) {
        self.fills.fetch_add(count as u64, Relaxed);
    }

    pub(super) fn invalidations(&self, count: usize) {
        self.invalidations.fetch_add(count as u64, Relaxed);
    }

    pub(super) fn error(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    pub(super) fn malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }
}

impl Shared {
    pub(super) async fn health(&self) -> Inspection {
        let deadline = Deadline::at(self.runtime().now() + PATIENCE);
        // The state is looked at after the question: an unanswered one changes it.
        let keys = self.runtime().within(deadline, self.entries()).await.flatten();
        let (options, counters) = (&self.options, &self.counters);
        let waiting = [self.reads.counts(), self.fills.counts(), self.invalidations.counts()]
            .map(|counts| counts.line.waiting.bytes)
            .iter()
            .sum::<usize>();
        let mut inspection = Inspection::of(PartKind::Cache, "redis");
        match (self.link.down(), keys) {
            (Some(down), _) => inspection = inspection.status(Status::Down, down.note(&self.names)),
            (None, Some(keys)) => inspection = inspection.gauge("keys", keys, Unit::Count),
            (None, None) => {
                let note = "did not say its size; nothing to do unless it lasts";
                inspection = inspection.status(Status::Degraded, note);
            }
        }
        inspection
            .text("address", &self.address)
            .text("namespace", &options.namespace)
            .fact("ttl", options.ttl)
            .fact("missing_ttl", options.missing_ttl)
            .fact("tombstone_ttl", options.tombstone_ttl)
            .fact("command_timeout", options.command_timeout)
            .fact("announce", options.announce)
            .counter("hits", counters.hits.load(Relaxed))
            .counter("misses", counters.misses.load(Relaxed))
            .counter("fills", counters.fills.load(Relaxed))
            .counter("invalidations", counters.invalidations.load(Relaxed))
            .counter("errors", counters.errors.load(Relaxed))
            .counter("malformed", counters.malformed.load(Relaxed))
            .counter("reconnects", self.link.reconnects())
            .gauge("waiting_bytes", waiting as u64, Unit::Bytes)
    }

    /// The entries of this namespace, where the server has few keys. `DBSIZE` costs it nothing, and
    /// counting one namespace walks all keys: where there are many, all of them are the answer.
    async fn entries(&self) -> Option<u64> {
        const FEW: u64 = 10_000;
        let live = self.link.live().ok()?;
        let mut connection = live.connection.clone();
        let command = redis::cmd("DBSIZE");
        let all = self.link.ask(&live, command.query_async::<u64>(&mut connection)).await.ok()?;
        if all > FEW {
            return Some(all);
        }
        let (mut own, mut cursor) = (0, 0_u64);
        loop {
            let mut command = redis::cmd("SCAN");
            command.arg(cursor).arg("MATCH").arg(self.names.entries_pattern());
            command.arg("COUNT").arg(1000);
            let page = command.query_async::<(u64, Vec<redis::Value>)>(&mut connection);
            // Not asked by the link, which would take a refusal for an outage: a user without the right to
            // walk is told of all keys.
            let Ok((next, keys)) = page.await else { return Some(all) };
            own += keys.len() as u64;
            cursor = next;
            if cursor == 0 {
                return Some(own);
            }
        }
    }
}
