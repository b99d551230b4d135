"""The shipped files, without an engine: names, ports, and what the production overlay promises."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from hw_server.embedded import keycloak
from hw_server.settings import load
from tests.conftest import PROJECT

DOCKER = PROJECT / "docker"
SERVICES_DOCUMENT = (PROJECT / "docs/architecture/docker-services.md").read_text()
COMPOSE = (DOCKER / "docker-compose.yml").read_text()
BOARDS = sorted((DOCKER / "grafana/provisioning/dashboards").glob("*.json"))
PINS = dict(re.findall(r"^(\w+)=(.+)$", (DOCKER / ".env").read_text(), re.M))


def environment_file(name: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / name).read_text(), re.M))


def test_the_servers_environment_is_valid() -> None:
    settings = load(environment_file(".srv_env"))
    assert settings.oidc.issuer == "http://keycloak.localhost/realms/hw"
    assert settings.oidc.internal_url == "http://hw-keycloak:8080/realms/hw"


def test_every_image_is_pinned() -> None:
    theirs = [image for name, image in PINS.items() if name not in ("HW_SERVER_IMAGE", "HW_BACKUP_IMAGE")]
    # To the patch, which is PostgreSQL's second number.
    whole = r"postgres:\d+\.\d+|\S+:v?\d+\.\d+\.\d+(-\w+)?"
    assert [image for image in theirs if not re.fullmatch(whole, image)] == []
    used = re.findall(r"image: \$\{(\w+)\}", COMPOSE + (DOCKER / "docker-compose.production.yml").read_text())
    assert {*used, "PYTHON_IMAGE"} == set(PINS)
    for name, image in PINS.items():
        if name not in ("PYTHON_IMAGE", "HW_SERVER_IMAGE", "HW_BACKUP_IMAGE"):
            assert f"`{image}`" in SERVICES_DOCUMENT


def test_the_document_names_every_container_and_port() -> None:
    for name in re.findall(r"container_name: (\S+)", COMPOSE):
        assert f"| {name} |" in SERVICES_DOCUMENT
    for address, port in re.findall(r'- "(127\.0\.0\.1:)?(\d+):\d+"', COMPOSE):
        assert f"{address}{port}" in SERVICES_DOCUMENT


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    board: dict[str, Any] = json.loads(path.read_text())
    sources = set(re.findall(r"uid: (\w+)", (DOCKER / "grafana/provisioning/datasources/datasources.yml").read_text()))
    assert (board["uid"], bool(board["title"])) == (path.stem, True)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    shown = [panel for panel in board["panels"] if panel["type"] not in ("row", "text")]
    assert {target["datasource"]["uid"] for panel in shown for target in panel["targets"]} <= sources
    for panel in shown:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_holds_to_grafanas_schema(path: Path) -> None:
    """Read and written again by Grafana's own models, which drop what they do not know."""
    board = json.loads(path.read_text())
    assert lost(board, json.loads(JSONEncoder().encode(Dashboard.from_json(board)))) == []


def test_there_is_a_row_for_each_layer_and_a_way_to_the_logs() -> None:
    boards = {path.stem: json.loads(path.read_text()) for path in BOARDS}
    rows = [panel["title"] for panel in boards["fastapi-metrics"]["panels"] if panel["type"] == "row"]
    assert [row.partition(":")[0] for row in rows][1:] == ["Saturation", "Traefik", "Real time"]
    leading = {
        stem
        for stem, board in boards.items()
        if "/d/application-logs" in [link["url"] for link in board.get("links", ())]
    }
    assert leading == {"fastapi-metrics", "keycloak-metrics", "audit-logs"}


def test_prometheus_keeps_what_fits() -> None:
    assert "--storage.tsdb.retention.time=15d" in COMPOSE
    assert "--storage.tsdb.retention.size=4GB" in COMPOSE


