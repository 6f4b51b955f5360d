//! A private Redis server.

mod engine;

use std::ops::Deref;
use std::path::PathBuf;
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
    /// Whether it is a sentinel, which watches other servers and keeps no data. Default: false.
    pub sentinel: bool,
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
            sentinel: false,
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
    server: PrivateServer,
    engine: Arc<Redis>,
}

impl Deref for RedisServer {
    type Target = PrivateServer;

    fn deref(&self) -> &PrivateServer {
        &self.server
    }
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
        let engine = Arc::new(Redis::new(&home, options)?);
        let start = Start {
            port: options.port,
            within: options.start_within,
            temporary: options.temporary,
        };
        let server = PrivateServer::start(Arc::clone(&engine) as _, home, lock, &start)?;
        Ok(Self { server, engine })
    }

    /// `redis://:PASSWORD@127.0.0.1:PORT/`; stays the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}/", self.engine.password.reveal(), self.port())
    }
}
