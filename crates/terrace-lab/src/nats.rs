//! A private NATS server with JetStream.

mod engine;

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::engine::Nats;
use crate::blocking;
use crate::error::LabError;
use crate::home::Home;
use crate::private_server::{PrivateServer, Start};

/// How to start a [`NatsServer`].
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// Where the data, the password and the log are; created when missing.
    pub directory: PathBuf,
    /// The TCP port on 127.0.0.1. Default: the one used last, if it is free, else any free port.
    pub port: Option<u16>,
    /// How long until the server must answer, loading its data included. Default: 60 s.
    pub start_within: Duration,
    /// Removes the directory when the server's value is dropped or its process ends, for tests.
    /// Default: false.
    pub temporary: bool,
}

impl NatsOptions {
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

/// A running private NATS server; cheap to clone, ends when the last clone is dropped.
///
/// It listens on 127.0.0.1 with a password that stands in a file of mode 0600, keeps streams in files
/// and takes messages of up to 8 MiB. Blocking, runtime and cancellation are as for
/// [`PostgresServer`](crate::PostgresServer).
#[derive(Debug, Clone)]
pub struct NatsServer {
    server: PrivateServer,
    engine: Arc<Nats>,
}

impl Deref for NatsServer {
    type Target = PrivateServer;

    fn deref(&self) -> &PrivateServer {
        &self.server
    }
}

impl NatsServer {
    /// Starts the server and waits until it answers `PING`.
    ///
    /// Ends what an earlier run left running in this directory.
    ///
    /// # Errors
    /// A [`LabError`] of any kind except [`CommandFailed`](crate::LabErrorKind::CommandFailed) and
    /// [`VersionMismatch`](crate::LabErrorKind::VersionMismatch).
    pub async fn start(options: NatsOptions) -> Result<Self, LabError> {
        blocking(move || Self::start_blocking(&options)).await
    }

    /// [`start`](Self::start) for callers without a runtime.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_blocking(options: &NatsOptions) -> Result<Self, LabError> {
        let home = Home::open(&options.directory)?;
        let lock = home.lock()?;
        let engine = Arc::new(Nats::new(&home)?);
        let start = Start {
            port: options.port,
            within: options.start_within,
            temporary: options.temporary,
        };
        let server = PrivateServer::start(Arc::clone(&engine) as _, home, lock, &start)?;
        Ok(Self { server, engine })
    }

    /// `nats://terrace:PASSWORD@127.0.0.1:PORT`; stays the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        let password = self.engine.password.reveal();
        format!("nats://terrace:{password}@127.0.0.1:{}", self.server.port())
    }
}
