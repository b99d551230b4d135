"""The production overlay, as Compose 2 renders it: each hardening point."""

import json
import re
import subprocess
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.stack.conftest import ENVIRONMENT, V2

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("images")]
VARIABLES = {"DOMAIN": "example.org", "ACME_EMAIL": "ops@example.org", "SOCKET_PROXY_IMAGE": "proxy:1"}
UNLIMITED = {"SETUID", "SETGID", "CHOWN", "FOWNER", "DAC_READ_SEARCH", "NET_BIND_SERVICE"}


def render(**variables: str) -> subprocess.CompletedProcess[str]:
    docker = PROJECT / "docker"
    files = ("-f", str(docker / "docker-compose.yml"), "-f", str(docker / "docker-compose.production.yml"))
    return subprocess.run(
        [V2, *files, "--profile", "shell", "config", "--format", "json"],
        env={**ENVIRONMENT, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def services(images: None) -> dict[str, Any]:
    told = render(**VARIABLES)
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)["services"]
    return found


@pytest.mark.parametrize("missing", VARIABLES)
def test_refuses_to_start_without(missing: str) -> None:
    told = render(**{name: value for name, value in VARIABLES.items() if name != missing})
    assert told.returncode != 0
    assert missing in told.stderr


def test_publishes_the_proxys_two_ports_only(services: dict[str, Any]) -> None:
    published = {(name, port["published"]) for name, item in services.items() for port in item.get("ports", [])}
    assert published == {("traefik", "80"), ("traefik", "443")}


def test_holds_no_development_credential(services: dict[str, Any]) -> None:
    named = {name for item in services.values() for name in (item.get("environment") or {}) if "PASSWORD" in name}
    assert all(name.endswith("_FILE") or name == "GRAFANA_DB_PASSWORD" for name in named)
    assert "hw-dev" not in json.dumps(services)


def test_tls_is_forced(services: dict[str, Any]) -> None:
    command = services["traefik"]["command"]
    assert "--entrypoints.web.http.redirections.entrypoint.scheme=https" in command
    assert "--entrypoints.websecure.http.tls.certresolver=letsencrypt" in command
    assert "--providers.docker.exposedbydefault=false" in command
    routers = [value for item in services.values() for label, value in (item.get("labels") or {}).items()
               if re.fullmatch(r"traefik\.http\.routers\.\S+\.entrypoints", label)]  # fmt: skip
    assert set(routers) == {"websecure"}


def test_dashboards_ask_who_is_there(services: dict[str, Any]) -> None:
    assert services["traefik"]["labels"]["traefik.http.routers.dashboard.middlewares"] == "admin-auth"
    assert "--api.insecure=true" not in services["traefik"]["command"]
    assert "admin-auth" in services["prometheus"]["labels"]["traefik.http.routers.prometheus.middlewares"]
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_metrics_are_not_routed(services: dict[str, Any]) -> None:
    assert "!PathPrefix(`/metrics`)" in services["hw-server"]["labels"]["traefik.http.routers.fastapi.rule"]


def test_the_proxy_does_not_hold_the_docker_socket(services: dict[str, Any]) -> None:
    assert "docker.sock" not in json.dumps(services["traefik"]["volumes"])


def test_every_service_is_confined(services: dict[str, Any]) -> None:
    for name, item in services.items():
        assert item["cap_drop"] == ["ALL"], name
        assert set(item.get("cap_add") or []) <= UNLIMITED, name
        assert item["security_opt"] == ["no-new-privileges:true"], name
        assert item["mem_limit"], name


def test_the_server_and_the_stores_cannot_write_their_images(services: dict[str, Any]) -> None:
    for name in ("traefik", "hw-server", "hw-db", "hw-redis", "prometheus", "loki"):
        assert services[name]["read_only"] is True, name


def test_only_the_needed_users_read_a_secret(services: dict[str, Any]) -> None:
    holders = {name: sorted(secret["source"] for secret in item.get("secrets", [])) for name, item in services.items()}
    assert holders["hw-server"] == ["hw_db_password", "redis_password"]
    assert not [name for name in ("prometheus", "loki", "alloy") if holders[name]]


def test_the_documented_secrets_are_all() -> None:
    overlay = (PROJECT / "docker/docker-compose.production.yml").read_text()
    text = (PROJECT / "docs/deployment/production.md").read_text()
    assert not [name for name in re.findall(r"file: \./secrets/(\w+)", overlay) if name not in text]
