//! How PostgreSQL is set up, started and recognised.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::PostgresOptions;
use super::standby::Source;
use crate::error::{LabError, LabErrorKind, Result};
use crate::home::Home;
use crate::private_server::Engine;
use crate::processes::Process;
use crate::programs::{self, PostgresPrograms};
use crate::secret::Secret;

/// The one role, a superuser; its password is drawn at random.
pub(super) const USER: &str = "terrace";

/// Settings of the server in the data directory; `postgresql.conf` includes it last.
const SETTINGS_FILE: &str = "data/terrace.conf";

/// Settings that the server's privacy and its supervision rest on.
const RESERVED: [&str; 8] = [
    "port",
    "listen_addresses",
    "unix_socket_directories",
    "data_directory",
    "hba_file",
    "external_pid_file",
    "logging_collector",
    "password_encryption",
];

/// One PostgreSQL with the options that it was started with.
#[derive(Debug)]
pub(super) struct Postgres {
    pub(super) programs: PostgresPrograms,
    pub(super) password: Secret,
    pub(super) temporary: bool,
    settings: Vec<(String, String)>,
    /// The server that this one is a standby of.
    source: Mutex<Option<Source>>,
}

impl Postgres {
    /// Chooses the programs that fit the data, and checks the options.
    pub(super) fn new(home: &Home, options: &PostgresOptions) -> Result<Self> {
        for (name, value) in &options.settings {
            check_setting(name, value)?;
        }
        let version = home.read("data/PG_VERSION")?;
        let programs = programs::postgres_for(version.as_deref())?;
        if let Some(version) = version.filter(|version| *version != programs.major) {
            let place = home.data();
            let (place, major) = (place.display(), &programs.major);
            return Err(LabError::new(
                LabErrorKind::VersionMismatch,
                format!(
                    "{place} has data of PostgreSQL {version}, this machine has PostgreSQL {major}"
                ),
                format!(
                    "install PostgreSQL {version}, or remove {} to start with empty data",
                    home.path().display()
                ),
            ));
        }
        let password = home.password()?;
        let (settings, temporary) = (options.settings.clone(), options.temporary);
        Ok(Self { programs, password, settings, temporary, source: Mutex::default() })
    }

    /// Whom to follow from the next start on.
    pub(super) fn follow(&self, source: Option<Source>) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = source;
    }

    fn source(&self) -> Option<Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the data beside their place and moves them there whole: an interrupted first start
    /// leaves nothing that looks like data.
    fn create_data(&self, home: &Home) -> Result<()> {
        let draft = draft(home);
        if draft.exists() {
            fs::remove_dir_all(&draft).map_err(LabError::file("remove", &draft))?;
        }
        match self.source() {
            Some(source) => source.copy(self, home, &draft)?,
            None => self.initialise(home, &draft)?,
        }
        let data = home.data();
        let moved =
            fs::rename(&draft, &data).and_then(|()| fs::File::open(home.path())?.sync_all());
        moved.map_err(LabError::file("create", &data))
    }

    fn initialise(&self, home: &Home, draft: &Path) -> Result<()> {
        let initdb = self.programs.directory.join("initdb");
        let mut command = home.command(&initdb);
        command.arg("--pgdata").arg(draft);
        command.args(["--username", USER, "--auth=scram-sha-256", "--encoding=UTF8"]);
        command.arg("--locale=C").arg("--pwfile").arg(home.path().join("password"));
        if self.temporary {
            // The server's own writes stay durable; these files are made anew each time.
            command.arg("--no-sync");
        }
        run(&mut command, &initdb)?;
        let settings = draft.join("postgresql.conf");
        append(&settings, "\ninclude 'terrace.conf'\n").map_err(LabError::file("write", &settings))
    }

    fn settings(&self, port: u16) -> String {
        let fixed = [
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
            ("unix_socket_directories", String::new()),
            ("password_encryption", "scram-sha-256".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("fsync", "on".to_owned()),
            ("synchronous_commit", "on".to_owned()),
            ("full_page_writes", "on".to_owned()),
        ];
        let fixed = fixed.map(|(name, value)| (name.to_owned(), value));
        let source = self.source().map(|source| source.settings(self.password.reveal()));
        let follows = source.iter().flatten();
        let lines = fixed.iter().chain(follows).chain(&self.settings).map(|(name, value)| {
            // Manual, 20.1: quotes double; a backslash escapes.
            let value = value.replace('\\', r"\\").replace('\'', "''");
            format!("{name} = '{value}'\n")
        });
        lines.collect()
    }
}

