"""Servers that this run starts, measures and ends: each by its own process id."""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

TICK_US = 1_000_000 / os.sysconf("SC_CLK_TCK")
# Nothing of the caller's own settings (DATABASE_URL, API_KEY, ...) reaches a measured server.
INHERITED = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Failed(Exception):
    """Something that a person has to look at; the text says what."""


def free_port():
    """A port on 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_ports(count):
    """The first of `count` ports in a row that nobody listens on, outside the ephemeral range."""
    for first in range(18_000, 30_000, count):
        try:
            with contextlib.ExitStack() as probes:
                for port in range(first, first + count):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
                return first
        except OSError:
            continue
    raise Failed(f"no {count} free ports in a row from 18000 to 30000")


# Level 10 asks for it; the others do not look.
KEY = {"X-API-Key": "a key of this measurement alone"}


def http_get(url, timeout=5):
    """(status, body) of a GET; status 0 when nobody answers."""
    try:
        request = urllib.request.Request(url, headers=KEY)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError:
        return 0, ""


def await_until(condition, what, process=None, seconds=30):
    """Polls until `condition` holds; fails early when `process` has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process and process.poll() is not None:
            raise Failed(f"{what} ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise Failed(f"{what} was not ready after {seconds} s")
        time.sleep(0.005)


def tree(root):
    """The fields of /proc/<pid>/stat after the name, of `root` and everything below it."""
    stats = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            stats[int(entry.name)] = text.rpartition(")")[2].split()
    wanted, found = [root], {}
    while wanted:
        pid = wanted.pop()
        if pid in stats:
            found[pid] = stats[pid]
            wanted += [child for child, fields in stats.items() if int(fields[1]) == pid]
    return found


def cpu_us(roots):
    """CPU microseconds used by process trees, ended children included once they are reaped."""
    used = (fields[11:15] for root in roots for fields in tree(root).values())
    return sum(int(ticks) for four in used for ticks in four) * TICK_US


def memory_mib(root):
    """Resident memory of a process tree, MiB."""
    pages = (int(fields[21]) for fields in tree(root).values())
    return sum(pages) * PAGE_BYTES / 2**20


class Processes:
    """Starts servers in a private folder, as an unprivileged user when run as root."""

    def __init__(self, folder=None):
        # /tmp is often memory, where an fsync costs nothing: the run lives on a disk.
        self.folder = pathlib.Path(
            tempfile.mkdtemp(prefix="terrace-ratios-", dir=folder or "/var/tmp")
        )
        self.running = []
        self.drop = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.drop = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)

    def subfolder(self, name):
        path = self.folder / name
        path.mkdir()
        if self.drop:
            os.chown(path, self.drop["user"], self.drop["group"])
        return path

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def copy(self, program):
        """A copy of a program where the unprivileged user can reach it."""
        to = self.folder / pathlib.Path(program).name
        if not to.exists():
            shutil.copy(program, to)
            to.chmod(0o755)
        return str(to)

    def run(self, command, text=None):
        """Runs a short command to its end and returns what it printed."""
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
            **self.drop,
        )
        if done.returncode:
            raise Failed(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-600:]}")
        return done.stdout

    def start(self, name, command, ready, environment=None, stop=signal.SIGTERM):
        """Starts a server and waits until `ready()`; its output goes to a log file."""
        log = self.folder / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**INHERITED, "HOME": str(self.folder), **(environment or {})},
                **self.drop,
            )
        self.running.append((process, stop))
        try:
            # Over a WAN a start takes as many round trips as it has statements.
            await_until(ready, name, process, seconds=120)
        except Failed as error:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise Failed(f"{error}; the end of its log:\n{last}") from None
        return process

    def end(self, process):
        """Ends one server: politely, then firmly."""
        stop = next(stop for running, stop in self.running if running is process)
        self.running.remove((process, stop))
        if process.poll() is None:
            process.send_signal(stop)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self):
        """Ends everything that was started, newest first, and removes the folder."""
        for process, _ in reversed(list(self.running)):
            self.end(process)
        shutil.rmtree(self.folder, ignore_errors=True)
