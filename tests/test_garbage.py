"""What has ended is freed at once: cycles of references wait for a collection, which then stops everybody."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import websockets

from tests import garbage
from tests.conftest import Running, Serve, until
from tests.raw import UPGRADE, RawClient, request_headers

Token = Callable[[str], str]
TIMES = 40
MOST = 10  # objects of each; a closed socket left 110, a refused request 90


@pytest.fixture(scope="module")
def running(serve: Serve) -> Iterator[Running]:
    unlimited = {f"HW_RATELIMIT__{name}": "1000000" for name in ("HTTP_PER_MINUTE", "HANDSHAKES_PER_MINUTE")}
    with serve(**garbage.SETTINGS, **unlimited, HW_RATELIMIT__SOCKETS_PER_USER="100000") as running:
        yield running


def connections(running: Running) -> list[Any]:
    """That the server has not closed."""
    port = urlsplit(running.url).port
    opened = psutil.Process(running.process.pid).net_connections("tcp")
    return [item for item in opened if item.laddr.port == port and item.status != psutil.CONN_LISTEN]


async def collected(running: Running) -> int:
    async with running.client() as client:
        await until(lambda: not connections(running))  # the server has seen that its clients are gone
        return int((await client.post("/api/garbage/collect")).json())


async def left_by(running: Running, use: Callable[[], Awaitable[object]]) -> float:
    """Objects that one use leaves to a collection."""
    await use()
    await collected(running)
    for _ in range(TIMES):
        await use()
    return await collected(running) / TIMES


@pytest.mark.parametrize("end", ["close", "abort", "flood", "nothing"])
async def test_a_socket_that_ended(running: Running, token: Token, end: str) -> None:
    async def use() -> None:
        async with running.socket(token("alice")) as socket:
            await socket.call("topic.subscribe", topic="rooms/1")
            await socket.call("topic.subscribe", topic="unknown")
            if end == "abort":
                socket.raw.transport.abort()
            elif end == "flood":
                with contextlib.suppress(websockets.ConnectionClosed):
                    for _ in range(200):
                        await socket.raw.ping()
                    await socket.closed()

    assert await left_by(running, use) < MOST


WRONG = {
    "token": {"Authorization": "Bearer alice"}, "version": {"Sec-WebSocket-Version": "1"},
    "key": {"Sec-WebSocket-Key": "no base64"}, "no key": {"Sec-WebSocket-Key": ""},
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_refused_handshake(running: Running, wrong: str) -> None:
    fields = {name: value for name, value in {**UPGRADE, **WRONG[wrong]}.items() if value}

    async def use() -> None:
        with RawClient(running.url) as client:
            client.send(request_headers("GET /web HTTP/1.1", fields))
            assert client.response()[0] in (400, 401)

    assert await left_by(running, use) < MOST


ABSENT = 2**31 - 1
REQUESTS = {
    "list": ("GET", "/api/notes", 200), "absent": ("GET", f"/api/notes/{ABSENT}", 404),
    "invalid": ("GET", "/api/notes?per_page=x", 422), "unmatched": ("GET", "/nowhere", 404),
    "forbidden": ("DELETE", f"/api/notes/{ABSENT}", 403), "defect": ("POST", "/api/garbage/fail", 500),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
async def test_a_request(running: Running, token: Token, case: str) -> None:
    user = "bob" if case == "forbidden" else "alice"
    method, path, status = REQUESTS[case]

    async def use() -> None:
        async with running.client(token(user)) as client:
            assert (await client.request(method, path)).status_code == status

    assert await left_by(running, use) < MOST


@pytest.mark.parametrize("path", ["/api/notes", "/api/garbage/fail"])
async def test_a_request_with_a_token_that_is_refused(running: Running, path: str) -> None:
    async def use() -> None:
        async with running.client("none") as client:
            assert (await client.post(path, json={})).status_code in (401, 500)

    assert await left_by(running, use) < MOST


async def test_an_event_stream_that_its_client_left(running: Running, token: Token) -> None:
    async def use() -> None:
        events = "/api/topics/events?topic=rooms/1"
        async with running.client(token("alice")) as client, client.stream("GET", events) as stream:
            assert stream.status_code == 200
            await anext(stream.aiter_raw())

    assert await left_by(running, use) < MOST


async def test_a_request_that_is_cut_off(running: Running) -> None:
    async def use() -> None:
        with RawClient(running.url) as client:
            client.send(request_headers("POST /api/notes HTTP/1.1", {"Host": "x", "Content-Length": "9"}))

    assert await left_by(running, use) < MOST
