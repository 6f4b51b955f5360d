//! What a failure of the driver means to a caller: one table of SQLSTATE codes.

use std::io;
use std::time::Duration;

use terrace_core::{Error, ErrorKind};
use tokio_postgres::error::{DbError, Severity, SqlState};

/// What may have happened on the server when a statement fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is no session yet.
    Connecting,
    /// Nothing that was sent can have been applied: reads, and writes before their COMMIT left.
    Harmless,
    /// What was sent commits by itself; without an answer nobody knows.
    Committing,
}

/// What to do about a failure before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Answer it.
    None,
    /// Nothing was applied and the other party has won: do all of it again.
    Again,
    /// The table was changed under a prepared statement: prepare again, then do it again.
    PrepareAgain,
    /// The session is gone and nothing was applied: do it again in another.
    Reconnect,
    /// The server takes no writes: every session must be looked up anew, then answer.
    LookUpHosts,
}

/// Whether the session can go on after this failure.
pub(super) fn survives(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| !is_fatal(error))
}

/// See [`Remedy`].
pub(super) fn remedy(error: &tokio_postgres::Error, stage: Stage) -> Remedy {
    let Some(refused) = error.as_db_error() else {
        return if stage == Stage::Harmless { Remedy::Reconnect } else { Remedy::None };
    };
    match *refused.code() {
        SqlState::T_R_DEADLOCK_DETECTED | SqlState::T_R_SERIALIZATION_FAILURE => Remedy::Again,
        SqlState::FEATURE_NOT_SUPPORTED | SqlState::INVALID_SQL_STATEMENT_NAME => {
            Remedy::PrepareAgain
        }
        SqlState::READ_ONLY_SQL_TRANSACTION => Remedy::LookUpHosts,
        _ if is_fatal(refused) && stage == Stage::Harmless => Remedy::Reconnect,
        _ => Remedy::None,
    }
}

/// The error that a caller sees. The driver's text goes into the source.
pub(super) fn explain(error: tokio_postgres::Error, stage: Stage) -> Error {
    let (kind, message) = match error.as_db_error() {
        Some(refused) => refusal(refused, stage),
        None if stage == Stage::Committing => (ErrorKind::OutcomeUnknown, UNKNOWN),
        None if stage == Stage::Connecting => unreachable_because(&error),
        None => (ErrorKind::Unavailable, "the connection to the database was lost; try again"),
    };
    let wait = (kind == ErrorKind::Overloaded).then_some(Duration::from_secs(1));
    let code = error.code().map(|code| code.code().to_owned());
    let mut explained = Error::new(kind, message).caused_by(error);
    if let Some(code) = code {
        explained = explained.with("sqlstate", code);
    }
    if let Some(wait) = wait {
        explained = explained.retry_after(wait);
    }
    explained
}

/// The error of a write whose answer did not come.
pub(super) fn outcome_unknown() -> Error {
    Error::new(ErrorKind::OutcomeUnknown, UNKNOWN)
}

const UNKNOWN: &str = "the write left and the database's answer did not come; read to see whether \
                       it was applied, or repeat it with its Idempotency-Key";

fn refusal(refused: &DbError, stage: Stage) -> (ErrorKind, &'static str) {
    use ErrorKind::{DeadlineExceeded, Internal, InvalidInput, Overloaded, Unavailable};
    match *refused.code() {
        SqlState::QUERY_CANCELED => (
            DeadlineExceeded,
            "the database ended the statement at its time limit, and nothing was changed; try again",
        ),
        SqlState::TOO_MANY_CONNECTIONS => (
            Overloaded,
            "the database has no connection left; lower the pool sizes or raise max_connections",
        ),
        SqlState::DISK_FULL => {
            (Unavailable, "the database's disk is full; free space, then try again")
        }
        SqlState::READ_ONLY_SQL_TRANSACTION => (
            Unavailable,
            "the server takes no writes; name the primary in the URL, or all hosts with \
             target_session_attrs=read-write",
        ),
        SqlState::T_R_DEADLOCK_DETECTED | SqlState::T_R_SERIALIZATION_FAILURE => (
            Overloaded,
            "other writers of the same keys were faster several times, and nothing was changed; \
             try again",
        ),
        SqlState::LOCK_NOT_AVAILABLE | SqlState::OUT_OF_MEMORY => {
            (Overloaded, "the database is short of locks or memory; try again later")
        }
        SqlState::UNDEFINED_TABLE
        | SqlState::UNDEFINED_COLUMN
        | SqlState::UNDEFINED_FUNCTION
        | SqlState::UNDEFINED_OBJECT
        | SqlState::INVALID_SCHEMA_NAME => (
            Unavailable,
            "Terrace's tables are missing from the database; restart Terrace, which creates them",
        ),
        SqlState::FEATURE_NOT_SUPPORTED | SqlState::INVALID_SQL_STATEMENT_NAME => (
            Unavailable,
            "the tables are being changed; try again when the change of the schema is done",
        ),
        SqlState::INSUFFICIENT_PRIVILEGE => (
            Unavailable,
            "the database's user may not use Terrace's tables; grant it SELECT, INSERT, UPDATE and \
             DELETE on them and USAGE on the sequence, or CREATE on the schema",
        ),
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            (Unavailable, "the database refused the user or the password; correct them in the URL")
        }
        SqlState::INVALID_CATALOG_NAME => (
            Unavailable,
            "the database does not exist; create it with createdb, or correct the URL",
        ),
        SqlState::CANNOT_CONNECT_NOW => {
            (Unavailable, "the database is starting or stopping; try again in a moment")
        }
        _ if is_fatal(refused) && stage == Stage::Committing => {
            (ErrorKind::OutcomeUnknown, UNKNOWN)
        }
        _ if is_fatal(refused) => {
            (Unavailable, "the database ended the connection; try again in a moment")
        }
        ref other => match &other.code()[..2] {
            "22" | "23" => (
                InvalidInput,
                "the database refused a key or value; check it against the table's constraints",
            ),
            "53" => (Overloaded, "the database is short of resources; try again later"),
            "08" | "57" | "58" => (Unavailable, "the database failed; try again in a moment"),
            _ => (Internal, "the database refused a statement; the log of Terrace says why"),
        },
    }
}

fn unreachable_because(error: &tokio_postgres::Error) -> (ErrorKind, &'static str) {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if inner.downcast_ref::<rustls::Error>().is_some() {
            return (
                ErrorKind::Unavailable,
                "the database's certificate is not trusted; check sslmode and sslrootcert",
            );
        }
        if let Some(failed) = inner.downcast_ref::<io::Error>() {
            if failed.kind() == io::ErrorKind::PermissionDenied {
                return (
                    ErrorKind::Unavailable,
                    "no host of the URL takes writes; check that the primary is among them",
                );
            }
            if let Some(tls) = failed.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>()) {
                let _not_for_clients = tls;
                return (
                    ErrorKind::Unavailable,
                    "the database's certificate is not trusted; check sslmode and sslrootcert",
                );
            }
        }
        cause = inner.source();
    }
    (
        ErrorKind::Unavailable,
        "the database cannot be reached; check that PostgreSQL runs and that host and port of the \
         URL are right",
    )
}

/// The server ends the session after it.
fn is_fatal(error: &DbError) -> bool {
    let severe = matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
    severe
        || matches!(
            *error.code(),
            SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW
        )
}
