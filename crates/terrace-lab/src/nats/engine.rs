//! How NATS is set up, started and recognised.

use std::ffi::OsString;
use std::io;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::Result;
use crate::home::Home;
use crate::private_server::Engine;
use crate::processes::Process;
use crate::programs;
use crate::secret::Secret;

const SETTINGS_FILE: &str = "nats.conf";

/// One NATS with its password.
#[derive(Debug)]
pub(super) struct Nats {
    program: PathBuf,
    pub(super) password: Secret,
}

impl Nats {
    /// Finds the program.
    pub(super) fn new(home: &Home) -> Result<Self> {
        let program = programs::find_program("nats-server")?;
        Ok(Self { program, password: home.password()? })
    }

    fn settings(&self, home: &Home, port: u16) -> String {
        format!(
            "host: 127.0.0.1\nport: {port}\nmax_payload: 8MB\n\
             jetstream {{ store_dir: {} }}\n\
             authorization {{ user: terrace, password: \"{}\" }}\n",
            quoted(&home.data()),
            self.password.reveal()
        )
    }

    /// Who knows this password is this home's server.
    fn ping(&self, port: u16) -> io::Result<bool> {
        let patience = Duration::from_secs(1);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let told = lines.next().transpose()?.unwrap_or_default();
        let password = self.password.reveal();
        let connect = format!(
            "CONNECT {{\"verbose\":false,\"user\":\"terrace\",\"pass\":\"{password}\"}}\r\nPING\r\n"
        );
        (&stream).write_all(connect.as_bytes())?;
        let answer = lines.next().transpose()?.unwrap_or_default();
        Ok(told.starts_with("INFO ") && answer.starts_with("PONG"))
    }
}

impl Engine for Nats {
    fn name(&self) -> &'static str {
        "NATS"
    }

    fn stop(&self) -> Signal {
        Signal::SIGTERM
    }

    fn abandon(&self) -> Signal {
        Signal::SIGKILL
    }

    fn prepare(&self, home: &Home, port: u16) -> Result<()> {
        home.create_data()?;
        home.write(SETTINGS_FILE, &self.settings(home, port))
    }

    fn command(&self, home: &Home) -> Vec<OsString> {
        vec![self.program.clone().into(), "-c".into(), home.path().join(SETTINGS_FILE).into()]
    }

    fn answers(&self, _: &Home, port: u16, _: u32) -> bool {
        self.ping(port).unwrap_or(false)
    }

    fn is_leftover(&self, home: &Home, process: &Process) -> bool {
        let settings = home.path().join(SETTINGS_FILE);
        process.command.contains("nats-server")
            && process.command.ends_with(&format!("-c {}", settings.display()))
    }
}

/// A path as the settings want it where it contains blanks.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy().replace('\\', r"\\").replace('"', "\\\"");
    format!("\"{path}\"")
}
