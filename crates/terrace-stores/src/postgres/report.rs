//! What `doctor` asks of a server before anything is made there.

use std::time::Duration;

use terrace_core::{Error, ErrorKind, Result, Runtime};

use super::sqlstate::{Stage, explain};
use super::{Dialect, PostgresOptions, PostgresStore, connector};

/// What a server lets Terrace notice, and what holds it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerReport {
    /// Whether its system identifier may be read: without it, a copy of the database on another server
    /// is not noticed.
    pub tells_its_identity: bool,
    /// Whether its timeline may be read: without it, a failover is not noticed.
    pub tells_its_timeline: bool,
    /// For how long the oldest transaction that writes has been open, in any database of the server.
    /// Meanwhile no cache and no replica can prove that it has a later write.
    pub oldest_writer: Option<Duration>,
    /// How many sessions the server admits of users who are no superusers.
    pub sessions: u32,
    /// The history in force, where Terrace has served this database before: what it has on brokers is
    /// named by it.
    pub history: Option<String>,
}

impl PostgresStore {
    /// Asks a server, and changes nothing.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`].
    pub async fn report(options: PostgresOptions, runtime: Runtime) -> Result<ServerReport> {
        const REPORT: &str = "SELECT \
             has_function_privilege('pg_control_system()', 'EXECUTE'), \
             has_function_privilege('pg_walfile_name(pg_lsn)', 'EXECUTE'), \
             (SELECT extract(epoch FROM max(clock_timestamp() - open.since))::float8 FROM ( \
               SELECT xact_start AS since FROM pg_stat_activity WHERE backend_xid IS NOT NULL \
               UNION ALL SELECT prepared FROM pg_prepared_xacts) AS open), \
             current_setting('max_connections')::integer \
               - current_setting('superuser_reserved_connections')::integer \
               - coalesce(current_setting('reserved_connections', true), '0')::integer";
        const KNOWN: &str = "SELECT to_regclass('terrace_history') IS NOT NULL";
        const HISTORY: &str = "SELECT name FROM terrace_history WHERE identity IS NOT NULL";
        let options = PostgresOptions { member: true, ..options };
        let connector = connector(&options, Dialect::ReadModel, &runtime)?;
        let connection = connector.open_first().await?;
        let ask = async |text| {
            let rows = connection.ask(text, &[]).await;
            rows.map_err(|error| explain(error, Stage::Harmless).during("doctor"))
        };
        let is_known = ask(KNOWN).await?.first().is_some_and(|row| row.get(0));
        let history = if is_known { ask(HISTORY).await? } else { Vec::new() };
        let rows = ask(REPORT).await?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, "no report"))?;
        let since: Option<f64> = row.get(2);
        Ok(ServerReport {
            tells_its_identity: row.get(0),
            tells_its_timeline: row.get(1),
            oldest_writer: since.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
            sessions: u32::try_from(row.get::<_, i32>(3)).unwrap_or(0),
            history: history.first().map(|row| row.get(0)),
        })
    }
}
