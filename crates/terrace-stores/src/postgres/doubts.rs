//! Writes of which nobody knows whether they were applied.
//!
//! Such a write may still commit: its server process may be stopped, or wait for a lock, for longer
//! than anybody remembers. It cannot any more once the process that worked on it is gone. Only then the
//! generation is raised, so that what was cached meanwhile is not believed.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio_postgres::types::Type;

use super::connection::Connection;
use super::sqlstate::Stage;
use super::work::{Failure, Progress, Work, corrupt};

/// The server processes that may still apply something.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<BTreeSet<i32>>);

impl Doubts {
    /// Notes the process with this number unless it is known what became of its work: also when the
    /// caller goes away.
    pub(super) fn guard<'a>(&'a self, backend: i32, progress: &'a Progress) -> Doubt<'a> {
        Doubt { doubts: self, backend, progress, ended: false }
    }

    fn begin(&self, backend: i32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(backend);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn all(&self) -> Vec<i32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    pub(super) fn end(&self, ended: &[i32]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|backend| !ended.contains(backend));
    }
}

/// Work of which nobody knows until it is said to have ended.
pub(super) struct Doubt<'a> {
    doubts: &'a Doubts,
    backend: i32,
    progress: &'a Progress,
    ended: bool,
}

impl Doubt<'_> {
    /// It is known what became of it.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.ended && self.progress.stage() == Stage::Committing {
            self.doubts.begin(self.backend);
        }
    }
}

/// Which of these processes are there no more.
pub(super) struct Ended<'a> {
    pub(super) backends: &'a [i32],
}

impl Work for Ended<'_> {
    type Answer = Vec<i32>;

    const OPERATION: &'static str = "look for unanswered writes";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Vec<i32>, Failure> {
        const ENDED: &str = "SELECT u.pid FROM unnest($1::int[]) AS u(pid) \
             WHERE NOT EXISTS (SELECT FROM pg_stat_get_activity(u.pid))";
        let rows = connection.ask(ENDED, &[(&self.backends, Type::INT4_ARRAY)]).await?;
        let pids = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i32>, _>>();
        pids.map_err(corrupt)
    }
}
