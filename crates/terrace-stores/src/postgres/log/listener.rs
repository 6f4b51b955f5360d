//! One session that listens for writers, for all who wait for a log.

use std::sync::atomic::{AtomicUsize, Ordering};

use terrace_core::{Error, ErrorKind, LogPosition, Result, Task};
use tokio::sync::{Mutex, watch};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::super::sqlstate::{Stage, explain};
use super::super::worker::Worker;
use super::install::{CHANNEL, WAITING};

/// Keeps a session of its own, made when somebody waits and made again after it was lost.
pub(super) struct Listener {
    worker: Worker,
    session: Mutex<Option<Session>>,
    waiting: AtomicUsize,
    heard: watch::Sender<u64>,
}

struct Session {
    client: Client,
    /// The number of the table `records`.
    table: i32,
    /// Whether writers are told that somebody waits. They may be told, too, when nobody does, after a
    /// wait that was given up: then a writer notifies once too often.
    armed: bool,
    _task: Task,
}

/// One who waits.
pub(super) struct Waiting<'a> {
    listener: &'a Listener,
    heard: watch::Receiver<u64>,
}

const ARM: &str = "SELECT pg_advisory_lock_shared($1, $2)";
const DISARM: &str = "SELECT pg_advisory_unlock_shared($1, $2)";

/// Whether a transaction is unfinished. A snapshot does not tell: its `xmax` follows the latest that
/// has ended, so those begun since are beyond it. The lock of a transaction goes after it is visible.
const UNFINISHED: &str = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'transactionid')";

/// Whether something follows below the horizon.
const LOOK: &str = "SELECT EXISTS (SELECT 1 FROM commands \
       WHERE (transaction, version) > ($1::text::xid8, $2) \
       AND transaction < pg_snapshot_xmin(pg_current_snapshot()))";

impl Listener {
    pub(super) fn new(worker: Worker) -> Self {
        let (heard, _) = watch::channel(0);
        Self { worker, session: Mutex::default(), waiting: AtomicUsize::new(0), heard }
    }

    /// Begins to wait: from now on writers notify.
    pub(super) async fn wait(&self) -> Result<Waiting<'_>> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let waiting = Waiting { listener: self, heard: self.heard.subscribe() };
        waiting.arm().await?;
        Ok(waiting)
    }

    async fn connect(&self) -> Result<Session> {
        let connector = self.worker.pool.connector();
        let (client, task) = connector.listen(self.heard.clone()).await?;
        let table = "SELECT to_regclass('records')::oid::integer";
        let rows = client.query_typed(table, &[]).await.map_err(failed)?;
        let table = rows.first().and_then(|row| row.get::<_, Option<i32>>(0));
        let table = table.ok_or_else(|| {
            let message = "Terrace's tables are missing from the database; restart Terrace";
            Error::new(ErrorKind::Unavailable, message)
        })?;
        let listen = format!("LISTEN {CHANNEL}{}", table.cast_unsigned());
        client.batch_execute(&listen).await.map_err(failed)?;
        Ok(Session { client, table, armed: false, _task: task })
    }
}

impl Waiting<'_> {
    async fn arm(&self) -> Result<()> {
        let mut session = self.listener.session.lock().await;
        if session.as_ref().is_none_or(|session| session.client.is_closed()) {
            *session = None;
            *session = Some(self.listener.connect().await?);
        }
        if let Some(session) = session.as_mut().filter(|session| !session.armed) {
            session.ask(ARM).await?;
            session.armed = true;
        }
        Ok(())
    }

    /// Whether something follows the position, and whether a transaction is unfinished whose end may
    /// go unheard.
    pub(super) async fn look(&mut self, position: LogPosition) -> Result<(bool, bool)> {
        self.heard.borrow_and_update();
        self.arm().await?;
        let session = self.listener.session.lock().await;
        let Some(session) = &*session else { return Ok((true, false)) };
        let epoch = position.epoch.to_string();
        let offset = i64::try_from(position.offset).unwrap_or(i64::MAX);
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&epoch, Type::TEXT), (&offset, Type::INT8)];
        // In this order: what has ended by the first is in the snapshot of the second.
        let (unfinished, found) = futures_util::future::try_join(
            session.client.query_typed(UNFINISHED, &[]),
            session.client.query_typed(LOOK, &parameters),
        )
        .await
        .map_err(failed)?;
        let is = |rows: &[tokio_postgres::Row]| rows.first().is_none_or(|row| row.get(0));
        Ok((is(&found), is(&unfinished)))
    }

    /// Returns when a writer has notified, or the session was lost.
    pub(super) async fn heard(&mut self) {
        let _the_sender_lives_as_long = self.heard.changed().await;
    }

    /// Ends waiting: writers need not notify when nobody else waits.
    pub(super) async fn done(self) {
        let mut session = self.listener.session.lock().await;
        if self.listener.waiting.load(Ordering::Acquire) > 1 {
            return;
        }
        if let Some(session) = session.as_mut().filter(|session| session.armed) {
            session.armed = false;
            // A session that is lost has lost its lock, too.
            let _only_costs_a_notification = session.ask(DISARM).await;
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.listener.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Session {
    async fn ask(&self, text: &str) -> Result<()> {
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&WAITING, Type::INT4), (&self.table, Type::INT4)];
        self.client.query_typed(text, &parameters).await.map(drop).map_err(failed)
    }
}

fn failed(error: tokio_postgres::Error) -> Error {
    explain(error, Stage::Harmless).during("listen for changes")
}