def lost(there: Any, here: Any, path: str = "") -> list[str]:
    """Places in `there` that `here` lacks or holds other values in."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [place for key in there for place in lost(there[key], here.get(key), f"{path}/{key}")]
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return [place for index, item in enumerate(there) for place in lost(item, here[index], f"{path}/{index}")]
    return [] if there == here else [path]


def test_the_realm_is_the_native_stacks() -> None:
    assert keycloak.REALM == DOCKER / "keycloak" / "hw-realm.json"
    assert "./keycloak/hw-realm.json:/opt/keycloak/data/import/hw-realm.json:ro" in COMPOSE


@pytest.mark.parametrize("query", ["?code=secret&state=x", '?a="b&code=secret', "?a=\\\\&code=secret", '?"', "?", ""])
def test_alloy_cuts_queries_from_the_access_log(query: str) -> None:
    expression = re.search(r'expression = "(.+RequestPath.+)"', (DOCKER / "alloy/config.alloy").read_text())
    assert expression is not None
    pattern = json.loads(f'"{expression.group(1)}"')  # River writes strings as JSON does
    line = json.dumps({"RequestPath": f"/realms/hw{query}", "Status": 200}, separators=(",", ":"))
    found = re.search(pattern, line)
    cut = line[: found.start(1)] + line[found.end(1) :] if found else line
    assert json.loads(cut) == {"RequestPath": "/realms/hw", "Status": 200}


@pytest.mark.parametrize(
    ("container", "service", "label"),
    [
        ("/hwstack-hw-server-2", "hw-server", "hw-server"), ("/hw-server", "hw-server", "hw-server"),
        ("/hw-db", "hw-db", "hw-db"), ("/traefik", "traefik", "traefik"), ("/other-web-1", "web", None),
    ],
)  # fmt: skip
def test_alloy_takes_replicas_by_their_service(container: str, service: str, label: str | None) -> None:
    text = (DOCKER / "alloy/config.alloy").read_text()
    keep, name, by_service = re.findall(r'regex +\= "(.+)"', text)[:3]
    assert bool(re.fullmatch(keep, f"{container};{service}")) == (label is not None)
    if label is not None:
        named = re.fullmatch(by_service, service) or re.fullmatch(name, container)
        assert named is not None
        assert named.group(1) == label


def test_a_drain_outlasts_the_proxy_s_interval() -> None:
    replicas = (DOCKER / "docker-compose.replicas.yml").read_text()
    [delay] = re.findall(r'HW_HTTP__DRAIN_DELAY: "(\d+)"', replicas)
    [interval, timeout] = re.findall(r'healthcheck\.(?:interval|timeout): "(\d+)s"', replicas)
    assert int(delay) > int(interval) + int(timeout)


def test_production_names_every_place_to_return_to() -> None:
    """What a wildcard lets in, a page of somebody else's below the same name takes the code from."""
    realm = json.loads((DOCKER / "keycloak/hw-realm.production.json").read_text())
    for client in realm["clients"]:
        places = [*client["redirectUris"], *client["webOrigins"], client["attributes"]["post.logout.redirect.uris"]]
        assert not [place for place in places if "*" in place]
        assert client["redirectUris"] == [f"${{HW_PUBLIC_URL}}{path}" for path in ("/docs/oauth2-redirect", "/")]


def test_only_the_migrations_hold_the_owner_s_secret() -> None:
    services = dict(re.findall(r"^  ([a-z-]+):\n((?:(?:    .*|\s*#.*)?\n)+)", COMPOSE, re.M))
    assert [name for name, text in services.items() if "OWNER" in text] == ["hw-migrate"]
    assert "hw-migrate: { condition: service_completed_successfully }" in services["hw-server"]
    pg, srv = environment_file(".pg_env"), environment_file(".srv_env")
    assert f"hw_owner:{pg['HW_DB_OWNER_PASSWORD']}@" in services["hw-migrate"]
    assert not [name for name in srv if "OWNER" in name]
