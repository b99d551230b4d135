"""Live sessions: what a caller may not have any more ends on every process, over sockets and event streams; drains."""

import asyncio
import contextlib
import json
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets
from websockets.exceptions import ConnectionClosed

from hw_client import Backoff, Client
from tests.conftest import Running, until
from tests.provider import Provider
from tests.topics.conftest import Start


@pytest.fixture(scope="module")
def pair(start: Start, provider: Provider) -> Iterator[tuple[Running, Running]]:
    """Two servers that trust `provider`."""
    with start(**provider.settings()) as here, start(**provider.settings()) as there:
        yield here, there


@asynccontextmanager
async def stream(running: Running, token: str, topic: str) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of an open event stream."""
    async with (
        running.client(token) as client,
        client.stream("GET", "/api/topics/events", params={"topic": topic}) as response,
    ):
        assert response.status_code == 200
        lines = response.aiter_lines()
        assert [await anext(lines) for _ in range(2)] == ["retry: 1000", ""]
        assert (await anext(lines)).startswith("id: ")
        yield lines


async def rest(lines: AsyncIterator[str]) -> list[str]:
    """Everything until the server ends the stream."""
    async with asyncio.timeout(20):
        return [line async for line in lines]


@pytest.mark.parametrize("way", ["DELETE", "back-channel logout"])
async def test_an_ended_session_ends_everywhere(pair: tuple[Running, Running], provider: Provider, way: str) -> None:
    here, there = pair
    sid = uuid.uuid4().hex
    token, other = provider.token(sid=sid), provider.token()
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(running.socket(token)) for running in pair]
        streams = [await stack.enter_async_context(stream(running, token, "rooms/1")) for running in pair]
        spared = await stack.enter_async_context(there.socket(other))
        for socket in (*sockets, spared):
            await socket.call("topic.subscribe", topic="rooms/1")
        async with here.client(token) as client:
            if way == "DELETE":
                assert (await client.delete(f"/api/sessions/{sid}")).status_code == 204
            else:
                form = {"logout_token": provider.logout_token(sid=sid)}
                assert (await client.post("/api/auth/backchannel-logout", data=form)).status_code == 200
        async with asyncio.timeout(1):
            assert [await socket.closed() for socket in sockets] == [(4403, "session_revoked")] * 2
            assert [await rest(lines) for lines in streams] == [[""], [""]]
        assert (await spared.call("ping"))["result"] == "pong"


async def test_an_idle_stream_has_heartbeats_and_ends_with_its_token(start: Start, provider: Provider) -> None:
    with start(**provider.settings(), HW_OIDC__LEEWAY="0") as running:
        expires_at = int(time.time()) + 18
        async with stream(running, provider.token(exp=expires_at), "rooms/1") as lines:
            assert await rest(lines) == ["", ": heartbeat", ""]
        assert 0 <= time.time() - expires_at < 1


def entering(running: Running, room: int) -> list[dict[str, Any]]:
    """What the rule of a slow room has logged; it goes on for a second."""
    return [line for line in running.log() if line["event"] == "entering_slowly" and line["room"] == room]


async def test_a_stream_that_is_opened_meanwhile_is_refused(pair: tuple[Running, Running], provider: Provider) -> None:
    here, there = pair
    sid = uuid.uuid4().hex
    token = provider.token(sid=sid)
    async with here.client(token) as client, there.client(token) as other:
        opening = asyncio.create_task(client.get("/api/topics/events", params={"topic": "slow/2"}))
        await until(lambda: entering(here, 2))
        assert (await other.delete(f"/api/sessions/{sid}")).status_code == 204
        assert (await opening).status_code == 401


async def test_a_withdrawn_key_ends_streams(start: Start) -> None:
    with Provider.running() as own, start(**own.settings(), HW_OIDC__JWKS_MAX_AGE="1") as running:
        async with stream(running, own.token("rsa"), "rooms/1") as lines:
            own.published = ["ec"]
            assert await rest(lines) == [""]


async def test_a_stream_whose_key_is_withdrawn_meanwhile_is_refused(start: Start) -> None:
    topics = [("topic", f"slow/{number}") for number in range(4)]  # their rules take four seconds together
    with Provider.running() as own, start(**own.settings(), HW_OIDC__JWKS_MAX_AGE="1") as running:
        async with running.client(own.token("rsa")) as client:
            opening = asyncio.create_task(client.get("/api/topics/events", params=topics))
            await until(lambda: entering(running, 0))
            own.published = ["ec"]
            assert (await opening).status_code == 401


async def test_a_role_taken_away_ends_what_it_allowed(pair: tuple[Running, Running], provider: Provider) -> None:
    here, _ = pair
    async with here.socket(provider.token()) as socket, here.client(provider.token()) as speaker:
        for topic in ("short/1", "rooms/1"):
            await socket.call("topic.subscribe", topic=topic)
        await socket.raw.send(call("session.refresh", token=provider.token(realm_access={"roles": []})))
        messages = [await socket.read(), await socket.read()]
        [ended] = [message["params"] for message in messages if "method" in message]
        assert ended == {"topic": "short/1", "reason": "forbidden"}
        for family in ("short", "rooms"):
            query = {"family": family}
            assert (await speaker.post("/api/rooms/1/words", json={"text": family}, params=query)).status_code == 201
        assert (await socket.read())["params"]["data"]["text"] == "rooms"


async def test_a_role_taken_away_ends_what_older_tokens_of_its_session_opened(
    pair: tuple[Running, Running], provider: Provider
) -> None:
    here, there = pair
    sid = uuid.uuid4().hex
    older, newer = provider.token(sid=sid), provider.token(sid=sid, realm_access={"roles": []})
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(here.socket(older))
        others = [await stack.enter_async_context(running.socket(older)) for running in pair]
        streams = [await stack.enter_async_context(stream(running, older, "short/1")) for running in pair]
        spared = [await stack.enter_async_context(there.socket(token)) for token in (newer, provider.token())]
        assert "result" in await first.call("session.refresh", token=newer)
        async with asyncio.timeout(1):
            assert [await socket.closed() for socket in others] == [(4402, "token_expired")] * 2
            assert [await rest(lines) for lines in streams] == [[""], [""]]
        assert [(await socket.call("ping"))["result"] for socket in (first, *spared)] == ["pong"] * 3
        for token, status in ((older, 401), (newer, 403), (provider.token(sid=sid, iat=int(time.time()) + 2), 200)):
            async with there.client(token) as client:
                assert (await client.get("/api/notes")).status_code == status


async def test_a_role_taken_away_stays_so_beside_other_clients_and_older_tokens(
    pair: tuple[Running, Running], provider: Provider
) -> None:
    here, there = pair
    sid, now = uuid.uuid4().hex, int(time.time())
    none = {"roles": []}

    async def refresh(older: str, newer: str) -> None:
        async with here.socket(older) as socket:
            assert "result" in await socket.call("session.refresh", token=newer)

    of_the_first = provider.token(sid=sid, iat=now - 5)
    await refresh(of_the_first, provider.token(sid=sid, iat=now, realm_access=none))
    await refresh(
        provider.token(sid=sid, azp="another", iat=now - 9), provider.token(sid=sid, azp="another", realm_access=none)
    )
    fewer = provider.token(sid=sid, iat=now - 8, realm_access={"roles": ["notes:read"]})
    async with here.client(of_the_first) as one, there.client(of_the_first) as two, there.client(fewer) as three:
        statuses = [(await client.get("/api/notes")).status_code for client in (one, two, three)]
    assert statuses == [401, 401, 401]


async def test_of_two_that_take_roles_away_at_once_the_newer_stays(
    pair: tuple[Running, Running], provider: Provider
) -> None:
    here, there = pair
    now = int(time.time())

    def token(sid: str, age: int, *roles: str) -> str:
        return provider.token(sid=sid, iat=now - age, realm_access={"roles": roles})

    async def status_after_both(sid: str) -> int:
        async with here.socket(token(sid, 9, "notes:read", "more")) as one, here.socket(token(sid, 9, "more")) as two:
            await one.raw.send(call("session.refresh", token=token(sid, 1)))
            await two.raw.send(call("session.refresh", token=token(sid, 8, "notes:read")))
            await one.read()
            with contextlib.suppress(ConnectionClosed):
                await two.read()
        async with there.client(token(sid, 7, "notes:read")) as client:
            return (await client.get("/api/notes")).status_code

    statuses = await asyncio.gather(*(status_after_both(uuid.uuid4().hex) for _ in range(20)))
    assert set(statuses) == {401}


async def test_a_rule_that_does_not_answer_leaves_no_subscription(start: Start, provider: Provider) -> None:
    topics = ("short/1", "silent/1", "silent/2")
    with start(**provider.settings(), HW_HTTP__REQUEST_TIMEOUT="1") as running:
        async with running.socket(provider.token()) as socket:
            for topic in topics:
                assert "result" in await socket.call("topic.subscribe", topic=topic)
            await socket.raw.send(call("session.refresh", token=provider.token(realm_access={"roles": []})))
            *notices, _ = [(await socket.read()).get("params") for _ in range(4)]
            assert {ended["topic"]: ended["reason"] for ended in notices} == dict(
                zip(topics, ("forbidden", "timeout", "timeout"), strict=True)
            )
            for topic in topics:
                assert (await socket.call("topic.unsubscribe", topic=topic))["error"]["code"] == -32004


def call(method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": method, "method": method, "params": params})


async def test_a_role_taken_away_while_it_is_asked_for(pair: tuple[Running, Running], provider: Provider) -> None:
    here, _ = pair
    async with here.socket(provider.token()) as socket:
        await socket.raw.send(call("topic.subscribe", topic="slow/1"))
        await socket.raw.send(call("session.refresh", token=provider.token(realm_access={"roles": []})))
        answers = {}
        while answers.keys() != {"topic.subscribe", "session.refresh"}:
            message = await socket.read()
            answers[message.get("id", message.get("method"))] = message
            answers.pop("topic.unsubscribed", None)
        assert (await socket.call("topic.unsubscribe", topic="slow/1"))["error"]["code"] == -32004


async def test_streams_count_as_sockets_of_their_user(start: Start, provider: Provider) -> None:
    with start(**provider.settings(), HW_RATELIMIT__SOCKETS_PER_USER="2") as running:
        token = provider.token(sub=uuid.uuid4().hex)
        async with running.client(token) as client, running.socket(token):
            async with stream(running, token, "rooms/1"):
                assert (await client.get("/api/topics/events", params={"topic": "rooms/1"})).status_code == 429
            await until(lambda: opens(running, token))


async def opens(running: Running, token: str) -> bool:
    with contextlib.suppress(AssertionError):
        async with stream(running, token, "rooms/1"):
            return True
    return False


async def test_a_drain_tells_when_to_come_back_and_spreads_its_ends(start: Start, tokens: dict[str, str]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        with start(HW_WS__DRAIN_RATE="4") as running:
            sockets = [await stack.enter_async_context(running.socket(tokens["bob"])) for _ in range(6)]
            lines = await stack.enter_async_context(stream(running, tokens["bob"], "rooms/1"))
            running.process.send_signal(signal.SIGTERM)
            notices = [await socket.read() for socket in sockets]
            ends = [asyncio.create_task(socket.closed()) for socket in sockets]
            _, open_ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            received = await rest(lines)
            assert [await end for end in ends] == [(1001, "going_away")] * 6
    assert len(open_) >= 3
    assert {notice["method"] for notice in notices} == {"server.draining"}
    delays = [notice["params"]["delay"] for notice in notices]
    assert all(0 <= delay <= 1.5 for delay in delays)
    assert len(set(delays)) > 1
    assert [line.partition(": ")[0] for line in received if line] == ["retry", "event", "data"]
    assert json.loads(received[-2].removeprefix("data: "))["delay"] <= 1.5


async def test_the_client_waits_as_long_as_the_server_says() -> None:
    loop, times = asyncio.get_running_loop(), list[float]()

    async def drain(socket: Any) -> None:
        times.append(loop.time())
        if len(times) == 1:
            await socket.send(json.dumps({"jsonrpc": "2.0", "method": "server.draining", "params": {"delay": 1.0}}))
            await socket.close(1001)
        await socket.wait_closed()

    async with websockets.serve(drain, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with Client(f"http://127.0.0.1:{port}", backoff=Backoff(0.01, 0.01), trust_env=False):
            await until(lambda: len(times) == 2)
    assert times[1] - times[0] >= 1.0
