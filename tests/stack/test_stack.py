"""The container stack through its front door, Traefik on port 80."""

import asyncio
import contextlib
import json
import re
import time
import uuid
from threading import Thread
from typing import Any

import httpx
import pytest
import websockets
from playwright.sync_api import Browser, expect

from tests.browser import ask, open_console, sign_in_and_ask
from tests.conftest import until
from tests.stack.conftest import (
    V1,
    V2,
    compose,
    containers,
    figure,
    inside,
    load,
    panels,
    run,
    sign_in,
    through_traefik,
    wait_until_checked,
    wait_until_routed,
)

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("started")]

NAMES = {
    "traefik", "hw-server", "hw-server-shell", "hw-keycloak", "hw-db", "hw-redis", "hw-prometheus", "hw-grafana",
    "hw-loki", "hw-alloy",
}  # fmt: skip


class Listener(Thread):
    """An event stream through Traefik, from the start of the stack on, as the other tests take their time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        # Before the other tests: Keycloak takes two sign-ins of a user at the same moment for an attack.
        self.token = sign_in("alice")["access_token"]
        self.opened = time.monotonic()
        self.lines: list[str] = []
        self.head: tuple[int, str | None] | None = None

    def run(self) -> None:
        headers = {"Accept-Encoding": "gzip", "Authorization": f"Bearer {self.token}"}
        with (
            through_traefik("api.localhost") as client,
            # The stack ends before it, in the last test.
            contextlib.suppress(httpx.HTTPError),
            client.stream("GET", "/api/topics/events?topic=authors", headers=headers, timeout=60) as stream,
        ):
            self.head = (stream.status_code, stream.headers.get("content-encoding"))
            for line in stream.iter_lines():
                self.lines.append(line)


@pytest.fixture(scope="module", autouse=True)
def listener(started: None) -> Listener:
    listener = Listener()
    listener.start()
    return listener


def test_only_the_proxy_faces_the_network() -> None:
    for name, item in containers().items():
        for port, bindings in (item["HostConfig"]["PortBindings"] or {}).items():
            open_to_all = {binding["HostIp"] for binding in bindings} != {"127.0.0.1"}
            assert open_to_all == (name == "traefik" and port in ("80/tcp", "443/tcp")), (name, port)


def test_a_token_of_keycloak_opens_the_api() -> None:
    with through_traefik("api.localhost", sign_in("alice")["access_token"]) as alice:
        made = alice.post("/api/authors", json={"name": str(uuid.uuid4())})
        assert made.status_code == 201
        assert alice.get(f"/api/authors/{made.json()['id']}").json() == made.json()
    with through_traefik("api.localhost") as stranger:
        assert stranger.get("/api/authors").status_code == 401


async def test_the_socket_opens_through_traefik() -> None:
    headers = {"Authorization": f"Bearer {sign_in('bob')['access_token']}"}
    connecting = websockets.connect(
        "ws://api.localhost/web", host="127.0.0.1", port=80, additional_headers=headers, proxy=None
    )
    async with connecting as socket:
        await socket.send('{"jsonrpc":"2.0","id":1,"method":"me.get"}')
        assert json.loads(await socket.recv())["result"]["username"] == "bob"


def test_a_browser_signs_in_on_the_api_page(browser: Browser) -> None:
    """Browsers resolve `*.localhost` by themselves."""
    assert '"username": "alice"' in sign_in_and_ask(browser, "http://api.localhost", "alice")


def test_a_browser_signs_in_on_the_console(browser: Browser) -> None:
    page = open_console(browser, "http://api.localhost", "bob")
    assert '"username": "bob"' in ask(page, "me.get")
    page.click("#sign-out")
    expect(page.locator("#sign-in")).to_be_visible()


async def test_a_sign_out_at_keycloak_ends_the_session() -> None:
    signed_in = sign_in("dave")
    with through_traefik("api.localhost", signed_in["access_token"]) as dave:
        assert dave.get("/api/me").status_code == 200
        form = {"client_id": "hw-web", "refresh_token": signed_in["refresh_token"]}
        with through_traefik("keycloak.localhost") as keycloak:
            keycloak.post("/realms/hw/protocol/openid-connect/logout", data=form).raise_for_status()
        await asyncio.sleep(1)
        assert dave.get("/api/me").status_code == 401


def test_headers_and_compression() -> None:
    with through_traefik("api.localhost") as client:
        answer = client.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert (answer.headers["x-frame-options"], answer.headers["x-content-type-options"]) == ("DENY", "nosniff")
    assert answer.headers["referrer-policy"]


def test_a_forged_address_is_not_believed() -> None:
    with through_traefik("api.localhost") as client:
        request = client.get("/api/me", headers={"X-Forwarded-For": "203.0.113.9"}).headers["x-request-id"]
    time.sleep(0.5)
    [line] = [line for line in run("docker", "logs", "hw-server").stdout.splitlines() if request in line]
    assert json.loads(line)["client_ip"] != "203.0.113.9"


def test_the_access_log_holds_no_token() -> None:
    token = sign_in("alice")["access_token"]
    with through_traefik("api.localhost", token) as client:
        client.get("/api/me")
    lines = run("docker", "logs", "traefik").stdout.splitlines()
    entries = [json.loads(line) for line in lines if "RequestPath" in line]
    assert "/api/me" in {entry["RequestPath"] for entry in entries}
    assert token not in "\n".join(lines)


def test_prometheus_scrapes_and_has_the_alerts() -> None:
    prometheus = httpx.Client(base_url="http://127.0.0.1:9090/api/v1")
    expected = dict.fromkeys(("fastapi", "keycloak", "traefik", "prometheus", "loki", "alloy", "grafana"), "up")
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        targets = prometheus.get("/targets").json()["data"]["activeTargets"]
        health = {target["labels"]["job"]: target["health"] for target in targets}
        if health == expected:
            break
        time.sleep(2)
    assert health == expected
    groups = prometheus.get("/rules").json()["data"]["groups"]
    assert (len(groups), sum(len(group["rules"]) for group in groups)) == (8, 16)
    prometheus.close()


def test_every_prometheus_panel_returns_data() -> None:
    """A rate needs two scrapes of a series, a minute apart."""
    left, deadline = panels("prometheus"), time.monotonic() + 240
    while left and time.monotonic() < deadline:
        with through_traefik("api.localhost", sign_in("bob")["access_token"]) as bob:
            bob.get("/api/authors")
            bob.post("/api/authors", json={"name": "no right to"})
        left = [panel for panel in left if not prometheus_result(panel[1])]
        time.sleep(2)
    # Nothing here is over a limit.
    assert {title for title, _ in left} <= {"Rate limit hits"}


def test_every_metric_of_alerts_and_panels_is_scraped() -> None:
    """The metadata names a counter with labels also before it first counts."""
    api = "http://127.0.0.1:9090/api/v1"
    groups = httpx.get(f"{api}/rules").json()["data"]["groups"]
    expressions = [rule["query"] for group in groups for rule in group["rules"]]
    expressions += [expression for _, expression in panels("prometheus")]
    used = {name for line in expressions for name in re.findall(r"\b([a-z]\w*_\w+)\b(?=[\[{) ]|$)", line)}
    scraped = httpx.get(f"{api}/metadata").json()["data"]
    parts = {f"{name}_{part}" for name in scraped for part in ("bucket", "count", "sum")}
    assert len(used) > 15
    assert used - {"histogram_quantile"} <= set(scraped) | parts


def prometheus_result(expression: str) -> list[Any]:
    url = "http://127.0.0.1:9090/api/v1/query"
    response = httpx.get(url, params={"query": expression.replace("$__rate_interval", "4m")}).json()
    assert response["status"] == "success", (expression, response)
    samples: list[Any] = response["data"]["result"]
    return samples


def test_every_audit_panel_runs_as_the_read_only_role() -> None:
    for title, sql in panels("postgresql"):
        query = sql.replace("$__timeFilter(occurred_at)", "occurred_at > now() - interval '1 hour'")
        query = query.replace(
            "$__timeGroupAlias(occurred_at, $__interval)", "date_trunc('minute', occurred_at) AS time"
        )
        output = inside("hw-server-shell", "psql", "postgresql://grafana:grafana@hw-db/hw_db", "-tAc", query)
        assert output.strip() or title == "Denied", title


COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_name"


def test_grafana_reads_what_its_panels_show_and_nothing_else() -> None:
    url, owner = "postgresql://grafana:grafana@hw-db/hw_db", "postgresql://postgres:postgres@hw-db/hw_db"
    refused = (
        "SELECT * FROM authors",
        "SELECT user_id FROM user_actions",
        "SELECT * FROM topic_outbox",
        "SET transaction_read_only = off; DELETE FROM user_actions",
    )
    for query in (*refused, "SELECT count(*) FROM user_actions"):
        result = run("docker", "exec", "hw-server-shell", "psql", url, "-c", query, check=False)
        assert (result.returncode == 0) == (query not in refused), query
    own = "SELECT table_name, column_name FROM information_schema.column_privileges WHERE grantee = 'grafana'"
    granted = inside("hw-server-shell", "psql", url, "-tAc", own).split()
    columns = inside("hw-server-shell", "psql", owner, "-tAc", f"{COLUMNS} = 'user_actions'").split()
    shown = " ".join(sql for _, sql in panels("postgresql"))
    assert set(granted) == {f"user_actions|{name}" for name in columns if re.search(rf"\b{name}\b", shown)}
    assert inside("hw-server-shell", "psql", url, "-tAc", "SHOW statement_timeout").strip() == "15s"
    limit = "SELECT rolconnlimit FROM pg_roles WHERE rolname = 'grafana'"
    assert inside("hw-server-shell", "psql", url, "-tAc", limit).strip() == "10"
    keycloak = "postgresql://grafana:grafana@hw-db/keycloak"
    assert run("docker", "exec", "hw-server-shell", "psql", keycloak, "-c", "SELECT 1", check=False).returncode != 0


def test_the_shell_has_its_tools() -> None:
    assert "pending" not in inside("hw-server-shell", "hw", "migrate", "status")
    assert inside("hw-server-shell", "redis-cli", "-h", "hw-redis", "ping").strip() == "PONG"
    assert inside("hw-server-shell", "psql", "postgresql://hw:hw-dev@hw-db/hw_db", "-tAc", "SELECT 1").strip() == "1"
    assert inside("hw-server-shell", "bash", "-c", "id -un").strip() == "hw"


def test_the_image_refuses_development_secrets_in_production() -> None:
    result = run("docker", "run", "--rm", "-e", "HW_ENVIRONMENT=production", "hw-test/hw-server", check=False)
    assert result.returncode == 2
    assert "database.password" in result.stderr


def test_ten_containers_run_on_one_network() -> None:
    wait_until_checked()
    inspected = containers()
    migrated = inspected.pop("hw-migrate")["State"]
    assert (migrated["Status"], migrated["ExitCode"]) == ("exited", 0)
    assert set(inspected) == NAMES
    for item in inspected.values():
        assert item["State"]["Status"] == "running"
        assert item["State"]["Health"]["Status"] == "healthy"
        assert list(item["NetworkSettings"]["Networks"]) == ["hw-network"]


async def test_an_event_stream_stays_open_and_uncompressed(listener: Listener) -> None:
    """For 90 seconds."""
    await asyncio.sleep(listener.opened + 90 - time.monotonic())
    name = str(uuid.uuid4())
    with through_traefik("api.localhost", sign_in("alice")["access_token"]) as alice:
        assert alice.post("/api/authors", json={"name": name}).status_code == 201
    await until(lambda: any(name in line for line in listener.lines))
    assert listener.head == (200, None)
    assert sum(line.startswith(":") for line in listener.lines) >= 3


async def test_a_restart_of_the_server_is_never_an_unknown_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Traefik knows no container that is not healthy yet: a route of last resort answers meanwhile."""
    headers = {"Host": "api.localhost", "Authorization": f"Bearer {sign_in('alice')['access_token']}"}
    async with (
        httpx.AsyncClient(base_url="http://127.0.0.1", headers=headers, timeout=20) as client,
        load(client, "/api/authors", rate=40) as answers,
    ):
        await asyncio.sleep(1)
        await asyncio.to_thread(run, "docker", "restart", "-t", "30", "hw-server")
        await asyncio.sleep(12)
    figure(capsys, "the server restarted in development", answers)
    assert answers.failed_for() <= 5, answers.kinds()
    assert {kind.partition(" ")[0] for kind in answers.kinds()} <= {"200", "502", "503"}, answers.kinds()


def test_zz_down_and_up_keep_the_data_and_v_removes_it() -> None:
    """Last, because it restarts the stack: started by Compose v1, stopped and started again by v2."""
    with through_traefik("api.localhost", sign_in("alice")["access_token"]) as alice:
        made = alice.post("/api/authors", json={"name": str(uuid.uuid4())}).json()
    compose(V1, "down")
    compose(V2, "up", "-d", "--no-build")
    wait_until_routed()
    with through_traefik("api.localhost", sign_in("alice")["access_token"]) as alice:
        assert alice.get(f"/api/authors/{made['id']}").status_code == 200
    compose(V2, "--profile", "backup", "down", "-v")
    volumes = run("docker", "volume", "ls", "-q", "--filter", "label=com.docker.compose.project=hwstack")
    assert volumes.stdout == ""
