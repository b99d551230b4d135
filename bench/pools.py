"""Our connection pool against asyncpg's, on the same PostgreSQL: microseconds of client CPU for acquire, work, release.

asyncpg's pool has its reset switched off, as ours never resets; both give the connection class that times statements, and
ours also translates errors. What is left is the pool: asyncpg's wraps the connection in a proxy and releases in a task.
"""

import asyncio
import itertools
import resource
import time
from collections.abc import Awaitable, Callable

import asyncpg

from hw_server.db import Connection, Database
from hw_server.observability.metrics import Metrics
from hw_server.settings import load

UNITS = 500  # in one round of one pool
ROUNDS = 15
SELECT = "SELECT id, title, text, due, created_at, updated_at FROM notes ORDER BY id LIMIT 20"
INSERT = "INSERT INTO notes (title, text) VALUES ($1, 'Some words about this note')"

Unit = Callable[[], Awaitable[None]]
Figures = list[tuple[float, float]]  # units a second, and CPU microseconds of this process for each


class WithoutReset(Connection):
    def get_reset_query(self) -> str:
        return ""


async def compare(url: str) -> dict[tuple[str, int], tuple[Figures, Figures]]:
    """For each kind of work and number of tasks at once: (asyncpg's pool, ours), one figure a round."""
    ours = Database(load({"HW_DATABASE__URL": url}).database, Metrics())
    WithoutReset.observe = staticmethod(ours._observe)
    theirs = asyncpg.create_pool(url, min_size=10, max_size=10, command_timeout=5, connection_class=WithoutReset)
    names = (f"pool {time.time_ns()} {number}" for number in itertools.count())

    async def their_read() -> None:
        async with theirs.acquire() as connection:
            await connection.fetch(SELECT)

    async def our_read() -> None:
        async with ours.read() as connection:
            await connection.fetch(SELECT)

    async def their_write() -> None:
        async with theirs.acquire() as connection, connection.transaction():
            await connection.execute(INSERT, next(names))

    async def our_write() -> None:
        async with ours.write() as connection:
            await connection.execute(INSERT, next(names))

    measured: dict[tuple[str, int], tuple[Figures, Figures]] = {}
    async with theirs:
        for (work, units), tasks in itertools.product(
            (("SELECT 20 rows", (their_read, our_read)), ("BEGIN, INSERT, COMMIT", (their_write, our_write))), (32, 1)
        ):
            figures = measured[work, tasks] = ([], [])
            for unit in units:
                await measure(unit, tasks)
            for number in range(ROUNDS):
                for index in (0, 1) if number % 2 else (1, 0):
                    figures[index].append(await measure(units[index], tasks))
    await ours.stop()
    return measured


async def measure(unit: Unit, tasks: int) -> tuple[float, float]:
    async def work() -> None:
        for _ in range(UNITS // tasks):
            await unit()

    count = UNITS // tasks * tasks
    cpu, started = _cpu(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(tasks)))
    return count / (time.perf_counter() - started), (_cpu() - cpu) / count * 1e6


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
