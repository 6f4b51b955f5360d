//! Recognises Terrace's databases, makes new ones and brings old ones up to date.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use terrace_core::history::copy_of;
use terrace_core::shard::moved;
use terrace_core::{Error, Result, Runtime, Standing, Version};

use super::failure;
use super::file_identity::FileIdentity;
use super::options::SqliteOptions;

/// `PRAGMA application_id`: "Terr" in ASCII.
const APPLICATION: i32 = 0x5465_7272;

/// Step `n` brings a file from schema version `n` to `n + 1`. Steps are only ever added.
const STEPS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("change_log.sql"),
    include_str!("schema_places.sql"),
    include_str!("schema_versions.sql"),
];

/// What every file of records has.
const TABLES: [&str; 3] = ["records", "meta", "idempotency"];

/// Refuses a file that is not Terrace's, before anything in it is changed.
pub(super) fn examine(connection: &Connection) -> Result<()> {
    if is_empty(connection)? {
        return Ok(());
    }
    if ask::<i32>(connection, "PRAGMA application_id")? != APPLICATION {
        return Err(foreign());
    }
    let found = version(connection)?;
    if found > STEPS.len() {
        return Err(Error::invalid(
            "the database was written by a newer Terrace; use that version or a newer one",
        )
        .with("found", found.to_string())
        .with("known", STEPS.len().to_string()));
    }
    match lost(connection, &TABLES)? {
        Some(table) => Err(failure::lost_table().with("table", table)),
        None => Ok(()),
    }
}

/// The error for a file with tables that Terrace did not make.
pub(super) fn foreign() -> Error {
    Error::invalid(
        "the file is a SQLite database of another program; give Terrace a file of its own",
    )
}

/// Whether the file has no table yet.
pub(super) fn is_empty(connection: &Connection) -> Result<bool> {
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    Ok(ask::<i64>(connection, tables)? == 0)
}

/// The first of these tables that is not in the file.
pub(super) fn lost(
    connection: &Connection,
    tables: &[&'static str],
) -> Result<Option<&'static str>> {
    for table in tables {
        let there = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        let there = connection.query_row(there, [table], |row| row.get::<_, i64>(0));
        if there.map_err(|error| failure::of(error).during("open"))? == 0 {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// Applies the steps that are missing, all or none, and answers the history that is in force.
pub(super) fn migrate(
    connection: &mut Connection,
    options: &SqliteOptions,
    runtime: &Runtime,
) -> Result<Standing> {
    let failed = |error| failure::of(error).during("migrate");
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Once more under the lock: another process may have come first.
    examine(&transaction)?;
    // One whose tables were all dropped has kept its version.
    let found = if is_empty(&transaction)? { 0 } else { version(&transaction)? };
    for step in STEPS.iter().skip(found) {
        transaction.execute_batch(step).map_err(failed)?;
    }
    if found < STEPS.len() {
        transaction.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
        transaction.pragma_update(None, "user_version", STEPS.len() as i64).map_err(failed)?;
    }
    super::region::check(&transaction, options.region.as_ref())?;
    let standing = match &options.replica_of {
        Some(origin) => {
            adopt(&transaction, origin, found == 0)?;
            keep(&transaction, "history", origin)?;
            Standing::of(&**origin)
        }
        None => history(&transaction, options, runtime)?,
    };
    transaction.commit().map_err(failed)?;
    Ok(standing)
}

/// The history in force. A name is copied with the file, so what the file itself is stands beside it;
/// where that differs, as in a copy, a new history begins, whose versions go on above the microseconds
/// since 1970, or above a region's clock: no earlier one has given out as many.
fn history(
    connection: &Connection,
    options: &SqliteOptions,
    runtime: &Runtime,
) -> Result<Standing> {
    const RAISE: &str = "UPDATE meta SET value = max(value + 1048576, ?1) WHERE name = 'version'";
    let known = text(connection, "history")?;
    let path = options.path.as_path();
    let identity = FileIdentity::of(path);
    let identity = identity.text();
    let past = text(connection, "past")?.unwrap_or_default();
    let mut past = past.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let name = match (known, text(connection, "identity")?) {
        (Some(known), kept) if kept.is_none() || kept.as_deref() == identity => {
            // One that an earlier Terrace named had no number.
            if known.contains('.') { known } else { format!("{known}.1") }
        }
        (known, _) => {
            let copy_of = known.as_deref().map(copy_of).unwrap_or_default();
            if let Some(known) = known {
                tracing::warn!(
                    path = %path.display(),
                    "the file is a copy of another: it begins a history of its own, and tokens of the \
                     other are lost here"
                );
                past.push(known);
                let now = runtime.wall();
                let floor = match options.region {
                    Some(_) => Version::at(now).get() as i64,
                    None => now.as_microsecond(),
                };
                connection.execute(RAISE, [floor]).map_err(failure::of)?;
            }
            format!("sqlite-{:012x}{copy_of}.1", runtime.random() >> 16)
        }
    };
    keep(connection, "history", &name)?;
    keep(connection, "past", &past.join(" "))?;
    if let Some(identity) = identity {
        keep(connection, "identity", identity)?;
    }
    let past = past.into_iter().map(Arc::from).collect();
    Ok(Standing { past, ..Standing::of(name) })
}

pub(super) fn text(connection: &Connection, name: &str) -> Result<Option<String>> {
    connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))
        .optional()
        .map_err(failure::of)
}

pub(super) fn keep(connection: &Connection, name: &str, value: &str) -> Result<()> {
    connection
        .execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", [name, value])
        .map(drop)
        .map_err(failure::of)
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

pub(super) fn ask<T: rusqlite::types::FromSql>(
    connection: &Connection,
    question: &str,
) -> Result<T> {
    connection
        .query_row(question, [], |row| row.get(0))
        .map_err(|error| failure::of(error).during("open"))
}

/// How far a replica has followed.
pub(super) const COUNTER: &str = "SELECT value FROM meta WHERE name = 'version'";

/// The latest version there is: a row that was copied in by hand may be ahead of the counter. What no
/// database draws does not count, see [`terrace_core::Version::of_row`].
pub(super) const LATEST: &str = "SELECT max(value,
    coalesce((SELECT max(version) FROM records WHERE version < 9007199254740992), 0)) FROM meta
    WHERE name = 'version'";

/// Fails unless the shard's epoch is this one, in the transaction that is open.
pub(super) fn check_epoch(connection: &Connection, epoch: u64) -> Result<()> {
    let ask = "SELECT value FROM meta WHERE name = 'shard_epoch'";
    let mut ask = connection.prepare_cached(ask).map_err(failure::of)?;
    let found: Option<i64> = ask.query_row([], |row| row.get(0)).optional().map_err(failure::of)?;
    let same = found.is_some_and(|found| u64::try_from(found) == Ok(epoch));
    if same { Ok(()) } else { Err(moved()) }
}
