"""`hw new resource` and `hw remove resource`, in a copy of the project: green at once, and after each step back."""

import re
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import asyncpg
import pytest

from hw_server.cli.project import Project
from hw_server.embedded import Stack
from hw_server.embedded.users import USERS
from tests.conftest import PROJECT, Running, free_port, run_server, run_stack
from tests.copied import CHECKS, Copy
from tests.provider import Provider
from tests.shell import Shell

FEATURES = {"HW_FEATURES": "hw_server.features:FEATURES"}
WRITTEN = [f"{name}:{right}" for name in ("authors", "books", "chapters") for right in ("read", "write")]
ROLES = sorted({*USERS["dave"], *WRITTEN})


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy.fresh(tmp_path_factory.mktemp("untouched"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Books of authors, and chapters of books, with a topic."""
    copy = Copy.fresh(tmp_path_factory.mktemp("written"))
    copy.hw("new resource books --belongs-to authors")
    copy.hw("new resource chapters --belongs-to books --topic")
    return copy


@pytest.fixture(scope="module")
def own_stack() -> Iterator[Stack]:
    """Its database is at revisions that the project itself does not know."""
    with run_stack() as stack:
        yield stack


def serving(copy: Copy, stack: Stack, provider: Provider, folder: Path) -> AbstractContextManager[Running]:
    copy.migrate(stack)
    own = {"HW_HTTP__PORT": str(free_port()), "HW_AUDIT__SPILL_DIR": str(folder), "PYTHONPATH": copy.path}
    return run_server({**stack.environment(), **own, **FEATURES, **provider.settings()}, folder)


@pytest.fixture(scope="module")
def books(
    written: Copy, own_stack: Stack, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with serving(written, own_stack, provider, tmp_path_factory.mktemp("log")) as running:
        yield running


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_written_is_green_at_once(written: Copy, name: str) -> None:
    written.check(name)


def test_its_tests_pass(written: Copy) -> None:
    result = written.run("pytest -q tests/authors/test_authors.py tests/books tests/chapters")
    assert result.returncode == 0, result.stdout


def test_up_adds_rows_to_what_is_written(written: Copy) -> None:
    with Shell.temporary() as shell:
        result = shell.up(PYTHONPATH=written.path)
        assert "  3 books added\n  3 chapters added\n" in result.stdout, result.stderr
        token = shell.token("alice")
        books, chapters = (shell.get(f"/api/{name}", token).json()["items"] for name in ("books", "chapters"))
    assert {row["book_id"] for row in chapters} == {row["id"] for row in books}


async def test_it_answers_over_both_protocols(books: Running, provider: Provider) -> None:
    token = provider.token(sub="dave", realm_access={"roles": ROLES})
    async with books.client(token) as client, books.socket(token) as socket:
        author = (await client.post("/api/authors", json={"name": str(uuid.uuid4())})).json()
        book = (await socket.call("books.create", name=str(uuid.uuid4()), author_id=author["id"]))["result"]
        await socket.call("topic.subscribe", topic="chapters")
        made = await client.post("/api/chapters", json={"name": str(uuid.uuid4()), "book_id": book["id"]})
        event = (await socket.read())["params"]["data"]
        assert (event["action"], event["chapter"]) == ("created", made.json())
        assert (await socket.call("chapters.get", id=made.json()["id"]))["result"] == made.json()
        refused = (await socket.call("authors.delete", id=author["id"]))["error"]["data"]
        assert (refused["code"], refused["detail"]) == ("conflict", "the author has books; delete them first")
        openapi, openrpc = (await client.get("/openapi.json")).json(), (await client.get("/openrpc.json")).json()
        assert openapi["paths"]["/api/books/{id}"]["patch"]["operationId"] == "books.update"
        assert {"books.list", "chapters.delete"} <= {method["name"] for method in openrpc["methods"]}
        query = {"resource": f"chapters/{made.json()['id']}", "action": "chapters.create"}
        [row] = (await client.get("/api/audit-logs", params=query)).json()["items"]
        assert (row["outcome"], row["status"], row["request_id"]) == ("success", 201, made.headers["x-request-id"])
    metrics = await books.metrics()
    assert metrics['http_requests_total{method="POST",route="/api/chapters",status="201"}'] == 1
    assert metrics['ws_rpc_duration_seconds_count{code="ok",method="books.create"}'] == 1


async def test_it_goes_again_and_all_is_green_after_each_step(
    written: Copy, own_stack: Stack, provider: Provider, tmp_path: Path
) -> None:
    copy = Copy.of(written.root, tmp_path)
    with serving(copy, own_stack, provider, tmp_path):
        pass  # the tables are there
    assert "chapters refer to books; remove them first" in copy.refused("remove resource books")
    for name in ("chapters", "books", "authors"):
        copy.hw(f"remove resource {name}")
        copy.check()
    with serving(copy, own_stack, provider, tmp_path) as running:
        async with running.client() as client:
            assert (await client.get("/health")).json()["status"] == "ok"
            assert (await client.get("/api/books")).status_code == 404
    connection = await asyncpg.connect(own_stack.environment()["HW_DATABASE__URL"])
    left = await connection.fetch("SELECT tablename FROM pg_tables WHERE tablename IN ('authors', 'books', 'chapters')")
    await connection.close()
    assert left == []


def test_a_migration_that_nobody_applied_goes_without_a_trace(untouched: Copy, tmp_path: Path) -> None:
    copy = Copy.of(untouched.root, tmp_path)
    before = copy.files()
    copy.hw("new resource loan_cards --belongs-to authors")
    copy.hw("new resource people --singular person")
    output = copy.hw("remove resource loan_cards --migration delete")
    assert "hw migrate stamp" in output
    copy.check("migrations", "format")
    copy.hw("remove resource people --migration delete")
    assert copy.files() == before


REFUSED = {
    "new resource Books": "lower-case letters",
    "new resource 2books": "lower-case letters",
    "new resource book-shelves": "lower-case letters",
    "new resource people": "give --singular",
    "new resource statuses --singular statuses": "differs",
    "new resource classes": "`class`, which is taken",
    "new resource lists": "`list`, which is taken",
    "new resource pages": "`page`, which is taken",
    "new resource values": "reserved word",
    "new resource authors": "already",
    "new resource sessions": "already",
    "new resource operations": "taken by src/hw_server/operations",
    "new resource notes": "taken by tests/notes",
    "new resource user_actions": "the table user_actions exists",
    "new resource books --belongs-to nosuch": "there are: ",
    "new resource books --belongs-to audit": "there are: ",
    "remove resource audit": "there are: ",
    "remove resource nosuch": "there are: ",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_is_refused_with_what_is_expected(untouched: Copy, command: str) -> None:
    assert REFUSED[command] in untouched.refused(command)


def test_a_dry_run_and_a_failure_change_nothing(untouched: Copy, tmp_path: Path) -> None:
    copy = Copy.of(untouched.root, tmp_path)
    before = copy.files()
    output = copy.hw("new resource books --dry-run").splitlines()
    assert "new      src/hw_server/books/models.py" in output
    assert "changed  docker/keycloak/hw-realm.production.json" in output
    copy.hw("remove resource authors --dry-run")
    assert copy.files() == before
    (copy.root / "pyproject.toml").write_text("[tool.ruff]\nnonsense = 1\n")
    assert "nothing was changed" in copy.run("hw new resource books").stderr
    (copy.root / "pyproject.toml").write_bytes(before["pyproject.toml"])
    assert copy.files() == before


def test_names_are_completed(untouched: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("hw remove resource ", "hw new resource books --belongs-to "):
        monkeypatch.setenv("_HW_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
        assert untouched.run("hw").stdout.split() == Project(untouched.root).resources()


@pytest.mark.parametrize(
    "command", ["new", "new resource", "remove", "remove resource", "migrate merge", "migrate stamp"]
)
def test_each_command_explains_itself(untouched: Copy, command: str) -> None:
    assert f"Usage: hw {command}" in untouched.hw(f"{command} --help")


def blocks(mark: str) -> list[tuple[list[str], str]]:
    """The paths and the text of the blocks of the document that have a mark."""
    document = (PROJECT / "docs/adding-a-resource.md").read_text()
    found = re.findall(rf'^```\w+ {mark}="(.+?)"\n(.*?)^```$', document, re.M | re.S)
    return [(paths.split(), text) for paths, text in found]


def numbered(text: str) -> str:
    """Numbers of migrations are of the day."""
    return re.sub(r"\b\d{12}(?=[\"_])", "202600000000", text)


def test_the_document_shows_what_is_written(untouched: Copy, tmp_path: Path) -> None:
    copy = Copy.of(untouched.root, tmp_path)
    lines = [line.split() for line in copy.hw("new resource books --belongs-to authors").splitlines() if line]
    shown = {numbered(path): numbered(text) for [path], text in blocks("title")}
    written = {path for state, path, *_ in lines if state == "new" and not path.endswith("tests/books/__init__.py")}
    assert {numbered(path): numbered((copy.root / path).read_text()) for path in written} == shown
    changed = {path for state, path, *_ in lines if state == "changed"}
    assert changed == {path for paths, _ in blocks("in") for path in paths}
    for paths, text in blocks("in"):
        assert all(text in (copy.root / path).read_text() for path in paths), text


def test_the_document_shows_what_a_topic_adds(untouched: Copy, tmp_path: Path) -> None:
    copy = Copy.of(untouched.root, tmp_path)
    copy.hw("new resource books --belongs-to authors --topic")
    assert {path for paths, _ in blocks("topic") for path in paths} == {
        *(f"src/hw_server/books/{file}.py" for file in ("models", "operations", "__init__")),
        "tests/books/test_books.py",
    }
    for [path], text in blocks("topic"):
        assert text in (copy.root / path).read_text(), text
