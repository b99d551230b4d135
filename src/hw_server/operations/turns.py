"""Who may use the database next. One caller's calls never take all connections of the pool, and those that wait are served
caller by caller in turn, not in the order in which the busiest filled the queue."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import Counter

from hw_server.errors import RateLimited


class Turns:
    """`capacity` slots. One caller holds at most `per_caller` of them, never all unless there is only one; at most
    `waiting_per_caller` of its calls wait, further ones are refused."""

    def __init__(self, capacity: int, per_caller: int, waiting_per_caller: int, refused: Counter) -> None:
        self._free = capacity
        self._per_caller = min(per_caller, max(1, capacity - 1))
        self._waiting_per_caller = waiting_per_caller
        self._refused = refused
        self._running: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._next: deque[str] = deque()  # waiting callers below `per_caller`, each once, in order
        self._in_line: set[str] = set()  # those in `_next`; some may not be waiting any more

    def enter(self, who: str) -> bool:
        """Takes a slot without waiting; False where none is free for this caller."""
        running = self._running.get(who, 0)
        if not self._free or running >= self._per_caller:
            return False
        self._running[who] = running + 1
        self._free -= 1
        return True

    async def wait(self, who: str) -> None:
        """Waits for the slot that `enter` did not get. Raises `RateLimited` where too many wait already."""
        waiting = self._waiting.setdefault(who, deque())
        if len(waiting) >= self._waiting_per_caller:
            self._refused.inc()
            raise RateLimited(1, "too many calls at the same time")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not waiting and self._running.get(who, 0) < self._per_caller:
            self._line_up(who)
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave(who)  # granted in the same iteration of the event loop
            elif turn in waiting:
                waiting.remove(turn)
                self._forget(who)
            raise

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """Holds a slot. Raises as `wait` does."""
        if not self.enter(who):
            await self.wait(who)
        try:
            yield
        finally:
            self.leave(who)

    def leave(self, who: str) -> None:
        """Releases the slot and grants it to the next caller."""
        running = self._running[who]
        if running == 1:
            del self._running[who]
        else:
            self._running[who] = running - 1
        self._free += 1
        if not self._waiting:
            return
        if running == self._per_caller and who in self._waiting:
            self._line_up(who)
        while self._next and self._free:
            first = self._next.popleft()
            self._in_line.discard(first)
            self._grant(first)

    def _line_up(self, who: str) -> None:
        if who not in self._in_line:
            self._in_line.add(who)
            self._next.append(who)

    def _grant(self, who: str) -> None:
        waiting = self._waiting.get(who)
        while waiting and waiting[0].done():
            waiting.popleft()  # cancelled in this iteration of the event loop
        if waiting and self.enter(who):
            waiting.popleft().set_result(None)
        self._forget(who)
        if who in self._waiting and self._running.get(who, 0) < self._per_caller:
            self._line_up(who)

    def _forget(self, who: str) -> None:
        if not self._waiting.get(who, True):
            del self._waiting[who]
