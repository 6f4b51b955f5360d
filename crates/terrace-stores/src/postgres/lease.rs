//! What one of several instances does, held by a session that lives as long as its process.

use std::fmt;
use std::time::Duration;

use terrace_core::{BoxFuture, Deadline, LeaderLease, Result};
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::work::{Failure, Progress, Work};
use super::worker::Worker;

/// Where a lease is kept: in the columns `owner`, `pid`, `session_begun` and `leased_until` of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leased {
    pub(super) table: &'static str,
    pub(super) name: &'static str,
    /// Makes the row where it is missing.
    pub(super) make: &'static str,
}

/// A lease, as one instance asks for it.
pub(super) struct Lease {
    worker: Worker,
    owner: String,
    of: Leased,
}

impl Lease {
    pub(super) fn new(worker: Worker, of: Leased) -> Self {
        let owner = format!("{:016x}", worker.runtime.random());
        Self { worker, owner, of }
    }
}

impl LeaderLease for Lease {
    fn hold(&self, time: Duration) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move {
            let deadline = Deadline::at(self.worker.runtime.now() + self.worker.patience);
            let hold = Hold { owner: &self.owner, time, of: self.of };
            self.worker.apart.perform(&hold, deadline).await
        })
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.of).field(&self.owner).finish()
    }
}

/// Takes or keeps the lease. Who has it is known by its session, so that nobody waits for one that has
/// died; behind a pooler, whose sessions go on, by the time.
struct Hold<'a> {
    owner: &'a str,
    time: Duration,
    of: Leased,
}

impl Work for Hold<'_> {
    type Answer = bool;

    const OPERATION: &'static str = "lease what is followed";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<bool, Failure> {
        let Leased { table, name, make } = self.of;
        let text = format!(
            "UPDATE {table} p SET owner = $1, pid = pg_backend_pid(), \
               session_begun = (SELECT backend_start FROM pg_stat_activity \
                 WHERE pid = pg_backend_pid()), \
               leased_until = clock_timestamp() + $2 * interval '1 millisecond' \
             WHERE p.name = '{name}' AND (p.owner = $1 OR p.owner IS NULL \
               OR p.leased_until < clock_timestamp() \
               OR NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = p.pid \
                 AND (a.backend_start = p.session_begun OR a.backend_start IS NULL))) \
             RETURNING 1"
        );
        let time = i64::try_from(self.time.as_millis()).unwrap_or(i64::MAX);
        let rows = connection.ask(&text, &[(&self.owner, Type::TEXT), (&time, Type::INT8)]).await?;
        if rows.is_empty() {
            // Another instance has it, or the row is gone: then the next call takes it.
            connection.command(make).await?;
        }
        Ok(!rows.is_empty())
    }
}
