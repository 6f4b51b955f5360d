//! A private Varnish or nginx before a server, for tests of what stands in front.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::{LabError, Result};
use crate::home::Home;
use crate::private_server::{Engine, PrivateServer, Start};
use crate::processes::Process;
use crate::programs;

/// A running private Varnish or nginx; cheap to clone, ends with its directory when the last clone is
/// dropped. It listens on 127.0.0.1.
#[derive(Debug, Clone)]
pub struct FrontServer {
    server: PrivateServer,
}

impl Deref for FrontServer {
    type Target = PrivateServer;

    fn deref(&self) -> &PrivateServer {
        &self.server
    }
}

impl FrontServer {
    /// Starts Varnish with this VCL in `directory`, and waits until it takes connections.
    ///
    /// # Errors
    /// A [`LabError`] of any kind except [`CommandFailed`](crate::LabErrorKind::CommandFailed) and
    /// [`VersionMismatch`](crate::LabErrorKind::VersionMismatch).
    pub fn varnish_blocking(directory: impl Into<PathBuf>, vcl: &str) -> Result<Self, LabError> {
        Self::start(directory.into(), "varnishd", "front.vcl", vcl.to_owned())
    }

    /// Starts nginx in `directory` with these directives of its `http`, and waits until it takes connections.
    /// What they call `LISTEN` is its address; paths are below the directory.
    ///
    /// # Errors
    /// As [`varnish_blocking`](Self::varnish_blocking).
    pub fn nginx_blocking(directory: impl Into<PathBuf>, http: &str) -> Result<Self, LabError> {
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path data/{name};\n"))
            .concat();
        let text = format!(
            "daemon off;\nworker_processes 1;\npid data/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
             http {{\naccess_log off;\n{paths}{http}\n}}\n"
        );
        Self::start(directory.into(), "nginx", "front.conf", text)
    }

    fn start(
        directory: PathBuf,
        program: &'static str,
        file: &'static str,
        text: String,
    ) -> Result<Self> {
        let home = Home::open(&directory)?;
        let lock = home.lock()?;
        let path = programs::find_program(program)?;
        let engine = Front { program, path, file, text, port: AtomicU16::new(0) };
        let start = Start { port: None, within: Duration::from_secs(60), temporary: true };
        let server = PrivateServer::start(Arc::new(engine), home, lock, &start)?;
        Ok(Self { server })
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port())
    }
}

/// One of the two with its settings.
#[derive(Debug)]
struct Front {
    program: &'static str,
    path: PathBuf,
    file: &'static str,
    text: String,
    /// Varnish is told its port on the command line.
    port: AtomicU16,
}

/// Whether an HTTP server is there: anything that it says to nonsense begins so.
fn speaks_http(port: u16) -> io::Result<bool> {
    let patience = Duration::from_secs(1);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"nonsense\r\n\r\n")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"HTTP")
}

impl Engine for Front {
    fn name(&self) -> &'static str {
        if self.program == "nginx" { "nginx" } else { "Varnish" }
    }

    fn stop(&self) -> Signal {
        Signal::SIGTERM
    }

    fn abandon(&self) -> Signal {
        Signal::SIGTERM
    }

    fn prepare(&self, home: &Home, port: u16) -> Result<()> {
        home.create_data()?;
        self.port.store(port, Ordering::Release);
        home.write(self.file, &self.text.replace("LISTEN", &format!("127.0.0.1:{port}")))
    }

    fn command(&self, home: &Home) -> Vec<OsString> {
        let file = home.path().join(self.file);
        if self.program == "nginx" {
            let place = home.path().join("");
            return vec![
                self.path.clone().into(),
                "-e".into(),
                "stderr".into(),
                "-p".into(),
                place.into(),
                "-c".into(),
                file.into(),
            ];
        }
        let mut command = vec![self.path.clone().into(), "-F".into(), "-f".into(), file.into()];
        let port = self.port.load(Ordering::Acquire);
        let data = home.data().display().to_string();
        let address = format!("127.0.0.1:{port}");
        let rest = ["-n", &data, "-a", &address, "-T", "none", "-s", "malloc,16m"];
        command.extend(rest.map(OsString::from));
        // Few threads: many tests run at a time.
        let few = ["thread_pools=1", "thread_pool_min=10", "thread_pool_max=50"];
        command.extend(few.into_iter().flat_map(|one| ["-p".into(), one.into()]));
        command
    }

    fn answers(&self, _: &Home, port: u16, _: u32) -> bool {
        speaks_http(port).unwrap_or(false)
    }

    fn is_leftover(&self, home: &Home, process: &Process) -> bool {
        let settings = home.path().join(self.file).display().to_string();
        process.command.contains(self.program) && process.command.contains(&settings)
    }
}
