//! The error of this crate: what happened, why, and what to do next.

use std::path::Path;
use std::{error, fmt, io};

/// What kind of failure a [`LabError`] is, for callers that decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LabErrorKind {
    /// A server's program is not installed, or only a part of it.
    ProgramMissing,
    /// Another process runs a server in this directory now.
    DirectoryInUse,
    /// The port that was asked for belongs to another process.
    PortTaken,
    /// The data were written by another major version of the server.
    VersionMismatch,
    /// An option, a setting's name or a database's name cannot be used.
    InvalidOption,
    /// The server ended or did not answer in time; the message has the end of its log.
    StartFailed,
    /// A command on a running server failed.
    CommandFailed,
    /// The system refused a file, a process or a signal.
    Io,
}

/// A failure to start, reach or end a server.
///
/// Its text says what happened and what to do next; it never contains a password.
#[derive(Debug)]
pub struct LabError {
    kind: LabErrorKind,
    message: String,
    next_step: String,
    log: String,
    source: Option<io::Error>,
}

impl LabError {
    /// The kind of the failure.
    #[must_use]
    pub fn kind(&self) -> LabErrorKind {
        self.kind
    }

    /// What to do about it, in one sentence.
    #[must_use]
    pub fn next_step(&self) -> &str {
        &self.next_step
    }

    pub(crate) fn new(
        kind: LabErrorKind,
        message: impl Into<String>,
        next_step: impl Into<String>,
    ) -> Self {
        let (message, next_step) = (message.into(), next_step.into());
        Self { kind, message, next_step, log: String::new(), source: None }
    }

    pub(crate) fn with_log(mut self, lines: String) -> Self {
        self.log = lines;
        self
    }

    /// For `map_err`: "cannot {action} {path}".
    pub(crate) fn file<'a>(action: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| {
            let message = format!("cannot {action} {}", path.display());
            let next = match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "run as the user that owns the directory, or choose another directory"
                }
                io::ErrorKind::StorageFull => "free some disk space and start again",
                _ => "check the path and start again",
            };
            Self { source: Some(source), ..Self::new(LabErrorKind::Io, message, next) }
        }
    }

    /// For `map_err`: "cannot run {program}".
    pub(crate) fn run(program: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| {
            let message = format!("cannot run {}", program.display());
            let next = "check that the account which runs the server may execute it";
            Self { source: Some(source), ..Self::new(LabErrorKind::Io, message, next) }
        }
    }
}

impl fmt::Display for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        write!(f, "; next: {}", self.next_step)?;
        if !self.log.is_empty() {
            write!(f, "\nend of the server's log:\n{}", self.log)?;
        }
        Ok(())
    }
}

impl error::Error for LabError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// What every fallible function of this crate returns.
pub(crate) type Result<T, E = LabError> = std::result::Result<T, E>;
