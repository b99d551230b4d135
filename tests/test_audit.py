"""Who did what: every change, read, denial and sign-in can be found."""

import asyncio
import contextlib
import fcntl
import getpass
import json
import os
import signal
import socket
import stat
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path

import asyncpg
import httpx
import pytest

from hw_server.audit.partitions import maintain
from hw_server.embedded import Stack
from hw_server.operations.deadlines import Deadline, Deadlines
from tests.conftest import Running, Serve, until
from tests.provider import Provider
from tests.proxy import Proxy
from tests.raw import RawClient, request_headers
from tests.test_settings import hw

Token = Callable[[str], str]


async def rows(client: httpx.AsyncClient, **filters: object) -> list[dict[str, object]]:
    response = await client.get("/api/audit-logs", params=filters)
    assert response.status_code == 200, response.text
    items: list[dict[str, object]] = response.json()["items"]
    return items


async def test_a_change_has_its_row_at_once(alice: httpx.AsyncClient, dave: httpx.AsyncClient) -> None:
    made = await alice.post("/api/notes", json={"title": str(uuid.uuid4())})
    [row] = await rows(dave, request_id=made.headers["x-request-id"])
    assert (row["user_id"], row["username"], row["roles"]) == ("alice", "alice", ["notes:read", "notes:write"])
    assert (row["action"], row["resource"]) == ("notes.create", f"notes/{made.json()['id']}")
    assert (row["outcome"], row["status"], row["source"], row["error"]) == ("success", 201, "http", None)
    assert row["client_ip"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("user", "method", "path", "outcome", "status", "error"),
    [
        ("alice", "GET", "/api/notes?per_page=1", "success", 200, None),
        ("bob", "POST", "/api/notes", "denied", 403, "forbidden"),
        (None, "GET", "/api/notes", "denied", 401, "unauthenticated"),
        ("alice", "GET", "/api/notes/9223372036854775807", "failure", 404, "not_found"),
        ("alice", "GET", "/api/notes/x", "failure", 422, "validation_error"),
        ("alice", "GET", "/api/audit-logs/export", "denied", 403, "forbidden"),
        (None, "GET", "/api/audit-logs/export", "denied", 401, "unauthenticated"),
    ],
)
async def test_other_requests_follow(
    server: Running, token: Token, dave: httpx.AsyncClient, user: str | None, method: str, path: str,
    outcome: str, status: int, error: str | None,
) -> None:  # fmt: skip
    async with server.client(user and token(user)) as client:
        response = await client.request(method, path)
    [row] = await until(lambda: rows(dave, request_id=response.headers["x-request-id"]))
    assert (row["user_id"], row["outcome"], row["status"], row["error"]) == (user, outcome, status, error)


async def test_a_sign_in_on_the_socket_has_its_row(server: Running, token: Token, dave: httpx.AsyncClient) -> None:
    headers = {"Authorization": f"Bearer {token('bob')}", "X-Request-ID": uuid.uuid4().hex}
    async with server.socket(additional_headers=headers) as socket:
        call = await socket.call("notes.create", title="x")
    [row] = await until(lambda: rows(dave, request_id=headers["X-Request-ID"]))
    assert (row["action"], row["outcome"], row["user_id"]) == ("session.authenticate", "success", "bob")
    [denied] = await until(lambda: rows(dave, request_id=call["error"]["data"]["request_id"]))
    assert (denied["source"], denied["action"], denied["outcome"]) == ("ws", "notes.create", "denied")


async def test_a_call_before_the_sign_in_has_its_row(server: Running, dave: httpx.AsyncClient) -> None:
    async with server.socket() as socket:
        call = await socket.call("notes.list")
    [row] = await until(lambda: rows(dave, request_id=call["error"]["data"]["request_id"]))
    assert (row["source"], row["action"], row["outcome"], row["user_id"]) == ("ws", "notes.list", "denied", None)


