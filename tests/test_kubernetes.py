"""`deploy/kubernetes`: what kustomize builds is valid for two versions of Kubernetes, and fits the server."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from hw_server.settings import load
from tests.conftest import PROJECT, Running

DEPLOY = PROJECT / "deploy/kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")
DOCUMENT = (PROJECT / "docs/deployment/kubernetes.md").read_text()
OVERLAYS = ("production", "local")
VERSIONS = ("1.30", "1.37")  # the oldest that the document promises, and the newest
# Kinds of Gateway API and the Prometheus Operator, which have their own schemas: `make test-kubernetes` holds them against these.
CUSTOM = {"HTTPRoute", "ServiceMonitor", "PrometheusRule"}
Resource = dict[str, Any]


def kustomize(folder: Path) -> list[Resource]:
    built = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Resource]:
    return kustomize(DEPLOY / "overlays" / request.param)


def one(resources: list[Resource], kind: str, name: str = "hw-server") -> Resource:
    [found] = [
        resource
        for resource in resources
        if resource["kind"] == kind and re.fullmatch(rf"{name}(-\w{{10}})?", resource["metadata"]["name"])
    ]
    return found


def pods(resources: list[Resource]) -> Iterator[Resource]:
    for resource in resources:
        if resource["kind"] in ("Deployment", "Job"):
            yield resource["spec"]["template"]


def settings_of(resources: list[Resource], workload: Resource, secrets: Path) -> dict[str, str]:
    """The environment of the workload's container, its secrets in files of `secrets`."""
    [container] = workload["spec"]["template"]["spec"]["containers"]
    environment: dict[str, str] = {}
    for source in container["envFrom"]:
        environment |= one(resources, "ConfigMap", source["configMapRef"]["name"])["data"]
    for item in container["env"]:
        path = secrets / Path(item["value"]).name
        path.write_text("a-secret-of-some-length")
        environment[item["name"]] = str(path)
    return environment


@pytest.mark.parametrize("version", VERSIONS)
def test_each_overlay_is_valid(overlay: list[Resource], version: str) -> None:
    checked = [resource for resource in overlay if resource["kind"] not in CUSTOM]
    assert len(checked) >= 12
    for resource in checked:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize(
    "change", [("periodSeconds: 2", "periodSecond: 2"), ("cpu: 500m", "cpu: [500]"), ("preStop:", "prestop:")]
)
def test_a_mistake_is_noticed(change: tuple[str, str]) -> None:
    text = (DEPLOY / "base/deployment.yaml").read_text()
    assert change[0] in text
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(yaml.safe_load(text.replace(*change)), VERSIONS[0], strict=True)


def test_a_pod_may_do_nothing_that_restricted_forbids(overlay: list[Resource]) -> None:
    assert one(overlay, "Namespace", "hw")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(overlay):
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        # A Service's variables HW_SERVER_* are no settings: the server would not start.
        assert not pod["spec"]["enableServiceLinks"]
        assert not pod["spec"]["automountServiceAccountToken"]
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert container["resources"].keys() == {"requests", "limits"}


def test_the_server_starts_with_its_settings(overlay: list[Resource], tmp_path: Path) -> None:
    settings = load(settings_of(overlay, one(overlay, "Deployment"), tmp_path))
    assert (settings.environment, settings.database.owner_url) == ("production", None)
    assert not settings.database.migrate_on_start
    migrating = load(settings_of(overlay, one(overlay, "Job", "hw-migrate"), tmp_path))
    assert migrating.database.owner_password
    # Only the Job may read the owner's password.
    assert "owner" not in str(one(overlay, "Deployment")["spec"])


def test_a_pod_has_the_time_that_its_drain_takes(overlay: list[Resource], tmp_path: Path) -> None:
    deployment = one(overlay, "Deployment")
    http = load(settings_of(overlay, deployment, tmp_path)).http
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    paused = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= paused + http.drain_delay + http.shutdown_timeout + 5
    asked = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    # A liveness probe that asks for PostgreSQL would restart every pod when it is away.
    assert asked == {"startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live"}
    probe = container["readinessProbe"]
    assert http.drain_delay > probe["periodSeconds"] * probe["failureThreshold"]


