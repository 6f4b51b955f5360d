//! A small shell process that outlives this one just long enough to end its server.
//!
//! Its standard input is a pipe that this process holds. When this process ends, however it ends,
//! the pipe is closed; the shell reads end-of-file and shuts the server down. (Linux alone could
//! send a signal on a parent's death, and asking for that needs `unsafe`.)

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::{LabError, Result};
use crate::home::Home;

/// How long the supervisor waits for the server to end by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// POSIX shell. $1: the signal's name, $2: tenths of a second to wait, $3: directory to remove.
///
/// Each line of input is the process to end at end-of-file, or empty when none runs.
const SCRIPT: &str = r#"
trap '' HUP INT TERM QUIT
signal=$1 patience=$2 remove=$3 pid=
exec 2>/dev/null

children() {
    if [ -r "/proc/$pid/task/$pid/children" ]; then
        cat "/proc/$pid/task/$pid/children"
    else
        ps -A -o pid= -o ppid= | while read -r child parent; do
            [ "$parent" = "$pid" ] && echo "$child"
        done
    fi
}

ended() {
    if read -r stat <"/proc/$pid/stat"; then
        state=${stat##*) }
    else
        state=$(ps -o state= -p "$pid")
    fi
    case $state in
        '' | Z* | X*) return 0 ;;
        *) return 1 ;;
    esac
}

tick() { sleep 0.1 || sleep 1; }

while read -r line; do pid=$line; done

if [ -n "$pid" ] && ! ended; then
    kill -s CONT $(children) "$pid"
    kill -s "$signal" "$pid"
    until ended || [ "$patience" -le 0 ]; do
        patience=$((patience - 1))
        tick
    done
    if ! ended; then
        kill -s STOP "$pid"
        kill -s KILL $(children) "$pid"
    fi
fi

if [ -n "$remove" ]; then
    attempts=50
    # The folder above may belong to another user: then an empty directory stays.
    until rm -rf -- "$remove" || [ -z "$(ls -A "$remove")" ] || [ "$attempts" -le 0 ]; do
        attempts=$((attempts - 1))
        tick
    done
fi
"#;

/// Waits for a line before it becomes the server, so that no server exists of which the
/// supervisor has not been told; without the line it ends.
const GATE: &str = r#"read -r go && exec "$@" </dev/null"#;

/// The shell process; dropping it is the same as the end of this process.
#[derive(Debug)]
pub(crate) struct Supervisor {
    shell: Child,
}

impl Supervisor {
    /// Starts the shell; with `remove`, it deletes the home's directory in the end.
    pub(crate) fn start(home: &Home, stop_signal: Signal, remove: bool) -> Result<Self> {
        let name = stop_signal.as_str().trim_start_matches("SIG");
        let shell = Path::new("/bin/sh");
        let mut command = home.command(shell);
        command.args(["-c", SCRIPT, "terrace-lab-supervisor", name]);
        command.arg((PATIENCE.as_secs() * 10).to_string());
        command.arg(if remove { home.path() } else { Path::new("") });
        // The directory may be removed: the shell must not stand in it.
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { shell: command.spawn().map_err(LabError::run(shell))? })
    }

    /// Starts a program with its arguments under supervision; its output goes to the home's log.
    pub(crate) fn spawn(&mut self, home: &Home, program: &[OsString]) -> Result<Child> {
        let shell = Path::new("/bin/sh");
        let log = home.new_log()?;
        let errors = log.try_clone().map_err(LabError::run(shell))?;
        let mut child = home
            .command(shell)
            .args(["-c", GATE, "sh"])
            .args(program)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(LabError::run(shell))?;
        self.watch(Some(child.id()));
        if let Some(mut gate) = child.stdin.take() {
            // A gate that is closed already is seen as a server that ended.
            let _ended = gate.write_all(b"go\n");
        }
        Ok(child)
    }

    /// Says which process to end at end-of-file.
    ///
    /// A shell that somebody killed cannot hear it; the server then is cleaned up at the next start.
    pub(crate) fn watch(&mut self, pid: Option<u32>) {
        let line = pid.map_or_else(|| "\n".to_owned(), |pid| format!("{pid}\n"));
        if let Some(pipe) = &mut self.shell.stdin
            && let Err(error) = pipe.write_all(line.as_bytes())
        {
            tracing::warn!(%error, "the supervisor of a private server is gone");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _reaped = self.shell.wait();
    }
}
