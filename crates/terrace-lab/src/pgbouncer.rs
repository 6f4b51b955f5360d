//! A private PgBouncer before a private PostgreSQL, for tests of what a pooler changes.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::{LabError, Result};
use crate::home::Home;
use crate::postgres::PostgresServer;
use crate::private_server::{Engine, PrivateServer, Start};
use crate::processes::Process;
use crate::programs;

const SETTINGS_FILE: &str = "pgbouncer.ini";

/// A running private PgBouncer; cheap to clone, ends with its directory when the last clone is dropped.
///
/// It listens on 127.0.0.1 and asks nobody for a password, so it is for tests alone.
#[derive(Debug, Clone)]
pub struct PgBouncer {
    server: PrivateServer,
}

impl Deref for PgBouncer {
    type Target = PrivateServer;

    fn deref(&self) -> &PrivateServer {
        &self.server
    }
}

impl PgBouncer {
    /// Starts PgBouncer in `directory` before all databases of a server, with settings as (name,
    /// value), such as `pool_mode`; waits until it answers.
    ///
    /// # Errors
    /// A [`LabError`] of any kind except [`CommandFailed`](crate::LabErrorKind::CommandFailed) and
    /// [`VersionMismatch`](crate::LabErrorKind::VersionMismatch).
    pub fn start_blocking(
        directory: impl Into<PathBuf>,
        before: &PostgresServer,
        settings: &[(&str, &str)],
    ) -> Result<Self, LabError> {
        let home = Home::open(&directory.into())?;
        let lock = home.lock()?;
        let (user, password) = before.login();
        let mut text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nunix_socket_dir =\nauth_type = any\n",
            before.port()
        );
        for (name, value) in settings {
            text.push_str(&format!("{name} = {value}\n"));
        }
        let engine = Bouncer { program: programs::find_program("pgbouncer")?, settings: text };
        let start = Start { port: None, within: Duration::from_secs(60), temporary: true };
        let server = PrivateServer::start(Arc::new(engine), home, lock, &start)?;
        Ok(Self { server })
    }

    /// The URL of a database of the server behind it.
    #[must_use]
    pub fn database_url(&self, database: &str) -> String {
        format!("postgres://terrace@127.0.0.1:{}/{database}", self.server.port())
    }
}

/// One PgBouncer with its settings.
#[derive(Debug)]
struct Bouncer {
    program: PathBuf,
    settings: String,
}

/// Every server of PostgreSQL's protocol says in one byte whether it takes up TLS.
fn says_whether_tls(port: u16) -> io::Result<bool> {
    const ASK_FOR_TLS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let patience = Duration::from_secs(1);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&ASK_FOR_TLS)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(b"SN".contains(&answer[0]))
}

impl Engine for Bouncer {
    fn name(&self) -> &'static str {
        "PgBouncer"
    }

    fn stop(&self) -> Signal {
        Signal::SIGTERM
    }

    fn abandon(&self) -> Signal {
        Signal::SIGKILL
    }

    fn prepare(&self, home: &Home, port: u16) -> Result<()> {
        home.create_data()?;
        home.write(SETTINGS_FILE, &format!("{}listen_port = {port}\n", self.settings))
    }

    fn command(&self, home: &Home) -> Vec<OsString> {
        vec![self.program.clone().into(), home.path().join(SETTINGS_FILE).into()]
    }

    fn answers(&self, _: &Home, port: u16, _: u32) -> bool {
        says_whether_tls(port).unwrap_or(false)
    }

    fn is_leftover(&self, home: &Home, process: &Process) -> bool {
        let settings = home.path().join(SETTINGS_FILE);
        process.command.contains("pgbouncer")
            && process.command.ends_with(&settings.display().to_string())
    }
}
