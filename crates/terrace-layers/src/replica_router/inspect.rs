//! What `ReplicaRouter` says of itself and of each server.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use terrace_core::{BreakerState, Inspection, PartKind, Status, Unit};

use super::Shared;
use super::table::Table;

impl Shared {
    pub(super) async fn inspect(&self) -> Inspection {
        let table = self.table.load_full();
        let all = self.members.iter().map(|server| server.member.store.inspect());
        let stores = join_all(all).await;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let options = &self.options;
        let mut tree = Inspection::new("replica-router")
            .fact("max_lag", options.max_lag)
            .fact("token_wait", options.token_wait)
            .fact("fallback_limit", options.fallback_limit)
            .counter("replica_reads", count(&self.counts.replica_reads))
            .counter("primary_reads", count(&self.counts.primary_reads))
            .counter("fallbacks", count(&self.counts.fallbacks))
            .counter("stale", count(&self.counts.stale))
            .counter("retried", count(&self.counts.retried))
            .counter("hedges", count(&self.hedge.hedges))
            .counter("hedges_won", count(&self.hedge.won))
            .counter("token_waits", count(&self.counts.waits))
            .counter("refused", count(&self.counts.refused));
        let mut reads = false;
        for (number, store) in stores.into_iter().enumerate() {
            let part = self.part(&table, number, store);
            reads |= part.status != Status::Down;
            // One of several: the others go on without it.
            tree = tree.helped_by(part);
        }
        let status = if reads { Status::Degraded } else { Status::Down };
        match table.lead.primary {
            Some(_) if reads => tree,
            Some(_) => tree.status(status, "no server answers"),
            None => tree.status(status, table.lead.why_no_primary()),
        }
    }

    /// What is known of one server.
    fn part(&self, table: &Table, number: usize, store: Inspection) -> Inspection {
        let is_primary = table.lead.primary == Some(number);
        let part = match is_primary {
            true => Inspection::of(PartKind::Primary, "server").instance("primary"),
            false => {
                Inspection::of(PartKind::Replica, "server").instance(format!("replica {number}"))
            }
        };
        let part = part.gauge("number", number as u64, Unit::Count).gauge(
            "outstanding",
            self.outstanding(number) as u64,
            Unit::Count,
        );
        let part = match table.seats[number].as_ref() {
            Some(seat) => {
                let lag = seat
                    .age(self.runtime.now())
                    .map_or(u64::MAX, |lag| u64::try_from(lag.as_micros()).unwrap_or(u64::MAX));
                part.gauge("lag", lag, Unit::Micros)
            }
            None => part,
        };
        let breaker = &self.members[number].breaker;
        let part = breaker.show(part);
        match table.trouble(number) {
            Some(note) => part.status(Status::Down, note).helped_by(store),
            None if breaker.state() != BreakerState::Closed => {
                let note = "its reads failed, so it rests for a while";
                part.status(Status::Degraded, note).helped_by(store)
            }
            None => part.needs(store),
        }
    }
}
