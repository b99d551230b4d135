"""Background work: started in order, watched, stopped in reverse order within a deadline."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import structlog

log = structlog.get_logger()

# Seconds a cancelled service may take to end. Giving up a statement that PostgreSQL does not answer takes two of them; after
# that audit rows are spooled.
CANCEL_TIMEOUT = 4.0


class Service(Protocol):
    """Background work of the process. `run` works until it is cancelled. A service that also has `drain` (see `Drains`) is
    asked to finish what it holds before that, one with `close_all` (see `HoldsConnections`) to close connections first."""

    @property
    def name(self) -> str: ...

    async def run(self) -> None: ...


@runtime_checkable
class Drains(Protocol):
    """A service with work to finish at shutdown; `drain` must return by itself."""

    async def drain(self) -> None: ...


@runtime_checkable
class HoldsConnections(Protocol):
    """A service with long-lived connections of clients, which it tells and closes when a shutdown begins; calls that are in
    progress have `timeout` seconds."""

    async def close_all(self, timeout: float) -> None: ...


class Supervisor:
    """Runs services as tasks. An unexpected end of one calls `on_failure`, so that the process exits and is
    restarted."""

    def __init__(self, services: Sequence[Service], on_failure: Callable[[], None]) -> None:
        self._services = services
        self._on_failure = on_failure
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False

    def start(self) -> None:
        for service in self._services:
            task = asyncio.create_task(service.run(), name=service.name)
            task.add_done_callback(self._ended)
            self._tasks[service.name] = task

    async def close_connections(self, timeout: float) -> None:
        holders = [service for service in self._services if isinstance(service, HoldsConnections)]
        await asyncio.gather(*(holder.close_all(timeout) for holder in holders))

    async def stop(self, timeout: float) -> None:
        """Drains and cancels in reverse order; `timeout` seconds for all of it."""
        self._stopping = True
        deadline = asyncio.get_running_loop().time() + timeout
        for service in reversed(self._services):
            if isinstance(service, Drains):
                await self._drain(service, service.name, deadline)
            task = self._tasks[service.name]
            task.cancel()
            _, late = await asyncio.wait([task], timeout=CANCEL_TIMEOUT)
            if late:
                log.error("service_does_not_end", service=service.name)

    @staticmethod
    async def _drain(service: Drains, name: str, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await service.drain()
        except TimeoutError:
            log.warning("service_drain_timed_out", service=name)
        except Exception:
            log.exception("service_drain_failed", service=name)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._stopping or task.cancelled():
            return
        error = task.exception()
        log.critical("service_ended", service=task.get_name(), error=repr(error), exc_info=error)
        self._on_failure()
