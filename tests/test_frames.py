"""What clients may send over the socket: an error or a named close, never a hanging socket."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import websockets

from hw_server.ws.codes import CloseCode
from tests.conftest import Running, Serve, until
from tests.raw import RawClient

Token = Callable[[str], str]
FRAMES: dict[str, tuple[int, str]] = {
    "not JSON": (-32700, "{"),
    "NaN": (-32700, '{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}'),
    "deep nesting": (-32700, "[" * 4_000),
    "deeper nesting": (-32013, "[" * 100_000),
    "a lone surrogate": (-32700, '"\\ud800"'),
    "empty": (-32700, ""),
    "an empty batch": (-32600, "[]"),
    "a batch too long": (-32600, json.dumps([{"jsonrpc": "2.0", "id": 1, "method": "ping"}] * 51)),
    "a number": (-32600, "1"),
    "null": (-32600, "null"),
    "version 1": (-32600, '{"jsonrpc":"1.0","id":1,"method":"ping"}'),
    "no version": (-32600, '{"id":1,"method":"ping"}'),
    "no method": (-32600, '{"jsonrpc":"2.0","id":1}'),
    "a method that is no text": (-32600, '{"jsonrpc":"2.0","id":1,"method":7}'),
    "params in a list": (-32600, '{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}'),
    "an endless id": (-32600, '{"jsonrpc":"2.0","id":1e999,"method":"ping"}'),
    "an id of 400 digits": (-32600, f'{{"jsonrpc":"2.0","id":{10**400},"method":"ping"}}'),
    "a negative id of 400 digits in a batch": (-32600, f'[{{"jsonrpc":"2.0","id":-{10**400},"method":"ping"}}]'),
    "an id that is an object": (-32600, '{"jsonrpc":"2.0","id":{},"method":"ping"}'),
    "an unknown method": (-32601, '{"jsonrpc":"2.0","id":1,"method":"notes.explode"}'),
    "a private method": (-32601, '{"jsonrpc":"2.0","id":1,"method":"__init__"}'),
    "unknown params": (-32602, '{"jsonrpc":"2.0","id":1,"method":"notes.list","params":{"evil":1}}'),
    "a number as text": (-32602, '{"jsonrpc":"2.0","id":1,"method":"notes.list","params":{"per_page":"7"}}'),
    "nested parts": (-32602, '{"jsonrpc":"2.0","id":1,"method":"notes.list","params":{"query":{"per_page":1}}}'),
    "an id past 64 bits": (
        -32602,
        '{"jsonrpc":"2.0","id":1,"method":"notes.get","params":{"id":9223372036854775808}}',
    ),
    "NUL": (-32602, '{"jsonrpc":"2.0","id":1,"method":"notes.list","params":{"title":"\\u0000"}}'),
}


@pytest.mark.parametrize("case", FRAMES)
async def test_answers_an_error_and_goes_on(server: Running, token: Token, case: str) -> None:
    code, frame = FRAMES[case]
    async with server.socket(token("alice")) as socket:
        await socket.raw.send(frame)
        response = await socket.read()
        [response] = response if isinstance(response, list) else [response]
        assert response["error"]["code"] == code
        assert "Traceback" not in json.dumps(response)
        assert (await socket.call("ping"))["result"] == "pong"


async def test_a_batch_is_answered_in_one_frame(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        calls: list[Any] = [{"jsonrpc": "2.0", "id": index, "method": "ping"} for index in range(3)]
        await socket.raw.send(json.dumps([*calls, {"jsonrpc": "2.0", "method": "ping"}, 1]))
        responses = await socket.read()
    assert [response["id"] for response in responses] == [0, 1, 2, None]


async def test_a_notification_has_no_answer(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        await socket.raw.send('{"jsonrpc":"2.0","method":"notes.list"}')
        await socket.raw.send('{"jsonrpc":"2.0","method":"nothing.there"}')
        await socket.raw.send('[{"jsonrpc":"2.0","method":"ping"}]')
        assert (await socket.call("ping"))["id"] == 1


async def test_a_binary_frame_closes(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        await socket.raw.send(b"x")
        assert await socket.closed() == (1003, "binary_frame")


async def test_a_message_too_big_closes(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        await socket.raw.send("x" * 300_000)
        code, _ = await socket.closed()
    assert code == 1009


async def test_a_message_in_pieces_is_one_message(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        frame = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "notes.tagged", "params": {"tags": ["\N{SNOWMAN}"]}})

        async def pieces() -> AsyncIterator[str]:
            yield frame[:20]
            await (await socket.raw.ping())  # answered in the middle of the message
            yield frame[20:-6]
            yield frame[-6:]

        await socket.raw.send(pieces())
        response = await socket.read()
        assert (response["id"], response["result"]["items"]) == (7, [])
        assert (await socket.call("ping"))["result"] == "pong"


async def test_pieces_that_are_too_big_together_close(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        with contextlib.suppress(websockets.ConnectionClosed):
            await socket.raw.send(["x" * 100_000] * 3)
        assert (await socket.closed())[0] == 1009


async def test_a_process_holds_only_so_many_sockets(serve: Serve, token: Token) -> None:
    with serve(HW_WS__MAX_CONNECTIONS="2") as running:
        async with running.socket(token("alice")), running.socket() as second:
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with running.socket(token("bob")):
                    pass
            await second.raw.close()
            response = refused.value.response
            assert (response.status_code, json.loads(response.body or b"")["code"]) == (503, "unavailable")
            await until(lambda: ended(running, "closed_by_client"))
            async with running.socket(token("bob")) as third:
                assert (await third.call("me.get"))["result"]["username"] == "bob"
        assert await ended(running, "unavailable") == 1


async def test_sockets_that_arrive_together_get_no_more_places(serve: Serve, token: Token) -> None:
    with serve(HW_WS__MAX_CONNECTIONS="2") as running:
        async with contextlib.AsyncExitStack() as sockets:
            arriving = [sockets.enter_async_context(running.socket(token("alice"))) for _ in range(20)]
            results = await asyncio.gather(*arriving, return_exceptions=True)
    assert len([result for result in results if not isinstance(result, websockets.InvalidStatus)]) == 2


async def test_no_sign_in_closes(serve: Serve) -> None:
    with serve(HW_WS__AUTH_TIMEOUT="0.5") as running:
        async with running.socket() as socket:
            assert (await socket.call("notes.list"))["error"]["code"] == -32001
            assert await socket.closed() == (4401, "unauthenticated")


async def test_signs_in_by_the_first_call(server: Running, token: Token) -> None:
    async with server.socket() as socket:
        response = await socket.call("session.authenticate", token=token("alice"))
        assert response["result"]["username"] == "alice"
        assert "items" in (await socket.call("notes.list"))["result"]
        again = await socket.call("session.authenticate", token=token("alice"))
    assert again["error"]["code"] == -32009


async def test_refreshes_with_a_token_of_the_same_user(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        assert (await socket.call("session.refresh", token=token("alice")))["result"]["username"] == "alice"
        assert (await socket.call("session.refresh", token=token("bob")))["error"]["code"] == -32009
        assert (await socket.call("session.refresh", token="x"))["error"]["code"] == -32001


async def test_a_flood_is_answered_to_the_last(server: Running, token: Token) -> None:
    async with server.socket(token("alice")) as socket:
        for index in range(1000):
            await socket.raw.send(json.dumps({"jsonrpc": "2.0", "id": index, "method": "notes.list"}))
        ids = {(await socket.read())["id"] for _ in range(1000)}
    assert ids == set(range(1000))


async def test_a_flood_past_the_limit_closes(serve: Serve, token: Token) -> None:
    with serve(HW_RATELIMIT__WS_PER_MINUTE="5", HW_REDIS__KEY_PREFIX="flood:") as running:
        async with running.socket(token("alice")) as socket:
            for _ in range(5):
                assert (await socket.call("ping"))["result"] == "pong"
            refused = (await socket.call("ping"))["error"]
            assert (refused["code"], refused["data"]["retry_after"] > 0) == (-32029, True)
            for index in range(300):
                await socket.raw.send(json.dumps({"jsonrpc": "2.0", "id": index, "method": "ping"}))
            assert await socket.closed() == (4429, "flooding")


async def ended(running: Running, outcome: str) -> float:
    """How many sockets have ended so."""
    return (await running.metrics()).get(f'ws_connections_total{{outcome="{outcome}"}}', 0)


async def test_a_client_that_does_not_read_is_closed(serve: Serve, token: Token) -> None:
    """Before a ping has gone unanswered for as long."""
    with serve(HW_WS__PING_INTERVAL="3") as running:
        async with running.socket(token("alice"), max_queue=1) as socket:
            socket.raw.transport.pause_reading()
            frame = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "rpc.discover"})
            for _ in range(400):
                await socket.raw.send(frame)
            await until(lambda: ended(running, "slow_consumer"))


async def test_pings_past_the_limit_close(server: Running, token: Token) -> None:
    async with server.socket(token("alice"), max_queue=1) as socket:
        socket.raw.transport.write((b"\x89\xfd\0\0\0\0" + bytes(125)) * 500)
        assert await socket.closed() == (4429, "flooding")


BROKEN: dict[str, tuple[CloseCode, bytes]] = {
    "an endless ping": (CloseCode.PROTOCOL_ERROR, b"\x89\xff" + (2**40).to_bytes(8, "big") + bytes(4)),
    "a long ping": (CloseCode.PROTOCOL_ERROR, b"\x89\xfe\0\x7e" + bytes(4)),
    "a reserved bit": (CloseCode.PROTOCOL_ERROR, b"\xc1\x80" + bytes(4)),
    "a reserved opcode": (CloseCode.PROTOCOL_ERROR, b"\x83\x80" + bytes(4)),
    "no mask": (CloseCode.PROTOCOL_ERROR, b"\x81\x01x" + bytes(9)),
    "a continuation of nothing": (CloseCode.PROTOCOL_ERROR, b"\x80\x80" + bytes(4)),
    "a ping in pieces": (CloseCode.PROTOCOL_ERROR, b"\x09\x80" + bytes(4)),
    "an endless text": (CloseCode.MESSAGE_TOO_BIG, b"\x81\xff" + (2**40).to_bytes(8, "big") + bytes(4)),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_frame_closes(server: Running, token: Token, case: str) -> None:
    code, frame = BROKEN[case]
    before = await ended(server, code.name.lower())
    async with server.socket(token("alice")) as socket:
        socket.raw.transport.write(frame + bytes(1_000_000))
        assert (await socket.closed())[0] == code

    async def counted() -> bool:
        return await ended(server, code.name.lower()) == before + 1

    await until(counted)


@pytest.mark.parametrize(("origin", "status"), [("https://evil.org", 403), ("null", 403)])
async def test_refuses_a_foreign_origin(server: Running, token: Token, origin: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {token('alice')}", "Origin": origin}
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with server.socket(additional_headers=headers):
            pass
    response = refused.value.response
    assert (response.status_code, json.loads(response.body or b"")["code"]) == (status, "origin_not_allowed")
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.headers["x-content-type-options"], len(response.headers["x-request-id"])) == ("nosniff", 16)
    [line] = await until(lambda: server.lines_of(response.headers["x-request-id"]))
    assert (line["event"], line["code"]) == ("socket_refused", "origin_not_allowed")


async def test_accepts_its_own_origin(server: Running, token: Token) -> None:
    headers = {"Authorization": f"Bearer {token('alice')}", "Origin": server.environment["HW_HTTP__PUBLIC_URL"]}
    async with server.socket(additional_headers=headers) as socket:
        assert (await socket.call("ping"))["result"] == "pong"


async def test_other_paths_have_no_socket(server: Running) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(server.ws_url + "/x", proxy=None):
            pass
    assert refused.value.response.status_code == 404


def test_a_client_that_answers_no_ping_is_closed(serve: Serve, token: Token) -> None:
    with serve(HW_WS__PING_INTERVAL="0.5") as running, RawClient(running.url) as client:
        assert client.handshake(token("alice")) == 101
        assert client.close_code() == 4509
