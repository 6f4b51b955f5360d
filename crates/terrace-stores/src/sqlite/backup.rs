//! A copy of a SQLite file at a moment that the caller chooses, while it is used.
//!
//! The file's write lock keeps writers of all processes out for a moment. A snapshot that is taken meanwhile
//! stays what it is after the lock is gone, and is what is copied, with SQLite's own online backup
//! (SQLite manual, "SQLite Backup API"). While it is copied the file's write-ahead log cannot be cut back.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode};
use terrace_core::{Deadline, Error, ErrorKind, Result, Runtime};

use super::options::SqliteOptions;
use super::{connect, failure, schema};
use crate::contents::{Contents, Summing};

/// A file that is being backed up.
#[derive(Debug)]
pub struct SqliteBackup {
    path: PathBuf,
    writers: Mutex<Connection>,
    snapshot: Mutex<Connection>,
    history: String,
}

impl SqliteBackup {
    /// How often the lock of a file that is busy is tried for; SQLite keeps no line of those who wait.
    const AGAIN: Duration = Duration::from_millis(1);

    /// Opens a file that is there.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a file that has no records of Terrace.
    pub fn open(path: &Path) -> Result<Self> {
        let snapshot = existing(path)?;
        let writers = existing(path)?;
        writers.busy_timeout(Duration::ZERO).map_err(failure::of)?;
        const HISTORY: &str = "SELECT value FROM meta WHERE name = 'history'";
        let history = snapshot.query_row(HISTORY, [], |row| row.get(0)).map_err(failure::of)?;
        let (writers, snapshot) = (Mutex::new(writers), Mutex::new(snapshot));
        Ok(Self { path: path.to_owned(), writers, snapshot, history })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The history in force.
    pub fn history(&self) -> &str {
        &self.history
    }

    /// Keeps writers out from now on until [`SqliteBackup::release`]; false when another one had the file for
    /// so long.
    ///
    /// # Errors
    /// What SQLite says.
    pub async fn hold(&self, within: Duration, runtime: &Runtime) -> Result<bool> {
        let end = Deadline::at(runtime.now() + within);
        loop {
            let begun = lock(&self.writers).execute_batch("BEGIN IMMEDIATE");
            match begun {
                Ok(()) => return Ok(true),
                Err(error) if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) => {
                    return Err(failure::of(error).during("backup"));
                }
                Err(_) if end.passed(runtime.now()) => return Ok(false),
                Err(_) => runtime.sleep(Self::AGAIN).await,
            }
        }
    }

    /// What is copied, and summed up, from now on.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn pin(&self) -> Result<()> {
        let snapshot = lock(&self.snapshot);
        // What an earlier try has pinned goes. The first read takes the snapshot.
        let begin = match snapshot.is_autocommit() {
            true => "BEGIN; SELECT count(*) FROM meta",
            false => "ROLLBACK; BEGIN; SELECT count(*) FROM meta",
        };
        snapshot.execute_batch(begin).map_err(failure::of)
    }

    /// Lets writers go on.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn release(&self) -> Result<()> {
        let writers = lock(&self.writers);
        if writers.is_autocommit() {
            return Ok(());
        }
        writers.execute_batch("ROLLBACK").map_err(failure::of)
    }

    /// Copies what was pinned into a new file, on the calling thread, and answers what its records come to.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn copy(&self, to: &Path, ask: &str) -> Result<Contents> {
        let snapshot = lock(&self.snapshot);
        let mut copy = Connection::open(to).map_err(failure::of)?;
        let copied = Backup::new(&snapshot, &mut copy).and_then(|backup| backup.step(-1));
        match copied.map_err(failure::of)? {
            rusqlite::backup::StepResult::Done => {}
            _ => return Err(Error::new(ErrorKind::Unavailable, "the file could not be copied")),
        }
        let contents = sum(&snapshot, ask)?;
        snapshot.execute_batch("ROLLBACK").map_err(failure::of)?;
        Ok(contents)
    }

    /// The records of a file that is only looked at, such as a restored one.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn contents_of(path: &Path, ask: &str) -> Result<Contents> {
        sum(&existing(path)?, ask)
    }
}

fn existing(path: &Path) -> Result<Connection> {
    if !path.exists() {
        let message = "there is no file to back up; serve the level first, or name its --data-dir";
        return Err(Error::invalid(message).with("path", path.display().to_string()));
    }
    let connection = connect::another(&SqliteOptions::new(path))?;
    schema::examine(&connection)?;
    Ok(connection)
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sum(connection: &Connection, ask: &str) -> Result<Contents> {
    const ALL: &str = "SELECT key, version, deleted, value FROM records ORDER BY key";
    let mut all = connection.prepare(ALL).map_err(failure::of)?;
    let mut rows = all.query([]).map_err(failure::of)?;
    let mut sum = Summing::new(ask);
    while let Some(row) = rows.next().map_err(failure::of)? {
        let text = |column| row.get_ref(column).and_then(|it| Ok(it.as_str()?));
        let (key, value) = (text(0).map_err(failure::of)?, text(3).map_err(failure::of)?);
        let number = |column| row.get::<_, i64>(column).map_err(failure::of);
        sum.add(key, number(1)?, number(2)? != 0, value);
    }
    Ok(sum.end())
}
