//! Levels that `terrace bench` starts: each a process of its own with data of its own.
//!
//! A small shell holds a pipe of this process. When this process closes it, or ends in whatever way,
//! the shell ends the level and removes its data.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use terrace_bench::run::Target;

use super::super::Failure;
use super::super::run::fatal;
use super::Arguments;
use crate::access::ApiKey;
use crate::config::Mode;
use crate::levels::Level;

/// POSIX shell. $1: the level's process, $2: its data.
const WATCH: &str = r#"
trap '' HUP INT TERM
read -r _
kill -TERM "$1" 2>/dev/null
tenths=300
while kill -0 "$1" 2>/dev/null && [ "$tenths" -gt 0 ]; do
    tenths=$((tenths - 1))
    sleep 0.1
done
kill -KILL "$1" 2>/dev/null
rm -rf -- "$2"
"#;

/// A level that runs; dropping it ends it.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) target: Target,
    level: Child,
    watch: Child,
    _data: TempDir,
}

/// Starts a level and waits until it serves; `None` when a stop came first.
pub(super) fn start(
    level: &'static Level,
    mode: Mode,
    name: String,
    arguments: &Arguments,
    port: u16,
    stop: &AtomicBool,
) -> Result<Option<Started>, Failure> {
    let data = folder(&arguments.data_dir)?;
    let failed = |error: std::io::Error| Failure::failed(format!("{name} cannot start: {error}"));
    let errors = data.path().join("errors.log");
    // Levels that ask for a key are measured with one.
    let key = ApiKey::generate().map_err(|error| fatal(&error))?;
    let mut child = Command::new(std::env::current_exe().map_err(failed)?)
        .arg("serve")
        .arg(level.number.to_string())
        .args(["--port", &port.to_string(), "--stores", mode.as_str(), "--host", "127.0.0.1"])
        .args(arguments.distance_of(mode))
        .arg("--data-dir")
        .arg(data.path().join("data"))
        .env("TERRACE_AUTH_API_KEY", key.reveal())
        // What a level can do is measured, not what it lets one client do.
        .env("TERRACE_LIMITS_REQUESTS", "1000000000")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&errors).map_err(failed)?)
        // Ctrl-C is for the bench, which then ends the level.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let watch = match watch(&child, data.path()) {
        Ok(watch) => watch,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(error));
        }
    };
    let said = child.stdout.take().map(BufReader::new);
    let target = Target {
        name,
        title: level.title.to_owned(),
        level: Some(level.number),
        stores: Some(mode.as_str().to_owned()),
        authority: String::new(),
        headers: level
            .guarded
            .then(|| ("X-API-Key".to_owned(), key.reveal().to_owned()))
            .into_iter()
            .collect(),
        pids: vec![child.id()],
        may_lag: may_lag(level.number),
    };
    let mut started = Started { target, level: child, watch, _data: data };
    let name = &started.target.name;
    match address(said, stop).map_err(|why| Failure::failed(format!("{name}: {why}")))? {
        None => Ok(None),
        Some(Some(address)) => {
            started.target.authority = address;
            Ok(Some(started))
        }
        Some(None) => {
            let log = std::fs::read_to_string(&errors).unwrap_or_default();
            let why = log.lines().rev().find(|line| line.contains("error:")).or(log.lines().last());
            let why = why.unwrap_or("it ended without a word").trim_start_matches("error: ");
            Err(Failure::failed(format!("{name} cannot start: {why}")))
        }
    }
}

/// The shell that ends a level and removes its data.
fn watch(level: &Child, data: &Path) -> std::io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", WATCH, "terrace-bench-watch", &level.id().to_string()])
        .arg(data)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

/// The address in the table that `serve` prints, if it does; `None` when a stop came first.
fn address(
    said: Option<BufReader<ChildStdout>>,
    stop: &AtomicBool,
) -> std::io::Result<Option<Option<String>>> {
    const LOOK: Duration = Duration::from_millis(200);
    let (tell, told) = mpsc::channel();
    // A read of a pipe hears of no stop. It ends with the level.
    let read = move || {
        let lines = said.into_iter().flat_map(BufRead::lines).map_while(Result::ok);
        let urls = lines.filter_map(|line| {
            let (_, url) = line.split_once("http://")?;
            url.split_whitespace().next().map(str::to_owned)
        });
        // Once the address is taken nobody listens, and what is said further is of no interest.
        urls.for_each(|url| drop(tell.send(url)));
    };
    thread::Builder::new().name("level".into()).spawn(read)?;
    loop {
        match told.recv_timeout(LOOK) {
            Ok(address) => return Ok(Some(Some(address))),
            Err(RecvTimeoutError::Disconnected) => return Ok(Some(None)),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Levels whose reads may show a little less than was acknowledged, unless a token says otherwise:
/// replicas, a journal, a read model, regions.
fn may_lag(level: u8) -> bool {
    matches!(level, 3 | 6 | 7 | 9)
}

/// A folder on the same disk as the data of other commands; PostgreSQL's user must get through it.
fn folder(below: &Path) -> Result<TempDir, Failure> {
    use std::os::unix::fs::PermissionsExt as _;

    let wrong = |error| {
        Failure::usage(format!(
            "{} cannot hold data: {error}; choose another folder with --data-dir",
            below.display()
        ))
    };
    std::fs::create_dir_all(below).map_err(wrong)?;
    let below = below.canonicalize().map_err(wrong)?;
    let permissions = std::fs::Permissions::from_mode(0o755);
    tempfile::Builder::new()
        .prefix("bench-")
        .permissions(permissions)
        .tempdir_in(below)
        .map_err(wrong)
}

/// The port of a level in the `place`th group of levels; it must be free.
pub(super) fn port(base: Option<u16>, level: u8, place: usize) -> Result<u16, Failure> {
    let Some(base) = base else { return Ok(0) };
    let place = u16::try_from(place * 20).unwrap_or(u16::MAX);
    let port = base.checked_add(u16::from(level)).and_then(|port| port.checked_add(place));
    let port = port.ok_or_else(|| Failure::usage("--port-base is too high"))?;
    TcpListener::bind(("127.0.0.1", port)).map(|_| port).map_err(|error| {
        Failure::usage(format!(
            "port {port} (level {level}) cannot be used: {error}; choose another --port-base, or \
             leave it out for free ports"
        ))
    })
}

impl Drop for Started {
    fn drop(&mut self) {
        // The shell sees the end of its input, ends the level and removes its data.
        drop(self.watch.stdin.take());
        let _ = self.level.wait();
        let _ = self.watch.wait();
    }
}
