"""The real Traefik in front of a server."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Running, free_port


@contextmanager
def run_traefik(folder: Path, dynamic: dict[str, Any], ready: str = "/ping") -> Iterator[str]:
    """The address of a Traefik with this dynamic configuration, `/ping` and `/metrics`, once `ready` answers."""
    port = free_port()
    (folder / "dynamic.yml").write_text(json.dumps(dynamic))  # JSON is YAML
    command = [
        str(Path(sys.executable).parent / "traefik"), f"--entryPoints.web.address=127.0.0.1:{port}",
        f"--providers.file.filename={folder}/dynamic.yml", "--providers.file.watch=false", "--log.level=ERROR",
        "--ping.entryPoint=web", "--metrics.prometheus.entryPoint=web",
        "--global.checkNewVersion=false", "--global.sendAnonymousUsage=false",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}{ready}").status_code == 200:
                    break
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def traefik(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the real Traefik in front of the server."""
    routes = {
        "http": {
            "routers": {"web": {"rule": "PathPrefix(`/`)", "service": "web", "entryPoints": ["web"]}},
            "services": {"web": {"loadBalancer": {"servers": [{"url": server.url}]}}},
        }
    }
    with run_traefik(tmp_path_factory.mktemp("traefik"), routes, "/health/live") as url:
        yield url
