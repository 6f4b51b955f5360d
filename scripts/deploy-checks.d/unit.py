"""The unit of systemd, and its file of variables."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

# Of `systemd-analyze security`, in tenths: 100 is a service without any protection.
MOST_EXPOSED = 15


def has_analyzer():
    return shutil.which("systemd-analyze") is not None


def faults(root, program):
    folder = root / "deploy" / "systemd"
    unit = (folder / "terrace.service").read_text()
    variables = dict(re.findall(r"^#?(\w+)=(.+)$", (folder / "terrace.env").read_text(), re.M))
    level = int(variables.pop("LEVEL"))
    variables |= dict(re.findall(r"^Environment=(\w+)=(.+)$", unit, re.M))
    found = program.faults("terrace.env and Environment=", variables)
    if not found:
        stop = int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)[1]) * 1000
        # At whatever level: LEVEL may be changed.
        if stop <= max(program.longest_end_ms(each, variables) for each in (level, 10)):
            found.append("TimeoutStopSec is shorter than it may take to end")
    return found + _analyzed(unit, program)


def _analyzed(unit, program):
    if not has_analyzer():
        return []
    with tempfile.TemporaryDirectory() as folder:
        # The program must exist where the unit says; on this machine it is elsewhere.
        here = Path(folder, "terrace.service")
        here.write_text(unit.replace("/usr/local/bin/terrace", str(program.path)))
        found = []
        for check in (
            ["verify", "--man=no"],
            ["security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager"],
        ):
            done = subprocess.run(["systemd-analyze", *check, here], text=True, capture_output=True)
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            # An unknown directive is a warning that leaves the status 0.
            if done.returncode != 0 or (check[0] == "verify" and said):
                found += said[-3:]
                break
        return found
