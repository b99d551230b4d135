"""Topics over sockets and event streams: what committed arrives once and in order, what was missed comes back."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest
import redis.asyncio as aioredis

from hw_server.embedded import Stack
from tests.conftest import Running, Socket, until
from tests.topics.conftest import Start
from tests.topics.speaker import room, say


async def heard(socket: Socket, count: int) -> list[tuple[int, str]]:
    """Offset and text of the next events; several that come together are told apart."""
    events: list[tuple[int, str]] = []
    while len(events) < count:
        message = await socket.read()
        if message.get("method") == "topic.event":
            events.append((message["params"]["offset"], message["params"]["data"]["text"]))
        elif message.get("method") == "topic.events":
            events += [(event["offset"], event["data"]["text"]) for event in message["params"]["events"]]
    return events


async def test_an_event_reaches_subscribers_of_every_process(
    one: Running, two: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    number = room()
    async with one.socket(tokens["bob"]) as here, two.socket(tokens["bob"]) as there:
        for socket in (here, there):
            answer = await socket.call("topic.subscribe", topic=f"rooms/{number}")
            assert (answer["result"]["recovered"], answer["result"]["events"]) == (False, [])
        start = answer["result"]["offset"]
        await say(alice, number, "hello")
        assert await heard(here, 1) == await heard(there, 1) == [(start + 1, "hello")]


async def test_nothing_that_rolled_back_is_seen(one: Running, tokens: dict[str, str], alice: httpx.AsyncClient) -> None:
    number = room()
    async with one.socket(tokens["bob"]) as socket:
        await socket.call("topic.subscribe", topic=f"rooms/{number}")
        await say(alice, number, "lost", status=409, fail=True)
        await say(alice, number, "kept")
        assert [text for _, text in await heard(socket, 1)] == ["kept"]


async def test_events_of_a_transaction_come_in_order(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    number = room()
    async with one.socket(tokens["bob"]) as socket:
        start = (await socket.call("topic.subscribe", topic=f"rooms/{number}"))["result"]["offset"]
        await say(alice, number, "word", times=300)
        assert await heard(socket, 300) == [(start + 1 + index, f"word {index}") for index in range(300)]


async def test_what_was_missed_comes_back(
    one: Running, two: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topic = f"rooms/{(number := room())}"
    async with one.socket(tokens["bob"]) as socket:
        before = (await socket.call("topic.subscribe", topic=topic))["result"]
    await say(alice, number, "missed", times=20)
    async with two.socket(tokens["bob"]) as socket:
        position = {"epoch": before["epoch"], "offset": before["offset"]}

        async def all_of_it() -> Any:
            await socket.call("topic.unsubscribe", topic=topic)
            result = (await socket.call("topic.subscribe", topic=topic, recover=position))["result"]
            return result if len(result["events"]) == 20 else None

        result = await until(all_of_it)
    assert result["recovered"]
    assert [event["data"]["text"] for event in result["events"]] == [f"missed {index}" for index in range(20)]


@pytest.mark.parametrize("position", [{"epoch": "other", "offset": 1}, {"offset": 2**50}, {"offset": 0}])
async def test_a_position_that_cannot_be_recovered_is_told(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient, position: dict[str, Any]
) -> None:
    topic = f"short/{(number := room())}"
    await say(alice, number, "old", times=30, family="short")
    async with one.socket(tokens["bob"]) as socket:

        async def at_the_top() -> Any:
            history = (await socket.call("topic.history", topic=topic))["result"]
            return history if history["offset"] >= 30 else None

        history = await until(at_the_top)
        assert [event["data"]["text"] for event in history["events"]] == [f"old {index}" for index in range(25, 30)]
        recover = {"epoch": history["epoch"], **position}
        result = (await socket.call("topic.subscribe", topic=topic, recover=recover))["result"]
        assert (result["recovered"], result["events"], result["offset"]) == (False, [], history["offset"])


async def test_rules_decide_who_subscribes_and_publishes(one: Running, tokens: dict[str, str]) -> None:
    async with (
        one.socket(tokens["bob"]) as bob,
        one.socket(tokens["dave"]) as dave,
        one.socket(tokens["carol"]) as carol,
    ):
        codes = [
            (await bob.call("topic.subscribe", topic="rooms/1001")).get("error", {}).get("code"),
            (await dave.call("topic.subscribe", topic="rooms/1001")).get("error", {}).get("code"),
            (await carol.call("topic.subscribe", topic="short/1"))["error"]["code"],
            (await carol.call("topic.subscribe", topic="latest/1")).get("error", {}).get("code"),
            (await bob.call("topic.publish", topic="rooms/700", data={"text": "x"}))["error"]["code"],
            (await bob.call("topic.publish", topic="short/1", data={"text": "x"}))["error"]["code"],
            (await bob.call("topic.subscribe", topic="rooms/x"))["error"]["code"],
            (await bob.call("topic.subscribe", topic="rooms/07"))["error"]["code"],
            (await bob.call("topic.subscribe", topic="nothing"))["error"]["code"],
            (await bob.call("topic.publish", topic="rooms/1", data={"words": 1}))["error"]["code"],
        ]
    assert codes == [-32003, None, -32003, None, -32003, -32003, -32004, -32004, -32004, -32602]


async def test_clients_publish(one: Running, two: Running, tokens: dict[str, str]) -> None:
    topic = f"rooms/{room()}"
    async with two.socket(tokens["bob"]) as socket, one.client(tokens["alice"]) as client:
        await socket.call("topic.subscribe", topic=topic)
        assert "result" in await socket.call("topic.publish", topic=topic, data={"text": "by socket"})
        body = {"data": {"text": "by request"}}
        assert (await client.post("/api/topics/publish", params={"topic": topic}, json=body)).status_code == 200
        assert [text for _, text in await heard(socket, 2)] == ["by socket", "by request"]


async def test_an_unsubscribed_socket_hears_nothing(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    number = room()
    async with one.socket(tokens["bob"]) as socket:
        await socket.call("topic.subscribe", topic=f"rooms/{number}")
        assert (await socket.call("topic.unsubscribe", topic=f"rooms/{number}"))["result"] is None
        assert (await socket.call("topic.unsubscribe", topic=f"rooms/{number}"))["error"]["code"] == -32004
        await say(alice, number, "unheard")
        await socket.call("topic.subscribe", topic="rooms/999")
        await say(alice, 999, "heard")
        assert [text for _, text in await heard(socket, 1)] == ["heard"]


@asynccontextmanager
async def stream(running: Running, token: str, *topics: str, last: str = "") -> AsyncIterator[AsyncIterator[Any]]:
    """The messages of an event stream: (id, event, data)."""
    headers = {"Last-Event-ID": last.encode("latin-1")} if last else {}

    async def messages(response: httpx.Response) -> AsyncIterator[Any]:
        fields: dict[str, str] = {}
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif "data" in fields:
                yield fields["id"], fields["event"], json.loads(fields["data"])
                fields = {}

    async with running.client(token) as client:
        query = [("topic", topic) for topic in topics]
        async with client.stream("GET", "/api/topics/events", params=query, headers=headers) as response:
            assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            yield messages(response)


async def test_an_event_stream_gets_events_and_what_it_missed(
    one: Running, two: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    first, second = room(), 501 + room() % 400
    async with stream(one, tokens["bob"], f"rooms/{first}", f"rooms/{second}") as messages:
        await say(alice, first, "one")
        place, event, data = await asyncio.wait_for(anext(messages), 20)
        assert (event, data["topic"], data["data"]["text"]) == ("topic.event", f"rooms/{first}", "one")
    await say(alice, second, "two")
    async with stream(two, tokens["bob"], f"rooms/{first}", f"rooms/{second}", last=place) as messages:
        await say(alice, first, "three")
        texts = {(await asyncio.wait_for(anext(messages), 20))[2]["data"]["text"] for _ in range(2)}
    assert texts == {"two", "three"}


async def test_an_event_stream_leaves_one_row(one: Running, tokens: dict[str, str]) -> None:
    async with one.client(tokens["carol"]) as carol, one.client(tokens["carol"]) as auditor:
        async with carol.stream("GET", "/api/topics/events", params={"topic": "rooms/1"}) as response:
            query = {"request_id": response.headers["x-request-id"]}
        rows = await until(lambda: _rows(auditor, query))
    assert [(row["action"], row["resource"], row["status"]) for row in rows] == [("topic.events", "topics/events", 200)]


async def _rows(auditor: httpx.AsyncClient, query: dict[str, str]) -> Any:
    return (await auditor.get("/api/audit-logs", params=query)).json()["items"]


@pytest.mark.parametrize(
    "place", ["rooms%2F1@elsewhere:7", "garbage", "rooms%2F1@x:\xb2", "rooms%2F2@x:1", "@:", "%00@x:-1"]
)
async def test_a_place_that_cannot_be_found_is_told(one: Running, tokens: dict[str, str], place: str) -> None:
    async with stream(one, tokens["bob"], "rooms/1", last=place) as messages:
        _, event, data = await asyncio.wait_for(anext(messages), 20)
    assert (event, data["topic"]) == ("topic.reset", "rooms/1")


async def test_an_event_stream_recovers_more_than_its_buffer(
    start: Start, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topics = [f"rooms/{number}" for number in (room(), 501 + room() % 400)]
    places = []
    for topic in topics:
        history = (await alice.get("/api/topics/history", params={"topic": topic})).json()
        places.append(f"{quote(topic, safe='')}@{history['epoch']}:{history['offset']}")
        await say(alice, int(topic.removeprefix("rooms/")), "x" * 20_000, times=20)
    with start(HW_WS__SEND_BUFFER_BYTES="100000") as running:
        async with stream(running, tokens["bob"], *topics, last=",".join(places)) as messages:
            found = [(await asyncio.wait_for(anext(messages), 20)) for _ in range(40)]
    assert {event for _, event, _ in found} == {"topic.event"}
    assert [data["topic"] for _, _, data in found] == [topics[0]] * 20 + [topics[1]] * 20
    offsets = [data["offset"] for _, _, data in found]
    assert offsets == [*range(offsets[0], offsets[0] + 20), *range(offsets[20], offsets[20] + 20)]


async def test_a_recovery_larger_than_the_buffer_leaves_no_subscription_behind(
    start: Start, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    """An error would tell the client that it is not subscribed, while it is."""
    topic = f"rooms/{(number := room())}"
    history = (await alice.get("/api/topics/history", params={"topic": topic})).json()
    await say(alice, number, "x" * 20_000, times=3)
    with start(HW_WS__SEND_BUFFER_BYTES="20000") as running:
        async with running.socket(tokens["bob"]) as socket:
            params = {"topic": topic, "recover": {"epoch": history["epoch"], "offset": history["offset"]}}
            call = {"jsonrpc": "2.0", "id": 1, "method": "topic.subscribe", "params": params}
            await socket.raw.send(json.dumps(call))
            assert await socket.closed() == (4508, "slow_consumer")


async def test_what_a_process_missed_does_not_come_as_one_message(
    start: Start, tokens: dict[str, str], alice: httpx.AsyncClient, environment: dict[str, str]
) -> None:
    """Together it is more than the server buffers for a client that reads."""
    redis, number = aioredis.from_url(environment["HW_REDIS__URL"]), room()
    with start(HW_WS__SEND_BUFFER_BYTES="200000") as running:
        async with redis, running.socket(tokens["bob"]) as socket:
            await socket.call("topic.subscribe", topic=f"rooms/{number}")
            await redis.client_kill_filter(_type="pubsub", skipme=True)
            await say(alice, number, "x" * 20_000, times=40)
            assert [text.strip("x ") for _, text in await heard(socket, 40)] == [str(index) for index in range(40)]


async def test_a_history_that_expired_is_filled_anew(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topic = f"brief/{(number := room())}"

    async def kept() -> int:
        query = {"topic": topic}
        return len((await alice.get("/api/topics/history", params=query)).json()["events"])

    for text in ("a", "b"):
        await say(alice, number, text * 250, family="brief")
        await until(kept)
        if text == "a":
            await until(lambda: _is_empty(kept))


async def test_a_history_is_bounded_in_bytes(one: Running, alice: httpx.AsyncClient) -> None:
    """Both events are published at once; one of them is as much as is kept, for a second."""
    number = room()

    async def kept() -> list[str]:
        await say(alice, number, "a" * 250, family="brief", times=2)
        history = await alice.get("/api/topics/history", params={"topic": f"brief/{number}"})
        return [event["data"]["text"][-2:] for event in history.json()["events"]]

    assert await until(kept) == [" 1"]


async def _is_empty(kept: Any) -> bool:
    return await kept() == 0


@pytest.mark.parametrize("message", [b"", b"garbage", b"x y {}", b"\xff 1 {}", b"x " + b"9" * 5000 + b" {}"])
async def test_a_malformed_message_spares_the_others(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient, environment: dict[str, str], message: bytes
) -> None:
    number, failures = room(), 'service_item_failures_total{service="topics"}'
    before = (await one.metrics()).get(failures, 0)
    async with aioredis.from_url(environment["HW_REDIS__URL"]) as redis, one.socket(tokens["bob"]) as socket:
        await socket.call("topic.subscribe", topic=f"rooms/{number}")
        await redis.publish(f"hw:topic:rooms%2F{number}", message)
        await say(alice, number, "after it")
        assert [text for _, text in await heard(socket, 1)] == ["after it"]
    assert (await one.metrics())[failures] == before + 1


async def test_a_followed_topic_is_checked_and_kept_alive(
    start: Start, tokens: dict[str, str], environment: dict[str, str]
) -> None:
    meta, history = (f"hw:topic:{kind}:rooms%2F998" for kind in ("meta", "history"))
    with start(HW_TOPICS__CHECK_INTERVAL="0.2") as running:
        async with aioredis.from_url(environment["HW_REDIS__URL"]) as redis, running.socket(tokens["bob"]) as socket:
            await socket.call("topic.subscribe", topic="rooms/998")
            assert 0 < await redis.ttl(meta) <= 3600
            await redis.expire(meta, 30)
            await until(lambda: _lives(redis, meta))
            await redis.xadd(history, {"d": '{"text": "never announced", "by": ""}', "t": 0}, "1-0")
            await redis.hset(meta, "o", 1)
            assert await heard(socket, 1) == [(1, "never announced")]


async def _lives(redis: Any, key: str) -> bool:
    return bool(await redis.ttl(key) > 60)


async def test_events_and_the_audit_row_are_the_last_statement_of_a_change(
    start: Start, fragile: Stack, tokens: dict[str, str]
) -> None:
    async with statements_of(fragile) as log:
        with start() as running:
            async with running.client(tokens["alice"]) as client:
                note = (await client.post("/api/notes", json={"title": uuid.uuid4().hex, "text": "0"})).json()["id"]
                assert (await client.post("/api/rooms/1/counts", params={"note": note})).status_code == 201
    statements = re.findall(r"\[(\d+)\] LOG:  (?:statement|execute \w+): ((?:.|\n\t)*)", log.read_text())
    *_, session = (session for session, sql in statements if sql.startswith("UPDATE notes"))
    own = [sql for number, sql in statements if number == session]
    first = next(index for index, sql in enumerate(own) if sql.startswith("UPDATE notes"))
    _, last, commit = own[first : first + 3]
    assert ("INSERT INTO user_actions" in last, "INSERT INTO topic_outbox" in last) == (True, True), last
    assert commit.startswith("COMMIT")


@asynccontextmanager
async def statements_of(fragile: Stack) -> AsyncIterator[Path]:
    """PostgreSQL's log, which has the statements of every session that begins meanwhile."""
    database = await asyncpg.connect(f"postgresql://postgres:postgres@127.0.0.1:{fragile.ports.postgres}/hw_db")
    await database.execute("ALTER ROLE hw SET log_statement = 'all'")
    try:
        yield fragile.processes["postgresql"].log
    finally:
        await database.execute("ALTER ROLE hw RESET log_statement")
        await database.close()


