//! One session with the server: what is known of it, and how statements are sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

use terrace_core::{Durability, Generation, Position, Task};
use tokio::sync::OnceCell;
use tokio_postgres::error::DbError;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::snapshot::{self, Transaction};
use super::statements::{Dialect, Parameter, Sql, Statements};

/// How safe a commit is, as the settings were of the session that looked at them last. Another session
/// may wait for less: a setting of a role or a database counts for the sessions that begin after it.
#[derive(Debug)]
pub(super) struct Promised(AtomicU8);

impl Default for Promised {
    fn default() -> Self {
        Self(AtomicU8::new(Self::UNKNOWN))
    }
}

impl Promised {
    const UNKNOWN: u8 = u8::MAX;

    pub(super) fn is(&self, durability: Durability) {
        self.0.store(durability as u8, Ordering::Release);
    }

    /// No safer than this, until somebody looks.
    pub(super) fn is_at_most(&self, durability: Durability) {
        self.0.fetch_min(durability as u8, Ordering::AcqRel);
    }

    pub(super) fn get(&self) -> Durability {
        match self.0.load(Ordering::Acquire) {
            0 => Durability::Accepted,
            1 => Durability::Journaled,
            2 => Durability::Committed,
            3 => Durability::Replicated,
            _ => Durability::Accepted,
        }
    }
}

/// See [`Connection::repeat`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Repeated {
    /// Reads a change log.
    ReadLog,
    /// Applies a batch to a read model.
    Project,
    /// Adds transactions to a ledger.
    Post,
    /// The accounts that a transaction has written.
    Accounts,
    /// Reads a page of a ledger.
    ReadStatement,
}

/// One session. Dropping it says goodbye to the server in the background.
pub(super) struct Connection {
    client: Client,
    task: Option<Task>,
    statements: Statements,
    pub(super) dialect: Dialect,
    /// Statements that are prepared when they are first run; see [`Connection::repeat`].
    repeated: [OnceCell<Statement>; 5],
    /// As it was looked at last, and whether a commit since [`Connection::committed`] was told of as one
    /// that no standby has confirmed.
    durability: (Arc<Promised>, Arc<AtomicBool>),
    /// How safe its commits can be, by what they waited for when it began.
    pub(super) waits_for: Durability,
    /// The history that it was found to be of, and answers for.
    pub(super) history: Arc<str>,
    /// The generation that was in force when the session began: restarts of the server are those.
    pub(super) generation: Generation,
    /// Whether the server was a replica when the session began.
    pub(super) is_replica: bool,
    /// Whether transactions of the session may write, unless the server is a replica.
    pub(super) takes_writes: bool,
    /// What it left in the server's session; see [`super::setup`].
    pub(super) mark: String,
    /// The number of the server's process that serves it.
    pub(super) backend: i32,
    /// Which run of the server this is a session with.
    pub(super) life: u64,
    pub(super) expires_at: Option<Instant>,
}

impl Connection {
    /// A session of which nothing is known, and that has nothing prepared.
    pub(super) fn new(
        client: Client,
        task: Task,
        dialect: Dialect,
        durability: (Arc<Promised>, Arc<AtomicBool>),
    ) -> Self {
        Self {
            client,
            task: Some(task),
            statements: Statements::Unprepared,
            dialect,
            repeated: Default::default(),
            durability,
            waits_for: Durability::Accepted,
            history: "".into(),
            generation: Generation::default(),
            is_replica: false,
            takes_writes: true,
            mark: String::new(),
            backend: 0,
            life: 0,
            expires_at: None,
        }
    }

    /// The position of a transaction of this session.
    pub(super) fn position(&self, Transaction(number): Transaction) -> Position {
        snapshot::position(number, self.generation)
    }

