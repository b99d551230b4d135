"""Start and shutdown of one process, in order."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from hw_server import __version__
from hw_server.runtime.supervisor import Supervisor

log = structlog.get_logger()


class Lifecycle:
    """Shutdown: `unready` makes readiness checks fail, after `drain_delay` seconds the services that hold connections of
    clients tell and close them; requests finish (the HTTP server does that); services drain within `service_timeout` seconds; then each of
    `close` (pools, clients) is called in order."""

    def __init__(
        self,
        supervisor: Supervisor,
        unready: Callable[[], None],
        close: Sequence[Callable[[], Awaitable[None]]],
        *,
        drain_delay: float,
        service_timeout: float,
    ) -> None:
        self._supervisor = supervisor
        self._unready = unready
        self._close = close
        self._drain_delay = drain_delay
        self._service_timeout = service_timeout

    def start(self) -> None:
        self._supervisor.start()
        log.info("started", version=__version__)

    async def drain(self, timeout: float) -> None:
        """While connections are still accepted; calls of sockets in progress have `timeout` seconds."""
        log.info("draining")
        self._unready()
        await asyncio.sleep(self._drain_delay)
        await self._supervisor.close_connections(timeout)

    async def stop(self) -> None:
        """After the last request was answered."""
        await self._supervisor.stop(self._service_timeout)
        for close in self._close:
            await close()
        log.info("stopped")
