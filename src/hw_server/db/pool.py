"""The connection pool. `read` gives a connection, `write` one with an open transaction."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import asyncpg

from hw_server.errors import Conflict, DomainError, InvalidInput, Timeout, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.settings import DatabaseSettings

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
KEYWORDS = ("select", "insert", "update", "delete")
SOUND = (
    DomainError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
)  # leave a connection fit for use


class Connection(asyncpg.Connection):
    """Times every statement."""

    observe: Any = None  # callable(statement, seconds), given by the pool

    async def fetch(self, query: str, *args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        try:
            return await super().fetch(query, *args, **kwargs)
        finally:
            self.observe(query, perf_counter() - started)

    async def fetchrow(self, query: str, *args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        try:
            return await super().fetchrow(query, *args, **kwargs)
        finally:
            self.observe(query, perf_counter() - started)

    async def fetchval(self, query: str, *args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        try:
            return await super().fetchval(query, *args, **kwargs)
        finally:
            self.observe(query, perf_counter() - started)

    async def execute(self, query: str, *args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        try:
            return await super().execute(query, *args, **kwargs)
        finally:
            self.observe(query, perf_counter() - started)


class Database:
    """A pool that opens connections on demand: the server starts, answers and recovers with PostgreSQL out of reach.

    It is ours and not asyncpg's because of what a request pays: no proxy, no task, no reset round trip (session state is
    never set outside a transaction). A connection that saw anything but a plain SQL error is closed, never given again.
    """

    def __init__(self, settings: DatabaseSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._errors = metrics.db_errors
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening = 0
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._closed = False
        self._timers = {word: metrics.db_query.labels(word).observe for word in (*KEYWORDS, "other")}
        self._size = {state: metrics.db_pool_size.labels(state) for state in ("open", "idle")}

    def read(self) -> "Acquired":
        """A connection in autocommit mode."""
        return Acquired(self)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Connection]:
        """A connection in a transaction: committed at the end of the block, rolled back by any exception."""
        async with Acquired(self) as connection, connection.transaction():
            yield connection

    async def ping(self) -> None:
        async with self.read() as connection:
            await connection.fetchval("SELECT 1")

    def report(self) -> None:
        """Sets the pool's gauges; called before a scrape."""
        self._size["open"].set(len(self._all))
        self._size["idle"].set(len(self._idle))

    async def acquire(self) -> Connection:
        """A connection, after those who asked before; raises what `asyncpg.connect` raises."""
        while True:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    return connection
                self._all.discard(connection)
            if self._closed:
                raise Unavailable("the server is stopping")
            if len(self._all) + self._opening < self._settings.pool_max:
                return await self._open()
            future: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            try:
                given = await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and (lost := future.result()) is not None:
                    self.release(lost)
                raise
            if given is not None:
                return given

    async def _open(self) -> Connection:
        self._opening += 1
        try:
            connection: Connection = await asyncpg.connect(
                **connect_options(self._settings),
                timeout=self._settings.connect_timeout,
                command_timeout=self._settings.command_timeout,
                connection_class=Connection,
                server_settings={"application_name": "hw-server"},
            )
        except BaseException:
            self._wake()
            raise
        finally:
            self._opening -= 1
        connection.observe = self._observe
        self._all.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """Takes a connection back that is fit to be used again."""
        if self._closed:
            self.discard(connection)
            return
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return
        self._idle.append(connection)

    def discard(self, connection: Connection) -> None:
        connection.terminate()
        self._all.discard(connection)
        self._wake()

    def _wake(self) -> None:
        """Lets the first in the queue try to open a connection of its own."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    async def stop(self, timeout: float = 5.0) -> None:
        """Waits for borrowed connections, then cuts them."""
        self._closed = True
        deadline = asyncio.get_running_loop().time() + timeout
        while len(self._idle) < len(self._all) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        for connection in list(self._all):
            connection.terminate()
        self._all.clear()
        self._idle.clear()

    def _observe(self, query: str, seconds: float) -> None:
        (self._timers.get(query[:6].lower()) or self._timers["other"])(seconds)

    def count(self, error: DomainError) -> None:
        self._errors.labels(error.code).inc()


class Acquired:
    """One loan of a connection; turns driver errors into domain errors."""

    __slots__ = ("_connection", "_db")

    def __init__(self, db: Database) -> None:
        self._db = db
        self._connection: Connection | None = None

    async def __aenter__(self) -> Connection:
        try:
            connection = self._connection = await self._db.acquire()
        except Exception as error:
            raise self._translated(error) from error
        return connection

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        connection = self._connection
        assert connection is not None
        sound = error is None or isinstance(error, SOUND)
        if sound and not connection.is_closed() and not connection.is_in_transaction():
            self._db.release(connection)
        else:
            self._db.discard(connection)
        if error is not None and not isinstance(error, DomainError) and isinstance(error, Exception):
            translated = self._translated(error)
            if translated is not error:
                raise translated from error

    def _translated(self, error: Exception) -> Exception:
        domain = domain_error(error)
        if domain is None:
            return error
        self._db.count(domain)
        return domain


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
        case asyncpg.LockNotAvailableError():
            return Unavailable("what the request needs is locked; try again")
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
