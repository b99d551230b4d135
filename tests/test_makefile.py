"""`make`: what it says when something is missing or interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.shell import Shell

INTERRUPTED_IN_A_FINALIZER = """
import time
from hw_server import cli

class Slow:
    def __del__(self):
        print("now", flush=True)
        time.sleep(0.5)

def work():
    Slow()
    time.sleep(20)

cli.app = work
cli.main()
"""


def clean() -> dict[str, str]:
    """The environment without what `make test ARGS=...` gives to a `make` inside it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HW_", "MAKE", "ARGS"))}


def make(*arguments: str, folder: Path = PROJECT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**clean(), **environment}, capture_output=True, text=True, check=False
    )


def interrupted(words: str, *arguments: str, folder: Path = PROJECT, **environment: str) -> str:
    """What `make` still says after a Ctrl-C in a terminal, which reaches all of its processes; sent when it says `words`."""
    with subprocess.Popen(
        ["make", *arguments], cwd=folder, env={**clean(), **environment}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any(words in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert ("Traceback" in output, "Error" in output) == (False, False), output
    return output


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Of what `make` needs."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "docker").mkdir()
    shutil.copy(PROJECT / "docker/stack.mk", tmp_path / "docker")
    shutil.copytree(PROJECT / "requirements", tmp_path / "requirements")
    shutil.copytree(PROJECT / "clients", tmp_path / "clients")
    return tmp_path


def test_ctrl_c_says_what_still_runs() -> None:
    with Shell.temporary() as shell:
        ports = " ".join(part for pair in shell.ports.items() for part in pair)
        output = interrupted("valkey is ready", "up", f"ARGS={ports}", HW_STATE=str(shell.state))
        assert "interrupted; still running: postgresql, valkey" in output
        assert make("up", f"ARGS={ports}", HW_STATE=str(shell.state)).returncode == 0
        output = interrupted("started", "logs", HW_STATE=str(shell.state))
        assert "still running: postgresql, valkey, nanoidp, hw-server" in output


def test_ctrl_c_is_not_lost_in_a_finalizer() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_IN_A_FINALIZER], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=15)
    assert (process.returncode, output) == (130, "")


def test_an_interrupted_venv_is_not_complete(copy: Path) -> None:
    assert "make venv again goes on" in interrupted("making the Python environment", "venv", folder=copy)
    assert not (copy / ".venv/complete").exists()


def test_a_missing_python_is_named(copy: Path) -> None:
    result = make("venv", "PYTHON=python9", folder=copy)
    assert (result.returncode, "python9 is missing" in result.stdout) == (2, True)


def test_a_moved_environment_is_made_anew(copy: Path) -> None:
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/complete").touch()
    hw = copy / ".venv/bin/hw"
    hw.write_text(f"#!{copy}/.venv/bin/python\n")
    assert make("-q", "venv", folder=copy).returncode == 0
    hw.write_text("#!/elsewhere/.venv/bin/python\n")
    output = make("venv", "PYTHON=python9", folder=copy).stdout
    assert "this folder was moved or copied" in output
    assert not (copy / ".venv/complete").exists()


def test_lock_says_how_to_get_uv(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tools = tmp_path_factory.mktemp("bin")
    for name in ("bash", "grep", "test"):
        (tools / name).symlink_to(shutil.which(name) or name)
    result = subprocess.run(
        [shutil.which("make") or "make", "lock"],
        cwd=copy,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, "pip install uv" in result.stdout) == (2, True)


def test_the_packages_are_listed_and_looked_up() -> None:
    listed = make("sbom")
    assert listed.returncode == 0, listed.stderr
    document = json.loads((PROJECT / "sbom.json").read_text())
    pinned = re.findall(r"^([\w.-]+)==", (PROJECT / "requirements/base.txt").read_text(), re.M)
    assert {part["name"].lower() for part in document["components"]} == {name.lower() for name in pinned}
    nowhere = make("audit", HTTPS_PROXY="http://127.0.0.1:1", https_proxy="http://127.0.0.1:1")
    assert nowhere.returncode != 0
    assert "https://api.osv.dev/v1/query is out of reach; behind a proxy set HTTPS_PROXY" in nowhere.stdout
    assert "Traceback" not in nowhere.stderr


class Osv(BaseHTTPRequestHandler):
    """A mirror of osv.dev in its form (https://google.github.io/osv.dev/post-v1-query/), which knows of `bad` alone."""

    bad, asked = "", set[str]()

    def do_HEAD(self) -> None:
        self.send_response(405)
        self.end_headers()

    def do_POST(self) -> None:
        package = json.loads(self.rfile.read(int(self.headers["content-length"])))["package"]
        self.asked.add(package["name"])
        spans = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
        known = {
            "id": "OSV-2026-1",
            "published": "2026-01-01T00:00:00Z",
            "affected": [{"package": package, "ranges": spans}],
        }
        body = json.dumps({"vulns": [known]} if package["name"] == self.bad else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("bad", ["", "pydantic"])
def test_a_vulnerable_package_is_named(bad: str) -> None:
    Osv.bad, Osv.asked = bad, set()
    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as mirror:
        threading.Thread(target=mirror.serve_forever, daemon=True).start()
        result = make("audit", OSV_URL=f"http://127.0.0.1:{mirror.server_port}/v1/query", NO_PROXY="127.0.0.1")
        mirror.shutdown()
    assert (result.returncode == 0, "OSV-2026-1" in result.stdout) == (not bad, bool(bad)), (
        result.stdout + result.stderr
    )
    pinned = "".join(
        (PROJECT / f"requirements/{name}.txt").read_text() for name in ("base", "dev", "keycloak", "audit")
    )
    assert {name.lower() for name in re.findall(r"^([\w.-]+)==", pinned, re.M)} >= Osv.asked > {"pydantic", "fastapi"}
