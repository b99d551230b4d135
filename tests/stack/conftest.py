"""The shipped Compose file, started for real with local images in place of the registry's."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import PROJECT

WORK = Path("/var/tmp/hw-stack")
COMPOSE = PROJECT / "docker" / "docker-compose.yml"
IMAGES = {
    "TRAEFIK_IMAGE": "traefik", "KEYCLOAK_IMAGE": "keycloak", "POSTGRES_IMAGE": "postgres", "REDIS_IMAGE": "redis",
    "PROMETHEUS_IMAGE": "prometheus", "GRAFANA_IMAGE": "absent", "LOKI_IMAGE": "absent", "ALLOY_IMAGE": "absent",
    "HW_SERVER_IMAGE": "hw-server", "HW_BACKUP_IMAGE": "hw-backup", "SOCKET_PROXY_IMAGE": "haproxy",
    "ALERTMANAGER_IMAGE": "alertmanager",
}  # fmt: skip
ENVIRONMENT = {**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}", "DOCKER_CONFIG": str(WORK / "docker-config")}
# A variable of docker/.env that is set here wins: who reaches a registry runs the stack on the shipped images.
ENVIRONMENT = {name: f"hw-test/{image}" for name, image in IMAGES.items()} | ENVIRONMENT
V1, V2 = "docker-compose", str(WORK / "compose-v2")


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600)
    assert not check or result.returncode == 0, f"{command}: {result.stdout}\n{result.stderr}"
    return result


def blocks(heading: str, document: str = "docs/deployment/operations.md") -> str:
    """The commands under a heading of a document."""
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", (PROJECT / document).read_text(), re.M | re.S)
    return "".join(re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S))


def operate(script: str, folder: Path, overlay: str = "", **variables: str) -> None:
    """Runs commands of the operator's page, from a folder that has the project's `docker`."""
    if not (folder / "docker").exists():
        (folder / "docker").symlink_to(PROJECT / "docker")
    compose = f"compose='docker compose -f docker/docker-compose.yml {overlay}'"
    result = subprocess.run(
        ["bash", "-euc", f"{compose}\n{script}"],
        cwd=folder, env={**ENVIRONMENT, "COMPOSE_PROJECT_NAME": "hwstack", **variables},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def compose(program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(program, "-p", "hwstack", "-f", str(COMPOSE), *arguments, check=check)


def inside(container: str, *command: str, check: bool = True) -> str:
    return run("docker", "exec", container, *command, check=check).stdout


def absent(variable: str) -> bool:
    """Whether a container that does nothing stands in for this image."""
    return ENVIRONMENT[variable] == "hw-test/absent"


NEEDS_LOKI = pytest.mark.skipif(
    absent("LOKI_IMAGE") or absent("ALLOY_IMAGE"), reason="Loki and Alloy come in no package: set their images"
)


def address(container: str, network: str = "hw-network") -> str:
    return str(containers()[container]["NetworkSettings"]["Networks"][network]["IPAddress"])


@dataclass
class Answers:
    """What `load` was answered: seconds since its begin and what the response was, or the name of an exception."""

    seen: list[tuple[float, str]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Seconds since the begin."""
        return time.monotonic() - self.begun

    def kinds(self) -> Counter[str]:
        return Counter(kind for _, kind in self.seen)

    def failed(self) -> list[float]:
        """When requests began that failed."""
        return [moment for moment, kind in self.seen if not kind.startswith("2")]

    def last_failure(self) -> float:
        return max(self.failed(), default=0.0)

    def failed_for(self) -> float:
        """Seconds from the first failure to the last."""
        failed = self.failed()
        return failed[-1] - failed[0] if failed else 0.0


def figure(capsys: pytest.CaptureFixture[str], what: str, answers: Answers) -> None:
    """Shown also where all is well."""
    with capsys.disabled():
        print(f"\n  {what}: failed for {answers.failed_for():.1f} s; {dict(answers.kinds())}")


