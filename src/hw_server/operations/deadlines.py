"""The longest time an operation may take. One sweep looks after all that run: a timer for each costs ten times as much."""

import asyncio
from types import TracebackType
from typing import Any

SWEEP_INTERVAL = 0.25  # seconds; how late an end may come


class Deadline:
    """Raises `TimeoutError` in the task that entered it, once `ends` (the loop's clock) has passed. Entering gives the task."""

    __slots__ = ("_cancelling", "_running", "_task", "ends", "expired")

    def __init__(self, ends: float, running: "set[Deadline]") -> None:
        self.ends = ends
        self.expired = False
        self._running = running
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0

    def __enter__(self) -> "asyncio.Task[Any] | None":
        self._running.add(self)
        return self._task

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.discard(self)
        if not self.expired or self._task is None:
            return
        # As asyncio.timeout does: a cancellation from outside that came together with this one stays a cancellation.
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        self.expired = True
        self._running.discard(self)
        if self._task is not None:
            self._task.cancel()


class Deadlines:
    """Ends calls that take longer than `seconds`: one service looks at all of them, instead of a timer for each."""

    name = "deadlines"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: set[Deadline] = set()
        self._now = 0.0  # the loop's clock at the last sweep

    def start(self) -> Deadline:
        """A deadline for the calling task, from now on."""
        return Deadline(self._now + self._seconds + SWEEP_INTERVAL, self._running)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._now = loop.time()
            for deadline in [deadline for deadline in self._running if deadline.ends <= self._now]:
                deadline.expire()
            await asyncio.sleep(SWEEP_INTERVAL)
