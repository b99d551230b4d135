"""The connection pool on a real PostgreSQL, and how a server starts while PostgreSQL is away."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import psutil
import pytest

from hw_server.db import Database, ahead, revisions
from hw_server.embedded import Stack
from hw_server.errors import Conflict, DomainError, InvalidInput, NotFound, Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.settings import load
from tests.conftest import Serve, free_port, run_server, run_stack, until
from tests.proxy import Proxy

PID = "SELECT pg_backend_pid()"
STATE = "SELECT state FROM pg_stat_activity WHERE pid = $1"
CANCEL_REQUEST = (80877102).to_bytes(4, "big")
REJECTED = "FATAL:  the database system is not accepting connections"


@asynccontextmanager
async def pool(stack: Stack, **settings: str) -> AsyncIterator[Database]:
    url = stack.environment()["HW_DATABASE__URL"]
    db = Database(load({"HW_DATABASE__URL": url, **settings}).database, Metrics())
    yield db
    await db.stop(timeout=0)


async def backend(db: Database) -> int:
    async with db.read() as connection:
        return int(await connection.fetchval(PID))


async def test_a_served_connection_is_replaced_after_its_age(
    serve: Serve, database: asyncpg.Connection, token: Callable[[str], str]
) -> None:
    with serve(HW_DATABASE__CONNECTION_MAX_AGE="0.5") as running:
        process = psutil.Process(running.process.pid)

        async def backends() -> set[int]:
            ports = [connection.laddr.port for connection in process.net_connections() if connection.raddr]
            rows = await database.fetch(
                "SELECT pid FROM pg_stat_activity WHERE client_port = ANY($1) AND application_name = 'hw-server'", ports
            )
            return {row["pid"] for row in rows}

        async with running.client(token("alice")) as client:

            async def used() -> set[int]:
                assert (await client.get("/api/notes")).status_code == 200
                return await backends()

            first = await until(used)

            async def replaced() -> bool:
                return first.isdisjoint(await used())

            await until(replaced)


async def test_a_connection_expires_in_use_and_is_closed_when_released(
    stack: Stack, database: asyncpg.Connection
) -> None:
    async with pool(stack, HW_DATABASE__CONNECTION_MAX_AGE="0.2") as db:
        async with db.write() as connection:
            pid = await connection.fetchval(PID)
            await connection.execute("SELECT pg_sleep(0.5)")
            assert await connection.fetchval(PID) == pid

        async def gone() -> bool:
            return not await database.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid)

        await until(gone)
        assert await backend(db) != pid


async def test_an_idle_connection_that_expired_is_not_acquired(stack: Stack) -> None:
    async with pool(stack, HW_DATABASE__CONNECTION_MAX_AGE="0.5") as db:
        first = await backend(db)
        await asyncio.sleep(0.6)
        assert await backend(db) != first


async def commit(db: Database, *statements: str) -> None:
    async with db.write() as connection:
        for statement in statements:
            await connection.execute(statement)


async def test_a_young_connection_is_used_again_after_a_refused_statement(stack: Stack) -> None:
    async with pool(stack) as db:
        first = await backend(db)
        with pytest.raises(Conflict):
            await commit(
                db, "CREATE TEMP TABLE once (id int UNIQUE) ON COMMIT DROP", "INSERT INTO once VALUES (1), (1)"
            )
        assert await backend(db) == first


async def test_a_connection_in_an_unknown_state_is_not_acquired_again(stack: Stack) -> None:
    async with pool(stack) as db:
        first = await backend(db)
        with suppress(KeyError):
            async with db.read():
                raise KeyError
        assert await backend(db) != first


INSERT = "INSERT INTO notes (title) VALUES ($1)"


async def in_savepoint(connection: asyncpg.Connection, title: str) -> None:
    async with connection.transaction():
        await connection.execute(INSERT, title)


FIRST: dict[str, Callable[[asyncpg.Connection, str], Awaitable[Any]]] = {
    "execute": lambda connection, title: connection.execute(INSERT, title),
    "without parameters": lambda connection, title: connection.execute(INSERT.replace("$1", f"'{title}'")),
    "fetchval": lambda connection, title: connection.fetchval(f"{INSERT} RETURNING id", title),
    "executemany": lambda connection, title: connection.executemany(INSERT, [(title,)]),
    "copy": lambda connection, title: connection.copy_records_to_table("notes", records=[(title,)], columns=["title"]),
    "savepoint": in_savepoint,
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("warm", [False, True])
async def test_a_transaction_begins_with_its_first_statement(
    stack: Stack, database: asyncpg.Connection, first: str, warm: bool
) -> None:
    """`warm`: the statement is prepared already."""
    title, count = f"first {uuid4()}", "SELECT count(*) FROM notes WHERE title = $1"
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        if warm:
            async with db.write() as connection:
                await FIRST[first](connection, f"warm {title}")
        with suppress(Conflict):
            async with db.write() as connection:
                await FIRST[first](connection, title)
                assert await connection.fetchval(count, title) == 1
                assert await database.fetchval(count, title) == 0
                raise Conflict
        assert await database.fetchval(count, title) == 0
        async with db.write() as connection:
            await FIRST[first](connection, title)
        assert await database.fetchval(count, title) == 1
        assert await database.fetchval(STATE, await backend(db)) == "idle"


async def refused_by_the_driver(connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO notes (title, due) VALUES ('late', $1)", "no date")


async def refused_by_the_server(connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO notes (title) VALUES ('')")


async def not_found(connection: asyncpg.Connection) -> None:
    raise NotFound


@pytest.mark.parametrize("first", [refused_by_the_driver, refused_by_the_server, not_found])
async def test_a_transaction_whose_first_statement_fails_ends(
    stack: Stack, database: asyncpg.Connection, first: Callable[[asyncpg.Connection], Awaitable[None]]
) -> None:
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        used = await backend(db)
        with pytest.raises(DomainError):
            async with db.write() as connection:
                await first(connection)
        assert await database.fetchval(STATE, used) == "idle"
        assert await backend(db) == used


async def test_a_transaction_without_a_statement_ends(stack: Stack, database: asyncpg.Connection) -> None:
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        used = await backend(db)
        async with db.write():
            pass
        assert await database.fetchval(STATE, used) == "idle"
        assert await backend(db) == used


@pytest.mark.parametrize("first", FIRST)
async def test_where_begin_fails_its_statement_is_not_executed(
    stack: Stack, database: asyncpg.Connection, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = f"no begin {uuid4()}"
    monkeypatch.setattr(ahead, "BEGIN", ahead.BEGIN.replace(b"BEGIN", b"BEGEN"))
    async with pool(stack, HW_DATABASE__COMMAND_TIMEOUT="1") as db:
        with suppress(Exception):
            async with db.write() as connection:
                await FIRST[first](connection, title)
    assert await database.fetchval("SELECT count(*) FROM notes WHERE title = $1", title) == 0


SENT_AHEAD = "INSERT INTO sent SELECT $1::text, $2::text[], $3::int, $4::real, $5::timestamptz"
MOMENT = datetime(2026, 2, 28, 23, 59, 59, 123456, UTC)


@pytest.mark.parametrize(
    "sent",
    [
        ("", [], 0, 0.0, MOMENT),
        (None, None, None, None, None),
        ('it\'s \\ "quoted" $1 \n{}', ["", "a,b", "{c}", 'd"e', "\\", "NULL", "it's"], -(2**31), -1.5, MOMENT),
        ("\U0001f600 Zürich", ("\U0001f600",), 2**31 - 1, 2.0**-20, MOMENT.astimezone(timezone(timedelta(hours=-9)))),
    ],
)
async def test_what_is_sent_ahead_arrives_as_it_is(stack: Stack, sent: tuple[Any, ...]) -> None:
    async with pool(stack) as db, db.write() as connection:
        await connection.execute(
            "CREATE TEMP TABLE sent (a text, b text[], c int, d real, e timestamptz) ON COMMIT DROP"
        )
        for _ in range(3):
            await connection.execute_ahead(SENT_AHEAD, *sent)
        rows = await connection.fetch("SELECT * FROM sent")
        expected = (sent[0], None if sent[1] is None else list(sent[1]), *sent[2:])
        assert [tuple(row) for row in rows] == [expected] * 3


@pytest.mark.parametrize("title", ["", "a\0b", "\ud800"])
async def test_a_failure_of_what_is_sent_ahead_undoes_all(
    stack: Stack, database: asyncpg.Connection, title: str
) -> None:
    first, count = f"ahead {uuid4()}", "SELECT count(*) FROM notes WHERE title = $1"
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        for _ in range(2):
            with pytest.raises(InvalidInput):
                await insert_ahead(db, first, title)
            assert await database.fetchval(count, first) == 0
        await insert_ahead(db, first, f"{first}, too")
        assert await database.fetchval("SELECT count(*) FROM notes WHERE starts_with(title, $1)", first) == 2


async def insert_ahead(db: Database, *titles: str) -> None:
    async with db.write() as connection:
        for title in titles:
            await connection.execute_ahead(INSERT, title)


async def test_what_is_sent_ahead_is_not_executed_where_begin_fails(
    stack: Stack, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = f"skipped {uuid4()}"
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        await insert_ahead(db, f"warm {title}")
        monkeypatch.setattr(ahead, "BEGIN", ahead.BEGIN.replace(b"BEGIN", b"BEGEN"))
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await insert_ahead(db, title)
    assert await database.fetchval("SELECT count(*) FROM notes WHERE title = $1", title) == 0


async def test_several_statements_are_sent_ahead(stack: Stack, database: asyncpg.Connection) -> None:
    title = f"several {uuid4()}"
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        for round_ in "ab":
            async with db.write() as connection:
                await connection.execute_ahead(INSERT, f"{title} {round_}")
                await connection.execute_ahead(
                    "UPDATE notes SET text = $2 WHERE title = $1", f"{title} {round_}", round_
                )
    rows = await database.fetch("SELECT text FROM notes WHERE starts_with(title, $1) ORDER BY id", title)
    assert [row["text"] for row in rows] == ["a", "b"]


async def test_a_commit_cancelled_behind_a_lock_leaves_its_room(stack: Stack, database: asyncpg.Connection) -> None:
    title = f"locked {uuid4()}"
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        used = await backend(db)
        async with database.transaction():
            await database.execute(INSERT, title)  # which makes the second one wait
            task = asyncio.create_task(insert_ahead(db, title))
            await until(lambda: database.fetchval("SELECT $1 = ANY(SELECT pid FROM pg_locks WHERE NOT granted)", used))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.wait_for(insert_ahead(db, f"{title}, too"), 20)


async def test_a_refused_commit_keeps_its_connection(stack: Stack) -> None:
    deferred = "CREATE TEMP TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP"
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        used = await backend(db)
        with pytest.raises(Conflict):
            await commit(db, deferred, "INSERT INTO late VALUES (1), (1)")
        assert await backend(db) == used


async def test_what_the_driver_refuses_does_not_end_the_transaction(stack: Stack, database: asyncpg.Connection) -> None:
    title = f"swallowed {uuid4()}"
    async with pool(stack) as db:
        with suppress(Conflict):
            async with db.write() as connection:
                with suppress(asyncpg.DataError):
                    await connection.executemany(INSERT, [(f"{title} a",), (5,)])
                with suppress(asyncpg.PostgresError):
                    await connection.execute(INSERT, f"{title} b")
                raise Conflict
    assert await database.fetchval("SELECT count(*) FROM notes WHERE starts_with(title, $1)", title) == 0


async def test_a_transaction_is_known_from_its_begin_to_its_end(stack: Stack) -> None:
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        async with db.write() as connection:
            assert connection.is_in_transaction()
            cursor = await connection.cursor("SELECT generate_series(1, 3)")
            assert len(await cursor.fetch(9)) == 3
        async with db.read() as connection:
            assert not connection.is_in_transaction()
            async with connection.transaction():
                assert await connection.fetchval("SELECT 1") == 1


async def test_a_waiter_is_given_no_connection_that_was_lost(stack: Stack) -> None:
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        first = await db.acquire()
        waiter = asyncio.create_task(insert_ahead(db, f"waited {uuid4()}"))
        await asyncio.sleep(0.05)
        db.release(first)
        first.terminate()  # before the waiter runs
        await asyncio.wait_for(waiter, 20)


async def test_no_more_connections_than_the_pool_holds(stack: Stack) -> None:
    async with pool(stack, HW_DATABASE__POOL_MAX="3") as db:
        assert len(set(await asyncio.gather(*(backend(db) for _ in range(50))))) <= 3


async def test_a_cancelled_waiter_leaves_its_turn_to_the_next(stack: Stack) -> None:
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db:
        with suppress(KeyError):
            async with db.read():
                first, second = asyncio.create_task(backend(db)), asyncio.create_task(backend(db))
                await asyncio.sleep(0)  # both wait
                raise KeyError
        first.cancel()  # woken already, but it did not run yet
        assert await asyncio.wait_for(second, 20)


async def test_a_stopped_pool_refuses_those_who_wait(stack: Stack) -> None:
    async with pool(stack, HW_DATABASE__POOL_MAX="1") as db, db.read():
        waiting = [asyncio.create_task(backend(db)) for _ in range(3)]
        await asyncio.sleep(0)
        await db.stop(timeout=0)
        answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
    assert [type(answer) for answer in answers] == [Unavailable] * 3


async def abandon(db: Database) -> None:
    """A statement whose client goes away."""
    task = asyncio.current_task()
    assert task is not None
    async with db.read() as connection:
        asyncio.get_running_loop().call_later(0.1, task.cancel)
        await connection.execute("SELECT pg_sleep(10)")


async def test_there_are_no_more_cancellations_than_connections(stack: Stack) -> None:
    """Even while PostgreSQL is slow to take them; each needs a connection of its own."""
    with Proxy.running(stack.ports.postgres) as proxy:
        proxy.hold_at = CANCEL_REQUEST
        url = stack.environment()["HW_DATABASE__URL"].replace(f":{stack.ports.postgres}/", f":{proxy.port}/")
        async with pool(stack, HW_DATABASE__URL=url, HW_DATABASE__POOL_MAX="2") as db:
            abandoned = asyncio.gather(*(abandon(db) for _ in range(6)), return_exceptions=True)
            most = 0
            while not abandoned.done():
                open_ = [
                    item for item in psutil.Process().net_connections() if item.raddr and item.raddr.port == proxy.port
                ]
                most = max(most, len(open_))
                await asyncio.sleep(0.01)
    assert 2 < most <= 4


@pytest.fixture(scope="module")
def other() -> Iterator[Stack]:
    """A stack of its own, as PostgreSQL is stopped."""
    with run_stack() as stack:
        yield stack


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def start_as_standby_then_promote(stack: Stack, app_port: int) -> None:
    """Once the application listens, starts a PostgreSQL that rejects connections, and promotes it after it did."""
    await until(lambda: listens(app_port))
    postgresql = stack.processes["postgresql"]
    data = Path(postgresql.spec.command[postgresql.spec.command.index("-D") + 1])
    postgresql.spec.command += ["-c", "hot_standby=off"]
    (data / "standby.signal").touch()
    before = postgresql.log.read_text().count(REJECTED)
    postgresql.start()
    await until(lambda: postgresql.log.read_text().count(REJECTED) > before)
    (data / "promote").touch()
    assert postgresql.pid is not None
    os.kill(postgresql.pid, signal.SIGUSR1)


def test_a_server_waits_for_postgresql_to_accept_connections(other: Stack, tmp_path: Path) -> None:
    other.processes["postgresql"].stop()
    environment = {**other.environment(), "HW_HTTP__PORT": str(free_port())}
    starting = start_as_standby_then_promote(other, int(environment["HW_HTTP__PORT"]))
    with ThreadPoolExecutor(1) as helper:
        promoted = helper.submit(asyncio.run, starting)
        with run_server(environment, tmp_path) as running:
            promoted.result()
            assert httpx.get(f"{running.url}/health").json()["status"] == "ok"


def head() -> str:
    [revision] = revisions.heads()
    return revision


def start_in_vain(stack: Stack, **settings: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HW_")}
    environment = {**clean, **stack.environment(), "HW_HTTP__PORT": str(free_port()), **settings}
    command = [sys.executable, "-m", "hw_server.cli", "serve"]
    # Shorter than the wait for a PostgreSQL that is away.
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=45)


def test_a_wrong_password_ends_the_start(stack: Stack) -> None:
    result = start_in_vain(stack, HW_DATABASE__PASSWORD="wrong")
    line = 'migrations failed: password authentication failed for user "hw"\n'
    assert (result.returncode, result.stderr) == (1, line)


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        ("CREATE TABLE user_actions ()", 'relation "user_actions" already exists'),
        (
            "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('newer')",
            "the database is at revision newer, which no file in migrations/versions has: get the code that has it, or "
            f"`hw migrate stamp {head()}` where the tables are right as they are",
        ),
    ],
)
async def test_a_broken_migration_ends_the_start(stack: Stack, prepare: str, line: str) -> None:
    url = f"postgresql://postgres:postgres@127.0.0.1:{stack.ports.postgres}"
    server = await asyncpg.connect(f"{url}/postgres")
    await server.execute("DROP DATABASE IF EXISTS broken WITH (FORCE)")
    await server.execute("CREATE DATABASE broken")
    await server.close()
    broken = await asyncpg.connect(f"{url}/broken")
    await broken.execute(prepare)
    await broken.close()
    result = await asyncio.to_thread(start_in_vain, stack, HW_DATABASE__URL=f"{url}/broken")
    assert (result.returncode, result.stderr) == (1, f"migrations failed: {line}\n")
