//! How Redis is set up, started and recognised.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use nix::sys::signal::Signal;

use super::{Persistence, RedisOptions};
use crate::error::{LabError, LabErrorKind, Result};
use crate::home::Home;
use crate::private_server::{Engine, last_port};
use crate::processes::Process;
use crate::programs;
use crate::secret::Secret;

const SETTINGS_FILE: &str = "redis.conf";
const PID_FILE: &str = "redis.pid";

/// Settings that the server's privacy, its supervision and [`Persistence`] rest on.
const RESERVED: [&str; 14] = [
    "port",
    "bind",
    "unixsocket",
    "protected-mode",
    "requirepass",
    "dir",
    "pidfile",
    "logfile",
    "daemonize",
    "supervised",
    "save",
    "appendonly",
    "appendfsync",
    "include",
];

/// One Redis with the options that it was started with.
#[derive(Debug)]
pub(super) struct Redis {
    program: PathBuf,
    pub(super) password: Secret,
    persistence: Persistence,
    sentinel: bool,
    settings: Vec<(String, String)>,
}

impl Redis {
    /// Finds the program, and checks the options.
    pub(super) fn new(home: &Home, options: &RedisOptions) -> Result<Self> {
        for (name, value) in &options.settings {
            check_setting(name, value)?;
        }
        Ok(Self {
            program: programs::find_program("redis-server")?,
            password: home.password()?,
            persistence: options.persistence,
            sentinel: options.sentinel,
            settings: options.settings.clone(),
        })
    }

    fn settings(&self, home: &Home, port: u16) -> String {
        let (appendonly, appendfsync) = match self.persistence {
            Persistence::None => ("no", "no"),
            Persistence::AofEverySecond => ("yes", "everysec"),
            Persistence::AofAlways => ("yes", "always"),
        };
        let (dir, pidfile) = (quoted(&home.data()), quoted(&home.path().join(PID_FILE)));
        let mut text = format!(
            "bind 127.0.0.1\nport {port}\nprotected-mode yes\nrequirepass {}\ndaemonize no\n\
             dir {dir}\npidfile {pidfile}\nlogfile \"\"\n\
             save \"\"\nappendonly {appendonly}\nappendfsync {appendfsync}\n",
            self.password.reveal()
        );
        for (name, value) in &self.settings {
            text.push_str(&format!("{name} {value}\n"));
        }
        text
    }

    /// AUTH, then PING: who knows this password is this home's server.
    fn ping(&self, port: u16) -> io::Result<bool> {
        let patience = Duration::from_secs(1);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(format!("AUTH {}\r\nPING\r\n", self.password.reveal()).as_bytes())?;
        // Not until it closes: a sentinel knows no QUIT.
        let mut answer = *b"+OK\r\n+PONG\r\n";
        let wanted = answer;
        stream.read_exact(&mut answer)?;
        Ok(answer == wanted)
    }
}

impl Engine for Redis {
    fn name(&self) -> &'static str {
        "Redis"
    }

    fn stop(&self) -> Signal {
        Signal::SIGTERM
    }

    fn abandon(&self) -> Signal {
        Signal::SIGTERM
    }

    fn prepare(&self, home: &Home, port: u16) -> Result<()> {
        home.create_data()?;
        home.write(SETTINGS_FILE, &self.settings(home, port))
    }

    fn command(&self, home: &Home) -> Vec<OsString> {
        let mut command = vec![self.program.clone().into(), home.path().join(SETTINGS_FILE).into()];
        if self.sentinel {
            command.push("--sentinel".into());
        }
        command
    }

    fn answers(&self, _: &Home, port: u16, _: u32) -> bool {
        self.ping(port).unwrap_or(false)
    }

    /// A running Redis shows its address in the place of its arguments; before, the file.
    fn is_leftover(&self, home: &Home, process: &Process) -> bool {
        let settings = home.path().join(SETTINGS_FILE);
        if process.command.contains(&format!("-server {}", settings.display())) {
            return true;
        }
        let pid = fs::read_to_string(home.path().join(PID_FILE)).unwrap_or_default();
        pid.trim() == process.pid.to_string()
            && last_port(home.path())
                .is_some_and(|port| process.command.contains(&format!("-server 127.0.0.1:{port}")))
    }
}

/// A path as `redis.conf` wants it where it contains blanks.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy().replace('\\', r"\\").replace('"', "\\\"");
    format!("\"{path}\"")
}

fn check_setting(name: &str, value: &str) -> Result<()> {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let reserved = RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name));
    let empty = name.is_empty() || value.trim().is_empty();
    if empty || !letters || reserved || value.contains(['\n', '\r', '\0']) {
        let message = format!("the Redis setting {name:?} cannot be set here");
        let next = "leave it out; the address, the files and persistence are set by Terrace";
        return Err(LabError::new(LabErrorKind::InvalidOption, message, next));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        check_setting("maxmemory-policy", "allkeys-lru").expect("a setting");
        check_setting("client-output-buffer-limit", "pubsub 32mb 8mb 60").expect("several words");
        for (name, value) in [("port", "1"), ("SAVE", "1 1"), ("", "1"), ("a", ""), ("a", "1\nb 2")]
        {
            let error = check_setting(name, value).expect_err(name);
            assert_eq!(error.kind(), LabErrorKind::InvalidOption);
        }
    }
}
