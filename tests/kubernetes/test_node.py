"""docs/deployment/kubernetes.md on a real node. Order matters to time alone: each test sets the scale that it needs."""

import json
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.kubernetes.conftest import Caller, follow, get, kubectl, ready_pods, run, scale_between, until, variant

pytestmark = [pytest.mark.kubernetes, pytest.mark.usefixtures("installed")]
NOT_THE_JOB = "app.kubernetes.io/component!=migrate"  # a Job cannot be changed
WHOLE = {"failures": [], "lost": {"socket": 0, "stream": 0}, "doubled": {"socket": 0, "stream": 0}}


def images() -> set[str]:
    pods = get("pods", "-n", "hw", "-l", "app.kubernetes.io/component=server")["items"]
    return {pod["spec"]["containers"][0]["image"].rpartition(":")[2] for pod in pods}


def test_it_installs_under_pod_security_restricted(installed: str) -> None:
    assert "would violate" not in installed
    assert get("job", "hw-migrate", "-n", "hw")["status"]["succeeded"] == 1
    assert ready_pods()
    restarts = [
        status["restartCount"]
        for pod in get("pods", "-n", "hw")["items"]
        for status in pod["status"]["containerStatuses"]
        if status["name"] == "hw-server"
    ]
    assert set(restarts) == {0}


def test_only_the_job_can_read_the_owners_password() -> None:
    pod = ready_pods()[0]
    found = kubectl("exec", "-n", "hw", pod, "--", "sh", "-c", "ls /run/secrets/hw-server; env; ls /run/secrets")
    assert "database-password" in found
    assert "owner" not in found.lower()
    refused = run("kubectl", "exec", "-n", "hw", pod, "--", "touch", "/app/x", check=False)
    assert "Read-only file system" in refused.stderr


def test_a_pod_that_is_not_restricted_is_refused() -> None:
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad", "namespace": "hw"},
        "spec": {"containers": [{"name": "bad", "image": "x"}]},
    }  # fmt: skip
    refused = run("kubectl", "apply", "-f", "-", input=json.dumps(pod), check=False)
    assert (refused.returncode, 'violates PodSecurity "restricted' in refused.stderr) == (1, True)


def test_the_production_overlay_is_accepted_by_every_schema() -> None:
    overlay = str(PROJECT / "deploy/kubernetes/overlays/production")
    dry = ("--server-side", "--dry-run=server", "--force-conflicts")
    result = run("kubectl", "apply", *dry, "-k", overlay, "-l", NOT_THE_JOB)
    assert "would violate" not in result.stderr  # Pod Security
    assert {"httproute.gateway", "servicemonitor.monitoring", "networkpolicy.networking"} <= {
        ".".join(line.split("/")[0].split(".")[:2]) for line in result.stdout.splitlines()
    }
    script = PROJECT / "deploy/kubernetes/components/monitoring/prometheus-rules.sh"
    rules = run(str(script)).stdout
    assert "prometheusrule" in kubectl("apply", "--dry-run=server", "-n", "hw", "-f", "-", input=rules)


def test_a_token_of_the_provider_signs_in() -> None:
    report = Caller("sign-in", "3").result()
    assert report["answers"]["GET 200"]
    assert report["written"]
    assert {name: report[name] for name in WHOLE} == WHOLE


def test_a_rollout_and_a_roll_back_under_load_lose_nothing(tmp_path: Path) -> None:
    scale_between(3, 4, tmp_path)
    caller = Caller("rollout", "400")
    until(lambda: caller.phase == "Running")
    follow("Install", variant(tmp_path, 2, 3, 4))
    until(lambda: images() == {"2"})
    follow("Roll back", tmp_path)
    until(lambda: images() == {"1"})
    ahead = run("kubectl", "exec", "-n", "hw", ready_pods()[0], "--", "hw", "migrate", "status", check=False)
    assert "the database is at revision 299912310000, which no file" in ahead.stderr  # the second image had one more
    caller.end()
    report = caller.result()
    assert {name: report[name] for name in WHOLE} == WHOLE


def test_an_eviction_waits_for_the_budget(tmp_path: Path) -> None:
    scale_between(3, 3, tmp_path)
    until(lambda: get("pdb", "hw-server", "-n", "hw")["status"].get("disruptionsAllowed") == 1)
    first, second, _ = ready_pods()

    def evict(pod: str) -> bool:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "hw"}}
        path = f"/api/v1/namespaces/hw/pods/{pod}/eviction"
        result = run("kubectl", "create", "--raw", path, "-f", "-", input=json.dumps(eviction), check=False)
        assert result.returncode == 0 or "disruption budget" in result.stderr
        return result.returncode == 0

    assert (evict(first), evict(second)) == (True, False)
    until(lambda: evict(second))
    assert first not in ready_pods()


def test_the_autoscaler_follows_the_load(tmp_path: Path) -> None:
    scale_between(1, 3, tmp_path)
    until(lambda: len(ready_pods()) == 1)
    caller = Caller("hard", "200", "hard")
    until(lambda: len(ready_pods()) == 3)
    caller.end()
    report = caller.result()
    assert report["failures"] == []
    until(lambda: len(ready_pods()) == 1, 180)
