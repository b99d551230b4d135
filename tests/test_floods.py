"""One client cannot hurt the others: what it may have in bytes, frames, calls and rows. Counts and codes, never times."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest
import redis
import websockets

from hw_server.embedded import Stack
from tests.conftest import Running, Serve, until
from tests.provider import Provider
from tests.raw import CLOSE, CONTINUATION, PING, PONG, TEXT, UPGRADE, RawClient, frame, request_headers

Token = Callable[[str], str]
FLOODING = 4429


def prefix() -> dict[str, str]:
    return {"HW_REDIS__KEY_PREFIX": f"{uuid.uuid4().hex}:"}


def call(method: str, call_id: int = 1, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": call_id, "method": method, "params": params}).encode()


def batch(*calls: bytes) -> bytes:
    return b"[" + b",".join(calls) + b"]"


def memory(running: Running) -> int:
    return int(psutil.Process(running.process.pid).memory_info().rss)


async def metric(running: Running, name: str) -> float:
    return (await running.metrics()).get(name, 0)


# Frames


@pytest.mark.parametrize("kind", [PING, PONG])
def test_control_frames_have_a_limit(server: Running, kind: int) -> None:
    with RawClient(server.url) as client:
        assert client.handshake() == 101
        client.send(frame(kind) * 100_000)
        answered = list(client.frames())
    assert answered[-1] == (CLOSE, FLOODING.to_bytes(2, "big") + b"flooding")
    assert len(answered) <= 101


def test_fragments_have_a_limit(server: Running) -> None:
    with RawClient(server.url) as client:
        assert client.handshake() == 101
        client.send(frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 100_000)
        assert client.close_code() == FLOODING


@pytest.mark.parametrize("text", ["{", "1", "[]", "[1]", json.dumps({"jsonrpc": "2.0", "id": 1, "method": "x.y"})])
async def test_messages_that_are_no_calls_count(serve: Serve, token: Token, text: str) -> None:
    with serve(HW_RATELIMIT__WS_PER_MINUTE="5") as running:
        async with running.socket(token("alice")) as socket:
            answers = []
            for _ in range(7):
                await socket.raw.send(text)
                answer = await socket.read()
                answers.append((answer[0] if isinstance(answer, list) else answer)["error"]["code"])
    assert [code == -32029 for code in answers] == [False] * 5 + [True] * 2


async def test_messages_are_counted_before_they_are_parsed(serve: Serve, token: Token) -> None:
    with serve(HW_RATELIMIT__WS_PER_MINUTE="5") as running:
        with RawClient(running.url) as client:
            client.handshake(token("alice"))
            client.send(frame(TEXT, b"{") * 20_000)
            assert client.close_code() == FLOODING
        assert await metric(running, 'ws_messages_total{direction="in"}') <= 5 + 200 + 16


async def test_a_batch_counts_each_call(serve: Serve, token: Token) -> None:
    with serve(HW_RATELIMIT__WS_PER_MINUTE="5") as running:
        async with running.socket(token("alice")) as socket:
            await socket.raw.send(batch(*[call("ping", index) for index in range(4)], b"1", b"2", b"3").decode())
            codes = [answer.get("error", {}).get("code") for answer in await socket.read()]
    assert codes == [None] * 4 + [-32600, -32029, -32029]


async def test_handshakes_count_for_the_user(serve: Serve, token: Token) -> None:
    """From many addresses, too."""
    limits = {"HW_RATELIMIT__HANDSHAKES_PER_MINUTE": "3", "HW_HTTP__TRUSTED_PROXIES": "127.0.0.0/8"}
    with serve(**limits, **prefix()) as running:
        statuses = []
        for index in range(5):
            headers = UPGRADE | {"Authorization": f"Bearer {token('alice')}", "X-Forwarded-For": f"192.0.2.{index}"}
            with RawClient(running.url) as client:
                client.send(request_headers("GET /web HTTP/1.1", headers))
                statuses.append(client.response()[0])
    assert statuses == [101] * 3 + [429] * 2


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/notes"), ("GET", "/api/audit-logs/export")])
async def test_rows_of_refusals_have_a_limit(
    serve: Serve, token: Token, database: asyncpg.Connection, method: str, path: str
) -> None:
    """Of operations and of plain routes."""
    agent = uuid.uuid4().hex
    with serve(HW_AUDIT__FAILURES_PER_MINUTE="5", HW_AUDIT__FLUSH_INTERVAL="0.1", **prefix()) as running:
        async with running.client(token("bob")) as client:
            for index in range(12):
                headers = {"X-Request-ID": f"{agent}-{index}"}
                assert (await client.request(method, path, headers=headers)).status_code == 403

        async def written() -> bool:
            return await metric(running, 'audit_rows_total{result="written"}') >= 5

        await until(written)
        assert await metric(running, 'audit_rows_total{result="suppressed"}') == 7
    rows = await database.fetchval("SELECT count(*) FROM user_actions WHERE request_id LIKE $1", f"{agent}-%")
    assert rows == 5


@pytest.mark.parametrize("refused", ["calls", "handshakes"])
async def test_rows_of_refusals_at_the_socket_have_a_limit(
    serve: Serve, token: Token, database: asyncpg.Connection, refused: str
) -> None:
    headers = {"Authorization": f"Bearer {token('bob')}"}
    before = await database.fetchval("SELECT max(id) FROM user_actions")
    limits = {"HW_AUDIT__FAILURES_PER_MINUTE": "5", "HW_RATELIMIT__SOCKETS_PER_USER": "1"}
    with serve(HW_AUDIT__FLUSH_INTERVAL="0.1", **limits, **prefix()) as running:
        async with running.socket(additional_headers=headers) as socket:
            for _ in range(12):
                if refused == "calls":
                    assert (await socket.call("notes.create", title="x"))["error"]["code"] == -32003
                else:
                    with RawClient(running.url) as client:
                        client.send(request_headers("GET /web HTTP/1.1", UPGRADE | headers))
                        assert client.response()[0] == 429
            await until(lambda: suppressed(running, 7))
    rows = await database.fetchval("SELECT count(*) FROM user_actions WHERE id > $1 AND status >= 400", before or 0)
    assert rows == 5


async def suppressed(running: Running, rows: int) -> bool:
    return await metric(running, 'audit_rows_total{result="suppressed"}') == rows


async def test_handshakes_that_the_cap_refuses_count(serve: Serve, token: Token) -> None:
    limits = {"HW_RATELIMIT__SOCKETS_PER_USER": "1", "HW_RATELIMIT__HANDSHAKES_PER_MINUTE": "3"}
    with serve(**limits, **prefix()) as running:
        answers = []
        async with running.socket(token("alice")):
            for _ in range(4):
                with RawClient(running.url) as client:
                    headers = UPGRADE | {"Authorization": f"Bearer {token('alice')}"}
                    client.send(request_headers("GET /web HTTP/1.1", headers))
                    answers.append(client.response()[2])
    assert [b"too many open sockets" in answer for answer in answers] == [True] * 2 + [False] * 2


# Answers


async def test_a_batch_stops_when_its_answers_are_too_large(serve: Serve, token: Token) -> None:
    with serve(HW_WS__MAX_PENDING_BYTES="65536") as running:
        async with running.socket(token("alice"), max_size=None) as socket:
            await socket.raw.send(batch(*[call("rpc.discover", index) for index in range(50)]).decode())
            text = await socket.raw.recv()
            one = len(json.dumps((await socket.call("rpc.discover"))["result"]))
            assert (await socket.call("ping"))["result"] == "pong"
    codes = [answer.get("error", {}).get("code") for answer in json.loads(text)]
    assert codes == sorted(codes, key=lambda code: code is not None)
    assert codes[-1] == -32014
    assert len(text) < 65_536 + one + 50 * 300


async def test_batches_side_by_side_share_a_budget(serve: Serve, token: Token, database: asyncpg.Connection) -> None:
    """Eight times fifty lists of 500 kB are 200 MB."""
    tag = uuid.uuid4().hex
    notes = [(f"{tag} {index}", "x" * 5_000) for index in range(100)]
    await database.executemany("INSERT INTO notes (title, text) VALUES ($1, $2)", notes)
    with serve() as running:
        before = memory(running)
        with RawClient(running.url) as client:
            client.handshake(token("alice"))
            client.send(frame(TEXT, batch(*[call("notes.list", title=tag, per_page=100)] * 50)) * 8)
            answers = [json.loads(payload) for _, payload in islice(client.frames(), 8)]
            grown = memory(running) - before
    await database.execute("DELETE FROM notes WHERE title LIKE $1", f"{tag}%")
    assert all(answer[-1]["error"]["code"] == -32014 for answer in answers)
    assert grown < 100_000_000


async def test_a_client_that_does_not_read_is_not_read(serve: Serve, token: Token) -> None:
    limits = {"HW_WS__PING_INTERVAL": "60", "HW_RATELIMIT__WS_PER_MINUTE": "100000"}
    with serve(**limits, **prefix()) as running, RawClient(running.url, 3, receive_buffer=4096) as client:
        client.handshake(token("alice"))
        with pytest.raises(TimeoutError):
            client.takes(frame(TEXT, call("rpc.discover")) * 1_000, 1_000)
        assert await metric(running, 'ws_messages_total{direction="in"}') < 2_000


async def test_strangers_are_not_answered_more_than_they_are_worth(server: Running) -> None:
    with RawClient(server.url) as client:
        client.handshake()
        client.send(frame(TEXT, batch(*[call("rpc.discover", index) for index in range(50)])) * 50)
        received = sum(len(payload) for _, payload in client.frames())
    assert received < 65_536 + 100_000 + 201 * 300


# Calls


@pytest.fixture
async def locked(database: asyncpg.Connection) -> asyncpg.transaction.Transaction:
    """Nobody can read notes until it is rolled back."""
    transaction = database.transaction()
    await transaction.start()
    await database.execute("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
    return transaction


def lists(number: int) -> bytes:
    return b"".join(frame(TEXT, call("notes.list", index)) for index in range(number))


async def test_connections_have_a_limit(serve: Serve) -> None:
    with serve(HW_HTTP__MAX_CONNECTIONS="30") as running:
        with contextlib.ExitStack() as opened:
            clients = [opened.enter_context(RawClient(running.url)) for _ in range(80)]
            answers = [client.rest() for client in clients[40:]]
            assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 503 Service Unavailable"}

        async def alive() -> bool:
            async with running.client() as client:
                return (await client.get("/health/live")).status_code == 200

        await until(alive)
    assert [line for line in running.log() if line["level"] == "error"] == []


async def test_connections_of_one_address_have_a_limit(serve: Serve) -> None:
    """Sockets are not among them, nor those of a trusted proxy."""
    limit = {"HW_HTTP__MAX_CONNECTIONS_PER_ADDRESS": "3"}
    with serve(**limit) as running, contextlib.ExitStack() as opened:
        for _ in range(5):
            assert opened.enter_context(RawClient(running.url)).handshake() == 101
        for _ in range(3):
            opened.enter_context(RawClient(running.url))
        with RawClient(running.url) as client:
            assert client.rest().startswith(b"HTTP/1.1 503 ")
        opened.close()
        async with running.client() as client:
            assert (await client.get("/health/live")).status_code == 200
    with serve(HW_HTTP__TRUSTED_PROXIES="127.0.0.1", **limit) as running, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(RawClient(running.url)) for _ in range(9)]
        for client in clients:
            client.send(request_headers("GET /health/live HTTP/1.1", {"Host": "x"}))
        assert [client.response()[0] for client in clients] == [200] * 9


@pytest.mark.parametrize("calls_per_user", ["2", "8"])
async def test_one_user_leaves_connections_to_others(
    serve: Serve, token: Token, locked: asyncpg.transaction.Transaction, calls_per_user: str
) -> None:
    limits = {"HW_DATABASE__POOL_MAX": "4", "HW_RATELIMIT__CALLS_PER_USER": calls_per_user}
    with serve(**limits, HW_DATABASE__COMMAND_TIMEOUT="60", HW_HTTP__REQUEST_TIMEOUT="60") as running:
        clients = [RawClient(running.url) for _ in range(3)]
        for client in clients:
            client.handshake(token("alice"))
            client.send(lists(16))
        async with running.client(token("dave")) as dave:
            assert [(await dave.get("/api/audit-logs")).status_code for _ in range(5)] == [200] * 5
        for client in clients:
            client.socket.close()
    await locked.rollback()


async def test_calls_that_wait_have_a_limit(
    serve: Serve, token: Token, locked: asyncpg.transaction.Transaction
) -> None:
    limits = {"HW_RATELIMIT__CALLS_PER_USER": "2", "HW_RATELIMIT__WAITING_PER_USER": "3"}
    with serve(**limits) as running:
        async with running.client(token("dave")) as dave, running.socket(token("dave")) as socket:
            requests = [asyncio.create_task(dave.get("/api/notes")) for _ in range(7)]
            done, waiting = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            assert (await socket.call("notes.list"))["error"]["code"] == -32029
            assert (await dave.get("/api/audit-logs/export")).status_code == 429
            await locked.rollback()
            answers = [await request for request in requests]
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 2
    assert (len(done) <= 2, len(waiting) >= 5) == (True, True)


async def waiting(database: asyncpg.Connection) -> int:
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted AND relation = 'notes'::regclass"
    return int(await database.fetchval(query))


@pytest.mark.parametrize(("calls", "requests"), [(16, 1), (20, 3)])
async def test_reads_end_with_their_client(
    serve: Serve, token: Token, locked: asyncpg.transaction.Transaction, stack: Stack, calls: int, requests: int
) -> None:
    """Also where the client has sent more than is read at once."""
    observer = await asyncpg.connect(stack.environment()["HW_DATABASE__URL"])
    with serve(HW_HTTP__REQUEST_TIMEOUT="60", HW_DATABASE__COMMAND_TIMEOUT="60") as running:
        socket, request = RawClient(running.url), RawClient(running.url)
        socket.handshake(token("alice"))
        socket.send(lists(calls))
        get = request_headers("GET /api/notes HTTP/1.1", {"Host": "x", "Authorization": f"Bearer {token('bob')}"})
        request.send(get * requests)

        async def waits(number: int) -> bool:
            return await waiting(observer) == number

        await until(lambda: waits(8 + 1))
        socket.socket.close()
        request.socket.close()
        await until(lambda: waits(0))
        assert "Traceback" not in running.log_file.read_text()
    await locked.rollback()
    await observer.close()


async def test_changes_do_not_end_with_their_client(
    server: Running, token: Token, locked: asyncpg.transaction.Transaction, database: asyncpg.Connection, stack: Stack
) -> None:
    observer = await asyncpg.connect(stack.environment()["HW_DATABASE__URL"])
    title = uuid.uuid4().hex
    with RawClient(server.url) as client:
        client.handshake(token("alice"))
        client.send(frame(TEXT, call("notes.create", title=title)))

        async def waits() -> bool:
            return await waiting(observer) == 1

        await until(waits)
    await locked.rollback()
    await until(lambda: database.fetchval("SELECT true FROM notes WHERE title = $1", title))
    await observer.close()


async def test_nothing_is_handled_after_a_close_frame(
    server: Running, token: Token, database: asyncpg.Connection
) -> None:
    title = uuid.uuid4().hex
    with RawClient(server.url) as client:
        client.handshake(token("alice"))
        client.send(frame(CLOSE, b"\x03\xe8") + frame(TEXT, call("notes.create", title=title)))
        assert client.close_code() == 1000
    with RawClient(server.url) as client:
        client.handshake(token("alice"))
        client.send(frame(TEXT, call("notes.list")))
        next(client.frames())
    assert await database.fetchval("SELECT count(*) FROM notes WHERE title = $1", title) == 0


async def test_nothing_is_handled_before_admission(serve: Serve) -> None:
    with serve() as running:
        with RawClient(running.url) as client:
            headers = UPGRADE | {"Authorization": "Bearer x"}
            client.send(request_headers("GET /web HTTP/1.1", headers) + frame(TEXT, call("ping")))
            assert client.response()[0] == 401
        assert await metric(running, 'ws_messages_total{direction="in"}') == 0


def test_what_was_sent_before_admission_is_handled_after(server: Running, token: Token) -> None:
    with RawClient(server.url) as client:
        headers = UPGRADE | {"Authorization": f"Bearer {token('alice')}"}
        client.send(request_headers("GET /web HTTP/1.1", headers) + frame(TEXT, call("ping")))
        assert client.response()[0] == 101
        assert next(client.frames()) == (TEXT, b'{"jsonrpc":"2.0","id":1,"result":"pong"}')


async def test_a_batch_ends_with_its_token(
    guarded: Running, provider: Provider, locked: asyncpg.transaction.Transaction, database: asyncpg.Connection
) -> None:
    title = uuid.uuid4().hex
    roles = {"roles": ["notes:read", "notes:write"]}
    token = provider.token(exp=int(time.time()) + 3, realm_access=roles)
    async with guarded.socket(token) as socket:
        await socket.raw.send(batch(call("notes.list"), call("notes.create", 2, title=title)).decode())
        assert await socket.closed() == (4402, "token_expired")
        await locked.rollback()
    async with guarded.client(provider.token(realm_access=roles)) as client:
        assert title not in (await client.get("/api/notes", params={"title": title})).text


async def test_no_call_outlives_its_token(guarded: Running, provider: Provider) -> None:
    """Also those before the next look at all sockets."""
    expires = int(time.time()) + 2
    late = []
    async with guarded.socket(provider.token(exp=expires)) as socket:
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                sent = time.time()
                answered = "result" in await socket.call("ping")
                late += [sent - expires] if answered and sent > expires else []
                await asyncio.sleep(0.01)
        assert socket.raw.close_code == 4402
    assert late == []


# Leases


async def test_a_lease_ends_with_its_connection(serve: Serve, token: Token, stack: Stack) -> None:
    own = prefix()
    with serve(**own) as running:
        for _ in range(40):
            with RawClient(running.url) as client:
                client.handshake()
                client.send(frame(TEXT, call("session.authenticate", token=token("alice"))))

        async def ended() -> bool:
            return await metric(running, "ws_connections_open") == 0

        await until(ended)
        with redis.Redis.from_url(stack.environment()["HW_REDIS__URL"]) as client:
            await until(lambda: client.zcard(f"{own['HW_REDIS__KEY_PREFIX']}sockets:alice") == 0)


# HTTP


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({f"X-{index}": "1" for index in range(200)}, 431),
        ({"X-Long": "x" * 9_000}, 431),
        ({"Content-Length": "5"}, 400),
        ({"Transfer-Encoding": "chunked"}, 400),
    ],
)
def test_an_upgrade_out_of_bounds_is_answered(server: Running, token: Token, more: dict[str, str], status: int) -> None:
    with RawClient(server.url) as client:
        client.send(
            request_headers("GET /web HTTP/1.1", UPGRADE | {"Authorization": f"Bearer {token('alice')}"} | more)
            + b"hello"
        )
        assert client.statuses() == [status]


@pytest.mark.parametrize(
    ("path", "agent", "status"),
    [
        ("/web", b"caf\xc3\xa9 \t", 101),
        ("/web?q=%C3%A9", b"\xff", 101),
        ("/web\xe9", b"x", 400),
        ("/web", b"a\x7fb", 400),
        ("/web", b"a\x01b", 400),
    ],
)
def test_an_upgrade_with_odd_bytes_is_answered(server: Running, path: str, agent: bytes, status: int) -> None:
    with RawClient(server.url) as client:
        lines = request_headers("GET /web HTTP/1.1", UPGRADE).replace(b"/web", path.encode("latin-1"))
        client.send(lines.replace(b"\r\n\r\n", b"\r\nUser-Agent: %s\r\n\r\n" % agent))
        assert client.response()[0] == status


async def test_an_upgrade_without_a_key_is_counted(serve: Serve) -> None:
    with serve() as running:
        with RawClient(running.url) as client:
            client.send(request_headers("GET /web HTTP/1.1", UPGRADE | {"Sec-WebSocket-Key": "short"}))
            assert client.statuses() == [400]
        assert await metric(running, 'http_connections_closed_total{reason="invalid"}') == 1


def test_an_upgrade_with_two_callers_is_refused(server: Running, token: Token) -> None:
    with RawClient(server.url) as client:
        callers = "".join(f"Authorization: Bearer {token(name)}\r\n" for name in ("alice", "bob"))
        client.send(request_headers("GET /web HTTP/1.1", UPGRADE)[:-2] + callers.encode() + b"\r\n")
        assert client.statuses() == [400]


def test_an_upgrade_of_another_method_is_answered(server: Running) -> None:
    with RawClient(server.url) as client:
        client.send(request_headers("POST /web HTTP/1.1", UPGRADE))
        assert client.statuses() == [405]


async def test_trailers_are_not_taken_for_headers(server: Running, token: Token) -> None:
    sent = {"Host": "x", "Transfer-Encoding": "chunked", "Content-Type": "application/json", "Connection": "close"}
    fields = {
        "Authorization": f"Bearer {token('alice')}",
        "X-Request-ID": "from-a-trailer",
        "X-Forwarded-For": "192.0.2.7",
    }
    trailers = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode() + b"\r\n"
    with RawClient(server.url) as client:
        client.send(request_headers("POST /api/notes HTTP/1.1", sent) + b"2\r\n{}\r\n0\r\n" + trailers)
        status, start, _ = client.response()
    assert (status, b"from-a-trailer" in start) == (401, False)
    assert "192.0.2.7" not in server.log_file.read_text()


@pytest.mark.parametrize("path", ["/api/notes", "/api/auth/backchannel-logout"])
def test_trailers_have_an_end(serve: Serve, path: str) -> None:
    with serve() as running:
        before = memory(running)
        with RawClient(running.url) as client:
            client.send(
                request_headers(f"POST {path} HTTP/1.1", {"Host": "x", "Transfer-Encoding": "chunked"}) + b"0\r\nX: "
            )
            assert not client.takes(b"x" * 65_536, 2_000)
        assert memory(running) - before < 20_000_000


async def test_what_was_refused_is_not_kept(serve: Serve, token: Token) -> None:
    body = b"[" + b"0," * 500_000 + b"0]"
    with serve() as running:
        async with running.client(token("alice")) as client:
            await client.post("/api/notes", json=[])
            before = memory(running)
            for _ in range(200):
                assert (await client.post("/api/notes", content=body)).status_code == 413
        assert memory(running) - before < 30_000_000


def test_a_body_after_the_answer_has_an_end(server: Running) -> None:
    with RawClient(server.url) as client:
        client.send(request_headers("POST /api/notes HTTP/1.1", {"Host": "x", "Transfer-Encoding": "chunked"}))
        assert client.response()[0] == 401
        assert not client.takes(b"10000\r\n" + b"x" * 65_536 + b"\r\n", 2_000)


@pytest.mark.parametrize("sent", [b"", b"x"])
def test_a_connection_waits_a_little_for_a_body_after_the_answer(server: Running, sent: bytes) -> None:
    with RawClient(server.url) as client:
        client.send(request_headers("POST /api/notes HTTP/1.1", {"Host": "x", "Content-Length": "99"}) + sent)
        assert client.statuses() == [401]


def test_a_body_that_comes_after_the_answer_keeps_the_connection(server: Running) -> None:
    with RawClient(server.url) as client:
        client.send(request_headers("POST /api/notes HTTP/1.1", {"Host": "x", "Content-Length": "2"}))
        assert client.response()[0] == 401
        client.send(b"{}" + request_headers("GET /health/live HTTP/1.1", {"Host": "x"}))
        assert client.response()[0] == 200


@pytest.mark.parametrize("signed_in", [True, False])
def test_small_chunks_are_read_in_many_turns(server: Running, token: Token, signed_in: bool) -> None:
    """With what follows them, also where the answer was sent first."""
    headers = {"Host": "x", "Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    authorization = {"Authorization": f"Bearer {token('alice')}"} if signed_in else {}
    with RawClient(server.url) as client:
        client.send(
            request_headers("POST /api/notes HTTP/1.1", headers | authorization)
            + b"1\r\n \r\n" * 50_000 + b"2\r\n{}\r\n0\r\n\r\n"
            + request_headers("GET /health/live HTTP/1.1", {"Host": "x", "Connection": "close"})
        )  # fmt: skip
        assert client.statuses() == [422 if signed_in else 401, 200]


def test_a_connection_whose_body_came_late_is_kept_as_others_are(serve: Serve) -> None:
    with serve(HW_HTTP__HEADER_TIMEOUT="1") as running, RawClient(running.url) as client:
        client.send(request_headers("POST /api/notes HTTP/1.1", {"Host": "x", "Content-Length": "2"}) + b"{")
        assert client.response()[0] == 401
        client.send(b"}")
        time.sleep(1.5)
        client.send(request_headers("GET /health/live HTTP/1.1", {"Host": "x"}))
        assert client.response()[0] == 200


async def test_a_client_is_not_late_while_it_is_not_read(
    serve: Serve, token: Token, database: asyncpg.Connection, locked: asyncpg.transaction.Transaction
) -> None:
    slow = request_headers("GET /api/notes HTTP/1.1", {"Host": "x", "Authorization": f"Bearer {token('alice')}"})
    live = request_headers("GET /health/live HTTP/1.1", {"Host": "x"})
    with serve(HW_HTTP__HEADER_TIMEOUT="1") as running, RawClient(running.url) as client:
        client.send(slow)
        await until(lambda: waiting(database))
        client.send(live + live[:20])
        await asyncio.sleep(0.2)
        client.send(live[20:])
        await asyncio.sleep(1.5)
        await locked.rollback()
        assert await asyncio.to_thread(lambda: [client.response()[0] for _ in range(3)]) == [200] * 3


@pytest.mark.parametrize("path", ["/api/auth/backchannel-logout", "/api/notes"])
async def test_a_body_has_a_time(serve: Serve, token: Token, path: str) -> None:
    with serve(HW_HTTP__BODY_TIMEOUT="1", HW_HTTP__REQUEST_TIMEOUT="30") as running:
        headers = {
            "Host": "x", "Authorization": f"Bearer {token('alice')}", "Content-Length": "9",
            "Content-Type": "application/x-www-form-urlencoded" if "auth" in path else "application/json",
        }  # fmt: skip
        with RawClient(running.url) as client:
            client.send(request_headers(f"POST {path} HTTP/1.1", headers) + b"a")
            assert client.statuses() == [408]
        with RawClient(running.url, timeout=0.2) as dribbling:
            dribbling.send(request_headers(f"POST {path} HTTP/1.1", headers | {"Content-Length": "1000"}))
            assert not dribbling.takes_slowly(b"a", 100)
        assert "Traceback" not in running.log_file.read_text()


def test_an_idle_connection_has_an_end(serve: Serve) -> None:
    with serve(HW_HTTP__KEEP_ALIVE_TIMEOUT="1") as running, RawClient(running.url) as client:
        client.send(request_headers("GET /health/live HTTP/1.1", {"Host": "x"}))
        assert client.statuses() == [200]


@pytest.mark.parametrize("first", ["answered", "answered before its body"])
async def test_a_connection_is_not_idle_during_a_request(
    serve: Serve, token: Token, database: asyncpg.Connection, locked: asyncpg.transaction.Transaction, first: str
) -> None:
    slow = request_headers("GET /api/notes HTTP/1.1", {"Host": "x", "Authorization": f"Bearer {token('alice')}"})
    with serve(HW_HTTP__KEEP_ALIVE_TIMEOUT="1") as running, RawClient(running.url) as client:
        client.send(request_headers("POST /api/notes HTTP/1.1", {"Host": "x", "Content-Length": "2"}))
        if first == "answered":
            client.send(b"{}")
        assert client.response()[0] == 401
        client.send(slow if first == "answered" else b"{}" + slow)
        await until(lambda: waiting(database))
        await asyncio.sleep(1.5)
        await locked.rollback()
        assert await asyncio.to_thread(lambda: client.response()[0]) == 200


def test_a_socket_that_follows_a_late_body_stays(serve: Serve) -> None:
    with serve(HW_HTTP__KEEP_ALIVE_TIMEOUT="1") as running, RawClient(running.url) as client:
        client.send(request_headers("POST /api/notes HTTP/1.1", {"Host": "x", "Content-Length": "2"}))
        assert client.response()[0] == 401
        client.send(b"{}" + request_headers("GET /web HTTP/1.1", UPGRADE))
        assert client.response()[0] == 101
        time.sleep(1.5)
        client.send(frame(TEXT, call("ping")))
        assert b'"result"' in next(client.frames())[1]


def test_line_ends_keep_no_connection(serve: Serve) -> None:
    with serve(HW_HTTP__HEADER_TIMEOUT="1") as running, RawClient(running.url) as client:
        client.send(request_headers("GET /health/live HTTP/1.1", {"Host": "x"}))
        assert client.response()[0] == 200
        client.send(b"\r\n")
        assert client.statuses() == []


async def test_a_pipeline_has_a_limit(serve: Serve, token: Token) -> None:
    """Neither read nor answered past what the client reads; all of it once it does."""
    request = request_headers("GET /health/live HTTP/1.1", {"Host": "x"})
    with serve() as running:
        before = memory(running)
        clients = [RawClient(running.url, receive_buffer=4096) for _ in range(10)]
        for client in clients:
            client.send(request * 5_000)
        await asyncio.sleep(1)
        assert memory(running) - before < 40_000_000
        assert [clients[0].response()[0] for _ in range(5_000)] == [200] * 5_000
        for client in clients:
            client.socket.close()
        async with running.client() as client:
            assert (await client.get("/health/live")).status_code == 200
        assert "Traceback" not in running.log_file.read_text()


async def test_a_client_that_reads_nothing_is_closed(serve: Serve) -> None:
    with serve(HW_HTTP__WRITE_TIMEOUT="1") as running:
        client = RawClient(running.url)
        client.send(request_headers("GET /openapi.json HTTP/1.1", {"Host": "x"}) * 2_000)

        async def closed() -> float:
            return await metric(running, 'http_connections_closed_total{reason="unread"}')

        await until(closed)
        client.socket.close()
        assert "Traceback" not in running.log_file.read_text()


def in_kernel(running: Running) -> int:
    """Bytes of all responses that the kernel holds, of connections that are open."""
    port = f":{int(running.url.rsplit(':', 1)[1]):04X}"
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(int(fields[4].split(":")[0], 16) for fields in sockets if fields[1].endswith(port))


async def test_a_closed_connection_that_is_not_read_ends(serve: Serve) -> None:
    """Its last bytes wait in the process, too few for the flow control to take notice of them."""
    with serve(HW_HTTP__WRITE_TIMEOUT="1") as running, RawClient(running.url, receive_buffer=4096) as client:
        with contextlib.suppress(AssertionError):
            while True:
                held = in_kernel(running)
                client.send(request_headers("GET /console/console.js HTTP/1.1", {"Host": "x"}))
                await until(lambda before=held: in_kernel(running) > before, 1)
        client.send(request_headers("GET /health/live HTTP/1.1", {"Host": "x", "Connection": "close"}))

        async def closed() -> float:
            return await metric(running, 'http_connections_closed_total{reason="unread"}')

        await until(closed)


# Addresses


def forwarded(running: Running, address: str) -> int:
    return httpx.get(f"{running.url}/api/me", headers={"X-Forwarded-For": address}).status_code


def test_a_network_of_ipv6_is_one_client(serve: Serve) -> None:
    with serve(HW_RATELIMIT__HTTP_PER_MINUTE="3", HW_HTTP__TRUSTED_PROXIES="127.0.0.0/8") as running:
        statuses = [forwarded(running, f"2001:db8:0:1::{index:x}") for index in range(1, 6)]
        assert statuses == [401] * 3 + [429] * 2
        assert forwarded(running, "2001:db8:0:2::1") == 401
        assert [forwarded(running, f"::ffff:192.0.2.{index}") for index in (1, 2, 3, 4)] == [401] * 4


def test_a_mapped_address_is_the_proxy_that_it_is(serve: Serve) -> None:
    """On `::` a peer of IPv4 is `::ffff:127.0.0.1`."""
    settings = {"HW_HTTP__HOST": "::", "HW_HTTP__TRUSTED_PROXIES": "127.0.0.0/8", "HW_RATELIMIT__HTTP_PER_MINUTE": "2"}
    with serve(**settings, **prefix()) as running:
        assert [forwarded(running, f"192.0.2.{index}") for index in range(4)] == [401] * 4
        assert [forwarded(running, "::ffff:192.0.2.9") for _ in range(3)] == [401, 401, 429]


def test_refused_logout_tokens_have_a_limit(serve: Serve, provider: Provider) -> None:
    path = "/api/auth/backchannel-logout"
    with serve(**provider.settings(), **prefix()) as running, httpx.Client(base_url=running.url) as client:
        good = [client.post(path, data={"logout_token": provider.logout_token()}).status_code for _ in range(70)]
        bad = [client.post(path, data={"logout_token": "x"}).status_code for _ in range(90)]
    assert good == [200] * 70
    assert bad[:60] == [400] * 60
    assert 429 in bad  # one more is allowed each second


def test_logouts_during_an_outage_have_no_limit(serve: Serve, provider: Provider) -> None:
    """The provider sends them again."""
    with serve(**provider.settings(), HW_REDIS__URL="redis://127.0.0.1:1") as running:
        form = {"logout_token": provider.logout_token()}
        statuses = [httpx.post(f"{running.url}/api/auth/backchannel-logout", data=form).status_code for _ in range(70)]
    assert statuses == [503] * 70


async def test_half_sent_logouts_of_one_address_have_a_limit(serve: Serve, provider: Provider) -> None:
    headers = {"Host": "x", "Content-Type": "application/x-www-form-urlencoded", "Content-Length": "100"}
    with serve(**provider.settings(), **prefix()) as running, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(running.url)) for _ in range(101)]
        for client in clients:
            client.send(request_headers("POST /api/auth/backchannel-logout HTTP/1.1", headers) + b"logout")
        assert clients[-1].response()[0] == 429
        clients[0].socket.close()

        async def taken() -> bool:
            form = {"logout_token": provider.logout_token()}
            async with running.client() as other:
                return (await other.post("/api/auth/backchannel-logout", data=form)).status_code == 200

        await until(taken)


async def test_an_answer_too_large_for_the_socket_is_refused_and_closes_nothing(serve: Serve, token: Token) -> None:
    with serve(HW_WS__SEND_BUFFER_BYTES="4096") as running:
        async with running.socket(token("alice")) as socket:
            assert (await socket.call("rpc.discover"))["error"]["code"] == -32014
            assert (await socket.call("ping"))["result"] is not None
