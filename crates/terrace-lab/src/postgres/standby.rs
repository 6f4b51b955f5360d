//! Streaming standbys: made from a running server, kept by a replication slot of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::engine::{Postgres, USER, run};
use super::{PostgresOptions, PostgresServer};
use crate::blocking;
use crate::error::{LabError, LabErrorKind, Result};
use crate::home::Home;
use crate::private_server::{PrivateServer, Start};

/// Tells the server that it is a standby (manual, 27.2.2).
const SIGNAL: &str = "data/standby.signal";

/// The server that a standby follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    port: u16,
    slot: String,
}

impl Source {
    /// Settings of the standby. The password stands in a file that only the server's account reads.
    pub(super) fn settings(&self, password: &str) -> [(String, String); 3] {
        let Self { port, slot } = self;
        let conninfo = format!(
            "host=127.0.0.1 port={port} user={USER} password={password} sslmode=disable \
             application_name={slot}"
        );
        [
            ("hot_standby", "on".to_owned()),
            ("primary_conninfo", conninfo),
            ("primary_slot_name", slot.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// Makes the data from those of the source. What the source writes from now on is kept for this
    /// standby until it has it.
    pub(super) fn copy(&self, engine: &Postgres, home: &Home, draft: &Path) -> Result<()> {
        let program = engine.programs.directory.join("pg_basebackup");
        let mut command = self.command(engine, home, &program);
        command.arg("--pgdata").arg(draft).args(["--checkpoint=fast", "--wal-method=stream"]);
        command.args(["--slot", &self.slot]);
        if engine.temporary {
            command.arg("--no-sync");
        }
        run(&mut command, &program)?;
        let signal = draft.join("standby.signal");
        // The account owns what pg_basebackup made; this file is only looked for.
        fs::write(&signal, "").map_err(LabError::file("write", &signal))
    }

    /// Makes the slot on the source, unless it is there.
    fn reserve(&self, engine: &Postgres, home: &Home) -> Result<()> {
        let program = engine.programs.directory.join("pg_receivewal");
        let mut command = self.command(engine, home, &program);
        command.args(["--create-slot", "--if-not-exists", "--slot", &self.slot]);
        run(&mut command, &program)
    }

    fn command(&self, engine: &Postgres, home: &Home, program: &Path) -> Command {
        let mut command = home.command(program);
        command
            .args(["--host=127.0.0.1", "--username", USER, "--no-password"])
            .args(["--port", &self.port.to_string()])
            .env("PGPASSWORD", engine.password.reveal())
            .envs([("PGSSLMODE", "disable"), ("PGGSSENCMODE", "disable")])
            .stdin(Stdio::null());
        command
    }
}

impl PostgresServer {
    /// Starts a streaming standby of this server and waits until it answers reads.
    ///
    /// Its data are copied from this server where there are none, or those of another primary's
    /// standby; `slot` is the name of the replication slot that keeps this server's log for it.
    /// Settings such as `max_connections` must not be lower than this server's. The standby has the
    /// same role and password.
    ///
    /// # Errors
    /// As [`start`](Self::start); [`LabErrorKind::InvalidOption`] when the directory has a server
    /// that is no standby, or was promoted: its data may be the only ones.
    pub async fn start_standby(
        &self,
        slot: &str,
        options: PostgresOptions,
    ) -> Result<Self, LabError> {
        let (this, slot) = (self.clone(), slot.to_owned());
        blocking(move || this.start_standby_blocking(&slot, &options)).await
    }

    fn start_standby_blocking(&self, slot: &str, options: &PostgresOptions) -> Result<Self> {
        super::check_database_name(slot)?;
        let home = Home::open(&options.directory)?;
        let lock = home.lock()?;
        let password = self.engine.password.reveal();
        let is_standby = home.path().join(SIGNAL).exists();
        if home.data().join("PG_VERSION").exists() {
            if !is_standby {
                return Err(no_standby(&home));
            }
            if home.read("password")?.as_deref() != Some(password) {
                let data = home.data();
                fs::remove_dir_all(&data).map_err(LabError::file("remove", &data))?;
            }
        }
        home.write("password", password)?;
        let engine = Arc::new(Postgres::new(&home, options)?);
        let source = Source { port: self.port(), slot: slot.to_owned() };
        source.reserve(&engine, &home)?;
        engine.follow(Some(source));
        let start = Start {
            port: options.port,
            within: options.start_within,
            temporary: options.temporary,
        };
        let server = PrivateServer::start(Arc::clone(&engine) as _, home, lock, &start)?;
        Ok(Self { server, engine })
    }

    /// Lets a standby follow another server from now on, as after that one was promoted; restarts
    /// it. Without effect on a server that is no standby.
    ///
    /// # Errors
    /// As [`start_standby`](Self::start_standby).
    pub async fn follow(&self, slot: &str, primary: &Self) -> Result<(), LabError> {
        let source = Source { port: primary.port(), slot: slot.to_owned() };
        let this = self.clone();
        blocking(move || {
            source.reserve(&this.engine, this.home())?;
            this.engine.follow(Some(source));
            this.restart_blocking()
        })
        .await
    }

    /// Makes a standby a primary of a new timeline and waits until it takes writes.
    ///
    /// # Errors
    /// [`LabErrorKind::StartFailed`] with PostgreSQL's words when it is no standby or does not come
    /// to it within a minute.
    pub async fn promote(&self) -> Result<(), LabError> {
        let this = self.clone();
        blocking(move || {
            let program = this.engine.programs.directory.join("pg_ctl");
            let mut command = this.home().command(&program);
            command.arg("--pgdata").arg(this.home().data());
            command.args(["--wait", "--timeout=60", "promote"]);
            run(&mut command, &program)
        })
        .await
    }
}

fn no_standby(home: &Home) -> LabError {
    let place = home.path().display();
    let message = format!("{place} has a server that is no standby, or no longer");
    let next = format!("move its data where they belong, then remove {place}");
    LabError::new(LabErrorKind::InvalidOption, message, next)
}
