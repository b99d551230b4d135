"""One server in the background: its own session, a log file, and a file with its pid and start time, as pids are reused."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hw_server.observability.logging import COLOUR

NOBODY = 65534


class EmbeddedError(Exception):
    """One line that says what is wrong and what to do."""


@dataclass(slots=True)
class ProcessSpec:
    """What is to run. `prepare` makes its files, `ready` says whether it answers, `finish` runs once it does."""

    name: str
    port: int
    command: list[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    option: str  # what `hw up` takes to move it to another port
    prepare: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None
    user: int | None = None
    stop_signal: int = signal.SIGTERM
    timeout: float = 60.0  # seconds to become ready
    stop_timeout: float = 30.0  # seconds to end by itself
    folder: Path | None = None
    # What it is started from, each with a digest: a process that was started from something else is out of date.
    started_from: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Process:
    """A process of this spec, also one that another command started."""

    spec: ProcessSpec
    state: Path
    _child: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.state / "logs" / f"{self.spec.name}.log"

    @property
    def _record(self) -> Path:
        return self.state / "run" / f"{self.spec.name}.json"

    @property
    def pid(self) -> int | None:
        """The running process, None where there is none or its number belongs to another by now."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        record = self._recorded()
        if record is None:
            return None
        started = _started_at(record["pid"])
        # None on both sides: it ended before its start time could be read.
        return record["pid"] if started is not None and started == record["started"] else None

    def _recorded(self) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return None
        return record

    @property
    def changed(self) -> tuple[str, ...]:
        """What changed since this process was started, of what its spec names; nothing where none runs."""
        record = self._recorded()
        if record is None or self.pid is None:
            return ()
        before = record.get("started_from", {})
        return tuple(name for name, digest in self.spec.started_from.items() if before.get(name) != digest)

    @property
    def status(self) -> str:
        if self.pid is None:
            return "stopped"
        return "running" if self.spec.ready() else "not answering"

    def stop_outdated(self, progress: Callable[[str], None]) -> None:
        """So that the next start takes what changed."""
        if changed := self.changed:
            self.stop()
            progress(f"{self.spec.name} is restarted: its {' and '.join(changed)} changed since it started")

    def start(self) -> bool:
        """Starts it unless it runs; False where it ran already. Returns before it is ready."""
        if self.pid is not None:
            return False
        self.refuse_taken_port()
        for folder in (self.log.parent, self._record.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self.spec.prepare()
        with self.log.open("ab") as log:
            child = subprocess.Popen(  # noqa: S603
                self.spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(self.spec.environment),
                cwd=self.spec.folder,
                **_as_user(self.spec.user),
            )
        self._child = child
        record = {
            "pid": child.pid,
            "started": _started_at(child.pid),
            "started_from": dict(self.spec.started_from),
        }
        self._record.write_text(json.dumps(record))
        return True

    def wait(self) -> None:
        """Returns once it answers; raises `EmbeddedError` with its last words where it ends or takes too long."""
        deadline = time.monotonic() + self.spec.timeout
        while not self.spec.ready():
            if self.pid is None:
                raise EmbeddedError(f"{self.spec.name} ended while starting: {self._last_words()} (see {self.log})")
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"{self.spec.name} did not answer within {self.spec.timeout:.0f} s: "
                    f"{self._last_words()} (see {self.log})"
                )
            time.sleep(0.05)
        self.spec.finish()

    def ask_to_stop(self) -> None:
        """So that several end at the same time; `stop` waits for the end."""
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, self.spec.stop_signal)

    def stop(self, timeout: float | None = None) -> bool:
        """Ends it, by force after `timeout` seconds (default: the spec's); False where it did not run."""
        pid = self.pid
        if pid is None:
            self._record.unlink(missing_ok=True)
            return False
        self.ask_to_stop()
        deadline = time.monotonic() + (self.spec.stop_timeout if timeout is None else timeout)
        while self.pid is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            while self.pid is not None:
                time.sleep(0.05)
        if self._child is not None:
            self._child.wait()
        self._record.unlink(missing_ok=True)
        return True

    def refuse_taken_port(self) -> None:
        """Raises `EmbeddedError` where another program holds the port this one is to start on."""
        if self.pid is not None:
            return
        if not free(self.spec.port):
            raise EmbeddedError(
                f"port {self.spec.port}, which {self.spec.name} needs, is taken{_holder(self.spec.port)}; "
                f"stop that program or choose another port with {self.spec.option}"
            )

    def _last_words(self) -> str:
        try:
            lines = COLOUR.sub("", self.log.read_text(errors="replace")).strip().splitlines()
        except OSError:
            lines = []
        return " / ".join(line.strip() for line in lines[-3:])[-400:] or "it wrote nothing"


def free(port: int) -> bool:
    """Whether no program holds this port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _started_at(pid: int) -> str | None:
    """The kernel's start time of a process that runs, None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _as_user(user: int | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def _holder(port: int) -> str:
    """` by NAME (pid N)` where that can be seen."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        return ""
    return ""


def serves(url: str) -> bool:
    """Whether an HTTP address answers with 200."""
    import httpx

    try:
        # Never through a proxy that the environment names: it cannot reach this machine's loopback.
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