async def test_a_spooled_file_that_cannot_be_read_is_kept(
    serve: Serve, dave: httpx.AsyncClient, tmp_path: Path
) -> None:
    mine = uuid.uuid4().hex
    row = ["2026-01-02T03:04:05Z", "u", "u", [], mine, None, "success", "http", mine, None, 200, 1.0, None]
    (tmp_path / "1.ndjson").write_text("no row\n")
    (tmp_path / "2.ndjson").write_text(json.dumps(row) + "\n")
    with serve(HW_AUDIT__SPILL_DIR=str(tmp_path)) as running:
        assert len(await until(lambda: rows(dave, action=mine))) == 1
        assert (await running.metrics())['audit_rows_total{result="dropped"}'] == 1
    assert {"1.quarantined"} == {name for _, _, names in os.walk(tmp_path) for name in names}


async def test_reads_may_be_left_out(serve: Serve, token: Token, dave: httpx.AsyncClient) -> None:
    with serve(HW_AUDIT__RECORD_READS="false") as running:
        async with running.client(token("bob")) as bob, running.client(token("alice")) as alice:
            read = await bob.get("/api/notes")
            denied = await bob.post("/api/notes", json={"title": "x"})
            made = await alice.post("/api/notes", json={"title": str(uuid.uuid4())})
    # Stopped: what was recorded is written.
    assert (read.status_code, await rows(dave, request_id=read.headers["x-request-id"])) == (200, [])
    for response in (denied, made):
        [row] = await rows(dave, request_id=response.headers["x-request-id"])
        assert row["status"] == response.status_code


async def test_an_ended_session_has_its_row_before_the_answer(
    serve: Serve, provider: Provider, token: Token, dave: httpx.AsyncClient
) -> None:
    settings = {"HW_AUDIT__RECORD_READS": "false", "HW_AUDIT__FLUSH_INTERVAL": "30"}
    with serve(**settings, **provider.settings()) as running:
        async with running.client(provider.token(sid="ended-by-its-user")) as client:
            ended = await client.delete("/api/sessions/ended-by-its-user")
        [row] = await rows(dave, request_id=ended.headers["x-request-id"])
    assert (ended.status_code, row["action"], row["resource"]) == (204, "sessions.end", "sessions/ended-by-its-user")


