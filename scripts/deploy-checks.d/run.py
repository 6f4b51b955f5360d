"""Runs every check, and then each on a copy with a fault that it must find."""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import chart
import compose
import image
import unit
from program import Program

CHECKS = {"image": image, "compose": compose, "chart": chart, "unit": unit}

# A check, a file of deploy/, what is replaced in it by what, and a word of the finding.
BROKEN = [
    (image, "Dockerfile", "FROM debian:bookworm-slim", "FROM debian", "DL3006"),
    (image, "Dockerfile", "mongodb,nats", "mongodb", "features"),
    (image, "Dockerfile", "rust:1.95", "rust:1.94", "Rust 1.95"),
    (image, "Dockerfile", "EXPOSE 8000-8010", "EXPOSE 8000", "EXPOSE"),
    (image, "Dockerfile", "TERRACE_SERVER_HOST", "TERRACE_SERVER_HOSTS", "server.host"),
    (image, "Dockerfile", "COPY crates crates", "COPY crate crates", "does not exist"),
    (image, "compose/init/replica.sh", '"$PGDATA" -mindepth', "$PGDATA -mindepth", "SC2086"),
    (compose, "compose/l5.yml", "depends_on:", "depend_on:", "depend_on"),
    (compose, "compose/l5.yml", "REDIS_URL", "REDIS_URI", "REDIS_URI is no variable"),
    (compose, "compose/l4.yml", "SHARD_1_URL", "SHARD_3_URL", "SHARD_1_URL is missing"),
    (compose, "compose/l9.yml", "DB_EU_WEST_URL", "DB_EU_WETS_URL", "DB_EU_WEST_URL is missing"),
    (compose, "compose/l5.yml", "8005:8005", "8005:8000", "port 8000 is published"),
    (compose, "compose/l5.yml", '[serve, "5"]', '[serve, "6"]', "serve 5"),
    (compose, "compose/l5.yml", "${LISTEN:-127.0.0.1}:", "0.0.0.0:", "from elsewhere"),
    (compose, "compose/l5.yml", "@redis:", "@radis:", "radis is no service"),
    (compose, "compose/l5.yml", "name: terrace-l5", "name: terrace", "project"),
    (compose, "compose/l5.yml", "volumes:\n  db:", "volumes:\n  bd:", "db is not among the volumes"),
    (compose, "compose/engines/postgres.yml", "init/replication.sh:", "init/replicate.sh:", "replicate.sh"),
    (compose, "compose/engines/redis.yml", "healthcheck:", "x-check:", "redis, which has no check"),
    (compose, "compose/engines/terrace.yml", "DB_POOL_MAX_SIZE: 10", "DB_POOL_MAX_SIZE: 1", "pool_min"),
    (compose, "compose/engines/terrace.yml", "stop_grace_period: 30s", "stop_grace_period: 15s", "l10.yml: api: stop"),
    (compose, "compose/monitoring/prometheus.yml", "port: 8001", "port: 8000", "port 8000 is not served"),
    (chart, "helm/terrace/Chart.yaml", "appVersion: 0.1.0", "appVersion: 0.0.9", "the workspace has"),
    (chart, "helm/terrace/templates/service.yaml", "{{- end }}", "", "service.yaml"),
    (chart, "helm/terrace/templates/deployment.yaml", "maxUnavailable: 0", "maxUnavailble: 0", "maxUnavailble"),
    (chart, "helm/terrace/templates/deployment.yaml", "port: http,", "port: htttp,", "htttp"),
    (chart, "helm/terrace/templates/_helpers.tpl", "drain_delay_ms", "drain_delay", "server.drain_delay"),
    (chart, "helm/terrace/templates/_helpers.tpl", "add 8000", "add 9000", "Terrace serves"),
    (chart, "helm/terrace/templates/deployment.yaml", "timeoutSeconds 10", "timeoutSeconds", "grace period"),
    (chart, "helm/terrace/templates/autoscaler.yaml", "kind: Deployment\n    name: {{ include \"terrace.name\" . }}",
     "kind: Deployment\n    name: terraces", "autoscaler"),
    (chart, "helm/terrace/templates/networkpolicy.yaml", "port: metrics", "port: metric", "metric"),
    (chart, "helm/terrace/templates/servicemonitor.yaml", "matchLabels: {{- include \"terrace.selector\" . | nindent 6 }}",
     "matchLabels: {a: b}", "ServiceMonitor finds nothing"),
    (chart, "helm/terrace/ci/one.yaml", "replicas: 1", "replica: 1", "replica"),
    (chart, "kubernetes/terrace.yml", "maxReplicas: 6", "maxReplicas: 7", "--write"),
    (unit, "systemd/terrace.service", "ProtectHome=yes", "ProtectHomes=yes", "ProtectHomes"),
    (unit, "systemd/terrace.service", "ExecStart=/usr", "ExecStart=usr", "absolute path"),
    (unit, "systemd/terrace.service", "CapabilityBoundingSet=\n", "", "EXPOSURE"),
    (unit, "systemd/terrace.service", "TimeoutStopSec=30", "TimeoutStopSec=15", "TimeoutStopSec"),
    (unit, "systemd/terrace.env", "REDIS_URL", "REDIS_URI", "REDIS_URI"),
]


def checked(root, program):
    """Every fault, told; whether there is none."""
    right = True
    for name, check in CHECKS.items():
        found = list(check.faults(root, program))
        right = right and not found
        print(f"{name}: {'right' if not found else f'{len(found)} wrong'}", flush=True)
        for fault in found:
            print(f"  {fault}", flush=True)
    return right


def missed(root, program):
    """The broken copies whose fault was not found."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("Cargo.toml", ".dockerignore"):
            shutil.copy(root / name, copy)
        (copy / "crates" / "terrace").mkdir(parents=True)
        shutil.copy(root / "crates" / "terrace" / "Cargo.toml", copy / "crates" / "terrace")
        (copy / "Cargo.lock").touch()
        for name in ("deploy", "ops"):
            shutil.copytree(root / name, copy / name)
        for check, name, old, new, word in BROKEN:
            if name.endswith(".service") and not unit.has_analyzer():
                continue
            file = copy / "deploy" / name
            text = file.read_text()
            if old not in text:
                yield f"{name} has no {old!r} to break"
                continue
            file.write_text(text.replace(old, new))
            # No more is looked at once the fault is found.
            if not any(word.lower() in fault.lower() for fault in check.faults(copy, program)):
                yield f"{name} with {new!r} for {old!r}"
            file.write_text(text)


def main():
    root, program = Path(sys.argv[1]), Program(sys.argv[2])
    begun = time.monotonic()
    if not unit.has_analyzer():
        print("systemd-analyze is not on this machine: the unit is not looked at by it")
    if not checked(root, program):
        sys.exit("deploy/ is not as it should be")
    blind = list(missed(root, program))
    for one in blind:
        print(f"a fault that is not found: {one}")
    if blind:
        sys.exit("the checks do not find what they are for")
    print(f"{len(BROKEN)} faults, each found; {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
