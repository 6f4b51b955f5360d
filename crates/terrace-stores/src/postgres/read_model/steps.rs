//! Statements one after the other in a transaction, sent at once.

use futures_util::future::join4;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::super::connection::{Connection, Repeated};
use super::super::work::{Failure, Progress};

/// A parameter and its type.
pub(super) type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

/// A commit need not wait for the disk: effects and checkpoint are lost together or not at all, and
/// the command side's log has what was lost.
const BEGIN: &str = "BEGIN; SET LOCAL synchronous_commit = off";

/// What is done under the lock.
#[derive(Clone, Copy)]
pub(super) enum Statement<'a> {
    Once(&'a str),
    Repeated(Repeated, &'a str),
}

/// How the checkpoint's row is held meanwhile.
pub(super) const LOCK: &str = "SELECT 1 FROM terrace_projection WHERE name = 'live' FOR UPDATE";
pub(super) const SHARE: &str = "SELECT 1 FROM terrace_projection WHERE name = 'live' FOR SHARE";
pub(super) const LOCK_NEXT: &str =
    "SELECT 1 FROM terrace_projection WHERE name = 'next' FOR UPDATE";
pub(super) const LOCK_SEARCH: &str =
    "SELECT 1 FROM terrace_projection WHERE name = 'search' FOR UPDATE";

/// Locks, does, commits; each statement has a snapshot of its own, from after the lock. Answers the
/// rows of the statement.
pub(super) async fn locked(
    connection: &Connection,
    progress: &Progress,
    lock: &str,
    work: Statement<'_>,
    parameters: &[Typed<'_>],
) -> Result<Vec<Row>, Failure> {
    // Before the transaction: once begun, all of it leaves in this order.
    if let Statement::Repeated(kind, text) = work {
        connection.prepare_for(kind, text, parameters).await?;
    }
    progress.in_transaction(true);
    progress.commits();
    let none: &[Typed<'_>] = &[];
    let work = async {
        match work {
            Statement::Repeated(kind, _) => connection.run_prepared(kind, parameters).await,
            Statement::Once(text) => connection.ask(text, parameters).await,
        }
    };
    let (begun, held, done, committed) = join4(
        connection.command(BEGIN),
        connection.ask(lock, none),
        work,
        connection.command("COMMIT"),
    )
    .await;
    if committed.is_ok() {
        progress.in_transaction(false);
    }
    // After a failure COMMIT ends the transaction as a ROLLBACK; the first failure is the cause.
    begun?;
    held?;
    let rows = done?;
    committed?;
    Ok(rows)
}
