"""One client per database. A command takes at most `redis.timeout`; after a failure the circuit is open for a moment and calls
fail at once, so that an outage costs requests next to nothing."""

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
RESERVED = 8  # of them for dedicated connections, the feed of revocations and health checks
T = TypeVar("T")
FAILURES = (RedisError, OSError, TimeoutError)


class RedisClient:
    """`client` is redis-py's."""

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
        # redis-py's pool raises when it has no connection left; calls wait here instead.
        self._turns = asyncio.Semaphore(CONNECTIONS - RESERVED)
        self._metrics = metrics
        self._open_until = 0.0

    @property
    def circuit_open(self) -> bool:
        """Whether a failure was less than `CIRCUIT_OPEN_TIME` ago."""
        return time.monotonic() < self._open_until

    async def run(self, purpose: str, call: Callable[[Any], Awaitable[T]]) -> T:
        """What `call(client)` returns. `purpose` labels the metrics. Raises `Unavailable` when Redis is out of reach or the
        circuit is open."""
        started = time.perf_counter()
        try:
            async with self._turns:
                if self.circuit_open:
                    raise Unavailable("Redis is out of reach")
                result = await call(self.client)
        except FAILURES as error:
            self._open_until = time.monotonic() + CIRCUIT_OPEN_TIME
            log.warning("redis_failed", purpose=purpose, error=f"{type(error).__name__}: {str(error)[:200]}")
            self._metrics.redis_errors.labels(purpose).inc()
            raise Unavailable("Redis is out of reach") from error
        self._metrics.redis_duration.labels(purpose).observe(time.perf_counter() - started)
        return result

    async def ping(self) -> None:
        """Asks also while the circuit is open, and closes it on success. Raises `Unavailable`."""
        try:
            await self.client.ping()
        except FAILURES as error:
            raise Unavailable("Redis is out of reach") from error
        self._open_until = 0.0

    async def close(self) -> None:
        await self.client.aclose()


class CacheRedis(RedisClient):
    """The database of rate limits, cached counts and open sockets (`redis.cache_db`)."""

    def __init__(self, settings: RedisSettings, metrics: Metrics) -> None:
        super().__init__(settings, settings.cache_db, metrics)


class AuthRedis(RedisClient):
    """The database of sessions and revocations (`redis.auth_db`)."""

    def __init__(self, settings: RedisSettings, metrics: Metrics) -> None:
        super().__init__(settings, settings.auth_db, metrics)


class Script:
    """A Lua script: EVALSHA, and SCRIPT LOAD first when the server does not know it."""

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
    """One connection, kept, for one command at a time: half the CPU of a command through redis-py's pool."""

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    async def evalsha(self, sha: str, *parts: Any) -> Any:
        return await self._execute("EVALSHA", sha, *parts)

    async def script_load(self, source: str) -> Any:
        return await self._execute("SCRIPT LOAD", source)

    async def _execute(self, *command: Any) -> Any:
        if self._connection is None:
            self._connection = await self._pool.get_connection()
        connection = self._connection
        try:
            await connection.send_command(*command)
            return await connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            # A response may be half read: the connection cannot be used again.
            self._connection = None
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
            raise