async def test_topics_of_all_sockets_have_a_limit(start: Start, tokens: dict[str, str]) -> None:
    with start(HW_TOPICS__MAX_TOPICS="2") as running:
        async with running.socket(tokens["dave"]) as socket:
            answers = [await socket.call("topic.subscribe", topic=f"rooms/{number}") for number in (1, 2, 3)]
    assert ["result" in answer for answer in answers] == [True, True, False]
    assert (answers[2]["error"]["code"], answers[2]["error"]["data"]["code"]) == (-32053, "topics_full")


async def test_each_topic_of_a_stream_counts(start: Start, tokens: dict[str, str]) -> None:
    own = {"HW_RATELIMIT__WS_PER_MINUTE": "5", "HW_REDIS__KEY_PREFIX": f"{uuid.uuid4().hex}:"}
    with start(**own) as running:
        async with running.client(tokens["dave"]) as client:
            statuses = []
            for _ in range(2):
                query = [("topic", f"rooms/{number}") for number in (1, 2, 3)]
                async with client.stream("GET", "/api/topics/events", params=query) as response:
                    statuses.append(response.status_code)
    assert statuses == [200, 429]


async def test_bounds_have_names(start: Start, tokens: dict[str, str]) -> None:
    limits = {
        "HW_TOPICS__MAX_PER_SOCKET": "2", "HW_TOPICS__MAX_EVENT_BYTES": "300", "HW_TOPICS__MAX_EVENTS": "3",
        "HW_RATELIMIT__PUBLISHES_PER_MINUTE": "2",
    }  # fmt: skip
    with start(**limits) as running:
        async with running.socket(tokens["dave"]) as socket, running.client(tokens["alice"]) as client:
            answers = [await socket.call("topic.subscribe", topic=f"rooms/{number}") for number in (1, 2, 3)]
            assert answers[2]["error"]["data"]["code"] == "too_many_topics"
            assert ["result" in answer for answer in answers] == [True, True, False]
            await say(client, 1, "x" * 400, status=413)
            await say(client, 1, "x", status=413, times=4)
            sent = [await socket.call("topic.publish", topic="rooms/1", data={"text": "x"}) for _ in range(3)]
            assert [answer.get("error", {}).get("code") for answer in sent] == [None, None, -32029]