def spooled(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_the_spool_has_a_limit(serve: Serve, provider: Provider, tmp_path: Path) -> None:
    """Without PostgreSQL rows go to disk one by one, until there is no room; the rest is counted."""
    settings = {"HW_DATABASE__URL": "postgresql://hw@127.0.0.1:1/none", "HW_DATABASE__MIGRATE_ON_START": "false"}
    spool = {"HW_AUDIT__SPILL_DIR": str(tmp_path), "HW_AUDIT__SPILL_MAX_BYTES": "2000", "HW_AUDIT__BATCH_SIZE": "1"}
    with serve(**provider.settings(), **settings, **spool) as running:
        async with running.client(provider.token()) as client:
            assert {(await client.get("/api/me")).status_code for _ in range(30)} == {200}

        async def counted() -> bool:
            metrics = await running.metrics()
            spilled, dropped = (metrics[f'audit_rows_total{{result="{result}"}}'] for result in ("spilled", "dropped"))
            return spilled + dropped == 30

        await until(counted)
        metrics = await running.metrics()
    text = spooled(tmp_path)
    assert len(text) == metrics["audit_spill_bytes"] <= 2000
    assert 3 < text.count(b"\n") == metrics['audit_rows_total{result="spilled"}'] < 27


@pytest.fixture
async def resource(alice: httpx.AsyncClient, database: asyncpg.Connection) -> str:
    """A new note, whose id no test before has asked for; those that send anything ask for small ones."""
    await database.fetchval("SELECT setval(pg_get_serial_sequence('notes', 'id'), $1)", time.time_ns() // 1000)
    made = (await alice.post("/api/notes", json={"title": str(uuid.uuid4())})).json()
    return f"notes/{made['id']}"


async def test_filters(alice: httpx.AsyncClient, dave: httpx.AsyncClient, resource: str) -> None:
    await alice.delete(f"/api/{resource}")
    assert [row["action"] for row in await rows(dave, resource=resource)] == ["notes.delete", "notes.create"]
    assert [row["action"] for row in await rows(dave, resource=resource, action="notes.create")] == ["notes.create"]
    assert await rows(dave, resource=resource, user="bob") == []
    assert await rows(dave, resource=resource, outcome="failure") == []
    moment = (await rows(dave, resource=resource))[0]["occurred_at"]
    assert len(await rows(dave, resource=resource, until=moment)) == 1
    assert len(await rows(dave, resource=resource, since=moment)) == 1


async def test_a_resource_is_found_with_all_below_it(dave: httpx.AsyncClient, database: asyncpg.Connection) -> None:
    top = uuid.uuid4().hex
    below = [f"{top}/1", f"{top}/1/a", f"{top}/\N{LATIN SMALL LETTER E WITH ACUTE}"]
    query = "INSERT INTO user_actions (roles, action, resource, outcome, source, request_id) VALUES ('{}', 'x', $1, 'success', 'http', '')"
    await database.executemany(query, [(name,) for name in (top, *below, f"{top}0", f"{top}.", f"{top}x", top[:-1])])
    assert {row["resource"] for row in await rows(dave, resource=top)} == {top, *below}
    assert {row["resource"] for row in await rows(dave, resource=f"{top}/1")} == set(below[:2])


@pytest.mark.parametrize(
    "bad", [{"since": "yesterday"}, {"since": "2026-01-01T00:00:00"}, {"outcome": "x"}, {"user": "\0"}]
)
async def test_refuses_bad_filters(dave: httpx.AsyncClient, bad: dict[str, str]) -> None:
    assert (await dave.get("/api/audit-logs", params=bad)).status_code == 422
    assert (await dave.get("/api/audit-logs/export", params=bad)).status_code == 422


async def test_a_cursor_walks_back(alice: httpx.AsyncClient, dave: httpx.AsyncClient, resource: str) -> None:
    for index in range(4):
        await alice.patch(f"/api/{resource}", json={"text": str(index)})
    seen: list[int] = []
    query = {"resource": resource, "per_page": "2"}
    while True:
        page = (await dave.get("/api/audit-logs", params=query)).json()
        seen += [row["id"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert len(seen) == len(set(seen)) == 5


async def test_one_row(dave: httpx.AsyncClient, alice: httpx.AsyncClient) -> None:
    await alice.post("/api/notes", json={"title": str(uuid.uuid4())})
    [newest, *_] = await rows(dave, action="notes.create")
    assert (await dave.get(f"/api/audit-logs/{newest['id']}")).json() == newest
    assert (await dave.get("/api/audit-logs/9223372036854775807")).status_code == 404


async def test_exports_lines(dave: httpx.AsyncClient, resource: str) -> None:
    response = await dave.get("/api/audit-logs/export", params={"resource": resource})
    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["action"] for line in response.text.splitlines()] == ["notes.create"]


async def test_no_reader_of_lines_cuts_a_row(dave: httpx.AsyncClient, database: asyncpg.Connection) -> None:
    action, resource = uuid.uuid4().hex, "notes/\x85\u2028\u2029"  # the ends of lines that JSON does not escape
    await database.execute(
        "INSERT INTO user_actions (occurred_at, roles, action, outcome, source, request_id, resource) "
        "VALUES (now(), '{}', $1, 'success', 'http', '1', $2)",
        action,
        resource,
    )
    async with dave.stream("GET", "/api/audit-logs/export", params={"action": action}) as response:
        assert [json.loads(line)["resource"] async for line in response.aiter_lines()] == [resource]


@pytest.fixture
async def many(database: asyncpg.Connection) -> str:
    """An action with 20,000 rows, of which two may be of the same moment."""
    action = uuid.uuid4().hex
    await database.execute(
        "INSERT INTO user_actions (occurred_at, roles, action, outcome, source, request_id) "
        "SELECT now() - make_interval(secs => n / 2), '{}', $1, 'success', 'http', n::text FROM generate_series(1, 20000) n",
        action,
    )
    return action


async def test_exports_every_row_once_and_in_order(dave: httpx.AsyncClient, many: str) -> None:
    text = (await dave.get("/api/audit-logs/export", params={"action": many})).text
    rows = [json.loads(line) for line in text.splitlines()]
    assert sorted(int(row["request_id"]) for row in rows) == list(range(1, 20_001))
    assert rows == sorted(rows, key=lambda row: (row["occurred_at"], row["id"]))


async def test_a_slow_export_holds_no_connection(serve: Serve, token: Token, many: str) -> None:
    with serve(HW_DATABASE__POOL_MAX="1") as running, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))
        head = f"GET /api/audit-logs/export?action={many} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token('dave')}"
        slow.sendall(f"{head}\r\n\r\n".encode())
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        asked = [-1.0]

        async def stuck() -> bool:
            """The export asks for no more rows: its client takes none."""
            asked.append((await running.metrics())['db_query_duration_seconds_count{statement="select"}'])
            return asked[-1] == asked[-2]

        await until(stuck)
        async with running.client(token("dave")) as client:
            assert (await client.get("/api/notes")).status_code == 200


async def test_an_export_that_nobody_reads_is_aborted(serve: Serve, token: Token, many: str) -> None:
    limits = {"HW_HTTP__WRITE_TIMEOUT": "1", "HW_DATABASE__POOL_MAX": "1", "HW_RATELIMIT__CALLS_PER_USER": "1"}
    with serve(**limits) as running, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))
        head = f"GET /api/audit-logs/export?action={many} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token('dave')}"
        slow.sendall(f"{head}\r\n\r\n".encode())
        assert slow.recv(15) == b"HTTP/1.1 200 OK"

        async def aborted() -> bool:
            metrics = await running.metrics()
            closed = metrics.get('http_connections_closed_total{reason="unread"}')
            return (closed, metrics["http_requests_in_progress"]) == (1, 1)  # the second is this one

        await until(aborted)
        received = await asyncio.to_thread(read_all, slow)
        assert not received.endswith(b"0\r\n\r\n")
        async with running.client(token("dave")) as client:
            assert (await client.get("/api/notes")).status_code == 200
        assert "Traceback" not in running.log_file.read_text()


