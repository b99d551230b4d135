"""Runs the application under uvicorn: one worker in this process, or several under a small parent."""

import asyncio
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from types import FrameType
from typing import Any

import structlog
import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from hw_server.app import create_app
from hw_server.http.protocol import BoundedHttpProtocol
from hw_server.observability import logging
from hw_server.observability.metrics import MULTIPROCESS_DIR
from hw_server.operations import load_features
from hw_server.settings import Settings, load
from hw_server.ws.protocol import DirectWebSocketProtocol

log = structlog.get_logger()

BACKLOG = 2048
RESTART_PAUSE = 1.0  # seconds before a dead worker is replaced
CRASH_TIME = 10.0  # seconds; a worker that ends sooner after its start has crashed
CRASHES = 5  # crashes in a row for each worker after which the parent gives up
CALLS_SHARE = 2 / 3  # of the shutdown's time, for calls and requests to end; the rest is for services and pools


class Server(uvicorn.Server):
    """uvicorn closes its sockets right on SIGTERM; here the application drains first, still accepting. `parent` is the
    end of a pipe that reads as ended once the parent process is gone: no worker stays behind on its own."""

    def __init__(self, settings: Settings, parent: int | None = None) -> None:
        self._failed = False
        self._parent = parent
        self._drain_delay = settings.http.drain_delay
        self._timeout = settings.http.shutdown_timeout * CALLS_SHARE
        application = create_app(settings, load_features(settings.features), self._fail)
        self._lifecycle = application.lifecycle
        super().__init__(
            uvicorn.Config(
                application.asgi,
                loop="uvloop",
                http=partial(  # type: ignore[arg-type]
                    BoundedHttpProtocol, settings=settings.http, metrics=application.metrics
                ),
                ws=DirectWebSocketProtocol,
                ws_max_size=settings.ws.max_frame_bytes,
                ws_ping_interval=settings.ws.ping_interval,
                ws_ping_timeout=settings.ws.ping_interval,
                ws_per_message_deflate=False,
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,
                log_level="warning",
                timeout_keep_alive=65,
                backlog=BACKLOG,
            )
        )

    def _fail(self) -> None:
        self._failed = True
        self.should_exit = True

    @property
    def failed(self) -> bool:
        return self._failed or not self.started

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn would raise the signal again after the shutdown; the exit code tells more."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent, self._orphaned)

    def _orphaned(self) -> None:
        assert self._parent is not None
        asyncio.get_running_loop().remove_reader(self._parent)
        log.error("parent_ended")
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Calls of sockets and requests share one timeout; what is left of the whole is for the services."""
        ends = time.monotonic() + self._drain_delay + self._timeout
        await self._lifecycle.drain(self._timeout)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(ends - time.monotonic()))
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; raises OSError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    bound.listen(BACKLOG)
    bound.set_inheritable(True)
    return bound


def run_worker(settings: Settings, bound: socket.socket, parent: int | None = None) -> int:
    """Serves until a signal; the exit code is 1 where a part of the server failed."""
    logging.configure(settings.log)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket is a file
    server = Server(settings, parent)
    with asyncio.Runner(loop_factory=_loop) as runner:
        try:
            runner.run(server.serve(sockets=[bound]))
        except KeyboardInterrupt:
            log.info("interrupted")
    return 1 if server.failed else 0


def _loop() -> Any:
    import uvloop

    return uvloop.new_event_loop()


class Workers:
    """The parent of several workers on one listening socket: replaces the dead, passes on the end."""

    def __init__(self, settings: Settings, bound: socket.socket, environment: dict[str, str]) -> None:
        self._environment = environment
        self._count = settings.http.workers
        self._timeout = settings.http.drain_delay + settings.http.shutdown_timeout + 5
        self._bound = bound
        self._processes: list[subprocess.Popen[bytes]] = []
        self._started: dict[int, float] = {}  # by process id
        self._crashes = 0  # in a row
        self._stopping = False
        self._metrics_folder = ""
        # Workers read the end of the first once this process, which alone holds the second, is gone.
        self._watched, self._held = os.pipe()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="hw-metrics-") as folder:
            self._metrics_folder = folder
            environment = {**self._environment, MULTIPROCESS_DIR: folder}
            while not self._stopping:
                self._processes = [process for process in self._processes if self._alive(process)]
                if self._crashes >= CRASHES * self._count:
                    log.error("workers_crash_looping", crashes=self._crashes)
                    return max(1, self._end())
                while len(self._processes) < self._count and not self._stopping:
                    self._processes.append(self._start(environment))
                time.sleep(0.2)
            return self._end()

    def _start(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        passed = [self._bound.fileno(), self._watched]
        command = [sys.executable, "-m", "hw_server.server", *map(str, passed)]
        process = subprocess.Popen(command, env=environment, pass_fds=passed)  # noqa: S603
        self._started[process.pid] = time.monotonic()
        return process

    def _alive(self, process: "subprocess.Popen[bytes]") -> bool:
        code = process.poll()
        if code is None:
            return True
        log.error("worker_ended", pid=process.pid, code=code)
        crashed = time.monotonic() - self._started.pop(process.pid) < CRASH_TIME
        self._crashes = self._crashes + 1 if crashed else 0
        # What it counted stays, what it held is gone.
        mark_process_dead(process.pid, path=self._metrics_folder)  # type: ignore[no-untyped-call]
        if not self._stopping:
            time.sleep(RESTART_PAUSE)
        return False

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _end(self) -> int:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + self._timeout
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker_killed", pid=process.pid)
                process.kill()
        return max((process.wait() for process in self._processes), default=0)


def main() -> int:
    """A worker started by `Workers`: the arguments are the numbers of its listening socket and of its parent's pipe."""
    bound, parent = map(int, sys.argv[1:])
    return run_worker(load(), socket.socket(fileno=bound), parent)


if __name__ == "__main__":
    sys.exit(main())
