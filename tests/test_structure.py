"""The structure that the design promises."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import PROJECT, Serve
from tests.copied import CHECKS, Copy
from tests.shell import Shell

PACKAGE = PROJECT / "src" / "hw_server"


def test_importing_opens_nothing_and_reads_no_setting() -> None:
    script = (
        "import sys, importlib, pathlib\n"
        "events = []\n"
        "sys.addaudithook(lambda name, args: events.append((name, args)) if name in "
        "('socket.connect', 'socket.bind', 'subprocess.Popen', 'os.putenv') else None)\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for path in sorted(root.rglob('*.py')):\n"
        "    if path.stem != '__main__':\n"
        "        parts = path.relative_to(root.parent).with_suffix('').parts\n"
        "        importlib.import_module('.'.join(parts))\n"
        "assert not events, events\n"
    )
    environment = {**os.environ, "HW_HTTP__PORT": "not a number"}
    result = subprocess.run(
        [sys.executable, "-c", script, str(PACKAGE)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("module", "line", "message"),
    [
        ("http/addresses.py", "import hw_server.ws.codes", "hw_server.http.addresses -> hw_server.ws.codes"),
        ("http/addresses.py", "from ..ws import codes", "hw_server.http.addresses -> hw_server.ws.codes"),
        ("ws/codes.py", "from hw_server import app", "hw_server.ws.codes -> hw_server.app"),
        ("audit/models.py", "from hw_server import sessions", "hw_server.audit.models -> hw_server.sessions"),
        ("new/__init__.py", "from hw_server import cli", "hw_server.new imports hw_server.cli"),
        ("topics/feed.py", "from hw_server import new", "hw_server.topics.feed imports hw_server.new"),
    ],
)
def test_an_import_of_the_wrong_way_is_refused(wrong: Copy, module: str, line: str, message: str) -> None:
    path = wrong.root / "src/hw_server" / module
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    result = wrong.run("lint-imports")
    path.write_text(before)
    assert result.returncode != 0
    assert message in result.stdout


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy of the project with an empty feature `new`."""
    copy = Copy.of_project(tmp_path_factory.mktemp("wrong"))
    package = copy.root / "src/hw_server"
    (package / "new").mkdir()
    (package / "new/__init__.py").write_text("")
    with (package / "features.py").open("a") as features:
        features.write("\nfrom hw_server import new\n")
    return copy


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy of the project without the example: what a team has that has no use for it."""
    if not (PACKAGE / "authors").exists():
        pytest.skip("there is no example any more")
    copy = Copy.of_project(tmp_path_factory.mktemp("bare"))
    copy.remove("authors", "--migration", "delete")
    return copy


@pytest.mark.parametrize("name", CHECKS)
def test_all_is_well_without_the_example(bare: Copy, name: str) -> None:
    bare.check(name)


def test_tests_pass_without_the_example(bare: Copy) -> None:
    files = "tests/test_structure.py tests/test_lists.py tests/test_operations.py tests/test_tokens.py"
    result = bare.run(f"pytest -q {files}")
    assert result.returncode == 0, result.stdout + result.stderr


async def test_a_server_runs_without_the_example(bare: Copy, serve: Serve, token: Callable[[str], str]) -> None:
    with serve(PYTHONPATH=bare.path, HW_FEATURES="hw_server.features:FEATURES") as running:
        async with running.client(token("alice")) as client, running.socket(token("alice")) as socket:
            assert (await client.get("/health")).json()["status"] == "ok"
            assert (await client.get("/api/me")).json()["username"] == "alice"
            assert (await client.get("/api/authors")).status_code == 404
            assert (await socket.call("authors.list"))["error"]["code"] == -32601
            assert (await socket.call("me.get"))["result"]["username"] == "alice"


def test_up_starts_without_the_example(bare: Copy) -> None:
    with Shell.temporary() as shell:
        result = shell.up(PYTHONPATH=bare.path)
        assert result.returncode == 0, result.stderr
        assert "added" not in result.stdout
        assert shell.get("/api/me", shell.token("alice")).json()["username"] == "alice"
        assert shell.get("/api/authors", shell.token("alice")).status_code == 404