async def test_an_export_to_http_1_0_has_no_chunks(server: Running, token: Token, many: str) -> None:
    with RawClient(server.url) as client:
        headers = {"Host": "x", "Authorization": f"Bearer {token('dave')}"}
        client.send(request_headers(f"GET /api/audit-logs/export?action={many} HTTP/1.0", headers))
        status, start, _ = client.response()
        lines = client.rest().splitlines()
    assert (status, b"transfer-encoding" in start, b"connection: close" in start) == (200, False, True)
    assert len([json.loads(line) for line in lines]) == 20_000


async def test_only_auditors_read(alice: httpx.AsyncClient) -> None:
    for path in ("/api/audit-logs", "/api/audit-logs/1", "/api/audit-logs/export"):
        assert (await alice.get(path)).status_code == 403


@pytest.fixture
async def superuser(stack: Stack, server: Running) -> AsyncIterator[asyncpg.Connection]:
    """A connection in a transaction that comes to nothing."""
    url = f"postgresql://postgres:postgres@127.0.0.1:{stack.ports.postgres}/hw_db"
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


async def partitions(connection: asyncpg.Connection) -> list[str]:
    query = "SELECT relname FROM pg_class WHERE relname LIKE 'user\\_actions\\_y%' AND relkind = 'r' ORDER BY relname"
    return [row["relname"] for row in await connection.fetch(query)]


