//! Backups of all databases of a level, to one logical point, and restores that are tried out.
//!
//! # What a backup is
//! A directory: a copy of the files of each PostgreSQL server (`pg_basebackup`) with its write-ahead log up to
//! a marker, or a copy of each SQLite file; and the [`Catalogue`], which has the size and the digest of every
//! file. The catalogue is written last, in one step: what has none is no backup, however far it came.
//!
//! # One point over all databases
//! Files are copied first, for as long as it takes. Then all databases hold their writers at once, for a moment:
//! every write that was acknowledged before it is in the backup, none that began after it, and so of two writes in
//! order, on whatever shards, never the later one alone. Meanwhile each server writes the marker into its log, up
//! to which a restored copy recovers, and each database begins a snapshot, whose digest goes into the catalogue.
//! Writers wait and are not refused. What is held by somebody else for long is told, and nothing stays held.
//!
//! # Who can read it
//! Whoever can read its files, unless it was made with a [`BackupKey`]: then the files and the catalogue are sealed
//! before the directory is a backup. Until then they lie there as they are copied.
//!
//! # What is trusted
//! Nothing but bytes that were read. A restore compares each file with the catalogue while it copies it, and a
//! server recovers to the marker or does not start. The [`drill`] does both, beside the level that runs, and compares the
//! records with what they were at the marker.

mod adopt;
mod barrier;
mod catalogue;
mod drill;
mod files;
mod hex;
mod programs;
mod restore;
mod sealed;
mod url;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::try_join_all;
use terrace_core::{Error, ErrorKind, Result, Runtime};
use terrace_stores::{BackupServer, Contents, PostgresBackup, PostgresOptions, SqliteBackup};

use self::files::blocking;
use self::programs::Program;
use crate::config::redacted;
use crate::levels::{DatabasePlace, Original};

pub use adopt::adopt;
pub use catalogue::{Backup, Catalogue, DatabaseCopy, FileCopy, Listed, ServerCopy};
pub use drill::{DrillReport, drill};
pub use restore::{Restored, restore};
pub use sealed::BackupKey;

/// Hears what a backup waits for, in a sentence for people.
pub type Tell = fn(&str);

/// A backup that is being made.
#[derive(Debug)]
pub struct Making {
    place: PathBuf,
    catalogue: Catalogue,
    databases: Vec<Source>,
    servers: Vec<Copied>,
    runtime: Runtime,
    unfinished: Unfinished,
}

/// The directory of a backup that may never be one; removed when it is dropped before that.
#[derive(Debug, Default)]
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(place) = self.0.take() {
            let _no_backup_anyway = fs::remove_dir_all(place);
        }
    }
}

/// A database that is being copied.
#[derive(Debug)]
enum Source {
    /// With the place of its server.
    Postgres(Box<PostgresBackup>, usize),
    Sqlite(Arc<SqliteBackup>),
}

/// A server that is being copied.
#[derive(Debug)]
struct Copied {
    server: BackupServer,
    options: PostgresOptions,
    directory: PathBuf,
}

impl Making {
    /// Looks whether a backup can be made, makes its directory, and lets servers keep their logs for it.
    ///
    /// # Errors
    /// What is missing, and the next step.
    pub async fn begin(
        originals: &[Original],
        (level, directory): (u8, &Path),
        runtime: &Runtime,
    ) -> Result<Self> {
        let began_at = runtime.wall();
        let millis = began_at.subsec_millisecond().unsigned_abs();
        let name = format!("l{level}-{}-{millis:03}", began_at.strftime("%Y%m%dT%H%M%SZ"));
        let place = directory.join(&name);
        let catalogue = Catalogue::begin(name, level, began_at);
        let mut making = Self {
            place,
            catalogue,
            databases: Vec::new(),
            servers: Vec::new(),
            runtime: runtime.clone(),
            unfinished: Unfinished::default(),
        };
        for original in originals {
            making.add(original).await?;
        }
        files::make(directory)?;
        files::make_new(&making.place)?;
        making.unfinished = Unfinished(Some(making.place.clone()));
        Ok(making)
    }

    async fn add(&mut self, original: &Original) -> Result<()> {
        let (source, history, schema, at) = match &original.place {
            DatabasePlace::File(path) => {
                let source = Arc::new(SqliteBackup::open(path)?);
                let history = source.history().to_owned();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (Source::Sqlite(source), history, String::new(), name)
            }
            DatabasePlace::Server(options) => {
                let source = PostgresBackup::open((**options).clone(), &self.runtime).await?;
                let history = source.history().to_owned();
                let number = self.server(&source, options).await?;
                let server = self.catalogue.servers[number].directory.clone();
                (
                    Source::Postgres(Box::new(source), number),
                    history,
                    options.schema.clone(),
                    server,
                )
            }
        };
        self.databases.push(source);
        self.catalogue.databases.push(DatabaseCopy {
            number: original.number,
            address: redacted(&original.address),
            at,
            schema,
            history,
            ..DatabaseCopy::default()
        });
        Ok(())
    }

