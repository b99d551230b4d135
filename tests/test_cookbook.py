"""The recipes of docs/cookbook.md: built from its snippets, in a copy of the project, and called on a running server."""

import re
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import asyncpg
import httpx
import pytest

from hw_server.cli.project import USERS, edit_users
from hw_server.embedded import Stack
from tests.conftest import PROJECT, Running, free_port, run_server, run_stack, until
from tests.copied import Copy
from tests.provider import Provider

FEATURES = ("covers", "drafts", "loans", "members", "prices", "shelves")
IMPORTS = "from hw_server import audit, sessions\nfrom hw_server.library import {names}\n\n"


@pytest.fixture(scope="module")
def cooked(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The snippets in their places, the tables in a migration, the roles given to the development users."""
    copy = Copy.of_project(tmp_path_factory.mktemp("cooked"))
    text = (PROJECT / "docs/cookbook.md").read_text()
    for path, code in re.findall(r'^```python title="(.+?)"\n(.*?)^```$', text, re.M | re.S):
        file = copy.root / path if path.startswith("tests") else copy.root / "src/hw_server" / path
        file.parent.mkdir(exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(code)
    tables = "".join(re.findall(r"^```sql\n(.*?)^```$", text, re.M | re.S)).split(";\n")
    migration = copy.root / copy.hw("migrate new library").strip()
    statements = "".join(f'    op.execute("""\n{table.strip()}\n""")\n' for table in tables if table.strip())
    migration.write_text(
        migration.read_text().replace('    op.execute("")\n', statements, 1).replace('op.execute("")', "pass")
    )
    lines = "".join(f"    {name}.feature,\n" for name in FEATURES)
    listed = (
        IMPORTS.format(names=", ".join(FEATURES))
        + f"FEATURES = (\n    audit.feature,\n    sessions.feature,\n{lines})\n"
    )
    (copy.root / "src/hw_server/features.py").write_text(listed)
    users = copy.root / USERS
    for name in FEATURES:
        users.write_text(edit_users(users.read_text(), name, add=True))
    return copy


@pytest.fixture(scope="module")
def own_stack() -> Iterator[Stack]:
    """Its database is at a revision that the project itself does not know."""
    with run_stack() as stack:
        yield stack


@contextmanager
def price_service() -> Iterator[str]:
    """The world outside: knows the price of volume 1, talks nonsense about volume 2, and breaks at 3."""
    answers = {"/1": (200, b'{"cents": 990}'), "/2": (200, b"hello"), "/3": (500, b"")}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, b""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{service.server_address[1]}"
        service.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def library(
    cooked: Copy, own_stack: Stack, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("log")
    cooked.migrate(own_stack)
    with price_service() as prices:
        own = {"PYTHONPATH": cooked.path, "HW_FEATURES": "hw_server.features:FEATURES", "LIBRARY_PRICES_URL": prices}
        spill = {"HW_HTTP__PORT": str(free_port()), "HW_AUDIT__SPILL_DIR": str(folder)}
        with run_server({**own_stack.environment(), **provider.settings(), **own, **spill}, folder) as running:
            yield running


@pytest.fixture
async def reader(library: Running, provider: Provider) -> AsyncIterator[httpx.AsyncClient]:
    """With all roles of the recipes."""
    roles = [f"{name}:{kind}" for name in FEATURES for kind in ("read", "write")]
    async with library.client(provider.token(sub="ann", realm_access={"roles": roles})) as client:
        yield client


def test_snippets_pass_the_checks_of_all_code(cooked: Copy) -> None:
    cooked.check("imports", "types", "migrations")
    for command in ("ruff check", "ruff format --check"):
        result = cooked.run(f"{command} src/hw_server/library tests/library")
        assert result.returncode == 0, result.stdout


def test_its_tests_pass(cooked: Copy) -> None:
    settings = {"LIBRARY_PRICES_URL": "http://127.0.0.1:1"}
    result = Copy(cooked.root, settings).run("pytest -q tests/library")
    assert result.returncode == 0, result.stdout


async def test_relations(reader: httpx.AsyncClient) -> None:
    name = uuid.uuid4().hex
    shelf = (await reader.post("/api/shelves", json={"name": name, "volumes": ["b", "a", "a", "c"]})).json()
    seen: list[str] = []
    query = {"shelf": name, "per_page": 1, "sort": "-title"}
    while query.get("cursor", "") is not None:
        page = (await reader.get("/api/shelves/volumes", params=query)).json()
        seen += [volume["title"] for volume in page["items"] if volume["shelf"] == name]
        query["cursor"] = page["next_cursor"]
    assert seen == ["c", "b", "a", "a"]
    used = await reader.delete(f"/api/shelves/{shelf['id']}")
    assert (used.status_code, used.json()["detail"]) == (409, "the shelf has volumes")
    again = await reader.post("/api/shelves", json={"name": name})
    assert (again.status_code, again.json()["detail"]) == (409, "a shelf with this name exists")


async def test_upload(reader: httpx.AsyncClient) -> None:
    png = {"content-type": "image/png"}
    assert (await reader.put("/api/covers/1", content=b"x" * 100_000, headers=png)).status_code == 204
    image = await reader.get("/api/covers/1")
    assert (image.content, image.headers["content-type"]) == (b"x" * 100_000, "image/png")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 50_000

    refused = await reader.put("/api/covers/1", content=chunks(), headers=png)
    assert (refused.status_code, refused.json()["detail"]) == (413, "a cover has at most 100000 bytes")
    assert (await reader.put("/api/covers/1", content=b"x", headers={"content-type": "text/plain"})).status_code == 415
    assert (await reader.get("/api/covers/2")).status_code == 404


async def test_an_upload_needs_its_role(library: Running, provider: Provider) -> None:
    async with library.client(provider.token(realm_access={"roles": ["covers:read"]})) as client:
        assert (await client.put("/api/covers/1", content=b"x")).status_code == 403


async def test_validation_across_fields(reader: httpx.AsyncClient) -> None:
    refused = await reader.post("/api/loans", json={"lent": "2030-01-02", "due": "2030-01-01"})
    assert (refused.status_code, "due must be after lent" in refused.json()["errors"][0]["message"]) == (422, True)
    loan = (await reader.post("/api/loans", json={"lent": "2030-01-02", "due": "2030-01-09"})).json()
    assert (await reader.patch(f"/api/loans/{loan['id']}", json={"due": "2030-02-01"})).json()["due"] == "2030-02-01"
    refused = await reader.patch(f"/api/loans/{loan['id']}", json={"due": "2030-01-01"})
    assert (refused.status_code, refused.json()["detail"]) == (422, "the value breaks the rule due_after_lent")


async def test_import_sort_and_soft_delete(reader: httpx.AsyncClient) -> None:
    mark = uuid.uuid4().hex
    rows = [
        {"email": f"{index}@{mark}", "joined": joined}
        for index, joined in enumerate(["2030-01-01", None, "2020-01-01"])
    ]
    assert (await reader.post("/api/members/import", json={"members": rows})).json() == {"added": 3, "known": 0}
    assert (await reader.post("/api/members/import", json={"members": rows})).json() == {"added": 0, "known": 3}

    async def emails(sort: str) -> list[str]:
        items = (await reader.get("/api/members", params={"sort": sort, "per_page": 100})).json()["items"]
        return [item["email"][0] for item in items if item["email"].endswith(mark)]

    assert (await emails("joined"), await emails("-joined")) == (["2", "0", "1"], ["1", "0", "2"])
    members = (await reader.get("/api/members", params={"per_page": 100})).json()["items"]
    [first] = [member for member in members if member["email"] == f"0@{mark}"]
    url = f"/api/members/{first['id']}"
    assert [(await reader.delete(url)).status_code for _ in range(2)] == [204, 404]
    assert await emails("id") == ["1", "2"]
    assert (await reader.post(f"{url}/restore")).json() == first
    await reader.delete(url)
    assert (await reader.post("/api/members/import", json={"members": rows[:1]})).json()["added"] == 1
    taken = await reader.post(f"{url}/restore")
    assert (taken.status_code, taken.json()["detail"]) == (409, "a member with this address exists")


async def test_background_work(reader: httpx.AsyncClient, own_stack: Stack) -> None:
    connection = await asyncpg.connect(own_stack.environment()["HW_DATABASE__URL"])
    insert = "INSERT INTO members (email, deleted_at) VALUES ($1, now() - interval '31 days')"
    await connection.execute(insert, uuid.uuid4().hex)

    async def purged() -> bool:
        return (
            await connection.fetchval("SELECT count(*) FROM members WHERE deleted_at < now() - interval '30 days'") == 0
        )

    await until(purged)
    await connection.close()


async def test_another_service(reader: httpx.AsyncClient) -> None:
    assert (await reader.get("/api/prices/1")).json() == {"cents": 990}
    assert [(await reader.get(f"/api/prices/{volume}")).status_code for volume in (2, 3, 4)] == [503, 503, 404]
