"""The connection pool. `read` acquires a connection, `write` one with an open transaction."""

import asyncio
from collections import deque
from random import uniform
from time import monotonic, perf_counter
from typing import Any

import asyncpg

from hw_server.db import ahead
from hw_server.db.errors import REUSABLE_AFTER, domain_error
from hw_server.errors import DomainError, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.settings import DatabaseSettings

KEYWORDS = ("select", "insert", "update", "delete")
CANCEL_TIMEOUT = 2.0  # seconds for PostgreSQL to cancel a statement
JITTER = 0.05  # share of the maximum age by which connections expire earlier, so that they are not replaced together


class Connection(asyncpg.Connection):
    """Times every statement that is waited for."""

    observe: Any = None  # callable(statement, seconds), set by the pool
    expires: float = 0.0  # time.monotonic(), set by the pool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ahead: dict[str, Any] = {}  # prepared statements by their SQL

    def begin(self) -> None:
        """Starts a transaction, whose BEGIN is answered with the first statement. `transaction()` in it is a savepoint."""
        self._top_xact = self.transaction()
        self._transport.write(ahead.BEGIN)  # type: ignore[attr-defined]

    async def end(self, statement: str) -> None:
        """COMMIT or ROLLBACK, not as a simple query: it is to be skipped where what was sent ahead fails."""
        self._top_xact = None  # type: ignore[assignment]
        await self.fetchval(statement)

    async def execute_ahead(self, query: str, *args: ahead.Argument) -> None:
        """Executes a query that returns no rows without waiting for its answer: the next statement raises its error. It stays
        prepared. `args` have the types of its parameters; raises `DataError` for text that UTF-8 cannot encode."""
        statement = self._ahead.get(query)
        if statement is None:
            statement = self._ahead[query] = await self.prepare(query, name=f"ahead_{len(self._ahead)}")
        try:
            message = ahead.execute(statement.get_name(), args)
        except UnicodeEncodeError as error:
            raise asyncpg.DataError(str(error)) from error
        self._transport.write(message)  # type: ignore[attr-defined]

    def is_in_transaction(self) -> bool:
        """Also where the driver does not know yet, as BEGIN is not answered."""
        return self._top_xact is not None or bool(super().is_in_transaction())

    async def executemany(self, *args: Any, **kwargs: Any) -> None:
        await self._begun()
        await super().executemany(*args, **kwargs)

    async def prepare(self, *args: Any, **kwargs: Any) -> Any:
        await self._begun()
        return await super().prepare(*args, **kwargs)

    async def _begun(self) -> None:
        """Waits for the answer to BEGIN. The driver ends an `executemany` outside a transaction that fails by a ROLLBACK of its
        own: what follows would be none of the transaction."""
        if self._top_xact is not None and not super().is_in_transaction():
            await self.fetchval("SELECT 1")

    def terminate(self) -> None:
        self._ahead.clear()  # they refer to the connection
        super().terminate()

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

    It is not asyncpg's because that one costs more client CPU for the same work, even without its reset query
    (docs/performance.md): it wraps each acquired connection in a proxy and releases it in a task, and it knows no maximum age.
    Nothing is reset here, so session state may only be set inside a transaction (`SET LOCAL`).

    `read` and `write` raise a `DomainError` where `domain_error` knows one for what the driver raised, in the block or
    while connecting; after any other exception in the block the connection is terminated, as its state is not known.
    """

    def __init__(self, settings: DatabaseSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._errors = metrics.db_errors
        self._idle: list[Connection] = []  # the last released is acquired first: its caches are warm
        self._all: set[Connection] = set()
        self._connecting = 0
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._closed = False
        self._timers = {word: metrics.db_query.labels(word).observe for word in (*KEYWORDS, "other")}
        self._size = {state: metrics.db_pool_size.labels(state) for state in ("open", "idle", "limit")}

    def read(self) -> "Acquired":
        """A connection in autocommit mode."""
        return Acquired(self)

    def write(self) -> "InTransaction":
        """A connection in a transaction: committed at the end of the block, rolled back by any exception."""
        return InTransaction(self)

    async def ping(self) -> None:
        async with self.read() as connection:
            await connection.fetchval("SELECT 1")

    def report(self) -> None:
        """Sets the pool's gauges; called before a scrape."""
        self._size["open"].set(len(self._all))
        self._size["idle"].set(len(self._idle))
        self._size["limit"].set(self._settings.pool_max)

    async def acquire(self) -> Connection:
        """Waits in a queue while all are acquired; raises what `asyncpg.connect` raises, and `Unavailable` after `stop`."""
        while True:
            if self._closed:
                raise Unavailable("the server is stopping")
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed() and monotonic() < connection.expires:
                    return connection
                connection.terminate()
                self._all.discard(connection)
            if len(self._all) + self._connecting < self._settings.pool_max:
                return await self._connect()
            waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                connection_or_room = await waiter
            except asyncio.CancelledError:
                # Cancelled in the same iteration of the loop in which it was woken: its connection goes to the next waiter.
                if waiter.done() and not waiter.cancelled():
                    if (unused := waiter.result()) is not None:
                        self.release(unused)
                    else:
                        self._wake()
                raise
            if connection_or_room is not None:
                if not connection_or_room.is_closed():
                    return connection_or_room
                connection_or_room.terminate()  # lost since it was released
                self._all.discard(connection_or_room)

    async def _connect(self) -> Connection:
        self._connecting += 1
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
            self._connecting -= 1
        if self._closed:
            connection.terminate()
            raise Unavailable("the server is stopping")
        connection.observe = self._observe
        connection.expires = monotonic() + self._settings.connection_max_age * uniform(1 - JITTER, 1)  # noqa: S311
        self._all.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """Takes back a connection in a clean state: open, outside a transaction, no statement running."""
        if self._closed or monotonic() >= connection.expires:
            self.terminate(connection)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)

    async def reclaim(self, connection: Connection) -> None:
        """Takes back a connection whose statement was cancelled, after PostgreSQL has taken the request to cancel it: closed at
        once, the connection would drop that request and leave the statement running. It counts as acquired until then, which
        bounds the number of cancellations."""
        try:
            await connection._protocol._wait_for_cancellation(CANCEL_TIMEOUT)  # type: ignore[attr-defined]
        except BaseException as error:
            self.terminate(connection)
            if not isinstance(error, Exception):
                raise
            return
        if connection.is_closed() or connection.is_in_transaction():
            self.terminate(connection)
        else:
            self.release(connection)

    def terminate(self, connection: Connection) -> None:
        """Closes an expired connection, or one in an unknown state, at once: asyncpg's `close` waits for the server."""
        connection.terminate()
        self._all.discard(connection)
        self._wake()

    def _wake(self) -> None:
        """Tells the first waiter that there is room for a connection of its own."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def stop(self, timeout: float = 5.0) -> None:
        """Refuses waiters, waits up to `timeout` seconds for acquired connections, then terminates all."""
        self._closed = True
        while self._waiters:
            self._wake()
        deadline = monotonic() + timeout
        while len(self._idle) < len(self._all) and monotonic() < deadline:
            await asyncio.sleep(0.05)
        for connection in self._all:
            connection.terminate()
        self._all.clear()
        self._idle.clear()

    def _observe(self, query: str, seconds: float) -> None:
        (self._timers.get(query[:6].lower()) or self._timers["other"])(seconds)

    def count(self, error: DomainError) -> None:
        self._errors.labels(error.code).inc()


class Acquired:
    """One acquired connection, for the length of a block."""

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
        if isinstance(error, asyncio.CancelledError):
            await self._db.reclaim(connection)
            return
        reusable = error is None or isinstance(error, REUSABLE_AFTER)
        if reusable and not connection.is_closed() and not connection.is_in_transaction():
            self._db.release(connection)
        else:
            self._db.terminate(connection)
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


class InTransaction(Acquired):
    """One acquired connection in a transaction, for the length of a block."""

    __slots__ = ()

    async def __aenter__(self) -> Connection:
        connection = await super().__aenter__()
        connection.begin()
        return connection

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        assert self._connection is not None
        try:
            await self._connection.end("COMMIT" if error is None else "ROLLBACK")
        except BaseException as failure:
            await super().__aexit__(type(failure), failure, failure.__traceback__)
            raise
        await super().__aexit__(kind, error, trace)


def connect_options(settings: DatabaseSettings) -> dict[str, Any]:
    """Arguments of `asyncpg.connect`."""
    options: dict[str, Any] = {"dsn": settings.url.get_secret_value()}
    if settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    return options
