"""The connection pool. `read` gives a connection, `write` one with an open transaction."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import structlog

from hw_server.errors import Conflict, DomainError, InvalidInput, Timeout, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.settings import Database as DatabaseSettings

log = structlog.get_logger()

UNREACHABLE = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
KEYWORDS = ("select", "insert", "update", "delete", "with")


class Connection(asyncpg.Connection):  # type: ignore[type-arg]
    """Times every statement. Session state is never set outside a transaction, so a release needs no reset query
    (one round trip less per request)."""

    timer: Any = None  # callable(statement, seconds), given by the pool's `init`

    def get_reset_query(self) -> str:
        return ""

    async def _timed(self, query: str, call: Any) -> Any:
        started = time.perf_counter()
        try:
            return await call
        finally:
            if (timer := self.timer) is not None:
                timer(query, time.perf_counter() - started)

    async def fetch(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return await self._timed(query, super().fetch(query, *args, **kwargs))

    async def fetchrow(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return await self._timed(query, super().fetchrow(query, *args, **kwargs))

    async def fetchval(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return await self._timed(query, super().fetchval(query, *args, **kwargs))

    async def execute(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return await self._timed(query, super().execute(query, *args, **kwargs))


class Database:
    """Opens connections on demand: the server starts, answers and recovers with PostgreSQL out of reach."""

    def __init__(self, settings: DatabaseSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._pool: asyncpg.Pool[Any] | None = None
        self._timers = {word: metrics.db_query.labels(word).observe for word in (*KEYWORDS, "other")}
        self._size = {state: metrics.db_pool_size.labels(state) for state in ("open", "idle")}

    @property
    def pool(self) -> "asyncpg.Pool[Any]":
        if self._pool is None:
            raise Unavailable("the server is starting or stopping")
        return self._pool

    async def start(self) -> None:
        options = connect_options(self._settings)
        self._pool = await asyncpg.create_pool(
            **options,
            min_size=0,
            max_size=self._settings.pool_max,
            timeout=self._settings.acquire_timeout,
            command_timeout=self._settings.command_timeout,
            connection_class=Connection,
            init=self._init,
            server_settings={"application_name": "hw-server"},
        )

    async def stop(self, timeout: float = 5.0) -> None:
        """Waits for borrowed connections, then cuts them."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), timeout)
        except TimeoutError:
            pool.terminate()

    async def _init(self, connection: Connection) -> None:
        connection.timer = self._observe

    def _observe(self, query: str, seconds: float) -> None:
        word = query.lstrip().partition(" ")[0].lower()
        (self._timers.get(word) or self._timers["other"])(seconds)

    def report(self) -> None:
        """Sets the pool's gauges; called before a scrape."""
        if self._pool is not None:
            self._size["open"].set(self._pool.get_size())
            self._size["idle"].set(self._pool.get_idle_size())

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        """A connection in autocommit mode."""
        async with self._borrowed() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Connection]:
        """A connection in a transaction: committed at the end of the block, rolled back by any exception."""
        async with self._borrowed() as connection:
            async with connection.transaction():
                yield connection

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[Connection]:
        with self.translated():
            async with self.pool.acquire(timeout=self._settings.acquire_timeout) as connection:
                yield connection

    def translated(self) -> "Translated":
        return Translated(self._metrics)

    async def ping(self) -> None:
        async with self.read() as connection:
            await connection.fetchval("SELECT 1", timeout=2)


class Translated:
    """Turns driver errors into domain errors, in one place."""

    __slots__ = ("_metrics",)

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, DomainError):
            return
        domain = domain_error(error)
        if domain is not None:
            self._metrics.db_errors.labels(domain.code).inc()
            raise domain from error


def domain_error(error: BaseException) -> DomainError | None:
    """What the caller is told about a driver error; None where it is a defect of ours."""
    match error:
        case asyncpg.UniqueViolationError() | asyncpg.ForeignKeyViolationError() | asyncpg.ExclusionViolationError():
            return Conflict(constraint=error.constraint_name)
        case asyncpg.CheckViolationError():
            return InvalidInput([], f"the value breaks the rule {error.constraint_name}")
        case asyncpg.DataError():
            return InvalidInput([], "a value does not fit the database's type")
        case asyncpg.QueryCanceledError():
            return Timeout("the database took too long")
        case asyncpg.DeadlockDetectedError() | asyncpg.SerializationError():
            return Conflict("another request changed the same data; try again")
        case TimeoutError():
            return Unavailable("the database did not answer in time")
        case _ if isinstance(error, UNREACHABLE):
            return Unavailable("the database is out of reach")
    return None


def connect_options(settings: DatabaseSettings) -> dict[str, Any]:
    """Arguments of `asyncpg.connect`."""
    options: dict[str, Any] = {"dsn": settings.url.get_secret_value()}
    if settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    return options
