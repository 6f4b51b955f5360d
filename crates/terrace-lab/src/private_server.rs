//! What all private servers have in common: start when ready, stop, crash, pause, restart.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, fs};

use nix::sys::signal::Signal;

use crate::blocking;
use crate::error::{LabError, LabErrorKind, Result};
use crate::home::{Home, Lock};
use crate::processes::{self, Process};
use crate::supervisor::Supervisor;
use crate::wait;

/// How long a server may take to end by itself, before it is ended as in a crash.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// How many free ports are tried when each is taken between its choice and the server's start.
const PORT_ATTEMPTS: usize = 5;

/// What one kind of server does in its own way.
pub(crate) trait Engine: fmt::Debug + Send + Sync + 'static {
    /// The product's name, for messages.
    fn name(&self) -> &'static str;

    /// Ends the server in good order without waiting for its clients.
    fn stop(&self) -> Signal;

    /// Ends a server whose data are thrown away.
    fn abandon(&self) -> Signal;

    /// Makes the data where there are none, and writes the settings. Runs before every start.
    fn prepare(&self, home: &Home, port: u16) -> Result<()>;

    /// The server in the foreground, with its arguments.
    fn command(&self, home: &Home) -> Vec<OsString>;

    /// Whether process `pid` answers requests on `port` now.
    fn answers(&self, home: &Home, port: u16, pid: u32) -> bool;

    /// Whether this process is a server that an earlier run left in `home`.
    fn is_leftover(&self, home: &Home, process: &Process) -> bool;
}

/// How to start.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    /// This port and no other.
    pub(crate) port: Option<u16>,
    /// How long until it must answer.
    pub(crate) within: Duration,
    /// The directory goes when the server's value goes.
    pub(crate) temporary: bool,
}

/// A running private server; cheap to clone, ends when the last clone is dropped.
///
/// Dropping the last clone blocks until the server has ended; [`stop`](Self::stop) does not block.
/// The async methods need a tokio runtime. A future of this type that is dropped does not stop what
/// it began; a start that nobody awaits any more ends in a stopped server.
#[derive(Debug, Clone)]
pub struct PrivateServer(Arc<Server>);

impl PrivateServer {
    /// Ends what is left of an earlier run, then starts the server and waits until it answers.
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        home: Home,
        lock: Lock,
        start: &Start,
    ) -> Result<Self> {
        Ok(Self(Arc::new(Server::start(engine, home, lock, start)?)))
    }

    pub(crate) fn home(&self) -> &Home {
        &self.0.home
    }

    /// The product's name.
    #[must_use]
    pub fn program(&self) -> &'static str {
        self.0.engine.name()
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// The server's process id; `None` after [`stop`](Self::stop) or [`kill`](Self::kill).
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        Some(self.0.pid.load(Ordering::Acquire)).filter(|&pid| pid != 0)
    }

    /// Whether the server's process lives; it also notices a server that ended by itself.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.0.is_running()
    }

    /// Where the server really lives: not the directory that was asked for when the unprivileged
    /// account cannot reach that one.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.0.home.path()
    }

    /// Ends the server in good order, without waiting for its clients; after 30 s without an end it
    /// is killed. Without effect on a server that does not run.
    ///
    /// # Errors
    /// None at present beyond a runtime that shuts down.
    pub async fn stop(&self) -> Result<(), LabError> {
        let server = Arc::clone(&self.0);
        blocking(move || {
            server.stop();
            Ok(())
        })
        .await
    }

    /// Ends all the server's processes with SIGKILL: a crash. It blocks for milliseconds.
    pub fn kill(&self) {
        self.0.kill();
    }

    /// Stops the server if it runs, and starts it on the same port with the same settings.
    ///
    /// # Errors
    /// As its start.
    pub async fn restart(&self) -> Result<(), LabError> {
        let this = self.clone();
        blocking(move || this.restart_blocking()).await
    }

    pub(crate) fn restart_blocking(&self) -> Result<()> {
        self.0.restart()
    }

    /// Freezes all processes of the server (SIGSTOP): connections stay, nothing answers.
    pub fn pause(&self) {
        if let Some(running) = &self.0.inner().running {
            processes::pause(running.child.id());
        }
    }

    /// Continues after [`pause`](Self::pause).
    pub fn resume(&self) {
        if let Some(running) = &self.0.inner().running {
            processes::resume(running.child.id());
        }
    }
}

/// A server that ends with its value.
#[derive(Debug)]
struct Server {
    engine: Arc<dyn Engine>,
    home: Home,
    port: u16,
    within: Duration,
    /// How it ends when its value is dropped.
    at_end: Signal,
    /// Zero when none runs; outside the lock so that asking never waits for a restart.
    pid: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    running: Option<Running>,
    supervisor: Supervisor,
}

#[derive(Debug)]
struct Running {
    child: Child,
    _lock: Lock,
}

impl Server {
    fn start(engine: Arc<dyn Engine>, home: Home, lock: Lock, start: &Start) -> Result<Self> {
        end_leftovers(&*engine, &home);
        let at_end = if start.temporary { engine.abandon() } else { engine.stop() };
        let mut supervisor = Supervisor::start(&home, at_end, start.temporary)?;
        let mut attempts = PORT_ATTEMPTS;
        loop {
            attempts -= 1;
            let port = choose_port(&home, start.port)?;
            engine.prepare(&home, port)?;
            match launch(&*engine, &home, port, &mut supervisor, start.within) {
                Ok(child) => {
                    home.write("port", &format!("{port}\n"))?;
                    let pid = AtomicU32::new(child.id());
                    let running = Some(Running { child, _lock: lock });
                    let inner = Mutex::new(Inner { running, supervisor });
                    let within = start.within;
                    return Ok(Self { engine, home, port, within, at_end, pid, inner });
                }
                Err(error) if start.port.is_some() || is_free(port) || attempts == 0 => {
                    return Err(error);
                }
                Err(_) => tracing::debug!(port, "the port was taken meanwhile, trying another"),
            }
        }
    }

