//! Tables are altered by one instance at a time.

use terrace_core::{Error, Result};
use tokio_postgres::Transaction;

use super::sqlstate::{Stage, explain};

/// Waits for the others, who alter tables of the same schema, until the transaction ends.
pub(super) async fn lock(transaction: &Transaction<'_>, schema: &str) -> Result<()> {
    // Others may hold the lock for as long as a large table is being rewritten.
    let settings =
        "SET LOCAL statement_timeout = '10min'; SET LOCAL client_min_messages = 'warning'";
    run(transaction, settings).await?;
    let lock = "SELECT pg_advisory_xact_lock(1952805490, hashtext($1))";
    transaction.execute(lock, &[&schema]).await.map_err(failed).map(drop)
}

pub(super) async fn run(transaction: &Transaction<'_>, commands: &str) -> Result<()> {
    transaction.batch_execute(commands).await.map_err(failed)
}

pub(super) fn failed(error: tokio_postgres::Error) -> Error {
    explain(error, Stage::Harmless).during("migrate")
}
