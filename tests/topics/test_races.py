"""What happens at the same time as something else: nothing is doubled, nothing is lost without a word, nobody pays for another."""

import asyncio
import contextlib
import json
import socket as sockets
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import redis.asyncio as aioredis

from hw_server.embedded import Stack
from tests.conftest import Running, until
from tests.provider import Provider
from tests.proxy import Proxy
from tests.raw import RawClient, request_headers
from tests.topics.conftest import Start
from tests.topics.follower import Follower, subscribed
from tests.topics.speaker import room, say
from tests.topics.test_live import call


async def at_offset(client: httpx.AsyncClient, topic: str, offset: int) -> Any:
    """The topic's history once it is so far."""

    async def there() -> Any:
        history = (await client.get("/api/topics/history", params={"topic": topic})).json()
        return history if history["offset"] >= offset else None

    return await until(there)


async def test_a_replica_that_attaches_does_not_set_processes_against_each_other(
    one: Running, two: Running, start: Start, fragile: Stack, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    """The first replica gives Redis another replication id, which only connections made from then on are told."""
    number = room()
    async with aioredis.from_url(fragile.environment()["HW_REDIS__URL"]) as redis:
        before = (await redis.info("replication"))["master_replid"]
        with sockets.create_connection(("127.0.0.1", fragile.ports.redis)) as replica:
            replica.sendall(b"SYNC\r\n")
            assert await until(lambda: replica.recv(1))
            assert (await redis.info("replication"))["master_replid"] != before
            with start() as third:
                async with (
                    Follower(two, tokens["bob"], f"rooms/{number}") as here,
                    Follower(third, tokens["bob"], f"rooms/{number}") as there,
                ):
                    for index in range(20):
                        await say(alice, number, str(index))
                        await until(lambda: {*here.texts[-1:]} == {*there.texts[-1:]} == {str(index)})  # noqa: B023
    assert (here.resets, there.resets) == (0, 0)


async def test_an_event_stream_has_a_place_before_its_first_event(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topics = [f"rooms/{room()}", f"rooms/{501 + room() % 400}"]
    async with one.client(tokens["bob"]) as client:
        query = [("topic", topic) for topic in topics]
        async with client.stream("GET", "/api/topics/events", params=query) as response:
            async with asyncio.timeout(10):
                places = [line async for line in _until_id_of(response, topics[1])]
        await say(alice, int(topics[0].removeprefix("rooms/")), "while it was away")
        headers = {"Last-Event-ID": places[-1]}
        async with client.stream("GET", "/api/topics/events", params=query, headers=headers) as response:
            async with asyncio.timeout(10):
                lines = response.aiter_lines()
                while "while it was away" not in (line := await anext(lines)):
                    assert not line.startswith("event: topic.reset")


async def _until_id_of(response: httpx.Response, topic: str) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            yield line.removeprefix("id: ")
            if quote(topic, safe="") in line:
                return


async def test_subscriptions_that_come_while_redis_is_connected_wait(
    start: Start, fragile: Stack, environment: dict[str, str], tokens: dict[str, str]
) -> None:
    with Proxy.running(fragile.ports.redis) as proxy:
        proxy.hold_at = b"XADD"  # in the script that is loaded
        address = environment["HW_REDIS__URL"].replace(str(fragile.ports.redis), str(proxy.port))
        with start(HW_REDIS__URL=address) as running:
            async with contextlib.AsyncExitStack() as stack:
                pair = [await stack.enter_async_context(running.socket(tokens["bob"])) for _ in range(2)]
                asking = []
                for index, socket in enumerate(pair):
                    asking.append(asyncio.create_task(socket.call("topic.subscribe", topic=f"rooms/{501 + index}")))
                    await asyncio.sleep(0.2)
                proxy.release.set()
                responses = [await task for task in asking]
    assert [response.get("error") for response in responses] == [None, None]


async def test_one_that_was_long_away_denies_recovery_to_nobody(
    start: Start, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    """Its read of the history is longer than one subscription may recover, and others share it."""
    topic = f"rooms/{(number := room())}"
    for _ in range(4):
        await say(alice, number, "x" * 980, times=250)
    history = await at_offset(alice, topic, 1000)
    first, last = history["offset"] - 999, history["offset"] - 100
    with start() as running:
        async with contextlib.AsyncExitStack() as stack:
            pair = [await stack.enter_async_context(running.socket(tokens["bob"])) for _ in range(2)]
            await subscribed(pair[0], topic=topic)  # the process follows the topic
            for _ in range(10):
                for socket in pair:
                    await socket.call("topic.unsubscribe", topic=topic)
                results = await asyncio.gather(
                    subscribed(pair[0], topic=topic, recover={"epoch": history["epoch"], "offset": first}),
                    subscribed(pair[1], topic=topic, recover={"epoch": history["epoch"], "offset": last}),
                )
                assert [result["recovered"] for result in results] == [False, True]
                assert len(results[1]["events"]) == 100


async def test_those_who_come_back_together_share_one_read(
    start: Start, fragile: Stack, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topic = f"rooms/{(number := room())}"
    await say(alice, number, "missed", times=20)
    history = await at_offset(alice, topic, 20)
    first = history["offset"] - 20
    with Proxy.running(fragile.ports.redis) as proxy:
        settings = {"HW_REDIS__URL": f"redis://127.0.0.1:{proxy.port}", "HW_REDIS__TIMEOUT": "10"}
        with start(**settings) as running:
            async with contextlib.AsyncExitStack() as stack:
                follower, *people = [await stack.enter_async_context(running.socket(tokens["bob"])) for _ in range(21)]
                await subscribed(follower, topic=topic)  # what its process has begins here
                before, proxy.hold_at = await _reads(fragile), f"topic:history:{quote(topic, safe='')}".encode()
                for missed, person in enumerate(people):
                    since = {"epoch": history["epoch"], "offset": first + missed}
                    await person.raw.send(call("topic.subscribe", topic=topic, recover=since))
                    assert await asyncio.to_thread(proxy.held.wait, 20)
                    await person.call("ping")  # it has asked, too
                proxy.release.set()
                results = [(await person.read())["result"] for person in people]
                assert await _reads(fragile) == before + 1
    assert [len(result["events"]) for result in results] == list(range(20, 0, -1))


async def _reads(fragile: Stack) -> int:
    """Of histories, since Valkey was started."""
    async with aioredis.from_url(fragile.environment()["HW_REDIS__URL"]) as redis:
        return int((await redis.info("commandstats"))["cmdstat_xrange"]["calls"])


async def test_a_stream_that_recovers_slowly_ends_with_its_token(
    start: Start, alice: httpx.AsyncClient, one: Running
) -> None:
    topics = [f"rooms/{501 + number}" for number in range(100, 124)]
    places = []
    for topic in topics:
        history = (await alice.get("/api/topics/history", params={"topic": topic})).json()
        places.append(f"{quote(topic, safe='')}@{history['epoch']}:{history['offset']}")
        await say(alice, int(topic.removeprefix("rooms/")), "x" * 60_000, times=8)
    query = "&".join(f"topic={quote(topic, safe='')}" for topic in topics)
    with Provider.running() as provider, start(**provider.settings(), HW_OIDC__LEEWAY="0") as running:
        expires_at = int(time.time()) + 3
        headers = {
            "Host": "x", "Connection": "close", "Authorization": f"Bearer {provider.token(exp=expires_at)}", "Last-Event-ID": ",".join(places),
        }  # fmt: skip
        with RawClient(running.url, receive_buffer=65_536) as client:
            client.send(request_headers(f"GET /api/topics/events?{query} HTTP/1.1", headers))
            client.read_until(b"retry: ")
            await asyncio.sleep(expires_at + 1 - time.time())
            rest = await asyncio.to_thread(client.rest)
    assert 0 < rest.count(b"event: topic.event") < 8 * len(topics)


async def test_a_feed_that_breaks_while_a_topic_is_joined_leaves_no_gap(
    one: Running, start: Start, fragile: Stack, tokens: dict[str, str], alice: httpx.AsyncClient
) -> None:
    topic = f"cursors/{uuid.uuid4().int % 2**40}"
    publish = {"url": "/api/topics/publish", "params": {"topic": topic}, "json": {"data": {"text": "x"}}}
    with (
        Proxy.running(fragile.ports.redis) as proxy,
        start(HW_REDIS__URL=f"redis://127.0.0.1:{proxy.port}", HW_REDIS__TIMEOUT="10") as running,
    ):
        async with (
            running.socket(tokens["bob"]) as socket,
            aioredis.from_url(fragile.environment()["HW_REDIS__URL"]) as redis,
        ):
            await until(lambda: subscribed(socket, topic=f"rooms/{room()}"))
            proxy.late_at = f"topic:meta:{quote(topic, safe='')}".encode()
            joining = asyncio.create_task(socket.call("topic.subscribe", topic=topic))
            assert await asyncio.to_thread(proxy.held.wait, 10)  # Redis has said that there is no event
            await redis.client_kill_filter(_type="pubsub", skipme=True)
            assert (await alice.post(**publish)).status_code == 200
            await until(lambda: is_heard(redis, topic))
            proxy.release.set()
            assert (await joining)["result"]["offset"] == 1


async def is_heard(redis: "aioredis.Redis", topic: str) -> bool:
    [(_, processes)] = await redis.pubsub_numsub(f"hw:topic:{quote(topic, safe='')}")
    return bool(processes)


async def test_a_second_subscription_in_a_batch_doubles_nothing(one: Running, tokens: dict[str, str]) -> None:
    topic = f"cursors/{uuid.uuid4().int % 2**40}"
    subscribe = {"method": "topic.subscribe", "params": {"topic": topic}}
    publish = {"method": "topic.publish", "params": {"topic": topic, "data": {"text": "x"}}}
    calls = [subscribe, *[publish] * 5, subscribe, *[publish] * 10]
    async with one.socket(tokens["bob"]) as socket:
        await socket.raw.send(json.dumps([{"jsonrpc": "2.0", "id": 1, **call} for call in calls]))
        while not isinstance(responses := await socket.read(), list):
            continue
        offsets: list[int] = []
        while offsets[-1:] != [15]:
            params = (await socket.read())["params"]
            offsets += [event["offset"] for event in params.get("events", [params])]
    after = responses[6]["result"]["offset"]
    assert offsets == list(range(after + 1, 16))


async def test_dead_rows_of_the_outbox_are_read_once(
    one: Running, tokens: dict[str, str], alice: httpx.AsyncClient, environment: dict[str, str]
) -> None:
    """A long transaction keeps them from being vacuumed; each read would step over all of them."""
    insert = """INSERT INTO topic_outbox (partition, topic, data)
        SELECT topic_partition($1), $1, '{"text": "many", "by": ""}' FROM generate_series(1, 3000)"""
    number = room()
    async with Follower(one, tokens["bob"], f"rooms/{number}") as follower:
        long, database = [await asyncpg.connect(environment["HW_DATABASE__URL"]) for _ in range(2)]
        async with long.transaction(isolation="repeatable_read"):
            await long.fetchval("SELECT count(*) FROM topic_outbox")
            await database.execute(insert, follower.topic)
            await until(lambda: len(follower.texts) == 3000)
            # The second raises the floor of its reads; the third comes after it.
            await heartbeats(database, follower.topic, 3)
            before = await entries_read(database)
            for index in range(20):
                await say(alice, number, text := str(index))
                await until(lambda: follower.texts[-1] == text)
            await asyncio.sleep(1.5)  # statistics come once a second
            assert 0 < await entries_read(database) - before < 3000
        for connection in (long, database):
            await connection.close()


async def heartbeats(database: asyncpg.Connection, topic: str, count: int) -> None:
    """Waits for so many of the relay that holds the topic's partition."""
    relay = "FROM topic_relays WHERE partition = topic_partition($1)"
    for _ in range(count):
        last = await database.fetchval(f"SELECT heartbeat {relay}", topic)
        await until(lambda last=last: database.fetchval(f"SELECT heartbeat > $2 {relay}", topic, last))  # type: ignore[misc]


async def entries_read(database: asyncpg.Connection) -> int:
    """Of the outbox's indexes, so far."""
    sql = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'topic_outbox'"
    return int(await database.fetchval(sql))


async def test_a_flood_of_publishes_ends_at_its_limit_and_loses_nothing(start: Start, provider: Provider) -> None:
    number = room()
    topic, flood = f"rooms/{number}", provider.token(sub=uuid.uuid4().hex)
    with start(**provider.settings(), HW_RATELIMIT__PUBLISHES_PER_MINUTE="100") as running:
        async with (
            Follower(running, provider.token(), topic) as follower,
            running.socket(flood) as flooding,
            running.client(provider.token()) as client,
        ):
            for first in range(0, 400, 50):
                await flooding.raw.send(json.dumps([said(topic, str(first + index)) for index in range(50)]))
            await say(client, number, "another's")
            responses = [response for _ in range(8) for response in await flooding.read()]
            taken = [response["id"] for response in responses if "result" in response]
            await until(lambda: len(follower.texts) == 101)
    assert len(taken) == 100
    assert sorted(follower.texts) == sorted([*taken, "another's"])


def said(topic: str, text: str) -> dict[str, Any]:
    params = {"topic": topic, "data": {"text": text}}
    return {"jsonrpc": "2.0", "id": text, "method": "topic.publish", "params": params}