    /// False also when the server has ended by itself.
    fn is_running(&self) -> bool {
        let mut inner = self.inner();
        let Some(running) = &mut inner.running else { return false };
        if matches!(running.child.try_wait(), Ok(None)) {
            return true;
        }
        self.forget(&mut inner);
        false
    }

    /// Ends the server in good order; without effect when it does not run.
    fn stop(&self) {
        self.stop_by(&mut self.inner(), self.engine.stop());
    }

    /// Ends all the server's processes at once, as a crash of the machine would.
    fn kill(&self) {
        let mut inner = self.inner();
        if let Some(running) = &mut inner.running {
            processes::crash(running.child.id());
            let _reaped = running.child.wait();
            tracing::info!(
                server = self.engine.name(),
                port = self.port,
                "killed a private server"
            );
        }
        self.forget(&mut inner);
    }

    /// Stops where it runs, then starts on the same port.
    fn restart(&self) -> Result<()> {
        let mut inner = self.inner();
        self.stop_by(&mut inner, self.engine.stop());
        let lock = self.home.lock()?;
        end_leftovers(&*self.engine, &self.home);
        let port = choose_port(&self.home, Some(self.port))?;
        self.engine.prepare(&self.home, port)?;
        let child = launch(&*self.engine, &self.home, port, &mut inner.supervisor, self.within)?;
        self.pid.store(child.id(), Ordering::Release);
        inner.running = Some(Running { child, _lock: lock });
        Ok(())
    }

    fn stop_by(&self, inner: &mut Inner, signal: Signal) {
        if let Some(running) = &mut inner.running {
            stop_child(&mut running.child, signal);
            tracing::info!(
                server = self.engine.name(),
                port = self.port,
                "stopped a private server"
            );
        }
        self.forget(inner);
    }

    fn forget(&self, inner: &mut Inner) {
        self.pid.store(0, Ordering::Release);
        inner.supervisor.watch(None);
        inner.running = None;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_by(&mut self.inner(), self.at_end);
    }
}

/// Spawns the server and waits until it answers; on an error nothing of it is left.
fn launch(
    engine: &dyn Engine,
    home: &Home,
    port: u16,
    supervisor: &mut Supervisor,
    within: Duration,
) -> Result<Child> {
    let mut child = supervisor.spawn(home, &engine.command(home))?;
    let pid = child.id();
    let outcome = wait::until(within, || match child.try_wait() {
        Ok(Some(status)) => Some(Err(format!("ended at its start ({status})"))),
        _ => engine.answers(home, port, pid).then_some(Ok(())),
    });
    let failure = match outcome {
        Some(Ok(())) => {
            let directory = home.path().display();
            tracing::debug!(server = engine.name(), port, pid, %directory, "started a private server");
            return Ok(child);
        }
        Some(Err(failure)) => failure,
        None => {
            processes::crash(pid);
            let _reaped = child.wait();
            format!("did not answer within {} seconds", within.as_secs())
        }
    };
    supervisor.watch(None);
    let place = home.path().display();
    let message = format!("{} in {place} {failure}", engine.name());
    let next = "correct what the log names, or remove the directory to start with empty data";
    Err(LabError::new(LabErrorKind::StartFailed, message, next).with_log(home.log_tail()))
}

fn stop_child(child: &mut Child, polite: Signal) {
    processes::resume(child.id());
    processes::signal(child.id(), polite);
    let ended = wait::until(STOP_WITHIN, || (!matches!(child.try_wait(), Ok(None))).then_some(()));
    if ended.is_none() {
        tracing::warn!(pid = child.id(), "a private server did not end in time and is killed");
        processes::crash(child.id());
        let _reaped = child.wait();
    }
}

/// Under the home's lock no other Terrace runs a server there: what runs is left over.
fn end_leftovers(engine: &dyn Engine, home: &Home) {
    let left: Vec<u32> = processes::table()
        .iter()
        .filter(|process| process.is_alive() && engine.is_leftover(home, process))
        .map(|process| process.pid)
        .collect();
    if !left.is_empty() {
        tracing::info!(server = engine.name(), pids = ?left, "stopping what an earlier run left behind");
        processes::end(&left, engine.stop(), STOP_WITHIN);
    }
}

/// The port that was asked for, else the last one, else any free one.
fn choose_port(home: &Home, asked: Option<u16>) -> Result<u16> {
    if let Some(port) = asked {
        return if is_free(port) {
            Ok(port)
        } else {
            let message = format!("port {port} on 127.0.0.1 is taken by another process");
            let next = "stop that process, or ask for another port or for any free one";
            Err(LabError::new(LabErrorKind::PortTaken, message, next))
        };
    }
    if let Some(last) = last_port(home.path()).filter(|&port| is_free(port)) {
        return Ok(last);
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address: SocketAddr| address.port())
        .map_err(LabError::file("find a free port on", Path::new("127.0.0.1")))
}

/// The port that the server of this home used last.
pub(crate) fn last_port(home: &Path) -> Option<u16> {
    fs::read_to_string(home.join("port")).ok()?.trim().parse().ok()
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
