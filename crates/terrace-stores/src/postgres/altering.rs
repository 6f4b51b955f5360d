//! Tables are altered by one instance at a time.

use terrace_core::{Error, Result};
use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;

use super::sqlstate::{Stage, because, explain};

/// Waits for the others, who alter tables of the same schema, until the transaction ends.
pub(super) async fn lock(transaction: &Transaction<'_>, schema: &str) -> Result<()> {
    // Others may hold the lock for as long as a large table is being rewritten.
    let settings = "SET LOCAL statement_timeout = '10min'; SET LOCAL lock_timeout = 0; \
         SET LOCAL client_min_messages = 'warning'";
    run(transaction, settings).await?;
    let lock = "SELECT pg_advisory_xact_lock(1952805490, hashtext($1))";
    transaction.execute(lock, &[&schema]).await.map_err(failed).map(drop)
}

pub(super) async fn run(transaction: &Transaction<'_>, commands: &str) -> Result<()> {
    transaction.batch_execute(commands).await.map_err(failed)
}

pub(super) fn failed(error: tokio_postgres::Error) -> Error {
    const TAKEN: [&SqlState; 4] = [
        &SqlState::DUPLICATE_TABLE,
        &SqlState::DUPLICATE_OBJECT,
        &SqlState::DUPLICATE_FUNCTION,
        &SqlState::INVALID_FUNCTION_DEFINITION,
    ];
    match error.as_db_error() {
        Some(said) if TAKEN.contains(&said.code()) => {
            let message = format!(
                "something in the schema has a name that Terrace needs: {}; rename it, or name another \
                 schema with database.schema",
                said.message()
            );
            because(Error::invalid(message), error).during("migrate")
        }
        _ => explain(error, Stage::Harmless).during("migrate"),
    }
}
