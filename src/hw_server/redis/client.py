"""One client per database. An answer takes at most `redis.timeout`; after a failure the next attempt waits a moment,
so that an outage costs requests nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio as redis
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from hw_server.errors import Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.settings import RedisSettings

log = structlog.get_logger()

CIRCUIT_OPEN_TIME = 1.0  # seconds without attempts after a failure
CONNECTIONS = 64  # at most, per database
RESERVED = 8  # of them for the lane, the feed of revocations and health checks
T = TypeVar("T")
FAILURES = (RedisError, OSError, TimeoutError)


class RedisClient:
    def __init__(self, settings: RedisSettings, db: int, metrics: Metrics) -> None:
        self.client: Any = redis.Redis.from_url(
            settings.url.get_secret_value(),
            db=db,
            password=settings.password.get_secret_value() if settings.password else None,
            socket_timeout=settings.timeout,
            socket_connect_timeout=settings.timeout,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            max_connections=CONNECTIONS,
            client_name="hw-server",
        )
        self.dedicated = DedicatedConnection(self.client)
        # The pool raises where it has no connection left; calls wait here for their turn instead.
        self._turns = asyncio.Semaphore(CONNECTIONS - RESERVED)
        self._metrics = metrics
        self._closed_until = 0.0

    @property
    def circuit_open(self) -> bool:
        """True in the moment after a failure."""
        return time.monotonic() < self._closed_until

    async def run(self, purpose: str, call: Callable[[Any], Awaitable[T]]) -> T:
        """The answer of `call`; `Unavailable` where Redis is out of reach or was a moment ago."""
        started = time.perf_counter()
        try:
            async with self._turns:
                if self.circuit_open:
                    raise Unavailable("Redis is out of reach")
                answer = await call(self.client)
        except FAILURES as error:
            self._closed_until = time.monotonic() + CIRCUIT_OPEN_TIME
            log.warning("redis_failed", purpose=purpose, error=f"{type(error).__name__}: {str(error)[:200]}")
            self._metrics.redis_errors.labels(purpose).inc()
            raise Unavailable("Redis is out of reach") from error
        self._metrics.redis_duration.labels(purpose).observe(time.perf_counter() - started)
        return answer

    async def ping(self) -> None:
        """Asks also in the moment after a failure, and ends that moment when it succeeds."""
        try:
            await self.client.ping()
        except FAILURES as error:
            raise Unavailable("Redis is out of reach") from error
        self._closed_until = 0.0

    async def close(self) -> None:
        await self.client.aclose()


class Script:
    """A Lua script, sent by its hash and again whole where the server does not know it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._sha: str | None = None

    async def run(self, client: Any, keys: list[str], args: list[Any]) -> Any:
        """`client` is whatever has `evalsha` and `script_load`."""
        if self._sha is not None:
            try:
                return await client.evalsha(self._sha, len(keys), *keys, *args)
            except NoScriptError:
                pass
        self._sha = await client.script_load(self.source)
        return await client.evalsha(self._sha, len(keys), *keys, *args)


class DedicatedConnection:
    """One connection for one caller at a time: half of what a command through the pool costs."""

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    async def evalsha(self, sha: str, *parts: Any) -> Any:
        return await self._ask("EVALSHA", sha, *parts)

    async def script_load(self, source: str) -> Any:
        return await self._ask("SCRIPT LOAD", source)

    async def _ask(self, *command: Any) -> Any:
        if self._connection is None:
            self._connection = await self._pool.get_connection()
        connection = self._connection
        try:
            await connection.send_command(*command)
            return await connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            # Half an answer may be on its way: this connection is not asked again.
            self._connection = None
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
            raise
