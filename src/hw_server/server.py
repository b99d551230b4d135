"""Runs the application under uvicorn: one worker in this process, or several under a small parent."""

import asyncio
import contextlib
import gc
import math
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
from hw_server.http.protocol import BoundedHttpProtocol, Peers
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
HEARTBEAT = 0.5  # seconds between two heartbeats of a worker to its parent
START_TIME = 60.0  # seconds for imports and services before the first heartbeat
GC_THRESHOLD = 10_000  # new objects after which the youngest generation is collected
CALLS_SHARE = 2 / 3  # of `http.shutdown_timeout`, for calls and requests to end; the rest is for services and pools


class Server(uvicorn.Server):
    """uvicorn closes its sockets right on SIGTERM; here the application drains first, still accepting. `parent` is a socket to
    the parent process, which gets a byte every `HEARTBEAT` seconds while the event loop runs. EOF on it means that the
    parent exited; the worker then shuts down."""

    def __init__(self, settings: Settings, parent: socket.socket | None = None) -> None:
        self._failed = False
        self._parent = parent
        self._drain_delay = settings.http.drain_delay
        self._write_timeout = settings.http.write_timeout
        self._closing: set[Any] = set()  # connections that were closing at the last check
        self._timeout = settings.http.shutdown_timeout * CALLS_SHARE
        application = create_app(settings, load_features(settings.features), self._fail)
        self._lifecycle = application.lifecycle
        self._workers = application.metrics.workers
        self._unread = application.metrics.http_closed.labels("unread")
        super().__init__(
            uvicorn.Config(
                application.asgi,
                loop="uvloop",
                http=partial(  # type: ignore[arg-type]
                    BoundedHttpProtocol,
                    settings=settings.http,
                    metrics=application.metrics,
                    peers=Peers(settings.http),
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
                timeout_keep_alive=settings.http.keep_alive_timeout,
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
            self._parent.setblocking(False)
            asyncio.get_running_loop().add_reader(self._parent, self._orphaned)
            self._beat(self._parent)
        self._end_unread()
        # Objects made at start stay, so collections skip them; a higher threshold makes collections rarer while sockets are added.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        self._workers.set(1)

    def _beat(self, parent: socket.socket) -> None:
        # A full buffer means that the parent is not reading, as while it is stopped; heartbeats may be skipped then.
        with contextlib.suppress(OSError):
            parent.send(b".")
        asyncio.get_running_loop().call_later(HEARTBEAT, self._beat, parent)

    def _end_unread(self) -> None:
        """uvloop ends a connection that was closed once its client has read the last byte, which may be never."""
        closing = {connection for connection in self.server_state.connections if connection.transport.is_closing()}
        for connection in closing & self._closing:
            self._unread.inc()
            connection.transport.abort()
        self._closing = closing - self._closing
        asyncio.get_running_loop().call_later(self._write_timeout, self._end_unread)

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


def run_worker(settings: Settings, bound: socket.socket, parent: socket.socket | None = None) -> int:
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


def start_worker(bound: socket.socket, environment: dict[str, str]) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """A process that runs `main`, and this end of the socket between it and its parent, for the parent alone to hold."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    passed = [bound.fileno(), theirs.fileno()]
    command = [sys.executable, "-m", "hw_server.server", *map(str, passed)]
    process = subprocess.Popen(command, env=environment, pass_fds=passed)  # noqa: S603
    theirs.close()
    return process, ours


class Worker:
    """A process of `Workers`."""

    def __init__(self, bound: socket.socket, environment: dict[str, str]) -> None:
        self.process, self._socket = start_worker(bound, environment)
        self.started = self._heard = time.monotonic()
        self._beats = False

    def silent(self, timeout: float) -> bool:
        """Whether no heartbeat has come for `timeout` seconds (`START_TIME` at least before the first one)."""
        with contextlib.suppress(OSError):  # nothing has come
            if self._socket.recv(65_536):
                self._heard, self._beats = time.monotonic(), True
        return time.monotonic() - self._heard > (timeout if self._beats else max(timeout, START_TIME))

    def close(self) -> None:
        self._socket.close()


class Workers:
    """The parent of several workers on one listening socket: replaces those that ended or hang, stops all on SIGTERM."""

    def __init__(self, settings: Settings, bound: socket.socket, environment: dict[str, str]) -> None:
        self._environment = environment
        self._count = settings.http.workers
        self._silence = settings.http.worker_timeout
        self._timeout = settings.http.drain_delay + settings.http.shutdown_timeout + 5
        self._bound = bound
        self._workers: list[Worker] = []
        self._crashes = 0  # in a row
        self._stopping = False
        self._metrics_folder = ""

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="hw-metrics-") as folder:
            self._metrics_folder = folder
            environment = {**self._environment, MULTIPROCESS_DIR: folder}
            while not self._stopping:
                self._workers = [worker for worker in self._workers if self._works(worker)]
                if self._crashes >= CRASHES * self._count:
                    log.error("workers_crash_looping", crashes=self._crashes)
                    return max(1, self._end())
                while len(self._workers) < self._count and not self._stopping:
                    self._workers.append(Worker(self._bound, environment))
                time.sleep(0.2)
            return self._end()

    def _works(self, worker: Worker) -> bool:
        """Whether it runs. Kills a worker that hangs, as its connections would wait until their clients give up."""
        process = worker.process
        if process.poll() is None:
            if not worker.silent(self._silence):
                return True
            log.error("worker_hangs", pid=process.pid, seconds=self._silence)
            process.kill()
        code = process.wait()
        worker.close()
        log.error("worker_ended", pid=process.pid, code=code)
        crashed = time.monotonic() - worker.started < CRASH_TIME
        self._crashes = self._crashes + 1 if crashed else 0
        # Keeps its counters, removes its live gauges.
        mark_process_dead(process.pid, path=self._metrics_folder)  # type: ignore[no-untyped-call]
        if not self._stopping:
            time.sleep(RESTART_PAUSE)
        return False

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _end(self) -> int:
        processes = [worker.process for worker in self._workers]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + self._timeout
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker_killed", pid=process.pid)
                process.kill()
        return max((process.wait() for process in processes), default=0)


def main() -> int:
    """A worker: the arguments are the numbers of its listening socket and of the socket to its parent."""
    bound, parent = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    return run_worker(load(), bound, parent)


if __name__ == "__main__":
    sys.exit(main())
