//! Which file a path leads to: what is not copied with a file.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rusqlite::{Connection, OptionalExtension as _};
use terrace_core::{Error, ErrorKind, Result};

use super::failure;

/// The file that was opened, to notice when its path leads elsewhere.
#[derive(Debug)]
pub(crate) struct FileIdentity {
    path: PathBuf,
    opened: Option<String>,
}

impl FileIdentity {
    /// Of the file that is there now.
    pub(crate) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), opened: identity(path) }
    }

    /// Its number and when it was made; `None` where the system does not say.
    pub(crate) fn text(&self) -> Option<&str> {
        self.opened.as_deref()
    }

    /// Whether the path still leads to the file that was opened. One `stat`.
    pub(crate) fn is_there(&self) -> bool {
        self.opened.is_some() && identity(&self.path) == self.opened
    }

    /// Refuses work on a file that nobody will find again.
    ///
    /// # Errors
    /// `Unavailable`, which says what to do.
    pub(crate) fn check(&self, what: &str) -> Result<()> {
        if self.is_there() {
            return Ok(());
        }
        let message = format!(
            "the {what} file was moved, deleted or replaced; put it back and restart Terrace"
        );
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    pub(crate) fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// Whether the file is another than the one that kept its identity in it, as a copy or a backup
    /// is; keeps its own from now on. A file that never kept any is itself.
    pub(crate) fn takes_the_place_of_another(&self, connection: &Connection) -> Result<bool> {
        const TABLE: &str = "CREATE TABLE IF NOT EXISTS file (identity TEXT NOT NULL) STRICT";
        let Some(own) = self.text() else { return Ok(false) };
        connection.execute(TABLE, []).map_err(failure::of)?;
        let kept: Option<String> = connection
            .query_row("SELECT identity FROM file", [], |row| row.get(0))
            .optional()
            .map_err(failure::of)?;
        connection.execute("DELETE FROM file", []).map_err(failure::of)?;
        connection.execute("INSERT INTO file VALUES (?1)", [own]).map_err(failure::of)?;
        Ok(kept.is_some_and(|kept| kept != own))
    }
}

fn identity(path: &Path) -> Option<String> {
    let file = std::fs::metadata(path).ok()?;
    let made = file.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let made = made.map_or(0, |since| since.as_nanos());
    Some(format!("{}-{made}", number(&file)))
}

#[cfg(unix)]
fn number(file: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[cfg(not(unix))]
fn number(_: &Metadata) -> u64 {
    0
}