async def test_event_streams_have_the_bounds_of_sockets(start: Start, tokens: dict[str, str]) -> None:
    long = [("topic", f"latest/{10**240 + number}") for number in range(40)]
    many = [("topic", f"latest/{number}") for number in (1, 2, 3)]
    with start(HW_TOPICS__MAX_PER_SOCKET="2", HW_WS__MAX_CONNECTIONS="1") as running:
        async with running.client(tokens["bob"]) as client:
            assert await _refusal(client, long) == (422, "the names are too long together")
            assert await _refusal(client, many) == (422, "at most 2 topics")
            async with stream(running, tokens["alice"], "latest/1", "latest/2"):
                detail = "this process serves as many event streams as it may"
                assert await _refusal(client, many[:1]) == (503, detail)


async def _refusal(client: httpx.AsyncClient, query: list[tuple[str, str]]) -> tuple[int, str]:
    async with client.stream("GET", "/api/topics/events", params=query) as response:
        assert response.status_code != 200
        problem = json.loads(await response.aread())
    return response.status_code, problem["errors"][0]["message"] if "errors" in problem else problem["detail"]


async def test_a_number_without_end_is_refused_over_both(one: Running, tokens: dict[str, str]) -> None:
    body = '{"data": {"text": 1e999}}'
    request = '{"jsonrpc": "2.0", "id": 1, "method": "topic.publish", "params": {"topic": "rooms/1", ' + body[1:] + "}"
    async with one.socket(tokens["dave"]) as socket, one.client(tokens["dave"]) as client:
        await socket.raw.send(request)
        refused = (await socket.read())["error"]
        response = await client.post("/api/topics/publish?topic=rooms/1", content=body)
    assert (refused["code"], refused["data"]["code"]) == (-32602, "validation_error")
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")