    /// The place of a database's server; one that is new keeps its log from now on.
    async fn server(
        &mut self,
        source: &PostgresBackup,
        options: &PostgresOptions,
    ) -> Result<usize> {
        let server = source.server();
        if let Some(known) = self.servers.iter().position(|it| it.server == *server) {
            return Ok(known);
        }
        source.keep_log(&format!("terrace_backup_{:016x}", self.runtime.random())).await?;
        let directory = format!("server-{}", self.servers.len());
        self.servers.push(Copied {
            server: server.clone(),
            options: options.clone(),
            directory: self.place.join(&directory),
        });
        let (version, marker_at) = (server.version.clone(), String::new());
        self.catalogue.servers.push(ServerCopy { directory, version, marker_at });
        Ok(self.servers.len() - 1)
    }

    /// The name that it is going to have.
    pub fn name(&self) -> &str {
        &self.catalogue.name
    }

    /// Copies the files of all servers, while they are used. Of SQLite files nothing is copied before the marker.
    ///
    /// # Errors
    /// What `pg_basebackup` says.
    pub async fn copy_servers(&self) -> Result<()> {
        try_join_all(self.servers.iter().map(|it| it.copy(&self.catalogue.name))).await.map(drop)
    }

    /// Writes the marker, brings everything up to it, and makes a backup of it, sealed with this key. While the
    /// records of a database are maintained (`VACUUM`, `ANALYZE`), it waits for an hour at most and says so.
    ///
    /// # Errors
    /// `Unavailable` when writers cannot be held; what the programs say.
    pub async fn finish(mut self, key: Option<BackupKey>, tell: Tell) -> Result<Backup> {
        let clock = (&self.runtime, tell);
        let moment = barrier::mark(&self.databases, &self.catalogue, clock).await?;
        self.catalogue.marker_at = self.runtime.wall();
        self.catalogue.held_ms = u64::try_from(moment.held.as_millis()).unwrap_or(u64::MAX);
        let read = self.databases.iter().zip(&self.catalogue.databases);
        let contents = try_join_all(read.map(|(it, copy)| it.read(&self.place, copy))).await?;
        for (copy, Contents { rows, sha256, .. }) in
            self.catalogue.databases.iter_mut().zip(contents)
        {
            (copy.rows, copy.sha256) = (rows, sha256);
        }
        self.catalogue.marker = moment.marker;
        for (number, at) in moment.markers {
            self.servers[number].receive(&at).await?;
            self.catalogue.servers[number].marker_at = at;
        }
        drop((self.databases, self.servers));
        let backup =
            blocking(move || Backup::seal(self.place, self.catalogue, key.as_ref())).await?;
        self.unfinished.0 = None;
        Ok(backup)
    }
}

impl Source {
    /// What the records come to that were pinned; a file is copied, too.
    async fn read(&self, place: &Path, copy: &DatabaseCopy) -> Result<Contents> {
        match self {
            Source::Postgres(source, _) => source.contents("").await,
            Source::Sqlite(source) => {
                let (source, to) = (Arc::clone(source), place.join(&copy.at));
                blocking(move || source.copy(&to, "")).await
            }
        }
    }
}

impl Copied {
    /// Where the copy of the files is, and the log.
    fn parts(&self) -> (PathBuf, PathBuf) {
        (self.directory.join("base"), self.directory.join("wal"))
    }

    async fn copy(&self, label: &str) -> Result<()> {
        let (base, wal) = self.parts();
        files::make_new(&self.directory)?;
        files::make_new(&wal)?;
        let mut program = Program::to("pg_basebackup", &self.options.url)?;
        program.argument("--pgdata", &base).argument("--label", label);
        // The log of the copy's own time comes with it; the slot has kept it until then.
        program.arguments(["--wal-method=fetch", "--checkpoint=fast"]);
        program.arguments(["--manifest-checksums=SHA256"]);
        program.run().await?;
        // Where all of the log is, so that a restore has it from one place.
        for segment in files::list(&base.join("pg_wal"))? {
            let name = segment.file_name().unwrap_or_default();
            fs::rename(&segment, wal.join(name)).map_err(files::failed("move", &segment))?;
        }
        let copied = fs::read(base.join("global/pg_control"));
        let copied = copied.map_err(files::failed("read", &base))?;
        let system = copied.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        if system != Some(self.server.system) {
            let message =
                "the URL led to another server for the copy than for the records; name one server";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(())
    }

    /// Fetches the log up to the marker.
    async fn receive(&self, marker_at: &str) -> Result<()> {
        let (base, wal) = self.parts();
        let mut program = Program::to("pg_receivewal", &self.options.url)?;
        program.argument("--directory", &wal).argument("--endpos", marker_at);
        program.arguments(["--no-loop"]);
        program.run().await?;
        for segment in files::list(&wal)? {
            // Of the segment that is still written to we have what matters, and zeros behind it.
            if segment.extension().is_some_and(|it| it == "partial") {
                let whole = segment.with_extension("");
                fs::rename(&segment, whole).map_err(files::failed("rename", &segment))?;
            }
        }
        let mut program = Program::of("pg_verifybackup")?;
        program.argument("--wal-directory", &wal).arguments(["--quiet"]).operand(&base);
        program.run().await
    }
}
