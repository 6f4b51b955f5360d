//! A private Redis server.

mod engine;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::engine::Redis;
use crate::blocking;
use crate::error::LabError;
use crate::home::Home;
use crate::private_server::{PrivateServer, Start};

/// What Redis writes to disk. Source: Redis manual, "Redis persistence".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: a restart begins empty.
    #[default]
    None,
    /// Each write to a log that is flushed once a second: a crash of the machine loses about a
    /// second of acknowledged writes, a crash of the process alone nothing.
    AofEverySecond,
    /// Each write to a log that is flushed before the answer.
    AofAlways,
}

/// How to start a [`RedisServer`].
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Where the data, the password and the log are; created when missing.
    pub directory: PathBuf,
    /// The TCP port on 127.0.0.1. Default: the one used last, if it is free, else any free port.
    pub port: Option<u16>,
    /// What is written to disk. Default: nothing.
    pub persistence: Persistence,
    /// Settings of `redis.conf` as (name, value), such as `maxmemory` and `64mb`. Default: none.
    pub settings: Vec<(String, String)>,
    /// How long until the server must answer, loading its data included. Default: 60 s.
    pub start_within: Duration,
    /// Removes the directory when the server's value is dropped or its process ends, for tests.
    /// Default: false.
    pub temporary: bool,
}

impl RedisOptions {
    /// A server without persistence in `directory` on a free port.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            port: None,
            persistence: Persistence::None,
            settings: Vec::new(),
            start_within: Duration::from_secs(60),
            temporary: false,
        }
    }
}

/// A running private Redis server; cheap to clone, ends when the last clone is dropped.
///
/// It listens on 127.0.0.1 with a password that stands in a file of mode 0600. Blocking, runtime and
/// cancellation are as for [`PostgresServer`](crate::PostgresServer).
#[derive(Debug, Clone)]
pub struct RedisServer {
    server: Arc<PrivateServer<Redis>>,
}

impl RedisServer {
    /// Starts the server and waits until it answers `PING`.
    ///
    /// Ends what an earlier run left running in this directory.
    ///
    /// # Errors
    /// A [`LabError`] of any kind except [`CommandFailed`](crate::LabErrorKind::CommandFailed) and
    /// [`VersionMismatch`](crate::LabErrorKind::VersionMismatch).
    pub async fn start(options: RedisOptions) -> Result<Self, LabError> {
        blocking(move || Self::start_blocking(&options)).await
    }

    /// [`start`](Self::start) for callers without a runtime.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_blocking(options: &RedisOptions) -> Result<Self, LabError> {
        let home = Home::open(&options.directory)?;
        let lock = home.lock()?;
        let engine = Redis::new(&home, options)?;
        let start = Start {
            port: options.port,
            within: options.start_within,
            temporary: options.temporary,
        };
        Ok(Self { server: Arc::new(PrivateServer::start(engine, home, lock, &start)?) })
    }

    /// `redis://:PASSWORD@127.0.0.1:PORT/`; stays the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}/", self.server.engine().password.reveal(), self.port())
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The server's process id; `None` after [`stop`](Self::stop) or [`kill`](Self::kill).
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Whether the server's process lives; it also notices a server that ended by itself.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.server.is_running()
    }

    /// Where the server really lives: not the directory that was asked for when the unprivileged
    /// account cannot reach that one.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.server.home().path()
    }

    /// Ends the server in good order (SIGTERM); after 30 s without an end it is killed.
    ///
    /// # Errors
    /// None at present beyond a runtime that shuts down.
    pub async fn stop(&self) -> Result<(), LabError> {
        let server = Arc::clone(&self.server);
        blocking(move || {
            server.stop();
            Ok(())
        })
        .await
    }

    /// Ends the server with SIGKILL: a crash. It blocks for milliseconds.
    pub fn kill(&self) {
        self.server.kill();
    }

    /// Stops the server if it runs, and starts it on the same port with the same settings.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&self) -> Result<(), LabError> {
        let server = Arc::clone(&self.server);
        blocking(move || server.restart()).await
    }

    /// Freezes the server (SIGSTOP): connections stay, nothing answers.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// Continues after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.server.resume();
    }
}
