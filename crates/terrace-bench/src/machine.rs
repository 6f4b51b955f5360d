//! The machine and its processes, as `/proc` shows them; elsewhere than on Linux these stay empty.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// What figures depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// The processor's name.
    pub processor: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel.
    pub kernel: String,
    /// The system's name.
    pub system: String,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, name: &str, mark: char| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(mark)).map(|(_, value)| value);
            value.unwrap_or_default().trim().trim_matches('"').to_owned()
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal", ':');
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: after(&read("/proc/cpuinfo"), "model name", ':'),
            memory_mib: kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: after(&read("/etc/os-release"), "PRETTY_NAME", '='),
        }
    }
}

/// Lets this process, and those that it starts, open so many files, as far as the system allows.
///
/// # Errors
/// How many it may open, where that is fewer.
pub fn allow_open_files(wanted: u64) -> Result<(), u64> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    if soft >= wanted {
        return Ok(());
    }
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let allowed = raised.map_or(soft, |()| hard);
    if allowed >= wanted { Ok(()) } else { Err(allowed) }
}

/// How many connections one address of this machine can have to one port of another; nothing where the
/// system does not say.
pub fn ports_of_connections() -> Option<usize> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<usize>().ok());
    Some(ends.next_back()?.saturating_sub(ends.next()?) + 1)
}

/// CPU time by program name.
pub type CpuTimes = BTreeMap<String, Duration>;

/// CPU time of these processes and all that descend from them, ended children included.
pub fn cpu_times(roots: &[u32]) -> CpuTimes {
    let mut times = CpuTimes::new();
    if roots.is_empty() {
        return times;
    }
    let mut table: Vec<Process> = processes().collect();
    let mut wanted = roots.to_vec();
    while let Some(pid) = wanted.pop() {
        for process in table.extract_if(.., |one| one.pid == pid) {
            *times.entry(process.name).or_default() += process.cpu;
        }
        wanted.extend(table.iter().filter(|one| one.parent == pid).map(|one| one.pid));
    }
    times
}

/// CPU time between two looks.
pub fn since(earlier: &CpuTimes, later: &CpuTimes) -> CpuTimes {
    let spent = later.iter().map(|(name, time)| {
        let before = earlier.get(name).copied().unwrap_or_default();
        (name.clone(), time.saturating_sub(before))
    });
    spent.collect()
}

/// CPU time of this process.
pub fn own_cpu() -> Duration {
    clock(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time of this thread.
pub fn thread_cpu() -> Duration {
    clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(id: ClockId) -> Duration {
    clock_gettime(id).map_or(Duration::ZERO, Duration::from)
}

/// All cores together since the machine started: at work, and taken away by the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cores {
    /// At work for anybody.
    pub busy: Duration,
    /// Taken away by the host.
    pub stolen: Duration,
}

impl Cores {
    /// Until now.
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let fields: Vec<u64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let sum = |at: &[usize]| ticks(at.iter().filter_map(|at| fields.get(*at)).sum());
        // user, nice, system, irq, softirq; idle and iowait are not work.
        Self { busy: sum(&[0, 1, 2, 5, 6]), stolen: sum(&[7]) }
    }
}

#[derive(Debug)]
struct Process {
    pid: u32,
    parent: u32,
    name: String,
    cpu: Duration,
}

fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        process(pid, &fs::read_to_string(entry.path().join("stat")).ok()?)
    })
}

/// `PID (NAME) STATE PPID ...` with utime, stime, cutime, cstime as fields 14 to 17 (proc(5)); the
/// name may hold anything.
fn process(pid: u32, stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let parent = u32::try_from(number(1)?).ok()?;
    let spent = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Process { pid, parent, name, cpu: ticks(spent) })
}

fn ticks(number: u64) -> Duration {
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let a_second = a_second.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100).max(1);
    Duration::from_micros(number * 1_000_000 / a_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_process_table_is_read() {
        let line = "42 (a) b) S 7 42 42 0 -1 0 0 0 0 0 100 50 25 25 20 0 1 0 5 0 0";
        let process = process(42, line).unwrap();
        assert_eq!((process.name.as_str(), process.parent), ("a) b", 7));
        assert_eq!(process.cpu, ticks(200));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_costs_something_and_so_do_its_children() {
        let mut spinner = std::process::Command::new("/bin/sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("a shell");
        let mut seen = CpuTimes::new();
        while seen.get("sh").copied().unwrap_or_default() < Duration::from_millis(20) {
            seen = cpu_times(&[std::process::id()]);
        }
        spinner.kill().expect("it runs");
        spinner.wait().expect("it ended");
        assert!(own_cpu() > Duration::ZERO && Cores::now().busy > Duration::ZERO);
        assert!(Machine::here().cores > 0 && Machine::here().memory_mib > 0);
    }
}