impl Engine for Postgres {
    fn name(&self) -> &'static str {
        "PostgreSQL"
    }

    fn stop(&self) -> Signal {
        // Manual, 19.5: fast shutdown, immediate shutdown.
        Signal::SIGINT
    }

    fn abandon(&self) -> Signal {
        Signal::SIGQUIT
    }

    fn prepare(&self, home: &Home, port: u16) -> Result<()> {
        if !home.data().join("PG_VERSION").exists() {
            self.create_data(home)?;
        }
        home.write(SETTINGS_FILE, &self.settings(port))
    }

    fn command(&self, home: &Home) -> Vec<OsString> {
        let postgres = self.programs.directory.join("postgres");
        vec![postgres.into(), "-D".into(), home.data().into()]
    }

    fn answers(&self, home: &Home, port: u16, pid: u32) -> bool {
        // Another server may have taken the port: the pid file tells whether it is ours.
        let file = home.read("data/postmaster.pid").ok().flatten().unwrap_or_default();
        file.lines().next() == Some(pid.to_string().as_str()) && asks_for_password(port)
    }

    /// The server itself, or what an interrupted first start left at work on the draft.
    fn is_leftover(&self, home: &Home, process: &Process) -> bool {
        let own = self.programs.directory.to_string_lossy();
        let drafting = process.command.starts_with(&*own)
            && process.command.contains(&*draft(home).to_string_lossy());
        drafting || process.command.ends_with(&format!("postgres -D {}", home.data().display()))
    }
}

fn draft(home: &Home) -> PathBuf {
    home.path().join("data.draft")
}

/// Whether a server on `port` starts a login, as `pg_isready` asks it: while it starts up or shuts
/// down, it sends an error instead ('E', SQLSTATE 57P03). Manual, 55.7, "`StartupMessage`".
fn asks_for_password(port: u16) -> bool {
    const PARAMETERS: &[u8] = b"user\0terrace\0database\0postgres\0\0";
    const PROTOCOL: u32 = 3 << 16;
    let patience = Duration::from_secs(1);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let ask = || -> io::Result<u8> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let length = u32::try_from(PARAMETERS.len() + 8).unwrap_or_default();
        let mut message = Vec::from(length.to_be_bytes());
        message.extend(PROTOCOL.to_be_bytes());
        message.extend(PARAMETERS);
        stream.write_all(&message)?;
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        Ok(kind[0])
    };
    ask().is_ok_and(|kind| kind == b'R')
}

fn check_setting(name: &str, value: &str) -> Result<()> {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte));
    let reserved = RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name));
    if name.is_empty() || !letters || reserved || value.contains(['\n', '\r', '\0']) {
        let message = format!("the PostgreSQL setting {name:?} cannot be set here");
        let next = "leave it out; the address, the port and the files are set by Terrace";
        return Err(LabError::new(LabErrorKind::InvalidOption, message, next));
    }
    Ok(())
}

/// Runs a program to its end; what it said goes into the error.
pub(super) fn run(command: &mut Command, program: &Path) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().map_err(LabError::run(program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let message = format!("{} failed: {}", program.display(), said.trim());
    let next = "correct what it names, or choose another directory";
    Err(LabError::new(LabErrorKind::StartFailed, message, next))
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        check_setting("max_connections", "300").expect("a setting");
        check_setting("auto_explain.log_min_duration", "0").expect("a setting of an extension");
        for (name, value) in [("port", "1"), ("Port", "1"), ("", "1"), ("a b", "1"), ("a", "1\n")] {
            let error = check_setting(name, value).expect_err(name);
            assert_eq!(error.kind(), LabErrorKind::InvalidOption);
        }
    }
}
