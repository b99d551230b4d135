"""A backup of the pinned versions, restored into an empty stack of newer ones, by the commands of the operator's page."""

import uuid
from collections.abc import Iterator

import pytest

from tests.stack.conftest import V2, blocks, compose, inside, operate, sign_in, through_traefik, wait_until_routed

pytestmark = pytest.mark.stack
NEWER = {"KEYCLOAK_IMAGE": "hw-test/keycloak-26", "POSTGRES_IMAGE": "hw-test/postgres-17"}


@pytest.fixture(scope="module")
def upgraded(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The id of an author who was made before the upgrade."""
    folder = tmp_path_factory.mktemp("operator")
    compose(V2, "down", "-v", "--remove-orphans")
    operate("$compose up -d --no-build", folder)
    wait_until_routed()
    with through_traefik("api.localhost", sign_in("alice")["access_token"]) as alice:
        author = alice.post("/api/authors", json={"name": str(uuid.uuid4())}).json()["id"]
    operate(blocks("Backup") + blocks("Upgrade other images"), folder)
    operate(blocks("Restore into an empty stack"), folder, **NEWER)
    wait_until_routed()
    yield author
    compose(V2, "down", "-v", "--remove-orphans")


def test_newer_versions_run(upgraded: str) -> None:
    assert "17." in inside("hw-db", "psql", "-U", "postgres", "-tAc", "SHOW server_version")
    assert "26." in inside("hw-keycloak", "/opt/keycloak/bin/kc.sh", "--version")


def test_data_users_and_the_audit_trail_are_there(upgraded: str) -> None:
    with through_traefik("api.localhost", sign_in("alice")["access_token"]) as alice:
        assert alice.get(f"/api/authors/{upgraded}").status_code == 200
        assert alice.patch(f"/api/authors/{upgraded}", json={"name": str(uuid.uuid4())}).status_code == 200
    with through_traefik("api.localhost", sign_in("carol")["access_token"]) as carol:
        rows = carol.get("/api/audit-logs", params={"resource": f"authors/{upgraded}"}).json()["items"]
    assert {"authors.create", "authors.update"} <= {row["action"] for row in rows}


def test_grafana_still_only_reads(upgraded: str) -> None:
    url = "postgresql://grafana:grafana@hw-db/hw_db"
    assert inside("hw-server-shell", "psql", url, "-tAc", "SELECT count(*) > 0 FROM user_actions").strip() == "t"
    assert "permission denied" in inside(
        "hw-server-shell",
        "bash",
        "-c",
        f"psql {url} -c 'SET transaction_read_only = off; DELETE FROM authors' 2>&1 || true",
    )
