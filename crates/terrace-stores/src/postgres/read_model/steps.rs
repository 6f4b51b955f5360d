//! Statements one after the other in a transaction, sent at once.

use futures_util::future::join_all;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::super::connect::Connection;
use super::super::work::{Failure, Progress};

/// A parameter and its type.
pub(super) type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

/// How the checkpoint's row is held meanwhile.
pub(super) const LOCK: &str = "SELECT 1 FROM projection WHERE name = 'live' FOR UPDATE";
pub(super) const SHARE: &str = "SELECT 1 FROM projection WHERE name = 'live' FOR SHARE";
pub(super) const LOCK_NEXT: &str = "SELECT 1 FROM projection WHERE name = 'next' FOR UPDATE";

/// Locks, does, commits; each statement has a snapshot of its own, from after the lock. Answers the
/// rows of the statement.
pub(super) async fn locked(
    connection: &Connection,
    progress: &Progress,
    lock: &str,
    text: &str,
    parameters: &[Typed<'_>],
) -> Result<Vec<Row>, Failure> {
    progress.in_transaction(true);
    progress.commits();
    let none: &[Typed<'_>] = &[];
    let steps = [("BEGIN", none), (lock, none), (text, parameters), ("COMMIT", none)];
    let all = steps.iter().map(|(text, parameters)| connection.ask(text, parameters));
    let mut answers = join_all(all).await.into_iter();
    let (begun, held) = (answers.next(), answers.next());
    let (done, committed) = (answers.next(), answers.next());
    if matches!(committed, Some(Ok(_))) {
        progress.in_transaction(false);
    }
    // After a failure COMMIT ends the transaction as a ROLLBACK; the first failure is the cause.
    for step in [begun, held].into_iter().flatten() {
        step?;
    }
    let rows = done.unwrap_or(Ok(Vec::new()))?;
    committed.unwrap_or(Ok(Vec::new()))?;
    Ok(rows)
}
