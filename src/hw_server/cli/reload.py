"""`--reload`: one worker, started again when a Python file changes. This process holds the listening socket, so that requests
wait while there is no worker instead of being refused."""

import hashlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import structlog
import typer

from hw_server.server import start_worker
from hw_server.settings import Settings

log = structlog.get_logger()

PACKAGE = Path(__file__).resolve().parents[1]
PROJECT = PACKAGE.parents[1]
POLL = 300  # milliseconds between looks at the worker


def code_folders(features: str) -> list[Path]:
    """Where the application's code is: this package, the features' own, the migrations."""
    folders = [PACKAGE, *_folder_of(features.partition(":")[0]), PROJECT / "migrations"]
    return [
        folder
        for folder in dict.fromkeys(folders)
        if folder.is_dir() and not any(folder.is_relative_to(other) for other in folders if other != folder)
    ]


def _folder_of(module: str) -> Iterator[Path]:
    """Found without importing the module: errors in it are the worker's to report."""
    name = Path(*module.split("."))
    for root in (Path(), *map(Path, sys.path)):
        if (root / name / "__init__.py").is_file():
            yield (root / name).resolve()
            return
        if (root / name).with_suffix(".py").is_file():
            yield (root / name).resolve().parent
            return


def code_digest(features: str) -> str:
    """Differs where a Python file of the application does."""
    digest = hashlib.sha256()
    for folder in code_folders(features):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


class Reloader:
    """Ends as the worker does until the first change; after that it waits for the next one where the worker ended."""

    def __init__(
        self, settings: Settings, bound: socket.socket, environment: dict[str, str], migrate: Callable[[Settings], None]
    ) -> None:
        self._settings = settings
        self._bound = bound
        self._environment = environment
        self._migrate = migrate
        self._timeout = settings.http.drain_delay + settings.http.shutdown_timeout + 5
        self._stopping = threading.Event()
        self._held: socket.socket | None = None  # the worker ends once it is closed, as with the end of this process

    def run(self) -> int:
        try:
            from watchfiles import PythonFilter, watch
        except ModuleNotFoundError:
            typer.echo("--reload needs watchfiles, which is not installed; `make venv` installs it", err=True)
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        worker: subprocess.Popen[bytes] | None = self._start()
        changed = False
        for changes in watch(
            *code_folders(self._settings.features),
            watch_filter=PythonFilter(),
            stop_event=self._stopping,
            rust_timeout=POLL,
            yield_on_timeout=True,
            raise_interrupt=False,
        ):
            if changes:
                changed = True
                log.info("reloading", changed=sorted(_shown(path) for _, path in changes))
                self._end(worker)
                worker = self._start_changed()
            elif worker is not None and worker.poll() is not None:
                if not changed:
                    return worker.returncode
                log.error("worker_ended", code=worker.returncode, next="waiting for a change")
                worker = None
        return self._end(worker)

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._settings.database.migrate_on_start:
            self._migrate(self._settings)
        if self._held is not None:
            self._held.close()
        process, self._held = start_worker(self._bound, self._environment)
        return process

    def _start_changed(self) -> "subprocess.Popen[bytes] | None":
        try:
            return self._start()
        except typer.Exit:  # the migration has said why
            return None

    def _end(self, worker: "subprocess.Popen[bytes] | None") -> int:
        if worker is None:
            return 0
        worker.terminate()
        try:
            return worker.wait(self._timeout)
        except subprocess.TimeoutExpired:
            worker.kill()
            return worker.wait()

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping.set()


def _shown(path: str) -> str:
    return str(Path(path).relative_to(PROJECT)) if Path(path).is_relative_to(PROJECT) else path
