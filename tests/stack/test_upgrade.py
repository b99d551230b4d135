"""A backup of the pinned versions, restored into an empty stack of newer ones, by the commands of the operator's page."""

import asyncio
import json
import uuid
from collections.abc import Iterator

import pytest
import websockets

from tests.stack.conftest import V2, blocks, compose, inside, operate, sign_in, through_traefik, wait_until_routed

pytestmark = pytest.mark.stack
NEWER = {"KEYCLOAK_IMAGE": "hw-test/keycloak-26", "POSTGRES_IMAGE": "hw-test/postgres-17"}


async def epoch() -> str:
    headers = {"Authorization": f"Bearer {sign_in('alice')['access_token']}"}
    connecting = websockets.connect(
        "ws://api.localhost/web", host="127.0.0.1", port=80, additional_headers=headers, proxy=None
    )
    async with connecting as socket:
        await socket.send('{"jsonrpc":"2.0","id":1,"method":"topic.subscribe","params":{"topic":"authors"}}')
        return str(json.loads(await socket.recv())["result"]["epoch"])


@pytest.fixture(scope="module")
def upgraded(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The id of an author who was made before the upgrade, and the epoch of their topic then."""
    folder = tmp_path_factory.mktemp("operator")
    compose(V2, "down", "-v", "--remove-orphans")
    operate("$compose up -d --no-build", folder)
    wait_until_routed()
    with through_traefik("api.localhost", sign_in("alice")["access_token"]) as alice:
        author = alice.post("/api/authors", json={"name": str(uuid.uuid4())}).json()["id"]
    before = asyncio.run(epoch())
    operate(blocks("Backup") + blocks("Upgrade other images"), folder)
    operate(blocks("Restore into an empty stack"), folder, **NEWER)
    wait_until_routed()
    yield author, before
    compose(V2, "down", "-v", "--remove-orphans", "-t", "2")


def test_newer_versions_run(upgraded: tuple[str, str]) -> None:
    assert "17." in inside("hw-db", "psql", "-U", "postgres", "-tAc", "SHOW server_version")
    assert "26." in inside("hw-keycloak", "/opt/keycloak/bin/kc.sh", "--version")


def test_data_users_and_the_audit_trail_are_there(upgraded: tuple[str, str]) -> None:
    with through_traefik("api.localhost", sign_in("alice")["access_token"]) as alice:
        assert alice.get(f"/api/authors/{upgraded[0]}").status_code == 200
        assert alice.patch(f"/api/authors/{upgraded[0]}", json={"name": str(uuid.uuid4())}).status_code == 200
    with through_traefik("api.localhost", sign_in("carol")["access_token"]) as carol:
        rows = carol.get("/api/audit-logs", params={"resource": f"authors/{upgraded[0]}"}).json()["items"]
    assert {"authors.create", "authors.update"} <= {row["action"] for row in rows}


def test_topics_begin_new_epochs(upgraded: tuple[str, str]) -> None:
    assert asyncio.run(epoch()) != upgraded[1]


def test_grafana_still_only_reads(upgraded: tuple[str, str]) -> None:
    url = "postgresql://grafana:grafana@hw-db/hw_db"
    assert inside("hw-server-shell", "psql", url, "-tAc", "SELECT count(*) > 0 FROM user_actions").strip() == "t"
    assert "permission denied" in inside(
        "hw-server-shell",
        "bash",
        "-c",
        f"psql {url} -c 'SET transaction_read_only = off; DELETE FROM authors' 2>&1 || true",
    )
