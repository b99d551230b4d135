"""Alloy and Loki: from a container's log to a query. They come in no package: skipped where nothing but stand-ins run."""

import re

import httpx
import pytest

from tests.stack.conftest import NEEDS_LOKI, address, loki, panels, sign_in, through_traefik

pytestmark = [pytest.mark.stack, NEEDS_LOKI, pytest.mark.usefixtures("started")]


def request_id() -> str:
    with through_traefik("api.localhost", sign_in("alice")["access_token"]) as alice:
        return str(alice.get("/api/authors").headers["x-request-id"])


def test_a_line_is_found_by_its_request_id() -> None:
    wanted = request_id()
    [stream] = loki(f'{{service="hw-server"}} | request_id = `{wanted}`')
    assert stream["stream"]["level"] == "info"
    assert stream["stream"]["user_id"]
    assert wanted in stream["values"][0][1]


def test_labels_are_few_and_bounded() -> None:
    assert loki('{service="hw-server"}')
    url = f"http://{address('hw-loki')}:3100/loki/api/v1"
    assert set(httpx.get(f"{url}/labels").json()["data"]) <= {"service", "level", "service_name"}
    levels = httpx.get(f"{url}/label/level/values").json()["data"]
    assert set(levels) <= {"debug", "info", "warn", "warning", "error", "critical", "log", "fatal", "panic", "unknown"}


@pytest.mark.parametrize("service", ["traefik", "hw-server", "hw-keycloak", "hw-db", "hw-redis", "hw-prometheus"])
def test_the_log_of_every_service_arrives(service: str) -> None:
    assert loki(f'{{service="{service}"}}')


def test_no_sign_in_code_is_stored() -> None:
    with through_traefik("keycloak.localhost") as client:
        client.get("/realms/hw/protocol/openid-connect/auth?code=secret-code")
    lines = [line for stream in loki('{service="traefik"} |= `openid-connect/auth`') for _, line in stream["values"]]
    assert lines
    assert not [line for line in lines if "secret-code" in line]


def test_every_log_panel_returns_lines() -> None:
    values = {"$__auto": "5m", "$service": ".+", "$search": "", "$request_id": request_id()}
    for title, expression in panels("loki"):
        filled = re.sub("|".join(map(re.escape, values)), lambda found: values[found.group()], expression)
        # Nothing failed here.
        assert title == "Errors" or loki(filled, step="60s"), title
        loki(filled, wait=0)