async def test_partitions_wait_for_nobody(stack: Stack, database: asyncpg.Connection) -> None:
    coming = (await partitions(database))[-1]
    await database.execute(f"ALTER TABLE user_actions DETACH PARTITION {coming}; DROP TABLE {coming}")
    other = await asyncpg.connect(stack.environment()["HW_DATABASE__URL"])
    query = "INSERT INTO user_actions (occurred_at, roles, action, outcome, source, request_id) VALUES ('2031-06-01', '{}', '', 'success', 'http', '')"
    async with other.transaction():
        await other.execute(query)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await maintained(database)
    await other.close()
    await maintained(database)
    assert (await partitions(database))[-1] == coming


async def maintained(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await maintain(connection, 12)  # type: ignore[arg-type]


async def test_partitions_come_and_go_at_the_server_s_request(superuser: asyncpg.Connection) -> None:
    there = await partitions(superuser)
    assert len(there) == 3
    await superuser.execute("SET LOCAL ROLE hw_owner")
    await superuser.execute(f"ALTER TABLE user_actions DETACH PARTITION {there[-1]}; DROP TABLE {there[-1]}")
    for month in ("2020-01", "2020-02"):
        await superuser.execute(
            f"CREATE TABLE user_actions_y{month.replace('-', 'm')} PARTITION OF user_actions "
            f"FOR VALUES FROM ('{month}-01+00') TO ('{month}-28+00')"
        )
    await superuser.execute("SET LOCAL ROLE hw")
    await maintain(superuser, 12)  # type: ignore[arg-type]
    assert await partitions(superuser) == there


async def test_rows_that_were_early_move_to_their_partition(superuser: asyncpg.Connection) -> None:
    coming = (await partitions(superuser))[-1]
    await superuser.execute(f"ALTER TABLE user_actions DETACH PARTITION {coming}; DROP TABLE {coming}")
    moment = datetime.strptime(f"{coming}+0000", "user_actions_y%Ym%m%z")
    query = "INSERT INTO user_actions (occurred_at, roles, action, outcome, source, request_id) VALUES ($1, '{}', 'early', 'success', 'http', '')"
    await superuser.execute(query, moment)
    await maintain(superuser, 12)  # type: ignore[arg-type]
    assert await superuser.fetchval(f"SELECT count(*) FROM {coming} WHERE action = 'early'") == 1


async def test_less_than_the_owner_s_least_is_not_kept(superuser: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.RaiseError, match="at least 1 months"):
        async with superuser.transaction():
            await superuser.fetch("SELECT audit_drop_partitions(0)")
    least = "CREATE OR REPLACE FUNCTION audit_min_months() RETURNS integer LANGUAGE sql AS 'SELECT 24'"
    await superuser.execute(least)
    with pytest.raises(asyncpg.RaiseError, match="at least 24 months"):
        await superuser.fetch("SELECT audit_drop_partitions(12)")


async def test_a_date_of_year_one_is_refused_before_the_head(dave: httpx.AsyncClient) -> None:
    bad = {"since": "0001-01-01T00:00:00+14:00"}
    for path in ("/api/audit-logs", "/api/audit-logs/export"):
        assert (await dave.get(path, params=bad)).status_code == 422


async def test_an_export_ends_with_its_caller_s_session(guarded: Running, provider: Provider, many: str) -> None:
    token = provider.token()
    async with guarded.client(token) as client:
        session = (await client.get("/api/me")).json()["session_id"]
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", int(guarded.url.rsplit(":", 1)[1])))
            head = f"GET /api/audit-logs/export?action={many} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}"
            slow.sendall(f"{head}\r\n\r\n".encode())
            assert slow.recv(15) == b"HTTP/1.1 200 OK"
            assert (await client.delete(f"/api/sessions/{session}")).status_code == 204
            received = await asyncio.to_thread(read_all, slow)
    assert received.count(b'"request_id"') < 20_000
    assert not received.endswith(b"0\r\n\r\n")  # which would say that it is whole
    [aborted] = await until(lambda: [line for line in guarded.log() if line["event"] == "response_cut_short"])
    assert aborted["code"] == "unauthenticated"
    assert "Traceback" not in guarded.log_file.read_text()


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(("good", "expected"), [(True, ("success", 200)), (False, ("denied", 400))])
async def test_a_logout_token_has_its_row(
    guarded: Running, provider: Provider, good: bool, expected: tuple[str, int]
) -> None:
    token = provider.logout_token(sid=uuid.uuid4().hex, sub=uuid.uuid4().hex) if good else provider.token()
    async with guarded.client(provider.token()) as auditor:
        response = await auditor.post("/api/auth/backchannel-logout", data={"logout_token": token})
        [row] = await until(lambda: rows(auditor, request_id=response.headers["x-request-id"]))
    assert (row["action"], row["outcome"], row["status"]) == ("sessions.backchannel_logout", *expected)


async def test_ended_sessions_and_refreshed_tokens_have_their_rows(guarded: Running, provider: Provider) -> None:
    sid, sub = uuid.uuid4().hex, uuid.uuid4().hex
    async with guarded.client(provider.token()) as auditor, guarded.socket(provider.token(sub=sub)) as socket_:
        await socket_.call("session.refresh", token=provider.token(sub=sub, sid=sid))
        result = await asyncio.to_thread(hw, "sessions", "end", sid, **guarded.environment)
        assert (result.stdout, result.stderr) == ("ended\n", "")
        await asyncio.to_thread(hw, "sessions", "end-user", sub, **guarded.environment)
        refreshed = await until(lambda: rows(auditor, action="session.refresh", user=sub))
        ended = await rows(auditor, resource=f"sessions/{sid}", action="sessions.end")
        everywhere = await rows(auditor, resource=f"users/{sub}")
    assert [row["resource"] for row in refreshed] == [f"sessions/{sid}"]
    assert [(row["source"], row["username"]) for row in ended] == [("system", getpass.getuser())]
    assert [row["action"] for row in everywhere] == ["sessions.end_user"]


ROWS = "SELECT count(*) FROM user_actions WHERE request_id = $1"


@contextlib.contextmanager
def behind_a_proxy(serve: Serve, stack: Stack, folder: Path, **more: str) -> Iterator[tuple[Running, Proxy]]:
    """A server that reaches PostgreSQL through a proxy, and spools into a folder that is not there yet."""
    with Proxy.running(stack.ports.postgres) as proxy:
        url = stack.environment()["HW_DATABASE__URL"].replace(f":{stack.ports.postgres}/", f":{proxy.port}/")
        settings = {"HW_DATABASE__COMMAND_TIMEOUT": "1", "HW_AUDIT__SPILL_DIR": str(folder / "spill")}
        with serve(HW_DATABASE__URL=url, **settings | more) as running:
            yield running, proxy


@pytest.mark.parametrize("stops", [False, True])
async def test_a_batch_whose_commit_is_not_answered_is_written_once(
    serve: Serve, stack: Stack, token: Token, database: asyncpg.Connection, tmp_path: Path, stops: bool
) -> None:
    """It times out, or is cancelled as the server stops; what is replayed is there already."""
    with behind_a_proxy(serve, stack, tmp_path) as (running, proxy):
        async with running.client(token("alice")) as client:
            first = (await client.get("/api/notes")).headers["x-request-id"]
            await until(lambda: database.fetchval(ROWS, first))  # by then what commits at the start has done so
            proxy.lose_at = b"COMMIT"
            asked = (await client.get("/api/notes")).headers["x-request-id"]
            await until(proxy.lost.is_set)
            proxy.lose_at = b""
            if not stops:
                await until(lambda: replayed(running))
    with serve(HW_AUDIT__SPILL_DIR=str(tmp_path / "spill")):
        await until(lambda: not list((tmp_path / "spill").iterdir()))
    assert await database.fetchval(ROWS, asked) == 1


def replayed(running: Running) -> bool:
    return any(line["event"] == "audit_rows_replayed" for line in running.log())


async def test_what_is_recorded_for_a_batch_does_not_pile_up(
    serve: Serve, token: Token, dave: httpx.AsyncClient, database: asyncpg.Connection
) -> None:
    with serve() as running:
        before = await database.fetchval("SELECT count(*) FROM audit_replays")
        async with running.client(token("alice")) as client:
            for _ in range(5):
                asked = (await client.get("/api/notes")).headers["x-request-id"]
                await until(lambda asked=asked: rows(dave, request_id=asked))
        assert await database.fetchval("SELECT count(*) FROM audit_replays") <= before + 1


async def test_spooled_rows_are_for_the_server_alone(serve: Serve, stack: Stack, token: Token, tmp_path: Path) -> None:
    with behind_a_proxy(serve, stack, tmp_path) as (running, proxy):
        proxy.mute_at = b"COPY"
        async with running.client(token("alice")) as client:
            await client.get("/api/notes")
        spill = tmp_path / "spill"
        [segment] = await until(lambda: list(spill.iterdir()) if spill.exists() else [])
        assert [stat.S_IMODE(path.stat().st_mode) for path in (spill, segment)] == [0o700, 0o600]


@contextlib.contextmanager
def held(path: Path) -> Iterator[Callable[[], bool]]:
    """A file whose opener waits, as on a slow disk, until this ends (or Linux has enough of it, after 45 seconds); the function
    says whether one waits."""
    path.touch()
    with path.open() as file:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # which nobody minds
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield lambda: fcntl.fcntl(file, fcntl.F_GETLEASE) != fcntl.F_WRLCK


async def test_a_slow_disk_keeps_no_request_waiting(serve: Serve, token: Token, tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    with serve(HW_AUDIT__SPILL_DIR=str(spill)) as running, held(tmp_path / "segment") as opened:
        async with running.client(token("alice")) as client:
            assert (await client.get("/api/notes")).status_code == 200
            (tmp_path / "segment").rename(spill / "0.ndjson")
            await until(opened)
            assert [(await client.get("/api/notes")).status_code for _ in range(20)] == [200] * 20
        assert (spill / "0.ndjson").exists()


@pytest.mark.parametrize(
    ("first", "code"), [("HW_DATABASE__COMMAND_TIMEOUT", "unavailable"), ("HW_HTTP__REQUEST_TIMEOUT", "timeout")]
)
async def test_a_commit_without_an_answer_is_told_as_such(
    serve: Serve, stack: Stack, token: Token, tmp_path: Path, first: str, code: str
) -> None:
    timeouts = {"HW_DATABASE__COMMAND_TIMEOUT": "9", "HW_HTTP__REQUEST_TIMEOUT": "9", first: "1"}
    with behind_a_proxy(serve, stack, tmp_path, **timeouts) as (running, proxy):
        async with running.client(token("alice")) as client, running.socket(token("alice")) as socket:
            await client.post("/api/notes", json={"title": uuid.uuid4().hex})
            proxy.lose_at = b"COMMIT"
            late = await client.post("/api/notes", json={"title": uuid.uuid4().hex})
            error = (await socket.call("notes.create", title=uuid.uuid4().hex))["error"]
            proxy.lose_at = b""
    for problem in (late.json(), error["data"]):
        assert (problem["code"], problem["detail"].partition(":")[0]) == (code, "the outcome is unknown")


@pytest.mark.parametrize(("outside", "expected"), [(True, asyncio.CancelledError), (False, TimeoutError)])
async def test_a_cancellation_stays_one_when_the_deadline_passes_too(
    outside: bool, expected: type[BaseException]
) -> None:
    entered: asyncio.Queue[Deadline] = asyncio.Queue()

    async def work() -> None:
        deadline = Deadlines(60).start()
        with deadline:
            entered.put_nowait(deadline)
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    (await entered.get()).expire()
    if outside:
        task.cancel()
    with pytest.raises(expected):
        await task
