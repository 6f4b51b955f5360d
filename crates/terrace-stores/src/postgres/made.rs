//! Rows that were missing when a transaction looked, and that others make meanwhile.

use tokio_postgres::error::{DbError, SqlState};

use super::connection::Connection;
use super::sqlstate::is_locked;
use super::work::{Failure, Progress};

/// Makes rows that a lock did not find, in a transaction that may hold others. A put takes new rows and
/// old ones in the order of their keys: one that has made a row of these may wait for one that is held
/// here. The server finds such a circle after a second, and all others wait as long; so the first tries
/// wait for a moment only, and begin again without any lock.
pub(super) async fn make(
    connection: &Connection,
    progress: &Progress,
    holds: bool,
    insert: impl Future<Output = Result<(), tokio_postgres::Error>>,
) -> Result<(), Failure> {
    const MOMENT: &str = "SET LOCAL lock_timeout = '50ms'";
    let gives_way = holds && progress.gives_way();
    let limit = async {
        match gives_way {
            true => connection.command(MOMENT).await,
            false => Ok(()),
        }
    };
    // Sent together, in this order.
    let (limited, inserted) = futures_util::future::join(limit, insert).await;
    inserted.map_err(|error| overtaken(error, gives_way))?;
    Ok(limited?)
}

/// A row that a lock did not find was made by another writer meanwhile, or is being made; the next try
/// will find it. A column that a person made unique is another matter.
fn overtaken(error: tokio_postgres::Error, gives_way: bool) -> Failure {
    match error.as_db_error() {
        Some(refused) if *refused.code() == SqlState::UNIQUE_VIOLATION && of_keys(refused) => {
            Failure::Overtaken(error)
        }
        Some(_) if gives_way && is_locked(&error) => Failure::Overtaken(error),
        _ => Failure::Driver(error),
    }
}

/// Whether keys were not unique. The detail is in the language of the server, but `(columns)=(values)`
/// is in all of them.
fn of_keys(refused: &DbError) -> bool {
    let Some((_, columns)) = refused.detail().and_then(|detail| detail.split_once('(')) else {
        return true;
    };
    columns.split(")=").next().is_some_and(|names| names.split(", ").any(|name| name == "key"))
}
