//! A private PostgreSQL server, and its standbys.

mod engine;
mod restored;
mod standby;

use std::ops::Deref;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use self::engine::{Postgres, USER};
use crate::blocking;
use crate::error::{LabError, LabErrorKind, Result};
use crate::home::Home;
use crate::private_server::{PrivateServer, Start};

/// How to start a [`PostgresServer`].
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Where the data, the password and the log are; created when missing.
    pub directory: PathBuf,
    /// The TCP port on 127.0.0.1. Default: the one used last, if it is free, else any free port.
    pub port: Option<u16>,
    /// Settings of `postgresql.conf` as (name, value), after the ones of this crate. Default: none.
    ///
    /// `fsync`, `synchronous_commit` and `full_page_writes` are on unless they stand here.
    pub settings: Vec<(String, String)>,
    /// How long until the server must answer, recovery after a crash included. Default: 60 s.
    pub start_within: Duration,
    /// Removes the directory when the server's value is dropped or its process ends, for tests.
    /// Default: false.
    pub temporary: bool,
}

impl PostgresOptions {
    /// A durable server in `directory` on a free port.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            port: None,
            settings: Vec::new(),
            start_within: Duration::from_secs(60),
            temporary: false,
        }
    }
}

/// A running private PostgreSQL server; cheap to clone, ends when the last clone is dropped.
///
/// It accepts the role `terrace` with a password (SCRAM-SHA-256) on 127.0.0.1 and nobody else.
/// Dropping the last clone blocks until the server has ended; [`stop`](PrivateServer::stop) does not block.
/// The async methods need a tokio runtime. A future of this type that is dropped does not stop what
/// it began; a start that nobody awaits any more ends in a stopped server.
#[derive(Debug, Clone)]
pub struct PostgresServer {
    server: PrivateServer,
    engine: Arc<Postgres>,
}

impl Deref for PostgresServer {
    type Target = PrivateServer;

    fn deref(&self) -> &PrivateServer {
        &self.server
    }
}

impl PostgresServer {
    /// Starts the server and waits until it accepts connections.
    ///
    /// Creates the data where there are none (UTF-8, locale C). Ends what an earlier run left
    /// running in this directory.
    ///
    /// # Errors
    /// A [`LabError`] of any kind except [`LabErrorKind::CommandFailed`].
    pub async fn start(options: PostgresOptions) -> Result<Self, LabError> {
        blocking(move || Self::start_blocking(&options)).await
    }

    /// [`start`](Self::start) for callers without a runtime.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_blocking(options: &PostgresOptions) -> Result<Self, LabError> {
        let home = Home::open(&options.directory)?;
        let lock = home.lock()?;
        let engine = Arc::new(Postgres::new(&home, options)?);
        let start = Start {
            port: options.port,
            within: options.start_within,
            temporary: options.temporary,
        };
        let server = PrivateServer::start(Arc::clone(&engine) as _, home, lock, &start)?;
        Ok(Self { server, engine })
    }

    /// The role that it accepts, and its password.
    pub(crate) fn login(&self) -> (&'static str, &str) {
        (USER, self.engine.password.reveal())
    }

    /// The URL of the database `postgres`, with the password; stays the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        self.database_url("postgres")
    }

    /// The URL of a database that [`create_database`](Self::create_database) made.
    #[must_use]
    pub fn database_url(&self, database: &str) -> String {
        let (password, port) = (self.engine.password.reveal(), self.port());
        format!("postgres://{USER}:{password}@127.0.0.1:{port}/{database}")
    }

    /// Makes an empty database unless it exists, and gives its URL.
    ///
    /// # Errors
    /// [`LabErrorKind::InvalidOption`] for a name that is not made of lower-case letters, digits and
    /// `_`, [`LabErrorKind::CommandFailed`] with PostgreSQL's words otherwise.
    pub async fn create_database(&self, name: &str) -> Result<String, LabError> {
        let (this, name) = (self.clone(), name.to_owned());
        blocking(move || this.create_database_blocking(&name)).await
    }

    /// [`create_database`](Self::create_database) for callers without a runtime.
    ///
    /// # Errors
    /// As [`create_database`](Self::create_database).
    pub fn create_database_blocking(&self, name: &str) -> Result<String, LabError> {
        check_database_name(name)?;
        let (engine, home) = (&self.engine, self.home());
        let createdb = engine.programs.directory.join("createdb");
        let output = home
            .command(&createdb)
            .args(["--no-password", "--", name])
            .envs([("PGHOST", "127.0.0.1"), ("PGUSER", USER), ("PGDATABASE", "postgres")])
            .envs([("PGSSLMODE", "disable"), ("PGGSSENCMODE", "disable")])
            .env("PGPORT", self.port().to_string())
            .env("PGPASSWORD", engine.password.reveal())
            .stdin(Stdio::null())
            .output()
            .map_err(LabError::run(&createdb))?;
        let said = String::from_utf8_lossy(&output.stderr);
        // Two at once: the loser meets the winner's row of the catalogue.
        let exists = said.contains("already exists") || said.contains("pg_database_datname_index");
        if output.status.success() || exists {
            return Ok(self.database_url(name));
        }
        let message = format!("cannot create the database {name}: {}", said.trim());
        let next = "see that the server runs and that its disk is not full";
        Err(LabError::new(LabErrorKind::CommandFailed, message, next))
    }
}

fn check_database_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    let message = format!("{name:?} is not a name for a database");
    let next = "use 1 to 63 lower-case letters, digits and `_`";
    Err(LabError::new(LabErrorKind::InvalidOption, message, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_databases_are_checked() {
        check_database_name("terrace_l5").expect("a name");
        for name in ["", "-x", "A", "a b", "a/b", &"a".repeat(64)] {
            check_database_name(name).expect_err(name);
        }
    }
}
