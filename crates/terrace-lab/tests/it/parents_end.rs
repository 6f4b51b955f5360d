//! Servers end with the process that started them, and leftovers end at the next start.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::{env, fs, io};

use terrace_lab::{PostgresOptions, PostgresServer, RedisOptions, RedisServer, testing};

use crate::client::{eventually, is_alive, processes, redis, sql};

const ENTRY: &str = "parents_end::holds_servers_for_another_test";
const DIRECTORY: &str = "TERRACE_LAB_HOLD";

/// A process of this very binary that holds servers; dropping it kills it.
struct Holder {
    process: Child,
    _output: BufReader<ChildStdout>,
    servers: Vec<Held>,
}

struct Held {
    pid: u32,
    port: u16,
    directory: PathBuf,
}

impl Holder {
    fn start(directory: &Path) -> Self {
        let mut process = spawn(directory);
        let mut output = BufReader::new(process.stdout.take().expect("a pipe"));
        let lines = output.by_ref().lines().map(|line| line.expect("a line"));
        let servers: Vec<Held> =
            lines.filter_map(|line| held(line.strip_prefix("held ")?)).take(3).collect();
        assert_eq!(servers.len(), 3, "the holder failed, see its output");
        Self { process, _output: output, servers }
    }

    /// `kill -9`, as the operator of last resort does.
    fn kill(&mut self) {
        self.process.kill().expect("a kill");
        self.process.wait().expect("a status");
    }

    fn send(&mut self, line: &str) {
        let input = self.process.stdin.as_mut().expect("a pipe");
        input.write_all(line.as_bytes()).expect("a line");
    }

    fn awaits_the_end_of_all(&self) {
        for server in &self.servers {
            eventually("the server has ended", || !is_alive(server.pid));
            eventually("its port is free", || {
                TcpListener::bind((Ipv4Addr::LOCALHOST, server.port)).is_ok()
            });
        }
        let temporary = &self.servers[2].directory;
        eventually("the temporary directory is gone", || !temporary.exists());
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn spawn(directory: &Path) -> Child {
    Command::new(env::current_exe().expect("this binary"))
        .args(["--exact", ENTRY, "--nocapture"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this binary")
}

fn held(line: &str) -> Option<Held> {
    let mut words = line.splitn(3, ' ');
    let (pid, port) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Held { pid, port, directory: words.next()?.into() })
}

fn postgres(directory: &Path) -> PostgresServer {
    PostgresServer::start_blocking(&PostgresOptions::new(directory.join("pg"))).expect("PostgreSQL")
}

fn redis_server(directory: &Path) -> RedisServer {
    RedisServer::start_blocking(&RedisOptions::new(directory.join("redis"))).expect("Redis")
}

/// Not a test of its own: [`Holder`] runs it in a process that is then ended in some way.
#[test]
fn holds_servers_for_another_test() {
    let Some(directory) = env::var_os(DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let (postgres, redis, shared) =
        (postgres(directory), redis_server(directory), testing::postgres());
    for (pid, port, directory) in [
        (postgres.pid(), postgres.port(), postgres.directory()),
        (redis.pid(), redis.port(), redis.directory()),
        (shared.pid(), shared.port(), shared.directory()),
    ] {
        println!("held {} {port} {}", pid.expect("a process"), directory.display());
    }
    let mut input = io::stdin().lines();
    if input.next().is_some_and(|line| line.is_ok_and(|line| line == "pause")) {
        postgres.pause();
        redis.pause();
        println!("paused");
        input.next();
    }
    std::process::exit(0);
}

#[test]
fn a_killed_parent_takes_its_servers_along() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut holder = Holder::start(directory.path());
    holder.kill();
    holder.awaits_the_end_of_all();
    assert!(!holder.servers[0].directory.join("data/postmaster.pid").exists(), "in good order");
}

#[test]
fn a_parent_that_exits_takes_its_servers_along() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut holder = Holder::start(directory.path());
    holder.send("exit\n");
    assert!(holder.process.wait().expect("a status").success());
    holder.awaits_the_end_of_all();
}

#[test]
fn paused_servers_end_with_a_killed_parent_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut holder = Holder::start(directory.path());
    holder.send("pause\n");
    let (postgres, redis) = (holder.servers[0].pid, holder.servers[1].pid);
    eventually("both are stopped", || {
        let stopped = |pid| processes().iter().any(|one| one.0 == pid && one.2 == 'T');
        stopped(postgres) && stopped(redis)
    });
    holder.kill();
    holder.awaits_the_end_of_all();
}

#[test]
fn what_a_killed_run_left_behind_ends_at_the_next_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut holder = Holder::start(directory.path());
    // Without their supervisors the servers stay when their parent is killed.
    let parent = holder.process.id();
    let supervisors: Vec<u32> = processes()
        .into_iter()
        .filter(|one| one.1 == parent && one.3.contains("terrace-lab-supervisor"))
        .map(|one| one.0)
        .collect();
    assert_eq!(supervisors.len(), 3);
    let pids = supervisors.iter().map(u32::to_string);
    assert!(Command::new("kill").arg("-9").args(pids).status().expect("kill").success());
    eventually("the supervisors are gone", || !supervisors.iter().any(|&pid| is_alive(pid)));
    holder.kill();
    assert!(holder.servers.iter().all(|server| is_alive(server.pid)), "left behind");

    let (postgres, redis_server) = (postgres(directory.path()), redis_server(directory.path()));
    assert!(!is_alive(holder.servers[0].pid) && !is_alive(holder.servers[1].pid));
    assert_eq!(postgres.port(), holder.servers[0].port);
    assert_eq!(sql(&postgres.url(), "select 1").as_deref(), Ok("1"));
    assert_eq!(redis(&redis_server.url(), "PING"), "+PONG\r\n");

    // The shared one has no next start: it is the test's to end.
    let shared = &holder.servers[2];
    let pid = shared.pid.to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
    eventually("the shared server has ended", || !is_alive(shared.pid));
    fs::remove_dir_all(&shared.directory).expect("its directory");
}

#[test]
fn a_parent_killed_in_its_first_start_leaves_nothing_in_the_way() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut process = spawn(directory.path());
    let draft = directory.path().join("pg/data.draft/base");
    eventually("the data are being made", || draft.exists());
    process.kill().expect("a kill");
    process.wait().expect("a status");

    let postgres = postgres(directory.path());
    assert_eq!(sql(&postgres.url(), "select 1").as_deref(), Ok("1"));
    let path = draft.to_string_lossy().into_owned();
    assert!(!processes().iter().any(|one| one.3.contains(path.trim_end_matches("/base"))));
}
