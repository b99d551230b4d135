"""A real node of Kubernetes with the local overlay on it, installed as docs/deployment/kubernetes.md says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT

HERE = Path(__file__).parent
WORK = Path(os.environ.get("KUBERNETES_WORK", "/var/tmp/hw-kubernetes"))
DOCUMENT = (PROJECT / "docs/deployment/kubernetes.md").read_text()
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "KUBECONFIG": str(WORK / "pki/admin.kubeconfig"),
}
CLIENT = "hw-client"  # the namespace of those who call the server


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        command, env=ENVIRONMENT, cwd=PROJECT, capture_output=True, text=True, check=False, **options
    )
    assert not check or result.returncode == 0, f"{command}: {result.stdout}\n{result.stderr}"
    return result


def kubectl(*arguments: str, check: bool = True, **options: Any) -> str:
    return run("kubectl", *arguments, check=check, **options).stdout


def get(*arguments: str) -> Any:
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def until(holds: Callable[[], object], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"not so within {seconds:g} s"
        time.sleep(0.5)


def commands(heading: str, overlay: Path) -> str:
    """The commands under a heading of the document, for another overlay; those that make Secrets are left to it."""
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S)
    blocks = [block for block in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S) if "-n hw" in block]
    script = "".join(block for block in blocks if "secret" not in block and "prometheus-rules" not in block)
    assert script
    return script.replace("deploy/kubernetes/overlays/production", str(overlay))


def follow(heading: str, overlay: Path) -> str:
    """Runs them; what they print."""
    result = run("bash", "-euxc", commands(heading, overlay), timeout=600)
    return result.stdout + result.stderr


def ready_pods() -> list[str]:
    return [
        pod["metadata"]["name"]
        for pod in get("pods", "-n", "hw", "-l", "app.kubernetes.io/component=server")["items"]
        if "deletionTimestamp" not in pod["metadata"]
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
    ]


def variant(folder: Path, image: int = 1, fewest: int = 1, most: int = 3) -> Path:
    """The overlay with another version of the server, and other bounds of its autoscaler."""
    overlay = os.path.relpath(HERE / "overlay", folder.resolve())  # kustomize takes no absolute path
    bounds = [
        {"op": "replace", "path": f"/spec/{name}Replicas", "value": n} for name, n in (("min", fewest), ("max", most))
    ]
    kustomization = {
        "resources": [overlay],
        "images": [{"name": "docker.io/hw-kubernetes/hw-server", "newTag": str(image)}],
        "patches": [{"target": {"kind": "HorizontalPodAutoscaler"}, "patch": json.dumps(bounds)}],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return folder


def scale_between(fewest: int, most: int, folder: Path) -> None:
    """Sets the bounds of the autoscaler and waits until as many pods are there."""
    kubectl("apply", "-k", str(variant(folder, 1, fewest, most)), "-l", "app.kubernetes.io/component=server")
    until(lambda: fewest <= len(ready_pods()) <= most)


class Caller:
    """A pod outside the server's namespace that runs `load.py`."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        container = {
            "name": "load", "image": "docker.io/hw-kubernetes/hw-server:1", "workingDir": "/tmp",
            "command": ["python3", "/load/load.py", *arguments], "env": [{"name": "PYTHONPATH", "value": "/modules"}],
            "securityContext": {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "load", "mountPath": "/load"}, {"name": "client", "mountPath": "/modules/hw_client"}],
        }  # fmt: skip
        spec = {
            "restartPolicy": "Never", "enableServiceLinks": False, "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [
                {"name": "load", "configMap": {"name": "load"}}, {"name": "client", "configMap": {"name": "client"}},
            ],
        }  # fmt: skip
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": CLIENT}, "spec": spec}
        kubectl("apply", "-f", "-", input=json.dumps(pod))

    @property
    def phase(self) -> str:
        return str(get("pod", self.name, "-n", CLIENT)["status"]["phase"])

    def end(self) -> None:
        assert self.phase == "Running"
        kubectl("exec", self.name, "-n", CLIENT, "--", "sh", "-c", "kill -TERM 1")

    def result(self) -> dict[str, Any]:
        until(lambda: self.phase in ("Succeeded", "Failed"), 240)
        output = kubectl("logs", self.name, "-n", CLIENT)
        assert self.phase == "Succeeded", output
        return dict(json.loads(output.splitlines()[-1]))


@pytest.fixture(scope="session")
def node() -> Iterator[None]:
    """A node that is ready, with its definitions of resources that others bring."""
    for script, log in (("node/build.sh", "build.log"), ("images/build.sh", "images.log")):
        WORK.mkdir(parents=True, exist_ok=True)
        with (WORK / log).open("w") as output:
            built = subprocess.run([HERE / script, WORK], env=ENVIRONMENT, stdout=output, stderr=output, check=False)
        assert built.returncode == 0, (WORK / log).read_text()[-2000:]
    connected = WORK / "state/connected"  # before, the node's address is nobody's, or somebody else's
    connected.unlink(missing_ok=True)
    with subprocess.Popen([HERE / "node/start.sh", WORK], env=ENVIRONMENT, start_new_session=True) as process:

        def serves() -> bool:
            assert process.poll() is None, (WORK / "log/node.log").read_text()[-2000:]
            return connected.exists() and run("kubectl", "get", "node", "node", check=False).returncode == 0

        try:
            until(serves, 300)
            kubectl("wait", "--for=condition=Ready", "node/node", "--timeout=60s")
            kubectl("apply", "-f", str(WORK / "definitions"), "--server-side")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="session")
def installed(node: None) -> str:
    """What the commands of the section "Install" printed."""
    output = follow("Install", HERE / "overlay")
    kubectl("create", "namespace", CLIENT)
    kubectl("label", "namespace", CLIENT, "hw-server/client=true", "pod-security.kubernetes.io/enforce=restricted")
    kubectl("create", "configmap", "load", "-n", CLIENT, "--from-file", str(HERE / "load.py"))
    kubectl("create", "configmap", "client", "-n", CLIENT, "--from-file", str(PROJECT / "clients/python/src/hw_client"))
    until(lambda: run("kubectl", "top", "pods", "-n", "hw", check=False).returncode == 0)
    return output
