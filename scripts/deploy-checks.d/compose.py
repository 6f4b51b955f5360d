"""The compose files: one for each level, of fragments for each engine."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml

BIN = Path(sys.executable).parent
LEVELS = range(11)


def faults(root, program):
    folder = root / "deploy" / "compose"
    files = sorted(folder.glob("*.yml"))
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "--color", "never"]
    fragments = sorted(folder.glob("engines/*.yml"))
    done = subprocess.run([*command, *files, *fragments], text=True, capture_output=True)
    if done.returncode != 0:
        yield from done.stdout.splitlines()
        return
    for level in LEVELS:
        if folder / f"l{level}.yml" not in files:
            yield f"there is no l{level}.yml"
    for file in files:
        found = _faults_in(file, program)
        yield from (f"{file.name}: {fault}" for fault in found)
        if file.stem == "l10" and not found:
            yield from _scraped(folder, program)


def _faults_in(file, program):
    level = int(re.match(r"l(\d+)", file.name)[1])
    text = yaml.safe_load(file.read_text())
    services = {name: resolved(file, name) for name in text["services"]}
    api = services["api"]
    variables = {name: _given(value) for name, value in api["environment"].items()}
    found = program.faults("api", variables)
    if not found:
        found += _ports(level, api, program.ports(level, variables))
        grace = int(api["stop_grace_period"].removesuffix("s")) * 1000
        if grace <= program.longest_end_ms(level, variables):
            found.append("api: stop_grace_period is shorter than it may take to end")
    if text["name"] != f"terrace-{file.stem}":
        found.append("its name should be its own: projects of one name share containers")
    named = {urlsplit(url.split("://")[0] + "://" + rest.split("@")[-1]).hostname
             for value in variables.values()
             for url in re.split(r"[\s,]+", value) if "://" in url
             for rest in [url.split("://", 1)[1]]}
    found += [f"{host} is no service" for host in named - set(services)]
    for name, service in services.items():
        found += [f"{name}: {fault}" for fault in _service(service, services, text.get("volumes", {}))]
    return found


def _ports(level, api, served):
    found = []
    if api["command"] != ["serve", str(level)]:
        found.append(f"api: its command should be serve {level}")
    published = [_given(port).split(":") for port in api["ports"]]
    for address, host, inside in published:
        if int(inside) not in served:
            found.append(f"api: port {inside} is published, and Terrace serves {served}")
        if address != "127.0.0.1":
            found.append(f"api: port {host} is reached from elsewhere unless LISTEN says so")
    if not any(host == inside == str(served[0]) for _, host, inside in published):
        found.append(f"api: port {served[0]} is not published as itself")
    return found


def _service(service, services, volumes):
    found = []
    for other, how in service.get("depends_on", {}).items():
        if how["condition"] == "service_healthy" and "healthcheck" not in services.get(other, {}):
            found.append(f"waits for the health of {other}, which has no check")
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("/"):
            if not Path(source).exists():
                found.append(f"{source} does not exist")
        elif source not in volumes:
            found.append(f"{source} is not among the volumes")
    return found


def _scraped(folder, program):
    """Prometheus asks a port that is served at level 10."""
    config = yaml.safe_load((folder / "monitoring" / "prometheus.yml").read_text())
    api = resolved(folder / "l10.yml", "api")
    variables = {name: _given(value) for name, value in api["environment"].items()}
    served = program.ports(10, variables)
    ports = [found["port"] for job in config["scrape_configs"] for found in job["dns_sd_configs"]]
    return [f"prometheus.yml: port {port} is not served at level 10" for port in ports if port not in served]


def resolved(file, name):
    """A service with what it extends, whose paths are made absolute. Merges as Compose does: mappings by
    key, volumes by their place in the container, anything else is replaced."""
    service = dict(yaml.safe_load(file.read_text())["services"][name])
    service["volumes"] = [
        str((file.parent / volume).resolve()) if volume.startswith(".") else volume
        for volume in service.get("volumes", [])
    ]
    service["volumes"] = [re.sub(r"^(/[^:]+):", lambda path: path[0], volume) for volume in service["volumes"]]
    base = service.pop("extends", None)
    if base is None:
        return service
    base = {"service": base} if isinstance(base, str) else base
    under = resolved(file.parent / base["file"] if "file" in base else file, base["service"])
    merged = {**under, **service}
    for key in ("environment", "depends_on"):
        merged[key] = {**under.get(key, {}), **service.get(key, {})}
    places = {volume.split(":")[1]: volume for volume in [*under["volumes"], *service["volumes"]]}
    merged["volumes"] = list(places.values())
    return merged


def _given(value):
    """The text that a container gets where no variable of the host is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)).replace("$$", "$")