def test_the_spool_fits_into_its_volume(overlay: list[Resource], tmp_path: Path) -> None:
    deployment = one(overlay, "Deployment")
    audit = load(settings_of(overlay, deployment, tmp_path)).audit
    volumes = {volume["name"]: volume for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["spool"]["emptyDir"]["sizeLimit"] == "320Mi"
    assert audit.spill_max_bytes < 320 * 2**20
    dockerfile = (PROJECT / "Dockerfile").read_text()
    assert "HW_AUDIT__SPILL_DIR=/var/lib/hw-server/" in dockerfile
    assert "useradd --uid 10001" in dockerfile


def test_what_is_named_is_there(overlay: list[Resource]) -> None:
    """Selectors find the pods, references the ports, ConfigMaps and workloads that they name."""
    server = one(overlay, "Deployment")["spec"]["template"]
    labels, [container] = server["metadata"]["labels"], server["spec"]["containers"]
    service, budget = one(overlay, "Service")["spec"], one(overlay, "PodDisruptionBudget")["spec"]
    for selector in (service["selector"], budget["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    assert service["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    assert one(overlay, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "hw-server"
    assert {source["configMapRef"]["name"] for source in container["envFrom"]} == {
        one(overlay, "ConfigMap")["metadata"]["name"]
    }
    workloads = [pod["metadata"]["labels"] for pod in pods(overlay)]
    for policy in (item["spec"] for item in overlay if item["kind"] == "NetworkPolicy"):
        wanted = policy["podSelector"].get("matchLabels", {})
        assert any(wanted.items() <= found.items() for found in workloads)


def test_there_are_always_two_pods_apart_and_more_under_load(overlay: list[Resource]) -> None:
    scaler = one(overlay, "HorizontalPodAutoscaler")["spec"]
    targets = {item["resource"]["name"]: item["resource"]["target"] for item in scaler["metrics"]}
    assert targets == {
        "cpu": {"type": "Utilization", "averageUtilization": 70},
        "memory": {"type": "Utilization", "averageUtilization": 85},
    }
    assert scaler["minReplicas"] < scaler["maxReplicas"]
    deployment = one(overlay, "Deployment")["spec"]
    assert "replicas" not in deployment  # an `apply` would undo what the autoscaler has set
    pod = deployment["template"]
    [container] = pod["spec"]["containers"]
    assert targets.keys() <= container["resources"]["requests"].keys()  # what utilization is a share of
    budget = one(overlay, "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    spread = {rule["topologyKey"]: rule for rule in pod["spec"]["topologySpreadConstraints"]}
    assert spread.keys() == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    for rule in spread.values():
        assert (rule["maxSkew"], rule["whenUnsatisfiable"]) == (1, "ScheduleAnyway")
        assert rule["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_production_never_has_one_pod_alone() -> None:
    """With one, an eviction that the budget allows is an outage."""
    assert one(kustomize(DEPLOY / "overlays/production"), "HorizontalPodAutoscaler")["spec"]["minReplicas"] >= 2


def test_sizes_are_those_of_the_bench() -> None:
    performance = (PROJECT / "docs/performance.md").read_text()
    rows = re.findall(r"^\| 1,000 .+ \((?:(\S+) to )?(\S+) (us|KiB) each\) \|(.*?)\|(.*?)\|", DOCUMENT, re.M)
    assert len(rows) == 4
    for least, most, unit, cpu, memory in rows:
        assert all(f"| {figure} {unit} |" in performance for figure in (least, most) if figure)
        # A thousand of them, at the dearer figure.
        thousand = f" {float(most) / 1000:.2g} core " if unit == "us" else f" {float(most) / 1.024:.0f} MiB "
        assert thousand == (cpu if unit == "us" else memory)


async def test_the_route_serves_sockets_and_streams_without_a_timeout(server: Running) -> None:
    resources = kustomize(DEPLOY / "overlays/production")
    lasting, others = one(resources, "HTTPRoute")["spec"]["rules"]
    async with server.client() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    streams = {"text/event-stream", "application/x-ndjson"}
    streaming = {
        path
        for path, item in paths.items()
        if streams & item.get("get", {"responses": {"200": {}}})["responses"]["200"].get("content", {}).keys()
    }
    assert {match["path"]["value"] for match in lasting["matches"]} == {"/web"} | streaming
    assert lasting["timeouts"] == {"request": "0s"}
    assert {"/api", "/docs", "/console", "/"} <= {match["path"]["value"] for match in others["matches"]}
    [port] = one(resources, "Service")["spec"]["ports"]
    assert all(backend["port"] == port["port"] for rule in (lasting, others) for backend in rule["backendRefs"])
    assert "/metrics" not in str((lasting, others))


@pytest.mark.parametrize(
    ("flags", "traefiks"), [((), {"TraefikDown", "CertificateExpires"}), (("--with-traefik",), set[str]())]
)
def test_rules_are_those_of_the_stack_without_what_kubernetes_lacks(flags: tuple[str, ...], traefiks: set[str]) -> None:
    left_out = {"BackupTooOld", "MonitoringDown", "ReplicaMissing"} | traefiks
    script = DEPLOY / "components/monitoring/prometheus-rules.sh"
    printed = subprocess.run([script, *flags], capture_output=True, text=True, check=True).stdout
    rules = {rule["metadata"]["name"]: rule["spec"] for rule in yaml.safe_load_all(printed)}
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (PROJECT / "docker/prometheus").glob("*.yml")}
    expected = {f"hw-server-{name}": content for name, content in files.items() if "groups" in content}
    groups = [group for content in expected.values() for group in content["groups"]]
    assert left_out <= {rule["alert"] for group in groups for rule in group["rules"]}
    for group in groups:
        group["rules"] = [rule for rule in group["rules"] if rule["alert"] not in left_out]
        assert group["rules"]
    assert rules == expected
    # A new alert on these is left out, or given another source there.
    lacking = ("backup_", "traefik") if traefiks else ("backup_",)
    assert not [rule["alert"] for group in groups for rule in group["rules"] if any(x in rule["expr"] for x in lacking)]
    for name in left_out:
        assert f"`{name}`" in DOCUMENT


def test_images_of_others_are_pinned_to_the_patch() -> None:
    folder = DEPLOY / "overlays/local"
    images = re.findall(r"image: (\S+)", "".join(path.read_text() for path in folder.glob("*.yaml")))
    theirs = [image for image in images if "nanoidp" not in image]
    assert len(theirs) == 2
    assert all(re.search(r"postgres:\d+\.\d+$|:\d+\.\d+\.\d+$", image) for image in theirs), theirs
    assert re.search(r"nanoidp==\d", (folder / "nanoidp/Dockerfile").read_text())


def test_dashboards_are_those_of_the_stack() -> None:
    dashboards = one(kustomize(DEPLOY / "overlays/production"), "ConfigMap", "hw-dashboards")
    folder = PROJECT / "docker/grafana/provisioning/dashboards"
    assert dashboards["data"] == {path.name: path.read_text() for path in folder.glob("*.json")}
    sources = set(re.findall(r'"datasource": \{[^}]*"uid": "(\w+)"', "".join(dashboards["data"].values())))
    assert sources == {"prometheus", "loki", "postgresql"}
    assert all(f"| `{uid}` |" in DOCUMENT for uid in sources)


def test_a_shared_spool_takes_the_place_of_the_empty_one(tmp_path: Path) -> None:
    deploy = os.path.relpath(DEPLOY, tmp_path)  # kustomize takes no absolute path
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{deploy}/overlays/production]\ncomponents: [{deploy}/components/shared-spool]\n"
    )
    resources = kustomize(tmp_path)
    volumes = one(resources, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "spool", "persistentVolumeClaim": {"claimName": "hw-spool"}} in volumes
    for version in VERSIONS:
        kubernetes_validate.validate(one(resources, "PersistentVolumeClaim", "hw-spool"), version, strict=True)


def test_the_document_shows_what_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.S)
    assert blocks
    for resource in (resource for block in blocks for resource in yaml.safe_load_all(block)):
        for version in VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)
