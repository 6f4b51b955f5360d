//! How a document server is started and recognised.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use std::{fs, str};

use nix::sys::signal::Signal;

use crate::error::Result;
use crate::home::Home;
use crate::private_server::Engine;
use crate::processes::Process;
use crate::programs;

const PID_FILE: &str = "nx-27017.pid";

/// The code of `OP_MSG` (MongoDB manual, "MongoDB Wire Protocol").
const OP_MSG: u32 = 2013;

/// One document server.
#[derive(Debug)]
pub(super) struct Mongo {
    program: PathBuf,
    /// Whether it only speaks MongoDB's protocol.
    is_compatible: bool,
    /// The port of the next start.
    port: AtomicU16,
}

impl Mongo {
    /// Finds the program.
    pub(super) fn new() -> Result<Self> {
        let program = programs::find_program("mongod")?;
        let is_compatible = programs::is_compatible(&program);
        Ok(Self { program, is_compatible, port: AtomicU16::new(0) })
    }

    /// Whether the process with this number is what answers on the port.
    fn is_there(port: u16, pid: u32) -> io::Result<bool> {
        let patience = Duration::from_secs(1);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(&question("serverStatus"))?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = Vec::new();
        let rest = u64::from(u32::from_le_bytes(length)).saturating_sub(4);
        stream.take(rest).read_to_end(&mut answer)?;
        Ok(number(&answer, "pid") == Some(pid))
    }
}

impl Engine for Mongo {
    fn name(&self) -> &'static str {
        if self.is_compatible { "nx-27017" } else { "MongoDB" }
    }

    fn stop(&self) -> Signal {
        Signal::SIGTERM
    }

    fn abandon(&self) -> Signal {
        Signal::SIGKILL
    }

    fn prepare(&self, home: &Home, port: u16) -> Result<()> {
        self.port.store(port, Ordering::Relaxed);
        let _left_by_a_crash = fs::remove_file(home.path().join(PID_FILE));
        home.create_data()
    }

    /// The directory of the data comes last, so that it is recognised whole.
    fn command(&self, home: &Home) -> Vec<OsString> {
        let port = self.port.load(Ordering::Relaxed).to_string();
        let mut command = vec![self.program.clone().into(), "--port".into(), port.into()];
        if self.is_compatible {
            let pid_file = home.path().join(PID_FILE);
            command.extend(["--host", "127.0.0.1", "--log-file", "/dev/null"].map(OsString::from));
            command.extend(["--pid-file".into(), pid_file.into(), "--data-dir".into()]);
        } else {
            command.extend(["--bind_ip", "127.0.0.1", "--nounixsocket"].map(OsString::from));
            command.push("--dbpath".into());
        }
        command.push(home.data().into());
        command
    }

    fn answers(&self, _: &Home, port: u16, pid: u32) -> bool {
        Self::is_there(port, pid).unwrap_or(false)
    }

    fn is_leftover(&self, home: &Home, process: &Process) -> bool {
        let data = home.data();
        ["dbpath", "data-dir"]
            .iter()
            .any(|name| process.command.ends_with(&format!(" --{name} {}", data.display())))
    }
}

/// A command without arguments to the database `admin`, as a message.
fn question(command: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    fields.extend([b"\x10", command.as_bytes(), b"\0\x01\0\0\0"].concat());
    fields.extend(b"\x02$db\0\x06\0\0\0admin\0");
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    let mut body = size(fields.len() + 5).to_vec();
    body.extend(fields);
    body.push(0);
    // Length, number of the request, of what it answers, code; flags, kind of section, document.
    let mut message = size(body.len() + 21).to_vec();
    for number in [1, 0, OP_MSG, 0] {
        message.extend(number.to_le_bytes());
    }
    message.push(0);
    message.extend(body);
    message
}

/// The first whole number with this name in a document.
fn number(document: &[u8], name: &str) -> Option<u32> {
    let field = [name.as_bytes(), b"\0"].concat();
    document.windows(field.len() + 5).find_map(|bytes| {
        // Both kinds of whole numbers begin with the lower half.
        let is_number = matches!(bytes[0], 0x10 | 0x12) && bytes[1..].starts_with(&field);
        let value = bytes[field.len() + 1..].try_into().ok().map(u32::from_le_bytes);
        value.filter(|_| is_number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_whole_message() {
        let message = question("ping");
        assert_eq!(message.len(), message[0] as usize);
        let document = &message[21..];
        assert_eq!(document.len(), document[0] as usize);
        assert_eq!(number(document, "ping"), Some(1));
        assert_eq!(number(document, "pong"), None);
    }
}
