"""The production overlay: each hardening point as Compose 2 renders it, then started and tried from outside."""

import asyncio
import base64
import hashlib
import html
import json
import re
import secrets
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
import websockets

from tests.conftest import PROJECT, until
from tests.stack.conftest import (
    ENVIRONMENT,
    NEEDS_LOKI,
    V2,
    address,
    blocks,
    containers,
    figure,
    inside,
    load,
    loki,
    operate,
    run,
)

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("images")]
VARIABLES = {"DOMAIN": "example.org", "ACME_EMAIL": "ops@example.org", "BACKUP_TARGET": "/backups/elsewhere"}
GRAFANA = {
    "AUTH_ANONYMOUS_ENABLED": "false",
    "SECURITY_COOKIE_SECURE": "true",
    "SECURITY_SECRET_KEY__FILE": "/run/secrets/grafana_secret_key",
    "SNAPSHOTS_EXTERNAL_ENABLED": "false",
    "PLUGINS_PREINSTALL_DISABLED": "true",
    "USERS_ALLOW_SIGN_UP": "false",
}
UNLIMITED = {"SETUID", "SETGID", "CHOWN", "FOWNER", "DAC_READ_SEARCH", "NET_BIND_SERVICE"}


def overlay(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    docker = PROJECT / "docker"
    files = ("-f", str(docker / "docker-compose.yml"), "-f", str(docker / "docker-compose.production.yml"))
    return subprocess.run(
        [V2, "-p", "hwstack", *files, *arguments],
        env={**ENVIRONMENT, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def render(**variables: str) -> subprocess.CompletedProcess[str]:
    return overlay("--profile", "shell", "config", "--format", "json", **variables)


@pytest.fixture(scope="module")
def services(images: None) -> dict[str, Any]:
    result = render(**VARIABLES)
    assert result.returncode == 0, result.stderr
    rendered: dict[str, Any] = json.loads(result.stdout)["services"]
    return rendered


@pytest.mark.parametrize("missing", VARIABLES)
def test_refuses_to_start_without(missing: str) -> None:
    result = render(**{name: value for name, value in VARIABLES.items() if name != missing})
    assert result.returncode != 0
    assert missing in result.stderr


def test_publishes_the_proxys_two_ports_only(services: dict[str, Any]) -> None:
    published = {(name, port["published"]) for name, item in services.items() for port in item.get("ports", [])}
    assert published == {("traefik", "80"), ("traefik", "443")}


def test_holds_no_development_credential(services: dict[str, Any]) -> None:
    named = {name for item in services.values() for name in (item.get("environment") or {}) if "PASSWORD" in name}
    assert all(name.endswith("_FILE") for name in named)
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
    assert services["traefik"]["labels"]["traefik.http.routers.dashboard.middlewares"] == "admin-limit,admin-auth"
    assert "--api.insecure=true" not in services["traefik"]["command"]
    assert "admin-limit,admin-auth" in services["prometheus"]["labels"]["traefik.http.routers.prometheus.middlewares"]
    grafana = services["grafana"]["environment"]
    assert {name: grafana[f"GF_{name}"] for name in GRAFANA} == GRAFANA
    folder = PROJECT / "docker/grafana/provisioning"
    for name in ("plugins", "alerting"):
        assert (folder / name).is_dir()
        assert [*(folder / name).glob("*.y*ml")] == []


def test_a_server_does_not_migrate_and_the_migration_does(services: dict[str, Any]) -> None:
    assert services["hw-server"]["environment"]["HW_DATABASE__MIGRATE_ON_START"] == "false"
    assert services["hw-migrate"]["command"] == ["hw", "migrate", "up"]
    assert services["hw-server"]["depends_on"]["hw-migrate"]["condition"] == "service_completed_successfully"


def test_several_servers_drain_longer_than_traefik_asks(images: None) -> None:
    result = overlay(
        "-f", str(PROJECT / "docker/docker-compose.replicas.yml"), "config", "--format", "json", **VARIABLES
    )
    server = json.loads(result.stdout)["services"]["hw-server"]
    labels, balancer = server["labels"], "traefik.http.services.fastapi.loadbalancer.healthcheck"
    assert (server["environment"]["HW_HTTP__DRAIN_DELAY"], "container_name" in server) == ("5", False)
    assert (labels[f"{balancer}.path"], labels[f"{balancer}.interval"]) == ("/health/ready", "2s")
    assert labels["traefik.http.routers.fastapi.middlewares"].endswith(",fastapi-retry")
    assert labels["traefik.http.routers.fastapi.entrypoints"] == "websecure"


def test_metrics_are_not_routed(services: dict[str, Any]) -> None:
    assert "!PathPrefix(`/metrics`)" in services["hw-server"]["labels"]["traefik.http.routers.fastapi.rule"]


def test_one_service_holds_the_docker_socket(services: dict[str, Any]) -> None:
    holders = [name for name, item in services.items() if "docker.sock" in json.dumps(item.get("volumes", []))]
    assert holders == ["socket-proxy"]
    assert "published" not in json.dumps(services["socket-proxy"])


def test_every_service_is_confined(services: dict[str, Any]) -> None:
    for name, item in services.items():
        assert item["cap_drop"] == ["ALL"], name
        assert set(item.get("cap_add") or []) <= UNLIMITED, name
        assert item["security_opt"] == ["no-new-privileges:true"], name
        assert item["mem_limit"] == item["memswap_limit"], name
        assert item["cpus"], name
        assert item["pids_limit"], name
        assert item["logging"]["options"]["max-size"], name
        assert item["restart"] == ("no" if name == "hw-migrate" else "unless-stopped"), name


def test_the_server_and_the_stores_cannot_write_their_images(services: dict[str, Any]) -> None:
    for name in ("socket-proxy", "traefik", "hw-server", "hw-db", "hw-redis", "prometheus", "loki", "alloy"):
        assert services[name]["read_only"] is True, name


def test_networks_hold_only_who_talks_there(services: dict[str, Any]) -> None:
    members: dict[str, set[str]] = {}
    for name, item in services.items():
        for network in item["networks"]:
            members.setdefault(network, set()).add(name)
    assert "hw-network" not in members
    assert members["grafana-data"] == {"grafana", "hw-db"}
    assert members["data"] == {
        "hw-db", "hw-redis", "hw-server", "hw-server-shell", "hw-migrate", "hw-keycloak", "hw-backup",
    }  # fmt: skip
    assert not members["front"] & {"hw-db", "hw-redis", "loki", "alloy", "alertmanager", "socket-proxy"}
    assert members["socket-network"] == {"socket-proxy", "traefik", "alloy"}


def test_only_the_needed_users_read_a_secret(services: dict[str, Any]) -> None:
    holders = {name: sorted(secret["source"] for secret in item.get("secrets", [])) for name, item in services.items()}
    assert holders["hw-server"] == ["hw_db_password", "redis_password"]
    assert [name for name in holders if "hw_db_owner_password" in holders[name]] == ["hw-db", "hw-migrate"]
    assert not [name for name in ("prometheus", "loki", "alloy") if holders[name]]


def test_the_documented_secrets_are_all() -> None:
    overlay = (PROJECT / "docker/docker-compose.production.yml").read_text()
    text = (PROJECT / "docs/deployment/production.md").read_text()
    assert not [name for name in re.findall(r"SECRETS_DIR:-\./secrets\}/(\w+)", overlay) if name not in text]


def test_the_realm_is_the_development_realm_without_its_openings() -> None:
    development, production = (
        json.loads((PROJECT / "docker/keycloak" / name).read_text())
        for name in ("hw-realm.json", "hw-realm.production.json")
    )
    assert "users" not in production
    for realm in (development, production):
        realm.pop("users", None)
        [client] = realm["clients"]
        client["redirectUris"], client["webOrigins"] = [], []
    for name in (
        "failureFactor", "waitIncrementSeconds", "maxFailureWaitSeconds", "maxDeltaTimeSeconds", "passwordPolicy",
        "eventsEnabled", "eventsExpiration", "adminEventsEnabled",
    ):  # fmt: skip
        assert production.pop(name)
    assert production["clients"][0].pop("directAccessGrantsEnabled") is False
    assert development["clients"][0].pop("directAccessGrantsEnabled") is True
    assert production == development


def secret_files(folder: Path, **others: str) -> dict[str, str]:
    names = re.findall(
        r"SECRETS_DIR:-\./secrets\}/(\w+)", (PROJECT / "docker/docker-compose.production.yml").read_text()
    )
    script = "print crypt('let-me-in', '$2y$05$' . 'saltsaltsaltsaltsaltse')"  # bcrypt
    hashed = subprocess.run(["perl", "-e", script], capture_output=True, text=True, check=True).stdout
    known = {"admin_users": f"admin:{hashed}\n", "rclone_config": "", "alert_webhook": "http://127.0.0.1:9/"}
    contents = {name: f"{name}-0123456789" for name in names} | known | others
    for name, content in contents.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o444)
    return {**VARIABLES, "SECRETS_DIR": str(folder)}


@pytest.mark.parametrize("name", ["hw_db_password", "redis_password"])
def test_a_development_secret_is_refused(tmp_path: Path, images: None, name: str) -> None:
    result = overlay("run", "--rm", "--no-deps", "hw-server", **secret_files(tmp_path, **{name: "hw-dev"}))
    assert result.returncode == 2
    assert f"{name.partition('_')[0].replace('hw', 'database')}.password" in result.stderr


def test_a_missing_secret_stops_the_start(tmp_path: Path, images: None) -> None:
    variables = secret_files(tmp_path)
    (tmp_path / "redis_password").unlink()
    result = overlay("up", "-d", "--no-build", "hw-redis", **variables)
    overlay("down", "-v", **variables)
    assert result.returncode != 0
    assert "redis_password" in result.stderr


@pytest.fixture(scope="module")
def production(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("secrets")
    variables = secret_files(folder)
    overlay("down", "-v", "--remove-orphans", **variables)
    result = overlay("up", "-d", "--no-build", "--wait", "--wait-timeout", "240", **variables)
    logs = overlay("logs", "--tail", "5", **variables).stdout if result.returncode else ""
    assert result.returncode == 0, result.stderr[-2000:] + logs
    yield folder
    overlay("down", "-v", "--remove-orphans", "-t", "2", **variables)


def outside(name: str, **options: Any) -> httpx.Client:
    """A client of `https://{name}.example.org`, as far as names go. No authority of certificates is in reach."""
    host = f"{name}.example.org"
    return httpx.Client(base_url="https://127.0.0.1", headers={"Host": host}, verify=False, timeout=20, **options)


def test_plain_http_is_redirected(production: Path) -> None:
    answer = httpx.get("http://127.0.0.1/api/me", headers={"Host": "api.example.org"})
    assert (answer.status_code, answer.headers["location"]) == (301, "https://api.example.org/api/me")


def test_a_user_signs_in_and_is_known(production: Path) -> None:
    with outside("keycloak") as keycloak:
        make_user("erin", "erins-own-password")
        token = sign_in_by_code(keycloak, "erin", "erins-own-password")
    with outside("api") as client:
        me = client.get("/api/me", headers={"Authorization": f"Bearer {token}"})
        assert (me.status_code, me.json()["username"]) == (200, "erin")
        assert me.headers["strict-transport-security"]
        assert client.get("/api/me").status_code == 401


async def test_a_browser_opens_the_socket_over_tls(production: Path) -> None:
    with outside("keycloak") as keycloak:
        make_user("gina", "ginas-own-password")
        token = sign_in_by_code(keycloak, "gina", "ginas-own-password")
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    page: dict[str, Any] = {"ssl": unverified, "origin": "https://api.example.org", "proxy": None}
    async with websockets.connect("wss://api.example.org/web", host="127.0.0.1", port=443, **page) as socket:
        call = {"jsonrpc": "2.0", "id": 1, "method": "session.authenticate", "params": {"token": token}}
        await socket.send(json.dumps(call))
        assert json.loads(await socket.recv())["result"]["username"] == "gina"


def administrator() -> httpx.Client:
    """By the container's own address: the administrators' side is not routed."""
    url = f"http://{address('hw-keycloak', 'hw-front')}:8080"
    form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin"}
    form["password"] = "keycloak_admin_password-0123456789"
    token = httpx.post(f"{url}/realms/master/protocol/openid-connect/token", data=form).json()["access_token"]
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"})


def administer(path: str, body: Any) -> None:
    with administrator() as keycloak:
        keycloak.post(f"/admin/realms/hw/{path}", json=body).raise_for_status()


def give_role(user: str, role: str) -> None:
    with administrator() as keycloak:
        [found] = keycloak.get("/admin/realms/hw/users", params={"username": user, "exact": True}).json()
        wanted = keycloak.get(f"/admin/realms/hw/roles/{role}").json()
    administer(f"users/{found['id']}/role-mappings/realm", [wanted])


def make_user(name: str, password: str) -> None:
    person: dict[str, Any] = {
        "username": name,
        "enabled": True,
        "email": f"{name}@example.org",
        "firstName": name,
        "lastName": name,
    }
    person["credentials"] = [{"type": "password", "value": password, "temporary": False}]
    administer("users", person)


ENDPOINT = "/realms/hw/protocol/openid-connect"
COMMON = {"client_id": "hw-web", "redirect_uri": "https://api.example.org/docs/oauth2-redirect"}


def sign_in_page(keycloak: httpx.Client, name: str, password: str, verifier: str = "x" * 64) -> str:
    """Where the sign-in page leads to after name and password."""
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    asked = {"response_type": "code", "scope": "openid", "code_challenge": challenge, "code_challenge_method": "S256"}
    page = keycloak.get(f"{ENDPOINT}/auth", params=COMMON | asked)
    form = urlsplit(html.unescape(re.findall(r'action="([^"]+)"', page.text)[0]))
    sent = keycloak.post(f"{form.path}?{form.query}", data={"username": name, "password": password})
    return str(sent.headers["location"])


def sign_in_by_code(keycloak: httpx.Client, name: str, password: str) -> str:
    """As a browser does: authorization code and PKCE. Returns an access token."""
    verifier = secrets.token_urlsafe(48)
    code = parse_qs(urlsplit(sign_in_page(keycloak, name, password, verifier)).query)["code"][0]
    grant = {"grant_type": "authorization_code", "code": code, "code_verifier": verifier}
    return str(keycloak.post(f"{ENDPOINT}/token", data=COMMON | grant).json()["access_token"])


def test_the_realm_holds_to_its_policies(production: Path) -> None:
    person = {"username": "mallory", "enabled": True, "credentials": [{"type": "password", "value": "short"}]}
    with administrator() as keycloak:
        assert keycloak.post("/admin/realms/hw/users", json=person).status_code == 400
    make_user("nora", "noras-own-password")
    with outside("keycloak") as keycloak:
        for _ in range(12):
            keycloak.cookies.clear()
            with pytest.raises(KeyError):
                sign_in_page(keycloak, "nora", "a-wrong-password")
        keycloak.cookies.clear()
        with pytest.raises(KeyError):
            sign_in_page(keycloak, "nora", "noras-own-password")
    with administrator() as keycloak:
        events = keycloak.get("/admin/realms/hw/events", params={"type": "LOGIN_ERROR"}).json()
    assert {"invalid_user_credentials", "user_temporarily_disabled"} <= {event["error"] for event in events}


def test_no_password_is_taken_from_clients(production: Path) -> None:
    form = {"grant_type": "password", "client_id": "hw-web", "username": "erin", "password": "x"}
    with outside("keycloak") as client:
        assert client.post("/realms/hw/protocol/openid-connect/token", data=form).status_code == 400


def test_every_container_is_checked(production: Path) -> None:
    health = {name: item["State"].get("Health", {}).get("Status") for name, item in containers().items()}
    assert health.pop("hw-migrate") is None
    assert set(health.values()) == {"healthy"}, health
    assert {"hw-alertmanager", "hw-backup", "hw-socket-proxy"} <= {*health}


async def test_metrics_are_for_the_inside(production: Path) -> None:
    with outside("api") as client:
        assert client.get("/metrics").status_code == 404
        assert client.get("/health").json() == {"status": "ok"}
    # By its own address: through Traefik so many questions are over the limit.
    url = f"http://{address('hw-prometheus', 'hw-monitoring')}:9090/api/v1/targets"
    jobs = ("fastapi", "keycloak", "traefik", "prometheus", "loki", "alloy", "grafana", "alertmanager", "backup")

    def health() -> dict[str, str]:
        return {t["labels"]["job"]: t["health"] for t in httpx.get(url).json()["data"]["activeTargets"]}

    await until(lambda: health() == dict.fromkeys(jobs, "up"), 120)


@pytest.mark.parametrize(("name", "path"), [("prometheus", "/api/v1/targets"), ("traefik", "/api/http/routers")])
def test_dashboards_want_a_password(production: Path, name: str, path: str) -> None:
    with outside(name) as client:
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("admin", "let-me-out")).status_code == 401
        assert client.get(path, auth=("admin", "let-me-in")).status_code == 200


def test_passwords_are_not_tried_without_end(production: Path) -> None:
    with outside("traefik") as client:
        tried = [client.get("/api/version", auth=("admin", "guess")).status_code for _ in range(80)]
    assert tried[0] == 401
    assert 429 in tried


@pytest.mark.parametrize(
    "path",
    [
        "/admin/",
        "/admin/master/console/",
        "/realms/master",
        "/metrics",
        "/realms/hw/../master",
        "/realms/hw/%2e%2e/master",
    ],
)
def test_keycloak_s_administration_is_not_routed(production: Path, path: str) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = HTTPSConnection("127.0.0.1", context=context)  # sends the path as it is
    connection.request("GET", path, headers={"Host": "keycloak.example.org"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert (answer.status, body) in ((404, b"404 page not found\n"), (400, b"Bad Request")), body[:200]


def test_the_docker_socket_can_only_be_read_and_little_of_it(production: Path) -> None:
    inspected = containers()
    [network] = inspected["hw-socket-proxy"]["NetworkSettings"]["Networks"].values()
    server = f"/containers/{inspected['hw-server']['Id']}"
    with httpx.Client(base_url=f"http://{network['IPAddress']}:2375") as docker:
        assert docker.get("/containers/json").status_code == 200
        for path in ("/images/json", "/secrets", f"{server}/archive?path=/", f"{server}/top"):
            assert docker.get(path).status_code == 403
        assert docker.post(f"{server}/stop").status_code == 403
        assert docker.post("/containers/create", json={"Image": "hw-test/base"}).status_code == 403


def test_no_secret_is_in_a_log_or_an_environment(production: Path) -> None:
    values = [text for path in production.iterdir() if (text := path.read_text().strip())]
    logs = "".join(run("docker", "logs", name, check=False).stdout for name in containers())
    logs += json.dumps([item["Config"]["Env"] for item in containers().values()])
    assert not [value for value in values if value in logs]


@NEEDS_LOKI
def test_alloy_reads_logs_through_the_socket_proxy(production: Path) -> None:
    assert loki('{service="hw-server"}')


def test_a_new_signing_key_is_taken_without_a_restart(production: Path) -> None:
    settings = {"priority": ["200"], "enabled": ["true"], "active": ["true"], "keySize": ["2048"]}
    key = {"name": "next", "providerId": "rsa-generated", "providerType": "org.keycloak.keys.KeyProvider"}
    with outside("keycloak") as keycloak:
        make_user("frank", "franks-own-password")
        before = sign_in_by_code(keycloak, "frank", "franks-own-password")
        administer("components", {**key, "config": settings})
        keycloak.cookies.clear()
        after = sign_in_by_code(keycloak, "frank", "franks-own-password")
    assert jwt.get_unverified_header(before)["kid"] != jwt.get_unverified_header(after)["kid"]
    with outside("api") as client:
        for token in (after, before):
            assert client.get("/api/me", headers={"Authorization": f"Bearer {token}"}).status_code == 200


async def test_a_new_database_password(production: Path, tmp_path: Path) -> None:
    old = (production / "hw_db_password").read_text()
    script = f"secrets={production}\n{blocks('Change keys and secrets')}"
    operate(script, tmp_path, "-f docker/docker-compose.production.yml", SECRETS_DIR=str(production), **VARIABLES)
    assert (production / "hw_db_password").read_text() != old

    def healthy() -> bool:
        with outside("api") as client:
            answer = client.get("/health")
            return answer.status_code == 200 and answer.json()["status"] == "ok"

    await until(healthy, 60)


def signed_in(name: str) -> httpx.AsyncClient:
    password = f"{name}-own-password"
    make_user(name, password)
    give_role(name, "authors:read")
    with outside("keycloak") as keycloak:
        token = sign_in_by_code(keycloak, name, password)
    headers = {"Host": "api.example.org", "Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url="https://127.0.0.1", headers=headers, verify=False, timeout=20)


def test_a_user_is_made_by_the_documented_commands(production: Path, tmp_path: Path) -> None:
    commands = blocks("Prepare", "docs/deployment/production.md")
    operate(commands[commands.index("docker exec") :], tmp_path)
    with outside("keycloak") as keycloak:
        assert "UPDATE_PASSWORD" in sign_in_page(keycloak, "jane", "a-long-first-password")


async def test_a_restart_of_the_server_takes_few_seconds(production: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with signed_in("henry") as client, load(client, "/api/authors", rate=8) as answers:
        await asyncio.sleep(2)
        await asyncio.to_thread(run, "docker", "restart", "-t", "30", "hw-server")
        await asyncio.sleep(12)
    kinds = answers.kinds()
    assert {kind.partition(" ")[0] for kind in kinds} <= {"200", "502", "503"}, kinds
    assert answers.failed_for() <= 5, (answers.failed_for(), kinds)
    figure(capsys, "one server restarted", answers)


@pytest.mark.parametrize("seconds", [20, 50])
async def test_postgresql_away_is_the_server_s_own_answer(
    production: Path, capsys: pytest.CaptureFixture[str], seconds: int
) -> None:
    async with signed_in(f"irene-{seconds}") as client, load(client, "/api/authors", rate=8) as answers:
        await asyncio.sleep(1)
        await asyncio.to_thread(run, "docker", "kill", "hw-db")
        await asyncio.sleep(seconds)
        await asyncio.to_thread(run, "docker", "start", "hw-db")
        while run("docker", "exec", "hw-db", "pg_isready", "-h", "127.0.0.1", check=False).returncode:
            await asyncio.sleep(0.1)
        returned = answers.now()
        await asyncio.sleep(10)
    kinds = answers.kinds()
    figure(capsys, f"PostgreSQL away for {seconds} s", answers)
    assert set(kinds) == {"200 application/json", "503 application/problem+json"}, kinds
    assert answers.last_failure() <= returned + 3, kinds


async def test_redis_away_signs_nobody_in(production: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can tell then which sessions were ended: HW_OIDC__ON_REDIS_DOWN is `closed`."""
    async with signed_in("karla") as client, load(client, "/api/authors", rate=8) as answers:
        await asyncio.sleep(1)
        await asyncio.to_thread(run, "docker", "kill", "hw-redis")
        await asyncio.sleep(10)
        await asyncio.to_thread(run, "docker", "start", "hw-redis")
        await asyncio.sleep(8)
    figure(capsys, "Redis away for 10 s", answers)
    assert set(answers.kinds()) == {"200 application/json", "503 application/problem+json"}, answers.kinds()
    assert answers.failed_for() <= 16, answers.kinds()


async def test_backups_are_made_and_copied(production: Path) -> None:
    def metrics() -> str:
        return httpx.get(f"http://{address('hw-backup', 'hw-monitoring')}:9101/metrics").text

    await until(lambda: re.search(r"^backup_last_success_timestamp_seconds 1\.\d+e\+09", metrics(), re.M), 60)
    assert set(inside("hw-backup", "sh", "-c", "cat /backups/elsewhere/*/roles.sql && ls /backups/elsewhere/*").split()) > {
        "hw_db.dump", "keycloak.dump",
    }  # fmt: skip


async def test_a_restore_where_no_server_runs(production: Path) -> None:
    name = f"lost-{secrets.token_hex(4)}"
    in_database(f"INSERT INTO authors (name) VALUES ('{name}')")
    written = inside("hw-backup", "hw", "backup").strip()
    in_database(f"DELETE FROM authors WHERE name = '{name}'")
    run("docker", "stop", "hw-server", "hw-keycloak", "hw-grafana")
    try:
        assert inside("hw-backup", "hw", "restore", written, "--replace") == "restored\n"
    finally:
        run("docker", "start", "hw-keycloak", "hw-grafana", "hw-server")
    assert in_database(f"SELECT count(*) FROM authors WHERE name = '{name}'") == "1"
    await until(lambda: containers()["hw-keycloak"]["State"]["Health"]["Status"] == "healthy", 120)
    async with signed_in("lena") as client:
        assert (await client.get("/api/authors")).status_code == 200


def in_database(sql: str) -> str:
    psql = f'PGPASSWORD=$(cat $HW_BACKUP__PASSWORD_FILE) psql -h hw-db -U postgres -d hw_db -tAc "{sql}"'
    return inside("hw-backup", "sh", "-c", psql).strip()


class Receiver(BaseHTTPRequestHandler):
    """Takes alerts as Alertmanager sends them."""

    seen: dict[str, str]  # names, with the addresses of their runbooks

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        firing = [alert for alert in body["alerts"] if alert["status"] == "firing"]
        self.seen |= {alert["labels"]["alertname"]: alert["annotations"].get("runbook_url", "") for alert in firing}
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


async def test_alerts_arrive_a_test_and_the_server_s_end(production: Path) -> None:
    Receiver.seen = {}
    gateway = containers()["hw-alertmanager"]["NetworkSettings"]["Networks"]["hw-monitoring"]["Gateway"]
    receiver = ThreadingHTTPServer((gateway, 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    secret = production / "alert_webhook"
    secret.chmod(0o644)
    secret.write_text(f"http://{gateway}:{receiver.server_port}/")
    try:
        run("docker", "stop", "hw-server")
        await asyncio.to_thread(run, "bash", "-euc", send_a_test_alert())
        await until(lambda: {"TestAlert", "ServerDown"} <= {*Receiver.seen}, 300)
        assert Receiver.seen["ServerDown"].startswith("https://grafana.example.org/d/runbook?viewPanel=")
    finally:
        run("docker", "start", "hw-server")
        receiver.shutdown()
        receiver.server_close()


def send_a_test_alert() -> str:
    [command] = re.findall(
        r"^docker exec hw-alertmanager .+$", (PROJECT / "docs/deployment/monitoring.md").read_text(), re.M
    )
    return str(command)


async def test_replicas_are_restarted_one_after_the_other(
    production: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Last, because it takes the place of the one server."""
    files = "-f docker/docker-compose.production.yml -f docker/docker-compose.replicas.yml"
    variables = {"SECRETS_DIR": str(production), **VARIABLES}
    start = "$compose up -d --no-build --scale hw-server=2 --wait --wait-timeout 240"
    await asyncio.to_thread(operate, start, tmp_path, files, **variables)
    script = blocks("Several servers: restart and upgrade", "docs/deployment/docker.md").replace("=3", "=2")
    async with signed_in("mona") as client, load(client, "/api/authors", rate=8) as answers:
        await asyncio.sleep(2)
        await asyncio.to_thread(operate, script, tmp_path, files, **variables)
        await asyncio.sleep(5)
    figure(capsys, "two replicas of production restarted one after the other", answers)
    assert set(answers.kinds()) == {"200 application/json"}, answers.kinds()
