//! What SQLite's errors mean to a caller.

use rusqlite::ErrorCode;
use terrace_core::{Error, ErrorKind};

/// The error for a statement that failed; nothing of it was applied.
pub(crate) fn of(error: rusqlite::Error) -> Error {
    let (kind, message) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => (
            ErrorKind::Unavailable,
            "the disk is full, or the file has reached its limit, and nothing was changed; \
             delete records or free some space",
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            ErrorKind::Unavailable,
            "another program holds the database file's lock; end its transaction and try again",
        ),
        Some(ErrorCode::NotADatabase) => {
            (ErrorKind::InvalidInput, "the file is not a SQLite database; give another path")
        }
        Some(ErrorCode::DatabaseCorrupt) => (
            ErrorKind::Corrupt,
            "the database file is damaged; stop Terrace and restore the file from a backup",
        ),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => (
            ErrorKind::Unavailable,
            "the database file cannot be opened for writing; check its path and permissions",
        ),
        Some(ErrorCode::SystemIoFailure) => (
            ErrorKind::Unavailable,
            "the disk under the database cannot be read or written; check it and try again",
        ),
        Some(ErrorCode::OutOfMemory) => {
            (ErrorKind::Unavailable, "there is not enough memory; try again later")
        }
        Some(ErrorCode::ConstraintViolation) => (
            ErrorKind::InvalidInput,
            "a constraint or trigger of the database refuses this write; change the request",
        ),
        Some(ErrorCode::TooBig) => {
            (ErrorKind::InvalidInput, "the value is too large for SQLite; send a smaller one")
        }
        _ if error == rusqlite::Error::QueryReturnedNoRows => (
            ErrorKind::Corrupt,
            "the database has lost its version counter; restore the file from a backup",
        ),
        _ if is_missing(&error) => (ErrorKind::Unavailable, LOST_TABLE),
        _ => (ErrorKind::Internal, "SQLite refused a statement; see the log for the reason"),
    };
    Error::new(kind, message).caused_by(error)
}

/// Whether a statement names a table or a column that somebody has removed. SQLite has no code for it.
fn is_missing(error: &rusqlite::Error) -> bool {
    let text = match error {
        rusqlite::Error::SqliteFailure(_, Some(text)) => text,
        rusqlite::Error::SqlInputError { msg, .. } => msg,
        _ => return false,
    };
    ["no such table", "no such column"].iter().any(|missing| text.starts_with(missing))
}

const LOST_TABLE: &str = "the file has lost a table of Terrace's; stop Terrace and restore the file from \
                          a backup, or move it away to begin anew";

/// The error for a file that is Terrace's and lacks a table.
pub(crate) fn lost_table() -> Error {
    Error::new(ErrorKind::Unavailable, LOST_TABLE)
}

/// The error for a COMMIT that failed.
///
/// A full disk fails before the commit frame is complete and a lock before anything is written. After
/// any other failure the frame may be in the log, and the next recovery may find it.
pub(crate) fn of_commit(error: rusqlite::Error) -> Error {
    let known = matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::ConstraintViolation)
    );
    if known { of(error) } else { outcome_unknown().caused_by(error) }
}

/// The error for a write that was being applied when its caller stopped waiting or its thread died.
pub(crate) fn outcome_unknown() -> Error {
    Error::new(
        ErrorKind::OutcomeUnknown,
        "the write was under way and may or may not have been applied; read before you repeat it, \
         or repeat it with its Idempotency-Key",
    )
}

/// The error for a row that Terrace cannot have written.
pub(crate) fn corrupt(column: &'static str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "the column `{column}` holds what no record can hold; correct it or delete the row"
        ),
    )
}

/// The error for calls after `close`.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is closed")
}

/// The error for calls that were in hand when the thread that served them met a defect, which goes on.
pub(crate) fn dropped() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the database of this level met a defect of Terrace; try again, and report it with the log",
    )
}

/// The error for writes into a replica.
pub(super) fn replica() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the database is a replica and takes no writes; write to its primary",
    )
}
