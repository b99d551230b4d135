"""The longest time an operation may take. One sweep looks after all that run; a timer each costs ten times as much."""

import asyncio
from types import TracebackType

SWEEP = 0.25  # seconds; how late an end may come


class Deadlines:
    """A supervised service, and a context manager that raises `TimeoutError` in a task that ran too long."""

    name = "deadlines"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: dict[asyncio.Task[object], float] = {}
        self._expired: set[asyncio.Task[object]] = set()

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = task.get_loop().time() + self._seconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.pop(task, None)
        if task in self._expired:
            self._expired.discard(task)
            task.uncancel()
            if kind is asyncio.CancelledError:
                raise TimeoutError from error

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP)
            now = loop.time()
            for task in [task for task, ends in self._running.items() if ends <= now]:
                del self._running[task]
                self._expired.add(task)
                task.cancel()

    async def drain(self) -> None:
        return None
