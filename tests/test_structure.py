"""The structure that the design promises."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Serve

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


def remove_example(project: Path) -> None:
    """What a team does that has no use for the example."""
    package, migrations = project / "src/hw_server", project / "migrations/versions"
    shutil.rmtree(package / "authors")
    shutil.rmtree(project / "tests/authors")
    features = package / "features.py"
    features.write_text(re.sub(r"    authors\.feature,\n|\bauthors, |, authors\b", "", features.read_text()))
    [migration] = migrations.glob("*_authors.py")
    own, before = (
        re.findall(rf'^{name} = "(\w+)"', migration.read_text(), re.M)[0] for name in ("revision", "down_revision")
    )
    migration.unlink()
    for later in migrations.glob("*.py"):
        later.write_text(later.read_text().replace(f'down_revision = "{own}"', f'down_revision = "{before}"'))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without the example."""
    if not (PACKAGE / "authors").exists():
        pytest.skip("there is no example any more")
    project = tmp_path_factory.mktemp("bare") / "project"
    ignored = shutil.ignore_patterns(".git", ".venv", ".hw", "__pycache__", ".pytest_cache", "*.egg-info")
    shutil.copytree(PROJECT, project, ignore=ignored)
    remove_example(project)
    return project


CHECKS = {
    "lint": "ruff check .",
    "format": "ruff format --check .",
    "imports": "lint-imports",
    "types": "mypy",
    "bench": "python -m bench --help",
    "collection": "pytest -q --collect-only",
    "tests": "pytest -q tests/test_structure.py tests/test_lists.py tests/test_operations.py tests/test_tokens.py",
}


@pytest.mark.parametrize("check", CHECKS)
def test_all_is_well_without_the_example(bare: Path, check: str) -> None:
    # A worker number of its own, and so ports of its own.
    environment = {**os.environ, "PYTHONPATH": f"{bare / 'src'}:{bare}", "PYTEST_XDIST_WORKER": "gw9"}
    program, *arguments = CHECKS[check].split()
    command = [str(Path(sys.executable).parent / program), *arguments]
    result = subprocess.run(command, cwd=bare, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


async def test_a_server_runs_without_the_example(bare: Path, serve: Serve, token: Callable[[str], str]) -> None:
    with serve(PYTHONPATH=str(bare / "src"), HW_FEATURES="hw_server.features:FEATURES") as running:
        async with running.client(token("alice")) as client, running.socket(token("alice")) as socket:
            assert (await client.get("/health")).json()["status"] == "ok"
            assert (await client.get("/api/me")).json()["username"] == "alice"
            assert (await client.get("/api/authors")).status_code == 404
            assert (await socket.call("authors.list"))["error"]["code"] == -32601
            assert (await socket.call("me.get"))["result"]["username"] == "alice"
