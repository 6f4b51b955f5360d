//! The machine's processes: who descends from whom, and signals to them.

use std::process::Command;
use std::time::Duration;
use std::{fs, str};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// How long processes may take to obey SIGSTOP or SIGKILL; they normally need microseconds.
const OBEDIENCE: Duration = Duration::from_secs(10);

/// One line of the process table.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// The program and its arguments, or the title that the process gave itself.
    pub(crate) command: String,
    parent: u32,
    state: char,
}

impl Process {
    /// Not a zombie: a parent that does not reap must not make a dead server look alive.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }

    fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }
}

/// Sends `signal`; a process that is gone already needs no signal.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Ok(raw) = i32::try_from(pid)
        && raw > 1
    {
        let _gone_already = kill(Pid::from_raw(raw), signal);
    }
}

/// Stops the process and all its descendants (SIGSTOP); true when all stand still.
///
/// PostgreSQL's processes are each the leader of a group of their own, so that one signal to the
/// group of the postmaster would reach the postmaster alone.
pub(crate) fn pause(pid: u32) -> bool {
    // The parent first: a stopped process does not fork.
    signal(pid, Signal::SIGSTOP);
    wait::until(OBEDIENCE, || {
        let moving: Vec<u32> = family(pid)
            .iter()
            .filter(|process| process.is_alive() && !process.is_stopped())
            .map(|process| process.pid)
            .collect();
        moving.iter().for_each(|&pid| signal(pid, Signal::SIGSTOP));
        moving.is_empty().then_some(())
    })
    .is_some()
}

/// Continues what [`pause`] stopped, children first.
pub(crate) fn resume(pid: u32) {
    family(pid).iter().rev().for_each(|process| signal(process.pid, Signal::SIGCONT));
}

/// Ends the process and all its descendants at once (SIGKILL); true when none is left.
pub(crate) fn crash(pid: u32) -> bool {
    pause(pid);
    let doomed: Vec<u32> = family(pid).iter().map(|process| process.pid).collect();
    doomed.iter().for_each(|&pid| signal(pid, Signal::SIGKILL));
    wait::until(OBEDIENCE, || {
        let left = table().iter().any(|one| one.is_alive() && doomed.contains(&one.pid));
        (!left).then_some(())
    })
    .is_some()
}

/// Asks each process to end with `polite`, and after `bound` ends it; then none of them is left.
pub(crate) fn end(pids: &[u32], polite: Signal, bound: Duration) {
    for &pid in pids {
        resume(pid);
        signal(pid, polite);
    }
    let gone = wait::until(bound, || {
        let left = table().iter().any(|one| one.is_alive() && pids.contains(&one.pid));
        (!left).then_some(())
    });
    if gone.is_none() {
        for &pid in pids {
            crash(pid);
        }
    }
}

/// Every process that this user can see; empty when the system does not tell.
pub(crate) fn table() -> Vec<Process> {
    if let Ok(entries) = fs::read_dir("/proc") {
        let found: Vec<Process> = entries
            .flatten()
            .filter_map(|entry| from_proc(entry.file_name().to_str()?.parse().ok()?))
            .collect();
        if !found.is_empty() {
            return found;
        }
    }
    let columns = ["-A", "-ww", "-o", "pid=", "-o", "ppid=", "-o", "state=", "-o", "command="];
    let Ok(output) = Command::new("ps").args(columns).output() else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(from_ps).collect()
}

/// The process and its descendants, parents before children.
fn family(pid: u32) -> Vec<Process> {
    let mut others = table();
    let mut members: Vec<Process> = others.extract_if(.., |one| one.pid == pid).collect();
    let mut next = 0;
    while let Some(parent) = members.get(next).map(|member| member.pid) {
        members.extend(others.extract_if(.., |one| one.parent == parent));
        next += 1;
    }
    members
}

/// `/proc/PID/stat` is `PID (NAME) STATE PPID ...`, and the name may contain anything.
fn from_proc(pid: u32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let mut fields = str::from_utf8(&stat[after_name..]).ok()?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
    Some(Process { pid, command, parent, state })
}

fn from_ps(line: &str) -> Option<Process> {
    let mut rest = line;
    let mut column = || {
        let (value, after) = rest.trim_start().split_once(' ')?;
        rest = after;
        Some(value)
    };
    let (pid, parent) = (column()?.parse().ok()?, column()?.parse().ok()?);
    let state = column()?.chars().next()?;
    Some(Process { pid, command: rest.trim().to_owned(), parent, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_this_process_and_its_parent() {
        let table = table();
        let own = table.iter().find(|one| one.pid == std::process::id()).expect("this process");
        assert!(own.is_alive());
        assert_eq!(own.parent, std::os::unix::process::parent_id());
    }

    #[test]
    fn a_line_of_ps_is_read() {
        let line = "   42     1 Ss   /usr/bin/postgres -D /tmp/a b";
        let process = from_ps(line).expect("a process");
        assert_eq!((process.pid, process.parent, process.state), (42, 1, 'S'));
        assert_eq!(process.command, "/usr/bin/postgres -D /tmp/a b");
    }

    #[test]
    fn a_crash_ends_descendants_too() {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "sleep 600 & sleep 600 & wait"])
            .spawn()
            .expect("a shell");
        let family = wait::until(OBEDIENCE, || Some(family(shell.id())).filter(|f| f.len() == 3))
            .expect("a shell and two children");
        assert!(pause(shell.id()));
        assert!(crash(shell.id()));
        shell.wait().expect("an exit status");
        let left = table();
        assert!(!left.iter().any(|one| one.is_alive() && family.iter().any(|f| f.pid == one.pid)));
    }
}
