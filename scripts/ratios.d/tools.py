"""The programs that the references need, found or installed."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

POLICY = pathlib.Path("/usr/sbin/policy-rc.d")
PACKAGES = {
    "wrk": "wrk",
    "webdis": "webdis",
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "redis-benchmark": "redis-tools",
    "strace": "strace",
}
POSTGRES = ("initdb", "postgres", "psql", "pgbench")


def say(text):
    """A line of progress; stdout is for the table alone."""
    print(text, file=sys.stderr, flush=True)


def find(name):
    """The path of a program. PostgreSQL's are outside PATH on Debian: the newest version wins."""
    if name in POSTGRES:
        versions = pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
        newest = sorted(versions, key=lambda path: int(path.parts[-3]))
        if newest:
            return str(newest[-1])
    places = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    return shutil.which(name, path=places)


def install_missing():
    """Installs what the comparison lacks."""
    install_programs(name for name in (*PACKAGES, *POSTGRES) if name != "strace")


def install_programs(names):
    """Installs what is missing by apt-get, without starting a service."""
    names = list(names)
    lacking = [name for name in names if not find(name)]
    if not lacking:
        return
    packages = sorted({PACKAGES.get(name, "postgresql") for name in lacking})
    if not shutil.which("apt-get"):
        sys.exit(f"missing {', '.join(lacking)}; install them and run this again")
    say(f"installing {' '.join(packages)}")
    root = [] if os.geteuid() == 0 else ["sudo"]
    install = [
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        *packages,
    ]
    with no_services(root):
        for command in (["apt-get", "update", "-qq"], install):
            subprocess.run(root + command, check=True, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    still = [name for name in lacking if not find(name)]
    if still:
        sys.exit(f"still missing after the installation: {', '.join(still)}")


@contextlib.contextmanager
def no_services(root):
    """While this is open, Debian starts no service of an installed package."""
    before = POLICY.with_name("policy-rc.d.before-ratios")
    if POLICY.exists() and not before.exists():
        subprocess.run([*root, "mv", POLICY, before], check=True)
    subprocess.run(
        [*root, "tee", POLICY],
        input=b"#!/bin/sh\nexit 101\n",
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run([*root, "chmod", "755", POLICY], check=True)
    try:
        yield
    finally:
        subprocess.run([*root, "rm", "-f", POLICY], check=True)
        if before.exists():
            subprocess.run([*root, "mv", before, POLICY], check=True)
