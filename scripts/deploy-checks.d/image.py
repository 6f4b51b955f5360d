"""The Dockerfile, and every script beside it."""

import re
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def faults(root, program):
    dockerfile = root / "deploy" / "Dockerfile"
    text = dockerfile.read_text()
    found = _lint([BIN / "hadolint", dockerfile])
    scripts = [root / "deploy" / "healthy", *sorted(root.glob("deploy/compose/init/*.sh"))]
    found += _lint([BIN / "shellcheck", *scripts])
    found += _versions(root, text) + _sources(root, text)
    variables = dict(re.findall(r"(TERRACE_\w+)=(\S+)", text))
    found += program.faults("Dockerfile", variables)
    first, last = (program.ports(level, {})[0] for level in (0, 10))
    if f"EXPOSE {first}-{last}" not in text:
        found.append(f"Dockerfile: it should EXPOSE {first}-{last}")
    return found


def _lint(command):
    done = subprocess.run(command, text=True, capture_output=True)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] if done.returncode else []


def _versions(root, text):
    """The compiler and the features are those of the manifests."""
    found = []
    rust = re.search(r'rust-version = "([\d.]+)"', (root / "Cargo.toml").read_text())[1]
    if f"FROM rust:{rust}-" not in text:
        found.append(f"Dockerfile: the workspace wants Rust {rust}")
    manifest = (root / "crates" / "terrace" / "Cargo.toml").read_text()
    section = manifest.split("[features]")[1].split("\n[")[0]
    features = set(re.findall(r"^(\w+) =", section, re.M)) - {"default", "mutants"}
    if set(re.search(r"--features (\S+)", text)[1].split(",")) != features:
        found.append(f"Dockerfile: its features should be {','.join(sorted(features))}")
    return found


def _sources(root, text):
    """What is copied exists, and .dockerignore lets it in."""
    let_in = [line[1:] for line in (root / ".dockerignore").read_text().split() if line.startswith("!")]
    found = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M):
        for source in [word for word in line.split()[:-1] if not word.startswith("--")]:
            if not (root / source).exists() or source not in let_in:
                found.append(f"Dockerfile: {source} does not exist, or .dockerignore keeps it out")
    return found
