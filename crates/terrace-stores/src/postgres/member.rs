//! A server that is one of a primary and its replicas: what it is, and how far it has come.
//!
//! What an answer proves is said by the answer itself (see [`super::snapshot`]); here is what a router
//! needs to choose a server. Lag is told from the write-ahead log: a replica that has replayed to where
//! the primary's log ended a second ago is at most a second old, whatever clocks say.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use terrace_core::{Deadline, Error, ErrorKind, NodeState, Result, Role, Runtime};
use tokio::sync::Mutex;
use tokio_postgres::types::PgLsn;

use super::connect::Connector;
use super::connection::Connection;
use super::history;
use super::snapshot::Snapshot;
use super::sqlstate::{Stage, because, explain};
use super::statements::Sql;

/// What is known of the server.
#[derive(Default)]
pub(super) struct Member {
    /// The run of the server that answers are given for; 0 for any.
    life: AtomicU64,
    /// Whether it takes writes, as it said last.
    primary: AtomicBool,
    /// A session of its own, so that no request delays the question.
    session: Mutex<Option<Connection>>,
}

impl Member {
    /// Whether a session with this run of the server may answer.
    pub(super) fn check(&self, life: u64) -> Result<()> {
        let admitted = self.life.load(Ordering::Acquire);
        if admitted == 0 || life == admitted {
            return Ok(());
        }
        let message = "the database server has restarted and is being looked at; try again";
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    pub(super) fn takes_writes(&self) -> bool {
        self.primary.load(Ordering::Acquire)
    }

    pub(super) fn admit(&self, state: &NodeState) {
        self.primary.store(state.role == Role::Primary, Ordering::Release);
        self.life.store(state.life, Ordering::Release);
    }

    pub(super) async fn ask(
        &self,
        connector: &Connector,
        runtime: &Runtime,
        deadline: Deadline,
    ) -> Result<NodeState> {
        let asked = runtime.within(deadline, async {
            let mut session = self.session.lock().await;
            // Taken out: a question that is dropped or fails leaves no session in doubt.
            let mut connection = match session.take().filter(|it| !it.is_closed()) {
                Some(connection) => connection,
                None => connector.open().await?,
            };
            let state = ask_by(&mut connection, connector, runtime).await?;
            *session = Some(connection);
            Ok(state)
        });
        asked.await.unwrap_or_else(|| Err(Deadline::exceeded().during("ask for the state")))
    }
}

async fn ask_by(
    connection: &mut Connection,
    connector: &Connector,
    runtime: &Runtime,
) -> Result<NodeState> {
    let failed = |error| explain(error, Stage::Harmless).during("ask for the state");
    let asked = runtime.now();
    // First: a history that begins now is in the snapshot that follows.
    let (schema, known) = (connector.schema(), connector.histories().standing());
    let (standing, look) = history::settle(connection.client(), schema, &known).await?;
    let rows = connection.run(Sql::State, &[]).await.map_err(failed)?;
    // A SELECT without FROM has one row.
    let row = &rows[0];
    let log_end = row.try_get::<_, Option<PgLsn>>(1).map_err(failed)?;
    let snapshot: Snapshot = row.try_get(2).map_err(failed)?;
    let ago = row.try_get::<_, Option<i64>>(3).map_err(failed)?;
    if !look.is_replica {
        connector.heard(&look, standing.clone(), asked);
    }
    Ok(NodeState {
        role: if look.is_replica { Role::Replica } else { Role::Primary },
        life: row.try_get::<_, i64>(0).map_err(failed)?.unsigned_abs(),
        timeline: look.timeline(),
        position: snapshot.through(standing.generation),
        standing,
        log_end: log_end.map_or(0, u64::from),
        committed_ago: ago.map(|micros| Duration::from_micros(micros.unsigned_abs())),
    })
}

/// The error for a read that a replica ended, because a change of the primary was in its way.
pub(super) fn conflict(error: tokio_postgres::Error) -> Error {
    let message = "a replica had to end the read in favour of a change of its primary; try again";
    because(Error::new(ErrorKind::Unavailable, message), error)
}
