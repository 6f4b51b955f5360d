//! Private servers that are stopped for a stated time, and go on by themselves.
//!
//! A stopped server is frozen as it is: connections stay, and nothing answers. That is what a machine that
//! hangs looks like, and the hardest to tell from one that is slow. There are no faults where the engines
//! are parts of this process, or somebody else's servers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{Runtime, Task};
use terrace_lab::PrivateServer;

/// The servers that can be stopped.
#[derive(Debug)]
pub(super) struct Faults {
    servers: Vec<PrivateServer>,
    active: Arc<Mutex<Vec<Fault>>>,
    begun: AtomicU64,
    runtime: Runtime,
}

/// A server that is stopped.
#[derive(Debug)]
struct Fault {
    /// Tells it from others of the same server.
    number: u64,
    server: usize,
    until: Instant,
    _stopped: Stopped,
    _heals: Task,
}

/// A server that goes on when this is dropped, however that comes.
#[derive(Debug)]
struct Stopped(PrivateServer);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.resume();
    }
}

impl Faults {
    pub(super) fn of(servers: Vec<PrivateServer>, runtime: Runtime) -> Self {
        Self { servers, active: Arc::default(), begun: AtomicU64::new(0), runtime }
    }

    /// What each server is called: its program, and its directory, which says whose it is.
    pub(super) fn names(&self) -> Vec<String> {
        self.servers.iter().map(name).collect()
    }

    /// Stops a server for this time, or for this time from now if it is stopped already; answers its name.
    pub(super) fn begin(&self, server: usize, time: Duration) -> Option<String> {
        let target = self.servers.get(server)?;
        let mut active = self.active_faults();
        // The old one first: its end lets the server go on.
        active.retain(|fault| fault.server != server);
        target.pause();
        let number = self.begun.fetch_add(1, Relaxed);
        let (all, sleep) = (Arc::clone(&self.active), self.runtime.sleep(time));
        let heals = self.runtime.spawn("fault", async move {
            sleep.await;
            lock(&all).retain(|fault| fault.number != number);
        });
        let until = self.runtime.now() + time;
        let stopped = Stopped(target.clone());
        active.push(Fault { number, server, until, _stopped: stopped, _heals: heals });
        Some(name(target))
    }

    /// The servers that are stopped, each with the milliseconds that are left.
    pub(super) fn active(&self) -> Vec<(usize, u64)> {
        let (active, now) = (self.active_faults(), self.runtime.now());
        let left = |until: Instant| until.saturating_duration_since(now).as_millis();
        let each = active.iter().map(|it| (it.server, u64::try_from(left(it.until)).unwrap_or(0)));
        each.collect()
    }

    /// Lets all of them go on.
    pub(super) fn heal(&self) {
        self.active_faults().clear();
    }

    fn active_faults(&self) -> MutexGuard<'_, Vec<Fault>> {
        lock(&self.active)
    }
}

fn lock(active: &Mutex<Vec<Fault>>) -> MutexGuard<'_, Vec<Fault>> {
    active.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(server: &PrivateServer) -> String {
    let place = server.directory().file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("{} ({place})", server.program())
}

#[cfg(test)]
mod tests {
    use terrace_lab::{RedisOptions, RedisServer};

    use super::*;

    /// Whether a process is stopped, as the system has it.
    fn is_stopped(server: &PrivateServer) -> bool {
        let pid = server.pid().expect("it runs");
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    async fn becomes(server: &PrivateServer, stopped: bool) {
        let within = Runtime::system().now() + Duration::from_secs(30);
        while is_stopped(server) != stopped {
            assert!(Runtime::system().now() < within, "it is not {stopped}");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_server_that_is_stopped_goes_on_by_itself_and_at_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let options = RedisOptions::new(directory.path().join("redis"));
        let redis = RedisServer::start(options).await.expect("Redis starts");
        let server = PrivateServer::clone(&redis);
        let faults = Faults::of(vec![server.clone()], Runtime::system());
        assert_eq!(faults.begin(1, Duration::from_secs(1)), None);
        let name = faults.begin(0, Duration::from_millis(200)).expect("it is there");
        assert!(name.starts_with("Redis (") && faults.names() == [name]);
        becomes(&server, true).await;
        assert_eq!(faults.active().len(), 1);
        becomes(&server, false).await;
        assert!(faults.active().is_empty());
        // Once more, for longer, over one that has just begun; and not to its end.
        faults.begin(0, Duration::from_millis(1)).expect("it is there");
        faults.begin(0, Duration::from_secs(3_600)).expect("it is there");
        becomes(&server, true).await;
        assert_eq!(faults.active().len(), 1);
        faults.heal();
        becomes(&server, false).await;
    }
}
