"""Calls of the Python client."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from hw_client import Backoff, Client, Closed, ConnectionLost, Refused, RpcError, SlowConsumer, Unreachable
from hw_client.reconnect import reconnectable
from tests.client.conftest import QUICK, ROOMS
from tests.conftest import Running, Serve, free_port, until
from tests.provider import Provider

Token = Callable[[str], str]


async def test_calls(bob: Client) -> None:
    async with bob as client:
        assert (await client.call("me.get"))["username"] == "bob"
        assert len((await client.call("notes.list", per_page=2))["items"]) <= 2
        await client.notify("ping")
        pages = await asyncio.gather(*(client.call("notes.list", per_page=number) for number in range(1, 9)))
    assert [page["per_page"] for page in pages] == list(range(1, 9))


async def test_errors_of_the_server_are_raised(bob: Client) -> None:
    async with bob as client:
        with pytest.raises(RpcError) as caught:
            await client.call("notes.create", title="x")
        assert (caught.value.code, caught.value.data["code"]) == (-32003, "forbidden")
        with pytest.raises(RpcError, match="-32601"):
            await client.call("nothing")


async def test_calls_of_a_batch_fail_alone(bob: Client) -> None:
    async with bob as client:
        pong, error, me = await client.batch([("ping", {}), ("nothing", {}), ("me.get", {})])
        assert (pong, error.code, me["username"]) == ("pong", -32601, "bob")
        assert await client.batch([]) == []
        too_many = await client.batch([("ping", {})] * 100)
        assert {error.code for error in too_many} == {-32600}


async def test_the_token_callback_may_be_async_or_a_string(rooms: Running, token: Token) -> None:
    async def sign_in() -> str:
        await asyncio.sleep(0)
        return token("alice")

    for given in (sign_in, token("alice")):
        async with Client(rooms.url.replace("http", "ws"), token=given, trust_env=False) as client:
            assert (await client.call("me.get"))["username"] == "alice"


async def test_a_refused_handshake_is_told(rooms: Running) -> None:
    with pytest.raises(Refused, match="401") as caught:
        async with Client(rooms.url, token="no token", trust_env=False):
            pass
    assert caught.value.problem["code"] == "unauthenticated"


async def test_a_server_out_of_reach_is_told() -> None:
    unused = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable, match=unused) as caught:
        async with Client(unused, timeout=1, backoff=QUICK, trust_env=False):
            pass
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_closed_client_says_so(bob: Client) -> None:
    async with bob as client:
        notifications = client.notifications()
        reading = asyncio.create_task(anext(notifications, None))
        await client.call("ping")
    assert await reading is None
    with pytest.raises(Closed, match="by the client"):
        await client.call("ping")


async def test_the_token_is_renewed_before_it_expires(serve: Serve, provider: Provider) -> None:
    lifetimes = iter((4, 300, 300))
    notices: list[dict[str, Any]] = []

    async def fresh() -> str:
        return provider.token(exp=int(time.time()) + next(lifetimes), sid="renewed")

    with serve(**provider.settings(), **ROOMS) as running:
        async with Client(running.url, token=fresh, trust_env=False) as client:
            client.on("session.expiring", notices.append)
            await until(lambda: notices)
            refreshed = 'ws_rpc_duration_seconds_count{code="ok",method="session.refresh"}'

            async def is_refreshed() -> bool:
                return (await running.metrics()).get(refreshed) == 1

            await until(is_refreshed)
            assert client.connected
    assert next(lifetimes) == 300  # the callback was asked twice


async def test_a_revoked_session_is_not_reconnected(serve: Serve, provider: Provider) -> None:
    with serve(**provider.settings(), **ROOMS) as running:
        client = Client(running.url, token=provider.token, backoff=QUICK, trust_env=False)
        async with client, client.subscribe("rooms/1") as events:
            session = (await client.call("me.get"))["session_id"]
            await client.notify("sessions.end", sid=session)
            end = await client.wait_closed()
            assert isinstance(end, Closed)
            assert end.code == 4403
            with pytest.raises(Closed, match="4403"):
                await anext(events)


async def test_a_client_comes_back_with_its_newer_token(serve: Serve, provider: Provider) -> None:
    """Another socket of its session has said that a role was taken away."""
    sid = uuid.uuid4().hex
    older = provider.token(sid=sid)
    tokens = iter([older])
    newer = provider.token(sid=sid, realm_access={"roles": ["notes:read"]})
    with serve(**provider.settings(), **ROOMS) as running:
        client = Client(running.url, token=lambda: next(tokens, newer), backoff=QUICK, trust_env=False)
        async with client, running.socket(older) as socket:
            assert "notes:write" in (await client.call("me.get"))["roles"]
            assert "result" in await socket.call("session.refresh", token=newer)

            async def has_fewer() -> bool:
                with contextlib.suppress(ConnectionLost):  # a call was under way when the socket was closed
                    return bool((await client.call("me.get"))["roles"] == ["notes:read"])
                return False

            await until(has_fewer)


async def test_a_call_waits_for_a_broken_connection(serve: Serve, token: Token) -> None:
    settings = {**ROOMS, "HW_HTTP__PORT": str(free_port())}
    client = Client(f"http://127.0.0.1:{settings['HW_HTTP__PORT']}", token("bob"), backoff=QUICK, trust_env=False)
    with serve(**settings) as running:
        await client.__aenter__()
        running.process.kill()
        await until(lambda: not client.connected)
    calling = asyncio.create_task(client.call("me.get"))
    with serve(**settings):
        assert (await calling)["username"] == "bob"
        await client.close()


async def test_a_restart_of_the_server_fails_no_call(serve: Serve, token: Token) -> None:
    settings = {"HW_HTTP__PORT": str(free_port()), **ROOMS}
    answers: list[Any] = []

    async def ask(client: Client) -> None:
        while True:
            answers.append(await client.call("notes.count"))
            answers.extend(await client.batch([("ping", {}), ("notes.count", {})]))

    async with contextlib.AsyncExitStack() as stack:
        first = stack.enter_context(serve(**settings))
        client = await stack.enter_async_context(Client(first.url, token=lambda: token("bob"), backoff=QUICK))
        asking = [asyncio.create_task(ask(client)) for _ in range(20)]
        await until(lambda: len(answers) > 200)
        first.process.terminate()
        await asyncio.to_thread(first.process.wait, 30)
        await asyncio.to_thread(stack.enter_context, serve(**settings))
        before = len(answers)
        await until(lambda: len(answers) > before + 200)
        assert not [task for task in asking if task.done()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_a_reader_of_notifications_that_is_too_slow_is_told(rooms: Running, token: Token) -> None:
    seen: list[dict[str, Any]] = []
    async with Client(rooms.url, token=token("bob"), buffer=3, trust_env=False) as client:
        client.on("topic.event", seen.append)
        notifications = client.notifications()
        first = asyncio.create_task(anext(notifications))
        for number in range(401, 408):
            # By hand, so that they are nobody's subscriptions.
            await client.call("topic.subscribe", topic=f"rooms/{number}")
            await client.call("topic.publish", topic=f"rooms/{number}", data={"text": "hello"})
        await until(lambda: len(seen) == 7)
        assert (await first).params == seen[0]
        assert [(await anext(notifications)).params for _ in range(3)] == seen[1:4]
        with pytest.raises(SlowConsumer):
            await anext(notifications)


def test_ranges_of_codes_say_whether_to_connect_again() -> None:
    codes = [None, 1000, 1001, 1002, 1009, 1011, 1012, 1013, 4400, 4403, 4499, 4500, 4508, 4599]
    assert [code for code in codes if not reconnectable(code)] == [1000, 1002, 1009, 4400, 4403, 4499]
    assert [reconnectable(4402), reconnectable(4402, renewable=True)] == [False, True]


def test_delays_grow_and_are_bounded() -> None:
    backoff = Backoff(first=1, longest=8)
    longest = [max(backoff.delay(failures) for _ in range(300)) for failures in (0, 1, 2, 3, 9, 5000)]
    assert [longest[index] <= limit for index, limit in enumerate((1, 2, 4, 8, 8, 8))] == [True] * 6
    assert longest[2] > 2
