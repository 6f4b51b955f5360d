//! Recognises Terrace's databases, makes new ones and brings old ones up to date.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use terrace_core::{Error, ErrorKind, Result, Runtime};

use super::failure;

/// `PRAGMA application_id`: "Terr" in ASCII.
const APPLICATION: i32 = 0x5465_7272;

/// Step `n` brings a file from schema version `n` to `n + 1`. Steps are only ever added.
const STEPS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("change_log.sql"),
    include_str!("schema_places.sql"),
];

/// Refuses a file that is not Terrace's, before anything in it is changed.
pub(super) fn examine(connection: &Connection) -> Result<()> {
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let tables: i64 = ask(connection, tables)?;
    if tables == 0 {
        return Ok(());
    }
    if ask::<i32>(connection, "PRAGMA application_id")? != APPLICATION {
        return Err(Error::invalid(
            "the file is a SQLite database of another program; give Terrace a file of its own",
        ));
    }
    let found = version(connection)?;
    if found > STEPS.len() {
        return Err(Error::invalid(
            "the database was written by a newer Terrace; use that version or a newer one",
        )
        .with("found", found.to_string())
        .with("known", STEPS.len().to_string()));
    }
    Ok(())
}

/// Applies the steps that are missing, all or none, and answers the name of the history.
pub(super) fn migrate(
    connection: &mut Connection,
    replica_of: Option<&str>,
    runtime: &Runtime,
) -> Result<Arc<str>> {
    let failed = |error| failure::of(error).during("migrate");
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Once more under the lock: another process may have come first.
    examine(&transaction)?;
    let found = version(&transaction)?;
    for step in STEPS.iter().skip(found) {
        transaction.execute_batch(step).map_err(failed)?;
    }
    if found < STEPS.len() {
        transaction.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
        transaction.pragma_update(None, "user_version", STEPS.len() as i64).map_err(failed)?;
    }
    let name = match replica_of {
        Some(origin) => {
            adopt(&transaction, origin, found == 0)?;
            origin.to_owned()
        }
        None => format!("sqlite-{:012x}", runtime.random() >> 16),
    };
    transaction
        .execute("INSERT OR IGNORE INTO meta (name, value) VALUES ('history', ?1)", [name])
        .map_err(failed)?;
    let history: Option<String> = transaction
        .query_row("SELECT value FROM meta WHERE name = 'history'", [], |row| row.get(0))
        .optional()
        .map_err(failed)?;
    transaction.commit().map_err(failed)?;
    let history = history.filter(|name| (1..=255).contains(&name.len()));
    history.map(Arc::from).ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            "the database's table `meta` has no usable history; restore the file from a backup",
        )
    })
}

/// Makes the file a replica of this history, empty unless it was one before.
fn adopt(connection: &Connection, origin: &str, fresh: bool) -> Result<()> {
    const ADOPT: &str = "UPDATE meta SET value = -1 WHERE name = 'version';
        DELETE FROM records;
        DELETE FROM meta WHERE name = 'history' OR name LIKE 'followed:%';
        UPDATE meta SET value = 0 WHERE name IN ('version', 'floor');
        INSERT OR REPLACE INTO meta (name, value) VALUES ('replica', 1)";
    let failed = |error| failure::of(error).during("open");
    let known: Option<String> = connection
        .query_row(
            "SELECT h.value FROM meta AS r, meta AS h
             WHERE r.name = 'replica' AND h.name = 'history'",
            [],
            |row| row.get(0),
        )
        .optional()
        .map_err(failed)?;
    match known {
        Some(known) if known == origin => Ok(()),
        None if !fresh => Err(Error::invalid(
            "the file is a database of its own and cannot become a replica; name another file",
        )),
        _ => connection.execute_batch(ADOPT).map_err(failed),
    }
}

fn version(connection: &Connection) -> Result<usize> {
    let version: i64 = ask(connection, "PRAGMA user_version")?;
    usize::try_from(version).map_err(|_| failure::corrupt("user_version"))
}

fn ask<T: rusqlite::types::FromSql>(connection: &Connection, question: &str) -> Result<T> {
    connection
        .query_row(question, [], |row| row.get(0))
        .map_err(|error| failure::of(error).during("open"))
}
