//! Opens connections, sets them up, and asks SQLite what it really does.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use terrace_core::{Durability, Error, ErrorKind, Result};

use super::failure;
use super::options::{SqliteOptions, Synchronous};
use super::schema;

/// How SQLite really runs, as it answered when it was asked.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    pub(super) journal_mode: String,
    pub(super) synchronous: &'static str,
}

impl Engine {
    /// What a receipt may promise.
    pub(super) fn durability(&self) -> Durability {
        let flushed = matches!(self.synchronous, "full" | "extra");
        if flushed && self.journal_mode == "wal" {
            Durability::Committed
        } else {
            Durability::Accepted
        }
    }
}

/// The absolute form of the path, its directory made when it is missing.
pub(crate) fn prepare_path(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().is_empty() || path == Path::new(":memory:") {
        return Err(Error::invalid(
            "the path must name a file; for records in memory use the memory store",
        ));
    }
    // An absolute path is never taken for a URI or another special name by SQLite.
    let usable = std::path::absolute(path).and_then(|path| {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        Ok(path)
    });
    usable.map_err(|error| {
        let message =
            "the directory of the database cannot be made; check its path and permissions";
        Error::new(ErrorKind::Unavailable, message)
            .with("path", path.display().to_string())
            .caused_by(error)
    })
}

/// The right to open a database of this directory for the first time, until it is dropped.
///
/// SQLite refuses, and does not wait, when several processes switch a new file to its log at once.
/// The directory is locked, because closing any handle of the file itself would end SQLite's locks.
/// Where directories cannot be locked, opening is as it was.
pub(crate) fn turn(path: &Path) -> Option<File> {
    let directory = File::open(path.parent()?).ok()?;
    directory.lock().is_ok().then_some(directory)
}

/// The first connection: refuses what is not Terrace's before it changes anything.
pub(super) fn first(options: &SqliteOptions) -> Result<(Connection, Engine)> {
    let connection = connect(options, OpenFlags::SQLITE_OPEN_CREATE)?;
    schema::examine(&connection)?;
    let failed = |error| failure::of(error).during("open");
    let journal_mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(failed)?;
    set_up(&connection, options).map_err(failed)?;
    let synchronous: i64 =
        connection.pragma_query_value(None, "synchronous", |row| row.get(0)).map_err(failed)?;
    let synchronous = match synchronous {
        0 => "off",
        1 => "normal",
        2 => "full",
        _ => "extra",
    };
    Ok((connection, Engine { journal_mode, synchronous }))
}

/// The first connection to a file that is no store of records: made when it is missing, refused by
/// `examine` before it is changed.
pub(super) fn plain(
    options: &SqliteOptions,
    examine: impl FnOnce(&Connection) -> Result<()>,
) -> Result<Connection> {
    let connection = connect(options, OpenFlags::SQLITE_OPEN_CREATE)?;
    examine(&connection)?;
    let failed = |error| failure::of(error).during("open");
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(failed)?;
    set_up(&connection, options).map_err(failed)?;
    Ok(connection)
}

/// One more connection to a file that is there.
pub(super) fn another(options: &SqliteOptions) -> Result<Connection> {
    let connection = connect(options, OpenFlags::empty())?;
    set_up(&connection, options).map_err(failure::of)?;
    Ok(connection)
}

fn connect(options: &SqliteOptions, more: OpenFlags) -> Result<Connection> {
    // Each connection stays on one thread, so SQLite needs no mutex around it.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    let connection = Connection::open_with_flags(&options.path, flags)
        .and_then(|connection| connection.busy_timeout(options.busy_timeout).map(|()| connection));
    connection.map_err(|error| {
        failure::of(error).during("open").with("path", options.path.display().to_string())
    })
}

fn set_up(connection: &Connection, options: &SqliteOptions) -> rusqlite::Result<()> {
    let synchronous = match options.synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    let cache_kib = options.cache_bytes / 1024;
    let mmap_bytes = options.mmap_bytes;
    // `fullfsync` matters on macOS alone, where fsync does not reach the disk. A log that grew under
    // long readers is cut back to 64 MiB at the next checkpoint.
    connection.execute_batch(&format!(
        "PRAGMA synchronous = {synchronous};
         PRAGMA fullfsync = ON;
         PRAGMA checkpoint_fullfsync = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -{cache_kib};
         PRAGMA mmap_size = {mmap_bytes};
         PRAGMA journal_size_limit = 67108864;"
    ))?;
    if let Some(bytes) = options.max_file_bytes {
        let page: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = i64::try_from(bytes).unwrap_or(i64::MAX) / page.max(1);
        connection.execute_batch(&format!("PRAGMA max_page_count = {}", pages.max(1)))?;
    }
    Ok(())
}

/// Ends what work that panicked has left open, so that it is no part of what comes next.
pub(crate) fn end_transaction(connection: &Connection) -> Result<()> {
    match connection.is_autocommit() {
        true => Ok(()),
        false => connection.execute_batch("ROLLBACK").map_err(failure::of),
    }
}
