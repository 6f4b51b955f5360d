//! What a backup asks of a PostgreSQL database, beside the copy of its server's files.
//!
//! A temporary replication slot keeps the write-ahead log for as long as this session is open: it ends with
//! the session, however the backup ends. The records' table is locked against writers for the moment in which
//! the marker is written; writers wait, as behind any lock of the table. A snapshot that is taken meanwhile
//! shows what the marker stands for, and is read after the lock is gone.

use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use terrace_core::{Error, ErrorKind, Result, Runtime};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::connection::Connection;
use super::sqlstate::{Stage, explain, is_locked};
use super::{Dialect, PostgresOptions, connector};
use crate::contents::{Contents, Summing};

/// How long the server lets a backup hold writers that it has forgotten about.
const FORGOTTEN_AFTER: &str = "5s";

/// A database that is being backed up.
pub struct PostgresBackup {
    /// Has the slot.
    session: Connection,
    /// Holds the writers.
    writers: Connection,
    /// Has the snapshot.
    snapshot: Connection,
    server: BackupServer,
    history: String,
}

/// The server that a database is on. Two databases with the same one are copied by one copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupServer {
    /// Its system identifier, which copies of its files have, too.
    pub system: u64,
    /// When it was started: with the system identifier, which server it is.
    pub run: String,
    /// Its version, such as `15.18`.
    pub version: String,
}

impl PostgresBackup {
    /// Connects, and looks whether a backup can be made.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`](super::PostgresStore::connect); `InvalidInput` with what to do when the
    /// user lacks a right, or the server cannot be copied as it is set up.
    pub async fn open(options: PostgresOptions, runtime: &Runtime) -> Result<Self> {
        let connector = connector(&options, Dialect::ReadModel, runtime)?;
        let session = connector.open_first().await?;
        check(&session).await?;
        const SERVER: &str = "SELECT (pg_control_system()).system_identifier, \
             pg_postmaster_start_time()::text, current_setting('server_version')";
        const HISTORY: &str = "SELECT name FROM terrace_history WHERE identity IS NOT NULL";
        let server = one(&session, SERVER).await?;
        let history = one(&session, HISTORY).await?.get(0);
        let server = BackupServer {
            system: server.get::<_, i64>(0).cast_unsigned(),
            run: server.get(1),
            version: server.get(2),
        };
        let (writers, snapshot) = (connector.open().await?, connector.open().await?);
        // The slot keeps the log for as long as the server believes that this machine is there.
        const NOTICE: &str = "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; \
             SET tcp_keepalives_count = 3";
        session.command(NOTICE).await.map_err(failed)?;
        for idle in [&session, &writers, &snapshot] {
            // Files are copied for hours.
            idle.command("SET idle_session_timeout = 0").await.map_err(failed)?;
        }
        Ok(Self { session, writers, snapshot, server, history })
    }

    /// The server that it is on.
    pub fn server(&self) -> &BackupServer {
        &self.server
    }

    /// The history in force.
    pub fn history(&self) -> &str {
        &self.history
    }

    /// Lets the server keep its write-ahead log from now on, until this value is dropped.
    ///
    /// # Errors
    /// `Unavailable` when it has no slot to spare.
    pub async fn keep_log(&self, slot: &str) -> Result<()> {
        const SLOT: &str = "SELECT pg_create_physical_replication_slot($1, true, true)";
        let made = self.session.ask(SLOT, &[(&slot, Type::NAME)]).await;
        made.map(drop).map_err(|error| {
            let message = "the PostgreSQL server keeps no write-ahead log for the backup; raise \
                           max_replication_slots, or remove a slot that nobody uses";
            super::sqlstate::because(Error::new(ErrorKind::Unavailable, message), error)
        })
    }

