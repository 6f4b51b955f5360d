//! Opens the file, makes its tables, and asks SQLite what it really does.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};
use terrace_core::{Durability, Error, Result, Runtime};

use super::SqliteJournalOptions;
use crate::sqlite::file_identity::FileIdentity;
use crate::sqlite::{connect, failure};

/// `PRAGMA application_id`: "TerJ" in ASCII.
const APPLICATION: i32 = 0x5465_724a;
const VERSION: i32 = 1;

const TABLES: &str = "
    CREATE TABLE entries (id INTEGER PRIMARY KEY, writes INTEGER NOT NULL, payload BLOB NOT NULL)
        STRICT;
    CREATE TABLE dead (sequence INTEGER PRIMARY KEY, payload BLOB NOT NULL, reason TEXT NOT NULL)
        STRICT;
    CREATE TABLE again (sequence INTEGER PRIMARY KEY) STRICT;
    CREATE TABLE requests (
        key TEXT PRIMARY KEY NOT NULL, fingerprint BLOB NOT NULL, first INTEGER NOT NULL,
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX requests_created_at ON requests (created_at);
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, last INTEGER NOT NULL,
        writes INTEGER NOT NULL, bytes INTEGER NOT NULL
    ) STRICT;";

pub(super) fn prepare(path: &Path) -> Result<PathBuf> {
    connect::prepare_path(path)
}

pub(super) fn open(
    options: &SqliteJournalOptions,
    runtime: &Runtime,
) -> Result<(Connection, FileIdentity, Durability)> {
    let failed = |error| failure::of(error).during("open the journal");
    let turn = connect::turn(&options.path);
    let mut connection = Connection::open(&options.path).map_err(failed)?;
    let file = FileIdentity::of(&options.path);
    connection.busy_timeout(options.busy_timeout).map_err(failed)?;
    examine(&connection)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(failed)?;
    connection
        .execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON;
             PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 67108864;
             PRAGMA wal_autocheckpoint = 4000;",
        )
        .map_err(failed)?;
    let synchronous: i64 =
        connection.pragma_query_value(None, "synchronous", |row| row.get(0)).map_err(failed)?;
    migrate(&mut connection, runtime)?;
    begin_if_another(&mut connection, &file, &options.path, runtime)?;

    drop(turn);
    let flushed = synchronous >= 2 && mode == "wal";
    let durability = if flushed { Durability::Journaled } else { Durability::Accepted };
    Ok((connection, file, durability))
}

/// Whether the file is a journal already; refuses one that is something else, before it is changed.
fn examine(connection: &Connection) -> Result<bool> {
    let failed = |error| failure::of(error).during("open the journal");
    let ask = |name: &str| {
        connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(failed)
    };
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    match (tables, ask("application_id")?, ask("user_version")?) {
        (0, _, _) => Ok(false),
        (_, APPLICATION, VERSION) => Ok(true),
        (_, APPLICATION, _) => {
            Err(Error::invalid("the journal was written by a newer Terrace; use that one"))
        }
        _ => Err(Error::invalid(
            "the file is no journal of Terrace; give the journal a file of its own",
        )),
    }
}

fn migrate(connection: &mut Connection, runtime: &Runtime) -> Result<()> {
    let failed = |error| failure::of(error).during("open the journal");
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    if examine(&transaction)? {
        return Ok(());
    }
    transaction.execute_batch(TABLES).map_err(failed)?;
    let epoch = [runtime.wall().as_microsecond()];
    transaction.execute("INSERT INTO meta VALUES (1, ?1, 0, 0, 0)", epoch).map_err(failed)?;
    transaction.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
    transaction.pragma_update(None, "user_version", VERSION).map_err(failed)?;
    transaction.commit().map_err(failed)
}

/// A copy, or a backup that was put in place, begins a life of its own: it may lack what the other
/// has accepted, so tokens of that are lost.
fn begin_if_another(
    connection: &mut Connection,
    file: &FileIdentity,
    path: &Path,
    runtime: &Runtime,
) -> Result<()> {
    let failed = |error| failure::of(error).during("open the journal");
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    if file.takes_the_place_of_another(&transaction)? {
        let epoch = [runtime.wall().as_microsecond()];
        transaction.execute("UPDATE meta SET epoch = max(epoch + 1, ?1)", epoch).map_err(failed)?;
        tracing::warn!(
            path = %path.display(),
            "the journal's file is a copy of another: a new life of the journal begins, and tokens of \
             the other are lost here"
        );
    }
    transaction.commit().map_err(failed)
}
