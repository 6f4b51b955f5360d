//! What a store on PostgreSQL says of itself.

use std::time::{Duration, Instant};

use terrace_core::{Deadline, Durability, ErrorKind, Inspection, PartKind, Result, Status, Unit};
use tokio::sync::Mutex;

use super::connection::Connection;
use super::read::ReadNothing;
use super::work::{Failure, Progress, Work, corrupt};
use super::worker::Worker;
use super::write::WriteNothing;

/// Asks what requests ask, of no rows, and remembers the answer for a while, so that asking often is
/// cheap.
#[derive(Debug, Default)]
pub(super) struct Health {
    last: Mutex<Option<(Instant, Status, String)>>,
}

impl Health {
    const KEPT_FOR: Duration = Duration::from_millis(500);
    /// An inspection must be done within a second.
    pub(super) const WITHIN: Duration = Duration::from_millis(900);

    /// Of a database of records.
    pub(super) async fn of_records(&self, worker: &Worker) -> (Status, String) {
        let writes = async |deadline| match worker.takes_writes() {
            true => worker.perform(&WriteNothing, deadline).await,
            false => Ok(()),
        };
        self.ask(worker, &ReadNothing, writes).await
    }

    /// Callers that come while the server is being asked share the answer.
    pub(super) async fn ask<W: Work>(
        &self,
        worker: &Worker,
        read: &W,
        write: impl AsyncFnOnce(Deadline) -> Result<()>,
    ) -> (Status, String) {
        if worker.pool.is_closed() {
            return (Status::Down, "closed".to_owned());
        }
        let deadline = Deadline::at(worker.runtime.now() + Self::WITHIN);
        let asked = worker.runtime.within(deadline, async {
            let mut last = self.last.lock().await;
            if let Some((at, status, note)) = &*last
                && worker.runtime.now().saturating_duration_since(*at) < Self::KEPT_FOR
            {
                return (*status, note.clone());
            }
            let answer = match worker.perform(read, deadline).await {
                Ok(_) => match write(deadline).await {
                    Ok(()) => (Status::Healthy, String::new()),
                    Err(error) => (Status::Degraded, format!("writes fail: {}", error.message())),
                },
                Err(error) if error.kind() == ErrorKind::Overloaded => {
                    (Status::Degraded, error.message().to_owned())
                }
                Err(error) => (Status::Down, error.message().to_owned()),
            };
            *last = Some((worker.runtime.now(), answer.0, answer.1.clone()));
            answer
        });
        let late = || (Status::Down, "the database does not answer; it is asked again".to_owned());
        asked.await.unwrap_or_else(late)
    }
}

/// The tree with the number of records, where the level tells it.
pub(super) async fn with_count(worker: &Worker, tree: Inspection) -> Inspection {
    let deadline = Deadline::at(worker.runtime.now() + Health::WITHIN);
    match worker.perform(&CountRecords, deadline).await {
        Ok(records) => tree.gauge("records", records, Unit::Count),
        Err(_) => tree,
    }
}

/// See [`COUNT`].
pub(super) struct CountRecords;

impl Work for CountRecords {
    type Answer = u64;

    const OPERATION: &'static str = "inspect";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<u64, Failure> {
        let rows = connection.ask(COUNT, &[]).await?;
        let count = rows.first().map_or(Ok(0_i64), |row| row.try_get(0)).map_err(corrupt)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}

/// Live records: counted up to 100 000, else as the planner knows.
pub(super) const COUNT: &str = "SELECT CASE WHEN n <= 100000 THEN n ELSE \
       greatest(n, (SELECT reltuples::bigint FROM pg_class WHERE oid = 'records'::regclass)) END \
     FROM (SELECT count(*) AS n FROM (SELECT 1 FROM records WHERE NOT deleted LIMIT 100001) AS few) \
       AS counted";

/// Settings, figures and parts, with the health that was found.
pub(super) fn tree(
    worker: &Worker,
    schema: &str,
    durability: Durability,
    (status, note): (Status, String),
) -> Inspection {
    let weak = durability < Durability::Committed && status == Status::Healthy;
    let (status, note) = if weak {
        let note = "fsync or synchronous_commit is off: a crash of the server loses acknowledged \
                    writes, and receipts say so; turn both on";
        (Status::Degraded, note.to_owned())
    } else {
        (status, note)
    };
    Inspection::of(PartKind::Database, "postgres")
        .status(status, note)
        .text("hosts", worker.pool.connector().hosts())
        .text("schema", schema)
        .text("durability", durability.as_str())
        .needs(worker.pool.inspect())
}
