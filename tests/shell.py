"""`hw` as a person types it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conftest import PROJECT, free_port

BIN = Path(sys.executable).parent


class Shell:
    """Runs `hw` with a state folder and ports of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        names = ("--port", "--postgres-port", "--redis-port", "--oidc-port")
        self.ports = {name: str(free_port()) for name in names}

    @classmethod
    @contextmanager
    def temporary(cls) -> "Iterator[Shell]":
        """With a state folder that any user can reach, and nothing left of it afterwards."""
        state = Path(tempfile.mkdtemp(prefix="hw-cli-"))
        state.chmod(0o755)
        shell = cls(state)
        try:
            yield shell
        finally:
            shell.run("clean", "--yes")
            shutil.rmtree(state, ignore_errors=True)

    def get(self, path: str, token: str, **params: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self.ports['--port']}{path}"
        return httpx.get(url, params=params, headers={"Authorization": f"Bearer {token}"})

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HW_")}
        command = [str(BIN / "hw"), *arguments]
        return subprocess.run(
            command, env={**clean, "HW_STATE": str(self.state), **environment},
            capture_output=True, text=True, check=False, cwd=PROJECT,
        )  # fmt: skip

    def up(self, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("up", *(part for pair in self.ports.items() for part in pair), *more, **environment)

    def status(self) -> dict[str, dict[str, object]]:
        return {item["name"]: item for item in json.loads(self.run("status", "--json").stdout)}

    def token(self, user: str) -> str:
        return self.run("token", user).stdout.strip()
