"""Our rate limit script against the library `limits`, on the same Valkey: microseconds of client CPU a decision."""

import asyncio
import resource
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from hw_server.observability.metrics import Metrics
from hw_server.ratelimit import RateLimiter
from hw_server.redis import Keys, RedisClient
from hw_server.settings import RedisSettings, load

DECISIONS = 4000


async def measure(decide: object, concurrency: int) -> tuple[float, float]:
    """Decisions a second, and CPU microseconds of this process for each."""

    async def work() -> None:
        for _ in range(DECISIONS // concurrency):
            await decide()  # type: ignore[operator]

    cpu, started = _cpu(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return DECISIONS / (time.perf_counter() - started), (_cpu() - cpu) / DECISIONS * 1e6


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def compare(redis_url: str) -> dict[int, tuple[tuple[float, float], tuple[float, float]]]:
    """For each concurrency: (the library, ours)."""
    settings = load({"HW_RATELIMIT__HTTP_PER_MINUTE": "100000000", "HW_REDIS__URL": redis_url})
    redis: RedisSettings = settings.redis
    metrics = Metrics()
    client = RedisClient(redis, redis.cache_db, metrics)
    ours = RateLimiter(settings.ratelimit, client, Keys("bench:"), metrics)
    storage = RedisStorage(f"async+{redis_url}", implementation="redispy")
    library = SlidingWindowCounterRateLimiter(storage)
    item = RateLimitItemPerMinute(100_000_000)

    async def theirs() -> None:
        # A decision and what the headers tell of it, as our one round trip gives both.
        await library.hit(item, "user")
        await library.get_window_stats(item, "user")

    figures = {}
    for concurrency in (1, 32):
        await measure(theirs, concurrency)
        await measure(lambda: ours.check("http", "user"), concurrency)
        figures[concurrency] = (
            await measure(theirs, concurrency),
            await measure(lambda: ours.check("http", "user"), concurrency),
        )
    await client.close()
    return figures
