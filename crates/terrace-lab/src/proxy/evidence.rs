//! What a proxy did, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a [`FaultProxy`](super::FaultProxy) did since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evidence {
    /// Connections that were served.
    pub accepted: u64,
    /// Connections that were reset on arrival, while the proxy was cut.
    pub refused: u64,
    /// Connections that were served and then reset.
    pub reset: u64,
    /// Connections for which the upstream could not be reached.
    pub unreachable: u64,
    /// Bytes delivered to the server.
    pub request_bytes: u64,
    /// Bytes delivered to the client.
    pub response_bytes: u64,
    /// Bytes that were discarded, both directions together.
    pub dropped_bytes: u64,
    /// Bytes that had to wait for [`pass`](super::FaultProxy::pass), both directions together.
    pub held_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: Counter,
    pub(super) refused: Counter,
    pub(super) reset: Counter,
    pub(super) unreachable: Counter,
    pub(super) request_bytes: Counter,
    pub(super) response_bytes: Counter,
    pub(super) dropped_bytes: Counter,
    pub(super) held_bytes: Counter,
}

impl Counters {
    pub(super) fn evidence(&self) -> Evidence {
        Evidence {
            accepted: self.accepted.get(),
            refused: self.refused.get(),
            reset: self.reset.get(),
            unreachable: self.unreachable.get(),
            request_bytes: self.request_bytes.get(),
            response_bytes: self.response_bytes.get(),
            dropped_bytes: self.dropped_bytes.get(),
            held_bytes: self.held_bytes.get(),
        }
    }
}
