"""The Helm chart, and the plain manifests that are rendered from it."""

import re
import sys
from pathlib import Path

import helm_python
import kubernetes_validate
import yaml

# The oldest that Chart.yaml admits, and the newest that the schemas have.
KUBERNETES = ["1.30", kubernetes_validate.latest_version()]
PLAIN = "deploy/kubernetes/terrace.yml"
HEAD = """\
# Terrace on Kubernetes without Helm: level 5 as an example. Rendered from the chart, deploy/helm/terrace, with
# ci/plain.yaml; do not edit it here: scripts/deploy-checks --write renders it anew.
#
#   kubectl create secret generic terrace --from-literal=DATABASE_URL=... --from-literal=REDIS_URL=...
#   kubectl apply -f deploy/kubernetes/terrace.yml
"""


def faults(root, program):
    chart = root / "deploy" / "helm" / "terrace"
    report = helm_python.lint(chart, strict=True)
    said = [f"{each['path']}: {each['error']}" for each in report["messages"] if each["severity"] >= 2]
    if said or report["errors"]:
        yield from said + report["errors"]
        return
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"', (root / "Cargo.toml").read_text(), re.M)[1]
    if about["appVersion"] != version:
        yield f"Chart.yaml: appVersion is {about['appVersion']}, and the workspace has {version}"
    oldest = about["kubeVersion"]
    if KUBERNETES[0] not in oldest:
        yield f"Chart.yaml: kubeVersion is {oldest}, and {KUBERNETES[0]} is checked"
    for file in [None, *sorted(chart.glob("ci/*.yaml"))]:
        where = file.name if file else "default values"
        values = yaml.safe_load(file.read_text()) if file else {}
        try:
            texts = rendered(chart, values)
        except helm_python.HelmError as error:
            yield f"{where}: {error}"
            continue
        objects = [one for text in texts for one in yaml.safe_load_all(text) if one]
        yield from (f"{where}: {fault}" for fault in _agree(objects, program) + _schemas(objects))
    if (root / PLAIN).read_text() != plain(root):
        yield f"{PLAIN} is not what the chart renders; run scripts/deploy-checks --write"


def rendered(chart, values):
    """The manifests, in the order of their files."""
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        files = loaded.render(values, name="terrace", namespace="default")
    return [text.strip() for name, text in sorted(files.items()) if name.endswith(".yaml") and text.strip()]


def plain(root):
    """The plain manifests."""
    chart = root / "deploy" / "helm" / "terrace"
    values = yaml.safe_load((chart / "ci" / "plain.yaml").read_text())
    return HEAD + "".join(f"---\n{text}\n" for text in rendered(chart, values))


def _schemas(objects):
    found = []
    for one in objects:
        if one["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # A resource of the Prometheus operator: Kubernetes has no schema for it.
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(map(str, error.path))
                found.append(f"{one['kind']} {path} (Kubernetes {version}): {error.message}")
            except kubernetes_validate.SchemaNotFoundError as error:
                found.append(error.message)
    return found


def _agree(objects, program):
    """What one object says of another, and of Terrace, is so."""
    kinds = {one["kind"]: one for one in objects}
    if len(kinds) != len(objects):
        return ["two objects of one kind"]
    deployment = kinds["Deployment"]
    template = deployment["spec"]["template"]
    container = template["spec"]["containers"][0]
    variables = kinds["ConfigMap"]["data"]
    found = program.faults("ConfigMap", variables)
    if found:
        return found
    level = int(container["args"][1])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    if list(ports.values()) != program.ports(level, variables):
        found.append(f"ports are {ports}, and Terrace serves {program.ports(level, variables)}")
    used = [container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "liveness", "readiness")]
    used += [port["targetPort"] for port in kinds["Service"]["spec"]["ports"]]
    policy = kinds.get("NetworkPolicy", {"spec": {"ingress": []}})
    used += [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    used += [end["port"] for end in kinds.get("ServiceMonitor", {"spec": {"endpoints": []}})["spec"]["endpoints"]]
    found += [f"no port has the name {name}" for name in set(used) - set(ports)]
    found += _selectors(kinds, template["metadata"]["labels"])
    hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    least = hook * 1000 + program.longest_end_ms(level, variables)
    if template["spec"]["terminationGracePeriodSeconds"] * 1000 <= least:
        found.append(f"the grace period is shorter than the {least} ms that ending may take")
    scaler = kinds.get("HorizontalPodAutoscaler")
    if scaler and scaler["spec"]["scaleTargetRef"]["name"] != deployment["metadata"]["name"]:
        found.append("the autoscaler's target is not the Deployment")
    most = scaler["spec"]["maxReplicas"] if scaler else deployment["spec"]["replicas"]
    if variables["TERRACE_LIMITS_INSTANCES"] != str(most):
        found.append(f"limits.instances is not the {most} instances that there may be")
    return found


def _selectors(kinds, labels):
    """Each selector finds the pods, or the Service."""
    paths = {
        "Deployment": ("selector", "matchLabels"),
        "Service": ("selector",),
        "PodDisruptionBudget": ("selector", "matchLabels"),
        "NetworkPolicy": ("podSelector", "matchLabels"),
        "ServiceMonitor": ("selector", "matchLabels"),
    }
    found = []
    for kind, path in paths.items():
        wanted = kinds.get(kind, {}).get("spec", {})
        for key in path if kind in kinds else ():
            wanted = wanted[key]
        target = kinds["Service"]["metadata"]["labels"] if kind == "ServiceMonitor" else labels
        if not wanted.items() <= target.items():
            found.append(f"the selector of {kind} finds nothing")
    return found


if __name__ == "__main__":
    root = Path(sys.argv[1])
    (root / PLAIN).parent.mkdir(exist_ok=True)
    (root / PLAIN).write_text(plain(root))
