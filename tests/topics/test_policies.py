"""Ephemeral topics, and subscribers that do not read."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from random import randrange
from typing import Any

import asyncpg
import httpx
import pytest

from hw_server.embedded import Stack
from hw_server.operations import Topic
from tests.conftest import Running, Socket, until
from tests.raw import TEXT, RawClient, frame, request_headers
from tests.rooms import Said
from tests.topics.conftest import Start

BIG = "x" * 50_000


def some() -> int:
    return randrange(1, 2**40)


async def say(client: httpx.AsyncClient, topic: str, text: str, **query: Any) -> httpx.Response:
    family, _, number = topic.partition("/")
    return await client.post(f"/api/rooms/{number}/words", json={"text": text}, params={"family": family, **query})


async def publish(client: httpx.AsyncClient, topic: str, **data: str) -> None:
    response = await client.post("/api/topics/publish", params={"topic": topic}, json={"data": data})
    assert response.status_code == 200, response.text


async def heard(socket: Socket) -> tuple[int, str]:
    message = await socket.read()
    assert message["method"] == "topic.event"
    return message["params"]["offset"], message["params"]["data"]["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ephemeral": True, "ordered": True}, "has no order of commits"),
        ({"key": "by"}, 'only when_full="conflate" needs a key'),
        ({"key": "whom", "when_full": "conflate"}, "its event has no field whom"),
    ],
)
def test_declarations_that_cannot_be_right(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Topic("some", Said, subscribe="notes:read", **arguments)


async def test_an_ephemeral_event_passes_the_database_by(
    one: Running, two: Running, tokens: dict[str, str], fragile: Stack
) -> None:
    topic = f"cursors/{some()}"
    connection = await asyncpg.connect(fragile.owner()["HW_DATABASE__OWNER_URL"])
    async with one.socket(tokens["bob"]) as socket, two.socket(tokens["bob"]) as other:
        start = (await other.call("topic.subscribe", topic=topic))["result"]
        async with connection.transaction():
            await connection.execute("LOCK TABLE topic_outbox, user_actions IN ACCESS EXCLUSIVE MODE")
            assert "result" in await socket.call("topic.publish", topic=topic, data={"text": "here"})
            assert await heard(other) == (start["offset"] + 1, "here")
        recover = {"epoch": start["epoch"], "offset": start["offset"]}
        result = (await socket.call("topic.subscribe", topic=topic, recover=recover))["result"]
        assert (result["recovered"], [event["data"]["text"] for event in result["events"]]) == (True, ["here"])
    await connection.close()


async def test_an_operation_sends_ephemeral_events_after_its_commit(
    one: Running, two: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topic = f"cursors/{some()}"
    async with two.socket(tokens["bob"]) as socket:
        await socket.call("topic.subscribe", topic=topic)
        assert (await say(alice, topic, "never", fail=True)).status_code == 409
        assert (await say(alice, topic, "committed")).status_code == 201
        assert await heard(socket) == (1, "committed")


async def test_rules_and_bounds_hold_for_ephemeral_topics(start: Start, tokens: dict[str, str]) -> None:
    with start(HW_TOPICS__MAX_EVENT_BYTES="300", HW_RATELIMIT__PUBLISHES_PER_MINUTE="2") as running:
        async with running.socket(tokens["dave"]) as dave, running.socket(tokens["carol"]) as carol:
            answers = [
                await carol.call("topic.publish", topic="cursors/1", data={"text": "x"}),
                await dave.call("topic.publish", topic="cursors/1", data={"text": "x"}),
                await dave.call("topic.publish", topic="cursors/1", data={"text": "x" * 400}),
                await dave.call("topic.publish", topic="cursors/1", data={"text": "x"}),
            ]
    assert [answer.get("error", {}).get("code") for answer in answers] == [-32003, None, -32013, -32029]


@contextmanager
def slow_socket(running: Running, token: str, *topics: str) -> Iterator[RawClient]:
    """Subscribed, and then nothing is read."""
    with RawClient(running.url, receive_buffer=4096) as client:
        assert client.handshake(token) == 101
        for topic in topics:
            call = {"jsonrpc": "2.0", "id": 1, "method": "topic.subscribe", "params": {"topic": topic}}
            client.send(frame(TEXT, json.dumps(call).encode()))
            kind, answer = next(client.frames())
            assert (kind, b'"result"' in answer) == (TEXT, True)
        yield client


@asynccontextmanager
async def reading(running: Running, token: str, topic: str) -> AsyncIterator[list[str]]:
    """The texts that a client gets that reads all the time."""
    texts: list[str] = []

    async def read(socket: Socket) -> None:
        while True:
            params = (await socket.read()).get("params", {})
            texts.extend(event["data"]["text"] for event in params.get("events", [params]))

    async with running.socket(token) as socket:
        await socket.call("topic.subscribe", topic=topic)
        task = asyncio.create_task(read(socket))
        yield texts
        task.cancel()


async def test_a_slow_reader_among_fast_ones_is_closed_and_comes_back(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topic, outcome = f"rooms/{randrange(1, 500)}", 'ws_connections_total{outcome="slow_consumer"}'
    before = (await one.metrics()).get(outcome, 0)
    with slow_socket(one, tokens["bob"], topic) as slow:
        async with reading(one, tokens["bob"], topic) as fast, reading(one, tokens["bob"], topic) as other:
            said = 0
            while (await one.metrics()).get(outcome, 0) == before:
                await say(alice, topic, BIG, times=4)
                said += 4
                await until(lambda said=said: len(fast) == len(other) == said)  # type: ignore[misc]
                assert said < 1000
        codes = slow.close_code()
    assert codes in (4508, 0)  # 0: the close frame lay behind more than the client ever read


async def test_a_slow_reader_gets_the_newest_event_of_each_key(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topic, conflated = f"cursors/{some()}", 'topic_events_conflated_total{protocol="ws"}'
    with slow_socket(one, tokens["bob"], topic) as slow:
        count = 0
        while (await one.metrics()).get(conflated, 0) < 50:
            for key in range(5):
                await publish(alice, topic, text=f"{count} {BIG}", by=f"user {key}")
                count += 1
            assert count < 2000
        events = await asyncio.to_thread(read_events, slow, count)
        await publish(alice, topic, text="and on", by="user 0")
        assert (await asyncio.to_thread(read_events, slow, count + 1))[-1]["data"]["text"] == "and on"
    offsets = [event["offset"] for event in events]
    assert offsets == sorted(set(offsets))
    assert len(offsets) <= count - 50
    last = {event["data"]["by"]: int(event["data"]["text"].split()[0]) for event in events}
    assert last == {f"user {key}": count - 5 + key for key in range(5)}


def read_events(client: RawClient, offset: int) -> list[dict[str, Any]]:
    """The events up to an offset."""
    events: list[dict[str, Any]] = []
    for kind, payload in client.frames():
        assert kind == TEXT
        params = json.loads(payload)["params"]
        events += params.get("events", [params])
        if events[-1]["offset"] >= offset:
            break
    return events


async def test_a_backlog_is_bounded(one: Running, tokens: dict[str, str], alice: httpx.AsyncClient) -> None:
    topic, outcome = f"cursors/{some()}", 'ws_connections_total{outcome="slow_consumer"}'
    before, count = (await one.metrics()).get(outcome, 0), 0
    with slow_socket(one, tokens["bob"], topic):
        while (await one.metrics()).get(outcome, 0) == before:
            for _ in range(5):
                await publish(alice, topic, text=BIG, by=f"user {(count := count + 1)}")
            assert count < 2000


@contextmanager
def slow_stream(running: Running, token: str, topic: str) -> Iterator[RawClient]:
    """An event stream that is opened, and then not read."""
    with RawClient(running.url, receive_buffer=4096) as client:
        client.send(
            request_headers(
                f"GET /api/topics/events?topic={topic} HTTP/1.1", {"Host": "x", "Authorization": f"Bearer {token}"}
            )
        )
        client.read_until(b"retry: ")
        yield client


async def test_a_slow_event_stream_is_ended(
    one: Running, start: Start, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topic, outcome = f"rooms/{randrange(1, 500)}", 'topic_streams_total{outcome="slow_consumer"}'
    with start(HW_HTTP__WRITE_TIMEOUT="5") as running, slow_stream(running, tokens["bob"], topic):
        for _ in range(50):
            await say(alice, topic, BIG, times=4)

        async def ended() -> float:
            return (await running.metrics()).get(outcome, 0)

        assert await until(ended) == 1


async def test_a_slow_event_stream_gets_the_newest_event(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topic, conflated = f"latest/{some()}", 'topic_events_conflated_total{protocol="sse"}'
    with slow_stream(one, tokens["bob"], topic) as slow:
        said = 0
        while (await one.metrics()).get(conflated, 0) < 20:
            await say(alice, topic, BIG, times=4)
            said += 4
            assert said < 1000
        data = await asyncio.to_thread(slow.read_until, f'"offset":{said},'.encode())
        await say(alice, topic, "and on")
        await asyncio.to_thread(slow.read_until, b"and on")
    offsets = [int(found) for found in re.findall(rb'"offset":(\d+),', data)]
    assert offsets == sorted(set(offsets))
    assert len(offsets) <= said - 20