    /// See [`Statements::run`].
    pub(super) fn run<'a>(
        &'a self,
        sql: Sql,
        parameters: &'a [Parameter<'a>],
    ) -> impl Future<Output = Result<Vec<Row>, tokio_postgres::Error>> + Send + 'a {
        self.statements.run((&self.client, self.dialect), sql, parameters)
    }

    /// Rows of a read model by distinct keys; see [`Statements::read_rows`].
    pub(super) async fn read_rows(&self, keys: &[&str]) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.statements.read_rows(&self.client, keys).await
    }

    /// The same within so many bytes of values; see [`Statements::read_rows_within`].
    pub(super) async fn read_rows_within(
        &self,
        keys: &[&str],
        bytes: i64,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        Statements::read_rows_within(&self.client, keys, bytes).await
    }

    /// As [`Connection::ask`], for a statement that is run again and again: it is prepared the first
    /// time. One of a kind has one text.
    pub(super) async fn repeat(
        &self,
        kind: Repeated,
        text: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.prepare_for(kind, text, parameters).await?;
        self.run_prepared(kind, parameters).await
    }

    /// Dialect what [`Connection::run_prepared`] runs, unless it is.
    pub(super) async fn prepare_for(
        &self,
        kind: Repeated,
        text: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<(), tokio_postgres::Error> {
        let types = parameters.iter().map(|(_, kind)| kind.clone()).collect::<Vec<_>>();
        let prepare = || self.client.prepare_typed(text, &types);
        self.repeated[kind as usize].get_or_try_init(prepare).await.map(drop)
    }

    /// Sends, when first polled, what [`Connection::prepare_for`] prepared; nothing else.
    pub(super) async fn run_prepared(
        &self,
        kind: Repeated,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let Some(statement) = self.repeated[kind as usize].get() else { return Ok(Vec::new()) };
        let values = parameters.iter().map(|(value, _)| *value).collect::<Vec<_>>();
        self.client.query(statement, &values).await
    }

    /// Runs a statement that is not prepared: text, types and parameters leave at once.
    pub(super) async fn ask(
        &self,
        text: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.client.query_typed(text, parameters).await
    }

    /// Runs commands without parameters; like [`Connection::run`] it sends when first polled.
    pub(super) async fn command(&self, text: &str) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute(text).await
    }

    /// Begins a transaction whose commit, where it `waits_for_disk`, does so whatever the settings are by
    /// then: what was looked at of them may have changed. Like [`Connection::run`] it sends when first polled.
    pub(super) async fn begin(&self, waits_for_disk: bool) -> Result<(), tokio_postgres::Error> {
        const ON_DISK: &str = "BEGIN; SELECT set_config('synchronous_commit', 'local', true) \
             WHERE current_setting('synchronous_commit') = 'off'";
        self.command(if waits_for_disk { ON_DISK } else { "BEGIN" }).await
    }

    /// Dialect what it runs for requests.
    pub(super) async fn prepare(&mut self) -> Result<(), tokio_postgres::Error> {
        self.statements = Statements::prepare(&self.client, self.dialect).await?;
        Ok(())
    }

    /// Forgets plans that a change of the tables has made invalid.
    pub(super) async fn prepare_again(&mut self) -> Result<(), tokio_postgres::Error> {
        self.repeated = Default::default();
        if !matches!(self.statements, Statements::Unprepared) {
            self.prepare().await?;
        }
        Ok(())
    }

    /// How safe a commit is to be. Another session, which looks, cannot tell that this one waits for
    /// more than when it began.
    pub(super) fn durability(&self) -> Durability {
        self.durability.0.get().min(self.waits_for)
    }

    /// How safe the commits are that were just answered, and were to be as safe as this when they were
    /// sent. Where they were to wait for a standby, somebody may have let them go on without: by ending
    /// the wait, of which the server warns, or by taking a setting back, which has to be asked for.
    pub(super) async fn committed(&self, promised: Durability) -> Durability {
        const STILL: &str = "SELECT current_setting('synchronous_standby_names') <> '' \
             AND current_setting('synchronous_commit') IN ('on', 'remote_apply')";
        let alone = self.durability.1.swap(false, Ordering::AcqRel);
        let durability = self.durability().min(promised);
        if durability < Durability::Replicated {
            return durability;
        }
        let still = self.ask(STILL, &[]).await;
        let still = still.is_ok_and(|rows| rows.first().is_some_and(|row| row.get(0)));
        if still && !alone { durability } else { Durability::Committed }
    }

    /// For statements that are not of requests.
    pub(super) fn driver(&self) -> &Client {
        &self.client
    }

    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub(super) fn is_usable(&self, now: Instant) -> bool {
        !self.client.is_closed() && self.expires_at.is_none_or(|end| now < end)
    }

    /// Ends it at once, with whatever it was doing.
    pub(super) fn abandon(mut self) {
        drop(self.task.take());
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The session's task sends the goodbye once it sees the client gone, then ends.
        if let Some(task) = self.task.take() {
            task.detach();
        }
    }
}

/// Whether a notice says that a commit did not wait for its standbys to the end: the server's function
/// is named in it, whatever language it speaks.
pub(super) fn is_committed_alone(notice: &DbError) -> bool {
    notice.routine() == Some("SyncRepWaitForLSN")
}

/// What `COMMIT` means under these settings (PostgreSQL manual, 20.5.1 "Settings" of write-ahead
/// log): only `on` and `remote_apply` wait for the disk of a standby.
pub(super) fn durability(fsync: bool, synchronous_commit: &str, standbys: bool) -> Durability {
    match synchronous_commit {
        _ if !fsync => Durability::Accepted,
        "on" | "remote_apply" if standbys => Durability::Replicated,
        "on" | "remote_apply" | "remote_write" | "local" => Durability::Committed,
        _ => Durability::Accepted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_durability_is_claimed_than_the_settings_give() {
        for (fsync, commit, standbys, expected) in [
            (true, "on", false, Durability::Committed),
            (true, "on", true, Durability::Replicated),
            (true, "remote_apply", true, Durability::Replicated),
            (true, "remote_write", true, Durability::Committed),
            (true, "local", true, Durability::Committed),
            (true, "off", true, Durability::Accepted),
            (false, "on", true, Durability::Accepted),
        ] {
            assert_eq!(
                durability(fsync, commit, standbys),
                expected,
                "{fsync} {commit} {standbys}"
            );
        }
    }
}
