//! A private document server: MongoDB, or a server that speaks its protocol.

mod engine;

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::engine::Mongo;
use crate::blocking;
use crate::error::LabError;
use crate::home::Home;
use crate::private_server::{PrivateServer, Start};

/// How to start a [`MongoServer`].
#[derive(Debug, Clone)]
pub struct MongoOptions {
    /// Where the data and the log are; created when missing.
    pub directory: PathBuf,
    /// The TCP port on 127.0.0.1. Default: the one used last, if it is free, else any free port.
    pub port: Option<u16>,
    /// How long until the server must answer, loading its data included. Default: 60 s.
    pub start_within: Duration,
    /// Removes the directory when the server's value is dropped or its process ends, for tests.
    /// Default: false.
    pub temporary: bool,
}

impl MongoOptions {
    /// A server in `directory` on a free port.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            port: None,
            start_within: Duration::from_secs(60),
            temporary: false,
        }
    }
}

/// A running private document server; cheap to clone, ends when the last clone is dropped.
///
/// It is `mongod` where that is installed, else `nx-27017`; [`program`](PrivateServer::program) says
/// which. It is a standalone server, listens on 127.0.0.1, and has no password: whoever works on this
/// machine can reach it. Blocking, runtime and cancellation are as for
/// [`PostgresServer`](crate::PostgresServer).
#[derive(Debug, Clone)]
pub struct MongoServer {
    server: PrivateServer,
}

impl Deref for MongoServer {
    type Target = PrivateServer;

    fn deref(&self) -> &PrivateServer {
        &self.server
    }
}

impl MongoServer {
    /// Starts the server and waits until it answers.
    ///
    /// Ends what an earlier run left running in this directory.
    ///
    /// # Errors
    /// A [`LabError`] of any kind except [`CommandFailed`](crate::LabErrorKind::CommandFailed) and
    /// [`VersionMismatch`](crate::LabErrorKind::VersionMismatch).
    pub async fn start(options: MongoOptions) -> Result<Self, LabError> {
        blocking(move || Self::start_blocking(&options)).await
    }

    /// [`start`](Self::start) for callers without a runtime.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_blocking(options: &MongoOptions) -> Result<Self, LabError> {
        let home = Home::open(&options.directory)?;
        let lock = home.lock()?;
        let start = Start {
            port: options.port,
            within: options.start_within,
            temporary: options.temporary,
        };
        let server = PrivateServer::start(Arc::new(Mongo::new()?), home, lock, &start)?;
        Ok(Self { server })
    }

    /// `mongodb://127.0.0.1:PORT/`; stays the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        self.database_url("")
    }

    /// The same with the name of a database.
    #[must_use]
    pub fn database_url(&self, name: &str) -> String {
        format!("mongodb://127.0.0.1:{}/{name}", self.port())
    }
}
