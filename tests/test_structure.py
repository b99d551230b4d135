"""The structure that the design promises."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "src" / "hw_server"
LAYERS = [
    {"settings", "errors"},
    {"observability", "runtime"},
    {"db", "redis"},
    {"auth", "ratelimit"},
    {"operations"},
    {"http", "ws"},
    {"health", "audit", "sessions", "authors", "console"},
    {"features"},
    {"app"},
    {"server"},
    {"embedded"},
    {"cli"},
]
FEATURES = {"audit", "sessions", "authors"}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def imports(path: Path) -> set[str]:
    """First-level names of this package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hw_server."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "hw_server":
            found |= {name.name for name in node.names} & RANK.keys()
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imports(path) - {own}:
        assert RANK[other] <= RANK[own], f"{own} must not import {other}"
        assert not (own in FEATURES and other in FEATURES), f"feature {own} must not import feature {other}"


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
    told = subprocess.run(
        [sys.executable, "-c", script, str(PACKAGE)], env=environment, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
