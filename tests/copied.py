"""Copies of the project, which a test may change and check like a team's own."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from hw_server.cli.project import Project
from hw_server.embedded import Stack
from tests.conftest import PROJECT

IGNORED = shutil.ignore_patterns(".git", ".venv", ".hw", "__pycache__", ".pytest_cache", "*.egg-info")
# What `make check` runs, but the tests.
CHECKS = {
    "lint": "ruff check .",
    "format": "ruff format --check .",
    "imports": "lint-imports",
    "types": "mypy",
    "migrations": "hw migrate check",
    "bench": "python -m bench --help",
    "collection": "pytest -q --collect-only",
}


@dataclass(frozen=True)
class Copy:
    root: Path
    settings: dict[str, str] = field(default_factory=dict)  # of the commands run in it

    @classmethod
    def of(cls, source: Path, folder: Path) -> "Copy":
        shutil.copytree(source, folder / "project", ignore=IGNORED)
        return cls(folder / "project")

    @classmethod
    def of_project(cls, folder: Path) -> "Copy":
        return cls.of(PROJECT, folder)

    @classmethod
    def fresh(cls, folder: Path) -> "Copy":
        """With the example alone, whatever resources the project has."""
        copy = cls.of_project(folder)
        for name in Project(copy.root).resources():
            if name != "authors":
                copy.remove(name)
        if "authors" not in Project(copy.root).resources():
            copy.hw("new resource authors")
        return copy

    def remove(self, name: str, *options: str) -> None:
        """Takes a resource out, where there is one, and those that refer to it."""
        if name in Project(self.root).resources():
            for other in Project(self.root).referring(name):
                self.remove(other, *options)
            self.hw(f"remove resource {name}", *options)

    @property
    def path(self) -> str:
        """What PYTHONPATH is, so that the copy's packages are imported."""
        return f"{self.root / 'src'}:{self.root}"

    def run(self, command: str, *more: str) -> subprocess.CompletedProcess[str]:
        program, *arguments = command.split()
        # A worker number of its own, and so ports of its own.
        environment = {**os.environ, "PYTHONPATH": self.path, "PYTEST_XDIST_WORKER": "gw9", **self.settings}
        return subprocess.run(
            [str(Path(sys.executable).parent / program), *arguments, *more],
            cwd=self.root, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def check(self, *names: str) -> None:
        """Runs what `make check` runs, or some of it; fails with what it printed."""
        for name in names or CHECKS:
            result = self.run(CHECKS[name])
            assert result.returncode == 0, f"{name}: {result.stdout}{result.stderr}"

    def hw(self, command: str, *more: str) -> str:
        """The output of a command that succeeds."""
        result = self.run(f"hw {command}", *more)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def migrate(self, stack: Stack) -> None:
        """The copy's migrations, as the owner of the stack's tables."""
        replace(self, settings={**self.settings, **stack.environment(), **stack.owner()}).hw("migrate up")

    def refused(self, command: str, *more: str) -> str:
        """The one line that a command fails with."""
        result = self.run(f"hw {command}", *more)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1), (
            result.stdout + result.stderr
        )
        return result.stderr

    def files(self) -> dict[str, bytes]:
        """All that counts, by path."""
        paths = (
            path for path in self.root.rglob("*") if path.is_file() and "cache" not in str(path.relative_to(self.root))
        )
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths}