    /// Who maintains the records' table, such as `VACUUM of records by pid 7`. No lock that keeps writers out
    /// can be had beside it, and it takes as long as it takes.
    ///
    /// # Errors
    /// `Unavailable` when the session is lost.
    pub async fn maintenance(&self) -> Result<Option<String>> {
        const ASK: &str = "SELECT coalesce(substring(upper(query) FROM \
               '(VACUUM|ANALYZE|CREATE(?: UNIQUE)? INDEX|REINDEX|ALTER TABLE)'), 'maintenance') \
               || ' of records by pid ' || pid \
             FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
               AND relation = 'records'::regclass AND mode = 'ShareUpdateExclusiveLock' AND granted LIMIT 1";
        let rows = self.writers.ask(ASK, &[]).await.map_err(failed)?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// Keeps writers of records out from now on until [`PostgresBackup::release`], after those under way have
    /// ended; false when another session held the table for so long. To be released in either case.
    ///
    /// # Errors
    /// `Unavailable` when the session is lost.
    pub async fn hold(&self, within: Duration) -> Result<bool> {
        let within = within.as_millis();
        // Whatever the settings are, the marker is on this server's disk when this transaction has ended.
        let lock = format!(
            "BEGIN; SET LOCAL lock_timeout = {within}; SET LOCAL synchronous_commit = 'local'; \
             SET LOCAL idle_in_transaction_session_timeout = '{FORGOTTEN_AFTER}'; \
             LOCK TABLE records IN SHARE MODE"
        );
        match self.writers.command(&lock).await {
            Ok(()) => Ok(true),
            Err(error) if is_locked(&error) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// What the next reads of [`PostgresBackup::contents`] see, taken now.
    ///
    /// # Errors
    /// `Unavailable` when the session is lost.
    pub async fn pin(&self) -> Result<()> {
        // What an earlier try has pinned goes: a BEGIN within its transaction would change nothing.
        const BEGIN: &str = "ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
             SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; \
             SELECT FROM records LIMIT 1";
        self.snapshot.command(BEGIN).await.map_err(failed)
    }

    /// Writes the marker while writers are held; answers where the log has it.
    ///
    /// # Errors
    /// `Unavailable` when the session is lost.
    pub async fn mark(&self, name: &str) -> Result<String> {
        // With a transaction id, so that the commit takes the log to the disk up to here.
        const MARK: &str = "SELECT pg_current_xact_id(), pg_create_restore_point($1)::text";
        let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&name, Type::TEXT)];
        let rows = self.writers.ask(MARK, &parameters).await.map_err(failed)?;
        rows.first().map(|row| row.get(1)).ok_or_else(nothing)
    }

    /// Lets writers go on. Only when this succeeds have they been held all the time.
    ///
    /// # Errors
    /// `Unavailable` when the session was lost meanwhile.
    pub async fn release(&self) -> Result<()> {
        self.writers.command("COMMIT").await.map_err(failed)
    }

    /// The records as they were when they were pinned, and the value of the key that is asked for.
    ///
    /// # Errors
    /// `Unavailable` when the session is lost.
    pub async fn contents(&self, ask: &str) -> Result<Contents> {
        let contents = sum(&self.snapshot, ask).await?;
        self.snapshot.command("ROLLBACK").await.map_err(failed)?;
        Ok(contents)
    }

    /// The records of a database that is only looked at, such as a restored one.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`](super::PostgresStore::connect).
    pub async fn contents_of(
        options: PostgresOptions,
        ask: &str,
        runtime: &Runtime,
    ) -> Result<Contents> {
        let session = connector(&options, Dialect::ReadModel, runtime)?.open().await?;
        session.command("SET statement_timeout = 0").await.map_err(failed)?;
        sum(&session, ask).await
    }
}

async fn sum(session: &Connection, ask: &str) -> Result<Contents> {
    const ALL: &str = "SELECT key, version, deleted, value FROM records ORDER BY key COLLATE \"C\"";
    let rows = session.driver().query_raw(ALL, std::iter::empty::<&str>()).await;
    let mut rows = pin!(rows.map_err(failed)?);
    let mut sum = Summing::new(ask);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        sum.add(row.get(0), row.get(1), row.get(2), row.get(3));
    }
    Ok(sum.end())
}

/// Whether the user may do all that a backup needs, and the server is one that can be copied.
async fn check(session: &Connection) -> Result<()> {
    const ASK: &str = "SELECT \
         (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user) \
           AND has_function_privilege('pg_create_restore_point(text)', 'EXECUTE') \
           AND has_function_privilege('pg_control_system()', 'EXECUTE'), \
         quote_ident(current_user), current_setting('wal_level'), \
         EXISTS (SELECT FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')), \
         to_regclass('records') IS NOT NULL AND to_regclass('terrace_history') IS NOT NULL";
    let row = one(session, ASK).await?;
    if !row.get::<_, bool>(0) {
        let user: &str = row.get(1);
        return Err(Error::invalid(format!(
            "the database's user may not make backups; run as a superuser: ALTER ROLE {user} REPLICATION; \
             GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), pg_control_system() TO {user}"
        )));
    }
    if row.get::<_, &str>(2) == "minimal" {
        let message = "the PostgreSQL server logs too little for a backup; set wal_level = replica";
        return Err(Error::invalid(message));
    }
    if row.get(3) {
        let message = "the PostgreSQL server has tablespaces of its own, which terrace backup does not copy; \
                       use pgBackRest";
        return Err(Error::invalid(message));
    }
    if !row.get::<_, bool>(4) {
        let message = "the database has no records of this level; serve the level with it first";
        return Err(Error::invalid(message));
    }
    Ok(())
}

async fn one(session: &Connection, text: &str) -> Result<Row> {
    let rows = session.ask(text, &[]).await.map_err(failed)?;
    rows.into_iter().next().ok_or_else(nothing)
}

fn failed(error: tokio_postgres::Error) -> Error {
    explain(error, Stage::Harmless).during("backup")
}

fn nothing() -> Error {
    Error::new(ErrorKind::Internal, "the server did not answer what a backup asks").during("backup")
}

impl std::fmt::Debug for PostgresBackup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresBackup").field("server", &self.server).finish_non_exhaustive()
    }
}
