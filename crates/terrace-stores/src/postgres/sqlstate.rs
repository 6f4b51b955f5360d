//! What a failure of the driver means to a caller: one table of SQLSTATE codes.

use std::time::Duration;
use std::{fmt, io};

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
    /// Another session holds what is needed, and nothing was applied: do it again while there is time.
    Wait,
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
    remedy_of(refused.code(), is_fatal(refused), stage)
}

fn remedy_of(code: &SqlState, fatal: bool, stage: Stage) -> Remedy {
    match *code {
        // A COMMIT that the server did not survive may be found in its log when it is back.
        _ if fatal && stage == Stage::Committing => Remedy::None,
        SqlState::T_R_DEADLOCK_DETECTED | SqlState::T_R_SERIALIZATION_FAILURE => Remedy::Again,
        SqlState::FEATURE_NOT_SUPPORTED | SqlState::INVALID_SQL_STATEMENT_NAME => {
            Remedy::PrepareAgain
        }
        SqlState::LOCK_NOT_AVAILABLE => Remedy::Wait,
        SqlState::READ_ONLY_SQL_TRANSACTION => Remedy::LookUpHosts,
        _ if fatal && stage == Stage::Harmless => Remedy::Reconnect,
        _ => Remedy::None,
    }
}

/// Whether another session held what the statement needed; nothing was applied.
pub(super) fn is_locked(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// Whether nobody knows what became of what was sent.
pub(super) fn is_unknown(error: &tokio_postgres::Error, stage: Stage) -> bool {
    stage == Stage::Committing && error.as_db_error().is_none_or(is_fatal)
}

/// The error that a caller sees. What the server said goes into the source, without contents of rows.
pub(super) fn explain(error: tokio_postgres::Error, stage: Stage) -> Error {
    let (kind, message) = match error.as_db_error() {
        // Of many reasons for a code those that only the routine, or the name of a table, tells.
        Some(refused) if refused.routine() == Some("check_enable_rls") => {
            (ErrorKind::Unavailable, HIDDEN)
        }
        Some(refused)
            if *refused.code() == SqlState::UNDEFINED_TABLE
                && refused.message().contains("terrace_shard\"") =>
        {
            (ErrorKind::Unavailable, LOST_SHARD)
        }
        Some(refused) => refusal(refused.code(), is_fatal(refused), stage),
        None if stage == Stage::Committing => (ErrorKind::OutcomeUnknown, UNKNOWN),
        None if stage == Stage::Connecting => unreachable_because(&error),
        None => (ErrorKind::Unavailable, "the connection to the database was lost; try again"),
    };
    let wait = (kind == ErrorKind::Overloaded).then_some(Duration::from_secs(1));
    let mut explained = because(Error::new(kind, message), error);
    if let Some(wait) = wait {
        explained = explained.retry_after(wait);
    }
    explained
}

/// The error of a batch that found rows of other writers in its way again and again.
pub(super) fn outrun(error: tokio_postgres::Error) -> Error {
    because(Error::new(ErrorKind::Overloaded, OUTRUN), error).retry_after(Duration::from_secs(1))
}

/// An error with what the server said, for the log.
pub(super) fn because(explained: Error, error: tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(refused) => {
            explained.with("sqlstate", refused.code().code()).caused_by(Refusal::of(refused))
        }
        None => explained.caused_by(error),
    }
}

/// The error of a write in a session that is read-only.
pub(super) fn takes_no_writes(error: tokio_postgres::Error, is_replica: bool) -> Error {
    const REPLICA: &str = "the server takes no writes; name the primary in the URL, or all hosts with \
                           target_session_attrs=read-write";
    let message = if is_replica { REPLICA } else { READ_ONLY };
    because(Error::new(ErrorKind::Unavailable, message), error)
}

/// What nobody can make anew.
pub(super) const LOST_SHARD: &str = "the shard has lost the table `terrace_shard`, which says what it \
     owns; restore that table from a backup";

const HIDDEN: &str = "row-level security is in force on a table of Terrace's and would hide rows; turn \
     it off with ALTER TABLE ... DISABLE ROW LEVEL SECURITY, or give the database's user BYPASSRLS";

/// What keeps a server that is no replica from taking writes.
pub(super) const READ_ONLY: &str = "the database or its user is read-only by default, so there are no \
     writes; set default_transaction_read_only = off for both (ALTER DATABASE, ALTER ROLE), or in the \
     server's settings";

/// What `terrace_shard_look` and `terrace_shard_enter` raise under another epoch.
pub(super) const MOVED: &str = "TR001";

