//! PostgreSQL's own programs.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use terrace_core::{Error, ErrorKind, Result};
use terrace_lab::find_program;
use tokio::process::Command;

use super::url;

/// A program that is about to run.
pub(super) struct Program {
    name: &'static str,
    command: Command,
}

impl Program {
    /// One of PostgreSQL's programs.
    pub(super) fn of(name: &'static str) -> Result<Self> {
        let path = find_program(name);
        let path = path.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))?;
        let mut command = Command::new(path);
        for (variable, _) in
            env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG"))
        {
            command.env_remove(variable);
        }
        // Nobody is there to hear it after this process.
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        Ok(Self { name, command })
    }

    /// The same for the server at a URL. The password is in the environment, which other users do not see.
    pub(super) fn to(name: &'static str, url: &str) -> Result<Self> {
        let mut program = Self::of(name)?;
        let (url, password) = url::without_password(url);
        program.argument("--dbname", url).arguments(["--no-password"]);
        if let Some(password) = password {
            program.command.env("PGPASSWORD", password);
        }
        // Of several hosts the one that takes writes, as Terrace itself.
        program.command.env("PGTARGETSESSIONATTRS", "read-write");
        Ok(program)
    }

    pub(super) fn argument(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(name).arg(value);
        self
    }

    pub(super) fn arguments<const N: usize>(&mut self, arguments: [&str; N]) -> &mut Self {
        self.command.args(arguments);
        self
    }

    pub(super) fn operand(&mut self, path: &Path) -> &mut Self {
        self.command.arg(path);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// `Unavailable` with what it says.
    pub(super) async fn run(mut self) -> Result<()> {
        let name = self.name;
        let ended = self.command.output().await;
        let ended = ended.map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("{name} cannot be run")).caused_by(error)
        })?;
        if ended.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ended.stderr);
        Err(Error::new(ErrorKind::Unavailable, format!("{name} failed: {}", said.trim())))
    }
}