@asynccontextmanager
async def load(client: httpx.AsyncClient, path: str, rate: int = 20) -> AsyncIterator[Answers]:
    """GETs `path`, `rate` times a second, for as long as the block runs; every one is waited for."""
    answers, over = Answers(), asyncio.Event()

    async def ask() -> None:
        moment = answers.now()
        try:
            answer = await client.get(path)
            kind = f"{answer.status_code} {answer.headers.get('content-type', '').partition(';')[0]}"
        except httpx.HTTPError as error:
            kind = type(error).__name__
        answers.seen.append((moment, kind))

    async def run() -> None:
        async with asyncio.TaskGroup() as asked:
            while not over.is_set():
                asked.create_task(ask())
                await asyncio.sleep(1 / rate)

    running = asyncio.create_task(run())
    try:
        yield answers
    finally:
        over.set()
        await running
        answers.seen.sort()


def containers() -> dict[str, dict[str, Any]]:
    names = run("docker", "ps", "-aq", "--filter", "label=com.docker.compose.project=hwstack").stdout.split()
    inspected = json.loads(run("docker", "inspect", *names).stdout) if names else []
    return {item["Name"].lstrip("/"): item for item in inspected}


def wait_until_checked(seconds: float = 120) -> None:
    """Until every container has had its first health check."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if "starting" not in (item["State"].get("Health", {}).get("Status") for item in containers().values()):
            return
        time.sleep(1)
    raise AssertionError("a container has had no health check")


def wait_until_routed(seconds: float = 240) -> None:
    """Until the application answers through Traefik."""
    deadline, report = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            with through_traefik("api.localhost") as client:
                report = client.get("/health").json()
            if report.get("status") == "ok":
                return
        except (httpx.HTTPError, ValueError):
            pass
        time.sleep(1)
    logs = compose(V1, "logs", "--tail", "20", check=False).stdout
    raise AssertionError(f"the stack did not become healthy: {report}\n{logs[-6000:]}")


def through_traefik(host: str, token: str | None = None) -> httpx.Client:
    """`*.localhost` need not resolve here: the name goes into the Host header."""
    headers = {"Host": host, **({"Authorization": f"Bearer {token}"} if token else {})}
    return httpx.Client(base_url="http://127.0.0.1", headers=headers, timeout=20)


def sign_in(user: str) -> dict[str, Any]:
    form = {"grant_type": "password", "client_id": "hw-web", "username": user, "password": user, "scope": "openid"}
    with through_traefik("keycloak.localhost") as client:
        answer: dict[str, Any] = (
            client.post("/realms/hw/protocol/openid-connect/token", data=form).raise_for_status().json()
        )
    return answer


def panels(kind: str) -> list[tuple[str, str]]:
    """Title and query of every panel of a data source."""
    queries = []
    for path in sorted((PROJECT / "docker/grafana/provisioning/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                if target["datasource"]["uid"] == kind:
                    queries.append((panel["title"], target.get("expr") or target["rawSql"]))
    return queries


def loki(expression: str, wait: float = 30, **arguments: Any) -> list[dict[str, Any]]:
    """The streams of the last ten minutes; asked until there are some, `wait` seconds at most."""
    url = f"http://{address('hw-loki')}:3100/loki/api/v1/query_range"
    deadline = time.monotonic() + wait
    while True:
        response = httpx.get(url, params={"query": expression, "since": "10m", **arguments})
        assert response.status_code == 200, (expression, response.text)
        streams: list[dict[str, Any]] = response.json()["data"]["result"]
        if streams or time.monotonic() > deadline:
            return streams
        time.sleep(1)


@pytest.fixture(scope="session")
def images() -> Iterator[None]:
    """A Docker engine and the local images; an engine that was started here is stopped again."""
    if os.geteuid() != 0 or shutil.which("mvn") is None:
        assert not os.environ.get("CI"), "the container stack needs root and mvn"
        pytest.skip("the container stack needs root (for a Docker engine) and mvn")
    prepared = subprocess.run([PROJECT / "tests/stack/prepare.sh", WORK], check=False)
    if prepared.returncode == 3 and not os.environ.get("CI"):
        pytest.skip("no Docker engine can run here")
    assert prepared.returncode == 0
    yield
    engine = WORK / "dockerd.pid"
    if engine.exists():
        os.kill(int(engine.read_text()), signal.SIGTERM)
        engine.unlink()


@pytest.fixture(scope="module")
def started(images: None) -> Iterator[None]:
    """The stack for one file of tests: the next may start another one in its place."""
    compose(V1, "down", "-v", "--remove-orphans", check=False)
    compose(V1, "up", "-d", "--no-build")
    wait_until_routed()
    yield
    compose(V2, "down", "-v", "--remove-orphans", "-t", "2", check=False)