/// What came of work under [`NO_EPOCH`](super::statements::NO_EPOCH): a shard refuses it when all
/// that it needs is there.
pub(super) fn under_no_epoch(
    done: Result<Vec<tokio_postgres::Row>, tokio_postgres::Error>,
) -> Result<(), tokio_postgres::Error> {
    match done {
        Err(error) if error.code().is_some_and(|code| code.code() == MOVED) => Ok(()),
        done => done.map(drop),
    }
}

const MOVED_MESSAGE: &str =
    "what lives on this shard has changed, and nothing was applied; try again";

/// The error of a write whose answer did not come.
pub(super) fn outcome_unknown() -> Error {
    Error::new(ErrorKind::OutcomeUnknown, UNKNOWN)
}

const UNKNOWN: &str = "the write left and the database's answer did not come; read to see whether \
                       it was applied, or repeat it with its Idempotency-Key";

const OUTRUN: &str = "other writers of the same keys were faster several times, and nothing was \
                      changed; try again";

fn refusal(code: &SqlState, fatal: bool, stage: Stage) -> (ErrorKind, &'static str) {
    use ErrorKind::{DeadlineExceeded, Internal, InvalidInput, Overloaded, Unavailable};
    match *code {
        // First: a server that ended over a full disk may have the COMMIT in its log.
        _ if fatal && stage == Stage::Committing => (ErrorKind::OutcomeUnknown, UNKNOWN),
        ref other if other.code() == MOVED => (ErrorKind::Moved, MOVED_MESSAGE),
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
        SqlState::READ_ONLY_SQL_TRANSACTION => (Unavailable, READ_ONLY),
        SqlState::T_R_DEADLOCK_DETECTED | SqlState::T_R_SERIALIZATION_FAILURE => {
            (Overloaded, OUTRUN)
        }
        SqlState::LOCK_NOT_AVAILABLE => (
            Overloaded,
            "another session has locked a table or row, as a change of the schema does, and \
             nothing was changed; try again when its transaction has ended",
        ),
        SqlState::OUT_OF_MEMORY => {
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
            "the database's user may not use Terrace's tables; grant it SELECT, INSERT, UPDATE, \
             DELETE and TRUNCATE on them and on the sequence SELECT, USAGE and UPDATE; to make them it \
             needs CREATE on the schema, or on the database for a schema that is missing",
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
        _ if fatal => (Unavailable, "the database ended the connection; try again in a moment"),
        ref other => match &other.code()[..2] {
            // Data, constraints, a view's CHECK OPTION, limits, and what triggers raise.
            "22" | "23" | "44" | "54" | "P0" => (
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
                    "no host of the URL takes writes; check that the primary is among them, and that \
                     default_transaction_read_only is off for the database and its user",
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

/// What the server said, in one line for the log, without what may be the contents of a row: no
/// detail, no context, and no message that can quote a value.
#[derive(Debug)]
struct Refusal(String);

impl Refusal {
    fn of(refused: &DbError) -> Self {
        let code = refused.code().code();
        let mut text = format!("{} {code}", refused.severity());
        // Class 22 quotes what it cannot read; in 23 and P0 a trigger may say anything.
        if !["22", "23", "P0"].contains(&&code[..2]) {
            text = format!("{text}: {}", refused.message());
        }
        for (what, name) in [("table", refused.table()), ("constraint", refused.constraint())] {
            if let Some(name) = name {
                text = format!("{text}, {what} {name}");
            }
        }
        Self(text.replace(char::is_control, " "))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that fails so badly while it commits may have the commit in its log.
    #[test]
    fn a_fatal_failure_at_the_commit_leaves_the_outcome_unknown() {
        for code in [
            SqlState::DISK_FULL,
            SqlState::QUERY_CANCELED,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::FEATURE_NOT_SUPPORTED,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::ADMIN_SHUTDOWN,
            SqlState::INTERNAL_ERROR,
        ] {
            let (kind, _) = refusal(&code, true, Stage::Committing);
            assert_eq!(kind, ErrorKind::OutcomeUnknown, "{code:?}");
            assert_eq!(remedy_of(&code, true, Stage::Committing), Remedy::None, "{code:?}");
        }
        let (kind, _) = refusal(&SqlState::DISK_FULL, false, Stage::Committing);
        assert_eq!(kind, ErrorKind::Unavailable, "an error ends the transaction only");
        let again = remedy_of(&SqlState::ADMIN_SHUTDOWN, true, Stage::Harmless);
        assert_eq!(again, Remedy::Reconnect);
    }
}
