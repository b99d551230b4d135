"""Runs the application under uvicorn: one worker in this process, or several under a small parent."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import FrameType
from typing import Any

import structlog
import uvicorn

from hw_server.app import create_app
from hw_server.observability import logging
from hw_server.observability.metrics import MULTIPROCESS_DIR
from hw_server.settings import Settings, load
from hw_server.ws.protocol import DirectWebSocketProtocol

log = structlog.get_logger()

BACKLOG = 2048
RESTART_PAUSE = 1.0  # seconds before a dead worker is replaced


class Server(uvicorn.Server):
    """uvicorn closes its sockets right on SIGTERM; here the application drains first, still accepting."""

    def __init__(self, settings: Settings) -> None:
        self._failed = False
        application = create_app(settings, on_failure=self._fail)
        self._lifecycle = application.lifecycle
        super().__init__(
            uvicorn.Config(
                application.asgi,
                loop="uvloop",
                http="httptools",
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
                timeout_graceful_shutdown=max(1, int(settings.http.shutdown_timeout / 3)),
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._lifecycle.drain()
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


def run_worker(settings: Settings, bound: socket.socket) -> int:
    """Serves until a signal; the exit code is 1 where a part of the server failed."""
    logging.configure(settings.log)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket is a file
    server = Server(settings)
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

    def __init__(self, settings: Settings, bound: socket.socket) -> None:
        self._count = settings.http.workers
        self._patience = settings.http.drain_delay + settings.http.shutdown_timeout + 5
        self._bound = bound
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="hw-metrics-") as folder:
            environment = {**os.environ, MULTIPROCESS_DIR: folder}
            while not self._stopping:
                self._processes = [process for process in self._processes if self._alive(process)]
                while len(self._processes) < self._count and not self._stopping:
                    self._processes.append(self._start(environment))
                time.sleep(0.2)
            return self._end()

    def _start(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "hw_server.server", str(self._bound.fileno())]
        return subprocess.Popen(command, env=environment, pass_fds=[self._bound.fileno()])  # noqa: S603

    def _alive(self, process: "subprocess.Popen[bytes]") -> bool:
        code = process.poll()
        if code is None:
            return True
        log.error("worker_ended", pid=process.pid, code=code)
        if not self._stopping:
            time.sleep(RESTART_PAUSE)
        return False

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _end(self) -> int:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + self._patience
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker_killed", pid=process.pid)
                process.kill()
        return max((process.wait() for process in self._processes), default=0)


def main() -> int:
    """A worker started by `Workers`: the argument is the number of its listening socket."""
    settings = load()
    return run_worker(settings, socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
