"""Subscriptions and event streams of the Python client."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import redis.asyncio
import websockets

from hw_client import (
    AlreadySubscribed,
    Client,
    Event,
    HistoryLost,
    Position,
    Refused,
    Reset,
    RpcError,
    SlowConsumer,
    Unsubscribed,
)
from hw_client.streams import parse
from hw_server.embedded import Stack
from tests.client.conftest import QUICK, ROOMS
from tests.conftest import Running, Serve, free_port, until
from tests.provider import Provider
from tests.topics.speaker import room, say

Token = Callable[[str], str]


async def texts(items: AsyncIterator[Any], count: int) -> list[str]:
    """Texts of the next items; a reset has none."""
    async with asyncio.timeout(30):
        received = [await anext(items) for _ in range(count)]
    return [item.data["text"] if isinstance(item, Event) else "reset" for item in received]


async def test_events_come_in_order_and_the_position_follows(bob: Client, speaker: httpx.AsyncClient) -> None:
    number = room()
    async with bob as client, client.subscribe(f"rooms/{number}") as events:
        before = events.position
        await say(speaker, number, "word", times=30)
        assert await texts(events, 30) == [f"word {index}" for index in range(30)]
        assert before is not None
        assert events.position == Position(before.epoch, before.offset + 30)


async def test_leaving_the_loop_unsubscribes(bob: Client, speaker: httpx.AsyncClient) -> None:
    number = room()
    async with bob as client:
        speaking = asyncio.create_task(_repeat(speaker, number))
        async for item in client.subscribe(f"rooms/{number}"):
            assert isinstance(item, Event)
            assert (item.topic, item.data["by"]) == (f"rooms/{number}", "alice")
            break
        speaking.cancel()

        async def unsubscribed() -> bool:
            [answer] = await client.batch([("topic.unsubscribe", {"topic": f"rooms/{number}"})])
            return isinstance(answer, RpcError) and answer.code == -32004

        assert await until(unsubscribed)


async def _repeat(speaker: httpx.AsyncClient, number: int) -> None:
    while True:
        await say(speaker, number, "again")
        await asyncio.sleep(0.05)


async def test_a_position_goes_on_in_another_process(
    bob: Client, rooms: Running, token: Token, speaker: httpx.AsyncClient
) -> None:
    number = room()
    async with bob as client, client.subscribe(f"rooms/{number}") as events:
        await say(speaker, number, "word", times=5)
        assert await texts(events, 2) == ["word 0", "word 1"]
    other = Client(rooms.url, token("bob"), trust_env=False)
    async with other, other.subscribe(f"rooms/{number}", since=events.position) as more:
        assert await texts(more, 3) == ["word 2", "word 3", "word 4"]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
async def test_what_a_restart_missed_arrives_once_and_in_order(
    serve: Serve, token: Token, speaker: httpx.AsyncClient, ending: signal.Signals
) -> None:
    number, settings = room(), {**ROOMS, "HW_HTTP__PORT": str(free_port())}
    client = Client(f"http://127.0.0.1:{settings['HW_HTTP__PORT']}", token("bob"), backoff=QUICK, trust_env=False)
    with serve(**settings) as running:
        await client.__aenter__()
        events = await client.subscribe(f"rooms/{number}").__aenter__()
        await say(speaker, number, "before")
        assert await texts(events, 1) == ["before"]
        running.process.send_signal(ending)
        await until(lambda: not client.connected)
    await say(speaker, number, "meanwhile", times=200)
    with serve(**settings):
        await until(lambda: client.connected)
        await say(speaker, number, "after")
        assert await texts(events, 201) == [*(f"meanwhile {index}" for index in range(200)), "after"]
        await client.close()
    assert [item async for item in events] == []


async def test_events_of_a_subscription_before_this_one_are_not_taken_for_its_own() -> None:
    """Its end is still on its way to the server: what it gets lies behind what the next one is about to recover."""

    def event(offset: int) -> dict[str, Any]:
        return {"topic": "rooms/1", "epoch": "e", "offset": offset, "data": {"text": str(offset)}}

    async def answer(socket: Any) -> None:
        async for message in socket:
            call = json.loads(message)
            stray = {"jsonrpc": "2.0", "method": "topic.event", "params": event(15)}
            result = {"epoch": "e", "offset": 20, "recovered": True, "events": [event(n) for n in range(11, 21)]}
            await socket.send(json.dumps(stray))
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": result}))

    async with websockets.serve(answer, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with (
            Client(f"http://127.0.0.1:{port}", trust_env=False) as client,
            client.subscribe("rooms/1", since=Position("e", 10)) as events,
        ):
            assert await texts(events, 10) == [str(n) for n in range(11, 21)]


@pytest.mark.parametrize("lost", ["yield", "raise"])
async def test_a_history_that_is_gone_is_told(
    serve: Serve, stack: Stack, token: Token, speaker: httpx.AsyncClient, lost: Any
) -> None:
    number, settings = room(), {**ROOMS, "HW_HTTP__PORT": str(free_port())}
    client = Client(f"http://127.0.0.1:{settings['HW_HTTP__PORT']}", token("bob"), backoff=QUICK, trust_env=False)
    with serve(**settings) as running:
        await client.__aenter__()
        events = await client.subscribe(f"rooms/{number}", lost=lost).__aenter__()
        await say(speaker, number, "before")
        assert await texts(events, 1) == ["before"]
        running.process.kill()
        await until(lambda: not client.connected)
    await forget(stack, number)
    with serve(**settings):
        if lost == "raise":
            with pytest.raises(HistoryLost):
                await anext(events)
        else:
            assert await texts(events, 1) == ["reset"]
            await say(speaker, number, "after")
            assert await texts(events, 1) == ["after"]
        await client.close()


async def forget(stack: Stack, number: int) -> None:
    """Redis without what it keeps of a room."""
    async with redis.asyncio.Redis.from_url(stack.environment()["HW_REDIS__URL"]) as client:
        keys = [key async for key in client.scan_iter(f"*topic:*:rooms%2F{number}")]
        assert keys
        await client.delete(*keys)


async def test_what_is_refused_is_told(bob: Client) -> None:
    async with bob as client:
        for topic, code in (("rooms/1001", -32003), ("nothing", -32004)):
            with pytest.raises(RpcError) as caught:
                await anext(client.subscribe(topic))
            assert caught.value.code == code
        async with client.subscribe("rooms/1"):
            with pytest.raises(AlreadySubscribed):
                await anext(client.subscribe("rooms/1"))
        async with client.subscribe("rooms/1"):
            pass


async def test_a_slow_reader_gets_an_error_and_loses_nothing(bob: Client, speaker: httpx.AsyncClient) -> None:
    number = room()
    async with bob as client:
        async with client.subscribe(f"rooms/{number}", buffer=5) as events:
            await say(speaker, number, "word", times=20)
            assert await texts(events, 5) == [f"word {index}" for index in range(5)]
            with pytest.raises(SlowConsumer) as caught:
                await anext(events)
        async with client.subscribe(f"rooms/{number}", since=caught.value.position) as events:
            assert await texts(events, 15) == [f"word {index}" for index in range(5, 20)]


async def test_a_role_taken_away_ends_the_subscription(serve: Serve, provider: Provider) -> None:
    changes = iter(({"lifetime": 5}, {"lifetime": 300, "realm_access": {"roles": []}}))

    def fresh() -> str:
        change = dict(next(changes))
        return provider.token(sub="erin", exp=int(time.time()) + change.pop("lifetime"), **change)

    with serve(**provider.settings(), **ROOMS) as running:
        async with Client(running.url, token=fresh, trust_env=False) as client:
            with pytest.raises(Unsubscribed, match="short/1: forbidden"):
                async for _ in client.subscribe("short/1"):
                    pass
            assert await client.call("ping") == "pong"


async def test_a_stream_gives_events_and_goes_on_from_its_place(
    bob: Client, rooms: Running, speaker: httpx.AsyncClient
) -> None:
    first, second = room(), 501 + room() % 400
    names = [f"rooms/{first}", f"rooms/{second}"]
    async with bob.events(names) as stream:
        reading = asyncio.create_task(texts(stream, 1))
        await until(lambda: stream.connected)
        await say(speaker, first, "one")
        assert await reading == ["one"]
    await say(speaker, second, "two\u2028lines")
    async with bob.events(names, last_event_id=stream.last_event_id) as stream:
        assert await texts(stream, 1) == ["two\u2028lines"]
        assert stream.positions[names[1]].offset > 0


async def test_a_stream_is_made_again_after_a_restart(serve: Serve, token: Token, speaker: httpx.AsyncClient) -> None:
    number, settings = room(), {**ROOMS, "HW_HTTP__PORT": str(free_port())}
    client = Client(f"http://127.0.0.1:{settings['HW_HTTP__PORT']}", token("bob"), backoff=QUICK, trust_env=False)
    stream = client.events([f"rooms/{number}"])
    with serve(**settings) as running:
        reading = asyncio.create_task(texts(stream, 1))
        await until(lambda: stream.connected)
        await say(speaker, number, "before")
        assert await reading == ["before"]
        running.process.kill()
    await say(speaker, number, "meanwhile", times=50)
    with serve(**settings):
        assert await texts(stream, 50) == [f"meanwhile {index}" for index in range(50)]
        await stream.aclose()


async def test_a_stream_tells_what_is_lost_and_what_is_refused(bob: Client) -> None:
    gone = "rooms%2F1@elsewhere:7"
    async with bob.events(["rooms/1"], last_event_id=gone) as stream:
        assert isinstance(await anext(stream), Reset)
    with pytest.raises(HistoryLost):
        await anext(bob.events(["rooms/1"], last_event_id=gone, lost="raise"))
    with pytest.raises(Refused, match="403"):
        await anext(bob.events(["rooms/1001"]))


async def test_messages_of_a_stream_are_told_apart_wherever_they_are_cut() -> None:
    data = ": open\n\nid: 1\r\nevent: topic.event\r\ndata: a\u2028b\r\ndata:c\r\n\r\nid: 2\n\ndata: d\n\ndata: cut".encode()
    for size in (1, 2, 3, len(data)):

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for at in range(0, len(data), size):
                yield data[at : at + size]

        messages = [tuple(message) async for message in parse(pieces())]
        assert messages == [("1", "topic.event", "a\u2028b\nc"), ("2", "", ""), ("2", "", "d")]


async def test_what_many_topics_missed_comes_back_together(
    serve: Serve, token: Token, speaker: httpx.AsyncClient
) -> None:
    settings = {**ROOMS, "HW_HTTP__PORT": str(free_port())}
    numbers = [room(), 501, 502, 503]
    client = Client(f"http://127.0.0.1:{settings['HW_HTTP__PORT']}", token("bob"), backoff=QUICK, trust_env=False)
    with serve(**settings) as running:
        await client.__aenter__()
        subscriptions = [await client.subscribe(f"rooms/{number}").__aenter__() for number in numbers]
        running.process.kill()
        await until(lambda: not client.connected)
    for number in numbers:
        await say(speaker, number, "x" * 20_000, times=20)  # together more than a socket's buffer
    with serve(**settings):
        for subscription in subscriptions:
            assert await texts(subscription, 20) == [f"{'x' * 20_000} {index}" for index in range(20)]
        await client.close()
