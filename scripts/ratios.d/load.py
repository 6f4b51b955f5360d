"""What puts load on a server: wrk, pgbench, redis-benchmark; each ends in a `Sample`."""

import dataclasses
import pathlib
import re
import subprocess

from processes import Failed, cpu_us
from servers import FIRST_WIDE_KEY
from tools import find

HERE = pathlib.Path(__file__).parent
VALUE = "value-of-key-1000000"
MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclasses.dataclass
class Sample:
    """One measurement of one side."""

    per_second: float
    operations: int
    p99_ms: float | None = None
    cpu_us: float | None = None
    syncs: float | None = None


@dataclasses.dataclass
class Target:
    """A load that is ready to run: `run(seconds)` gives a Sample."""

    run: object
    pids: list
    wal_syncs: object = None

    def measure(self, seconds):
        """One Sample, with the CPU and log flushes that the servers spent on it."""
        cpu, syncs = cpu_us(self.pids), self.wal_syncs() if self.wal_syncs else 0
        sample = self.run(seconds)
        if not sample.operations:
            raise Failed("nothing was answered")
        sample.cpu_us = (cpu_us(self.pids) - cpu) / sample.operations
        if self.wal_syncs:
            sample.syncs = (self.wal_syncs() - syncs) / sample.operations
        return sample


def execute(command):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise Failed(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def figures(pattern, text):
    """What a generator's report says; it is silent when nothing was done in time."""
    found = re.search(pattern, text)
    if not found:
        raise Failed(f"the generator reported nothing ({pattern}): the machine may be too busy")
    return found.groups()


def wrk(url, connections, threads, script, *arguments, headers=None):
    """A closed loop over HTTP; any answer that is not 200 and any socket error fails the row."""

    def run(seconds):
        text = execute(
            [
                find("wrk"),
                f"-t{threads}",
                f"-c{connections}",
                f"-d{seconds}s",
                "--latency",
                "-s",
                str(HERE / script),
                *(f"-H{name}: {value}" for name, value in (headers or {}).items()),
                url,
                "--",
                *map(str, arguments),
            ]
        )
        return parse_wrk(text)

    return run


def parse_wrk(text):
    for trouble in (r"Non-2xx or 3xx responses: \d+", r"Socket errors: .*"):
        found = re.search(trouble, text)
        if found:
            raise Failed(found.group(0))
    requests, elapsed, unit = figures(r"(\d+) requests in ([\d.]+)(ms|s|m),", text)
    slow, slow_unit = figures(r"99%\s+([\d.]+)(us|ms|s|m)", text)
    per_second = int(requests) / (float(elapsed) * MS[unit] / 1000)
    return Sample(per_second, int(requests), p99_ms=float(slow) * MS[slow_unit])


def sweep(server, connections, threads, walked, keys):
    """Reads each of many keys once; `walked` remembers where the walk has come to."""

    def run(seconds):
        first = FIRST_WIDE_KEY + walked["keys"]
        sample = wrk(server["url"], connections, threads, "sweep.lua", first, threads)(seconds)
        # The threads do not walk evenly: step over what the fastest may have reached.
        walked["keys"] += sample.operations + (sample.operations // 10 + connections) * (
            threads > 1
        )
        walked["keys"] += connections
        if walked["keys"] > keys:
            raise Failed(
                f"more than the {keys} keys laid out were read: lower --seconds or --rounds"
            )
        return sample

    return run


def pgbench(server, script, clients, threads, keys, connect_each=False):
    """Prepared statements over TCP; `connect_each` makes a connection for every transaction."""

    def run(seconds):
        command = [
            find("pgbench"),
            "-n",
            "-M",
            "prepared",
            "-f",
            str(HERE / script),
            "-D",
            f"keys={keys}",
            "-D",
            f"value={VALUE}",
            "-c",
            str(clients),
            "-j",
            str(min(threads, clients)),
            "-T",
            str(seconds),
            "-h",
            "127.0.0.1",
            "-p",
            str(server["port"]),
            "-U",
            "terrace",
        ]
        if connect_each:
            command.append("-C")
        text = execute(["env", "PGSSLMODE=disable", *command, "reference"])
        return parse_pgbench(text)

    return run


def parse_pgbench(text):
    failed = re.search(r"number of failed transactions: (\d+)", text)
    if failed and int(failed.group(1)):
        raise Failed(failed.group(0))
    (operations,) = figures(r"number of transactions actually processed: (\d+)", text)
    (per_second,) = figures(r"tps = ([\d.]+)", text)
    return Sample(float(per_second), int(operations))


def redis_benchmark(server, connections, keys):
    """GET without pipelining; the number of requests is fixed, about as many as fit the time."""

    def run(seconds):
        count = seconds * 80_000
        text = execute(
            [
                find("redis-benchmark"),
                "-h",
                "127.0.0.1",
                "-p",
                str(server["port"]),
                "--dbnum",
                "2",
                "-c",
                str(connections),
                "-n",
                str(count),
                "-r",
                str(keys),
                "--csv",
                "GET",
                "key:__rand_int__",
            ]
        )
        line = [line for line in text.splitlines() if line.startswith('"GET')][-1]
        fields = [field.strip('"') for field in line.split('","')]
        return Sample(float(fields[1]), count, p99_ms=float(fields[6]))

    return run
