//! Finds the servers' programs on this machine, and says what to install when they are missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use crate::error::{LabError, LabErrorKind, Result};

/// What must stand together in one directory: they refuse each other's data across versions.
const POSTGRES_PROGRAMS: [&str; 7] = [
    "postgres",
    "initdb",
    "createdb",
    "pg_ctl",
    "pg_basebackup",
    "pg_receivewal",
    "pg_verifybackup",
];

/// Valkey is the same server by another name.
const REDIS_PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];

/// MongoDB, or else a server that speaks its protocol.
const DOCUMENT_PROGRAMS: [&str; 2] = ["mongod", "nx-27017"];

/// One program that `--stores local` runs, for `terrace doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The program's file name, such as `postgres`.
    pub name: &'static str,
    /// Whether and where it is.
    pub state: ProgramState,
}

/// Whether a [`Program`] can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramState {
    /// It is here.
    Found {
        /// The program.
        path: PathBuf,
        /// What it says about its version, such as `postgres (PostgreSQL) 15.18`.
        version: String,
    },
    /// It is not.
    Missing {
        /// What is missing and what to install.
        reason: String,
    },
}

/// All programs that `--stores local` runs, each with its version or what is missing.
///
/// It runs each with `--version`, thus blocks for some milliseconds.
#[must_use]
pub fn programs() -> Vec<Program> {
    let names = POSTGRES_PROGRAMS.into_iter().chain(["redis-server", "mongod"]);
    let state = |name: &str| match find_program(name) {
        Ok(path) => {
            let version = version_line(&path).unwrap_or_else(|| unversioned(&path).to_owned());
            ProgramState::Found { path, version }
        }
        Err(error) => ProgramState::Missing { reason: error.to_string() },
    };
    names.map(|name| Program { name, state: state(name) }).collect()
}

/// The path of a program, from `PATH`, then from the places where packages put it.
///
/// PostgreSQL's programs (`postgres`, `initdb`, `pg_basebackup`, ...) all come from one directory;
/// `redis-server` may be `valkey-server`, and `mongod` may be `nx-27017`.
///
/// # Errors
/// [`LabErrorKind::ProgramMissing`], with what to install.
pub fn find_program(name: &str) -> Result<PathBuf, LabError> {
    if POSTGRES_PROGRAMS.contains(&name) {
        return postgres_for(None).map(|found| found.directory.join(name));
    }
    let names = match name {
        "redis-server" => &REDIS_PROGRAMS[..],
        "mongod" => &DOCUMENT_PROGRAMS[..],
        _ => &[name][..],
    };
    let directories = directories();
    // Links are not followed: some programs are several, told apart by the name they run under.
    names
        .iter()
        .flat_map(|name| directories.iter().map(move |directory| directory.join(name)))
        .find(|path| is_program(path))
        .ok_or_else(|| {
            let message = format!("the program `{name}` is not on this machine");
            LabError::new(LabErrorKind::ProgramMissing, message, how_to_install(name))
        })
}

/// One PostgreSQL: a directory with all its programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PostgresPrograms {
    pub(crate) directory: PathBuf,
    /// The first number of the version; data of one major version are useless to another.
    pub(crate) major: String,
}

/// The PostgreSQL of the `wanted` major version where it is here, otherwise the first one found.
pub(crate) fn postgres_for(wanted: Option<&str>) -> Result<PostgresPrograms> {
    let mut incomplete = None;
    let mut first = None;
    for directory in directories() {
        let Ok(postgres) = directory.join("postgres").canonicalize() else { continue };
        // A link leads to the directory where the other programs are.
        let directory = postgres.parent().unwrap_or(&directory).to_owned();
        let missing =
            POSTGRES_PROGRAMS.into_iter().find(|program| !is_program(&directory.join(program)));
        if let Some(program) = missing {
            incomplete.get_or_insert((directory, program));
            continue;
        }
        let Some(major) = version_line(&postgres).as_deref().and_then(major_version) else {
            continue;
        };
        let found = PostgresPrograms { directory, major };
        if wanted.is_none_or(|wanted| wanted == found.major) {
            return Ok(found);
        }
        first.get_or_insert(found);
    }
    first.ok_or_else(|| {
        let message = incomplete.map_or_else(
            || "PostgreSQL is not on this machine".to_owned(),
            |(place, name)| format!("the PostgreSQL in {} has no `{name}`", place.display()),
        );
        LabError::new(LabErrorKind::ProgramMissing, message, how_to_install("postgres"))
    })
}

