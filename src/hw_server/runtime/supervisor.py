"""Background work: started in order, watched, stopped in reverse order within a deadline."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

log = structlog.get_logger()


class Service(Protocol):
    """`run` works until it is cancelled; `drain` (optional work before that) must return by itself."""

    @property
    def name(self) -> str: ...

    async def run(self) -> None: ...

    async def drain(self) -> None: ...


class Supervisor:
    """Runs services as tasks. An unexpected end of one calls `on_failure` once: the process must not limp on."""

    def __init__(self, services: list[Service], on_failure: Callable[[], None]) -> None:
        self._services = services
        self._on_failure = on_failure
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False

    def start(self) -> None:
        for service in self._services:
            task = asyncio.create_task(service.run(), name=service.name)
            task.add_done_callback(self._ended)
            self._tasks[service.name] = task

    async def stop(self, timeout: float) -> None:
        """Drains and cancels in reverse order; `timeout` seconds for all of it."""
        self._stopping = True
        deadline = asyncio.get_running_loop().time() + timeout
        for service in reversed(self._services):
            try:
                async with asyncio.timeout_at(deadline):
                    await service.drain()
            except TimeoutError:
                log.warning("service_drain_timed_out", service=service.name)
            except Exception:
                log.exception("service_drain_failed", service=service.name)
            task = self._tasks[service.name]
            task.cancel()
            await asyncio.wait([task], timeout=1)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._stopping or task.cancelled():
            return
        error = task.exception()
        log.critical("service_ended", service=task.get_name(), error=repr(error), exc_info=error)
        self._on_failure()
