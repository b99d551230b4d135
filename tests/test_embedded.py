"""The native stack: what it starts, what it leaves alone, what it says on a bad day."""

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

from hw_server.embedded import EmbeddedError, Ports, ProcessSpec, Stack, keycloak
from hw_server.embedded.postgres import remove_data
from hw_server.embedded.process import Process
from tests.conftest import free_port


def sleeper(port: int, *, ready: bool = True) -> ProcessSpec:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    return ProcessSpec("sleeper", port, command, {}, ready=lambda: ready, option="--sleeper-port")


@pytest.fixture
def stack() -> Iterator[Stack]:
    """Not started, in a folder that any user can reach; nothing of it stays."""
    folder = Path(tempfile.mkdtemp(prefix="hw-test-"))
    folder.chmod(0o755)
    stack = Stack(folder / "state", free_ports())
    try:
        yield stack
    finally:
        stack.stop()
        remove_data(stack.state)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports() -> Ports:
    return Ports(free_port(), free_port(), free_port(), free_port())


def test_a_process_outlives_the_command_that_started_it(tmp_path: Path) -> None:
    service = sleeper(free_port())
    started, same = Process(service, tmp_path), Process(service, tmp_path)
    assert started.start()
    assert same.status == "running"
    assert not same.start()
    assert same.stop()
    assert (started.pid, same.status, same.stop()) == (None, "stopped", False)


def test_a_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    process = Process(sleeper(free_port()), tmp_path)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/sleeper.json").write_text(json.dumps({"pid": stranger.pid, "started": "1"}))
        assert (process.pid, process.stop(), stranger.poll()) == (None, False, None)
        stranger.kill()


def test_a_process_that_ended_before_it_was_recorded_is_not_running(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/sleeper.json").write_text(json.dumps({"pid": gone.pid, "started": None}))
    process = Process(sleeper(free_port(), ready=False), tmp_path)
    assert process.pid is None
    assert not process.stop()


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    service = sleeper(free_port())
    service.stop_signal = signal.SIGCONT
    process = Process(service, tmp_path)
    process.start()
    assert process.stop(timeout=0.2)
    assert process.pid is None


def test_a_taken_port_starts_nothing(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", stack.ports.oidc)), pytest.raises(EmbeddedError, match="--oidc-port"):
        stack.start()
    assert [process.pid for process in stack.processes.values()] == [None, None, None]


def test_an_interrupted_initdb_is_done_again(stack: Stack) -> None:
    (stack.state / "postgresql/unfinished").mkdir(parents=True)
    (stack.state / "postgresql/unfinished/PG_VERSION").write_text("17\n")
    stack.start_one("postgresql")
    assert {path.name for path in (stack.state / "postgresql").iterdir()} == {"data"}


def test_a_data_folder_that_cannot_be_made_is_one_line(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hw_server.embedded.postgres.SUPERUSER", "pg_reserved")
    with pytest.raises(EmbeddedError, match=r"^postgresql could not make its data folder: .*pg_reserved") as refused:
        stack.start_one("postgresql")
    assert "\n" not in str(refused.value)
    assert list((stack.state / "postgresql").iterdir()) == []


def test_health_is_asked_past_a_proxy(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    stack.processes["nanoidp"].spec.timeout = 20
    stack.start_one("nanoidp")


@pytest.mark.parametrize(
    ("maven", "message"),
    [(None, "install it"), ("echo '[ERROR] no such artifact'; echo '[ERROR] read more'; exit 1", "no such artifact")],
)
def test_a_keycloak_that_cannot_be_fetched_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maven: str | None, message: str
) -> None:
    if maven:
        (tmp_path / "mvn").write_text(f"#!/bin/sh\n{maven}\n")
        (tmp_path / "mvn").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(EmbeddedError, match=message) as refused:
        keycloak.spec(tmp_path / "state", free_port(), free_port(), free_port()).prepare()
    assert ("\n" in str(refused.value), "read more" in str(refused.value)) == (False, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives PostgreSQL another user")
def test_below_an_unreadable_folder_postgresql_keeps_its_data_elsewhere(tmp_path: Path) -> None:
    state = tmp_path / "closed" / "state"
    state.mkdir(parents=True)
    state.parent.chmod(0o700)
    stack = Stack(state, free_ports())
    try:
        stack.start_one("postgresql")
        assert not (state / "postgresql").exists()
    finally:
        stack.stop()
        remove_data(state)