/// `PATH`, then the usual places; of several PostgreSQL versions the newest first.
fn directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut all: Vec<PathBuf> = env::split_paths(&path).filter(|one| one.is_absolute()).collect();
    all.extend(versions_in(Path::new("/usr/lib/postgresql"), ""));
    all.extend(versions_in(Path::new("/usr"), "pgsql-"));
    all.push("/usr/local/bin".into());
    for prefix in ["/opt/homebrew", "/usr/local"] {
        all.extend(versions_in(&Path::new(prefix).join("opt"), "postgresql"));
        all.push(Path::new(prefix).join("bin"));
    }
    all.extend(["/usr/bin", "/usr/local/sbin", "/usr/sbin"].map(PathBuf::from));
    all
}

/// The `bin` folders of `parent/{prefix}{version}`, newest version first.
fn versions_in(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?.trim_start_matches('@');
            // Homebrew's `postgresql` without a number is its newest.
            let version = if version.is_empty() { u32::MAX } else { version.parse().ok()? };
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by(|left, right| right.cmp(left));
    found.into_iter().map(|(_, path)| path).collect()
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn version_line(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// What is said of a program that does not tell its version.
fn unversioned(program: &Path) -> &'static str {
    match is_compatible(program) {
        true => "nx-27017, which speaks MongoDB's protocol and is not MongoDB",
        false => "unknown version",
    }
}

/// Whether this document server is not MongoDB itself.
pub(crate) fn is_compatible(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name == DOCUMENT_PROGRAMS[1])
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0)` gives `15`, `18beta1` gives `18`.
fn major_version(line: &str) -> Option<String> {
    let version = line.split(") ").nth(1)?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some(digits).filter(|digits| !digits.is_empty())
}

fn how_to_install(name: &str) -> String {
    if POSTGRES_PROGRAMS.contains(&name) {
        "install PostgreSQL (`apt-get install postgresql-15`, or `brew install postgresql@17`)"
            .to_owned()
    } else if REDIS_PROGRAMS.contains(&name) {
        "install Redis (`apt-get install redis-server`, or `brew install redis`)".to_owned()
    } else if name == "nats-server" {
        "install NATS (`apt-get install nats-server`, or `brew install nats-server`)".to_owned()
    } else if name == "pgbouncer" {
        "install PgBouncer (`apt-get install pgbouncer`, or `brew install pgbouncer`)".to_owned()
    } else if name == "varnishd" {
        "install Varnish (`apt-get install varnish`, or `brew install varnish`)".to_owned()
    } else if name == "nginx" {
        "install nginx (`apt-get install nginx`, or `brew install nginx`)".to_owned()
    } else if DOCUMENT_PROGRAMS.contains(&name) {
        "install MongoDB (https://www.mongodb.com/docs/manual/installation/), or nx-27017, which \
         speaks its protocol (`pip install nx-27017` in a virtual environment whose `bin` is on PATH)"
            .to_owned()
    } else {
        format!("install it, or put its directory on PATH: {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)";
        assert_eq!(major_version(debian).as_deref(), Some("15"));
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1").as_deref(), Some("18"));
        assert_eq!(major_version("nonsense"), None);
    }

    #[test]
    fn newest_version_first() {
        let parent = tempfile::tempdir().expect("a directory");
        for name in ["postgresql@9", "postgresql@16", "postgresql", "other@99"] {
            fs::create_dir(parent.path().join(name)).expect("a folder");
        }
        let expected = ["postgresql/bin", "postgresql@16/bin", "postgresql@9/bin"];
        assert_eq!(
            versions_in(parent.path(), "postgresql"),
            expected.map(|name| parent.path().join(name))
        );
    }

    #[test]
    fn postgres_programs_come_from_one_directory() {
        let postgres = find_program("postgres").expect("PostgreSQL");
        let initdb = find_program("initdb").expect("PostgreSQL");
        assert_eq!(postgres.parent(), initdb.parent());
    }

    #[test]
    fn another_document_server_is_not_called_mongodb() {
        let said = unversioned(Path::new("/opt/env/bin/nx-27017"));
        assert!(said.contains("is not MongoDB"), "{said}");
        assert_eq!(unversioned(Path::new("/usr/bin/mongod")), "unknown version");
        assert!(how_to_install("mongod").contains("pip install nx-27017"));
    }

    #[test]
    fn a_missing_program_says_what_to_do() {
        let error = find_program("no-such-server").expect_err("no such program");
        assert_eq!(error.kind(), LabErrorKind::ProgramMissing);
        assert!(error.to_string().contains("install it"), "{error}");
    }
}
