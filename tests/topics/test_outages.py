"""Topics on bad days: parts are killed while writers write; every committed event arrives once and in order, or a reset says
otherwise."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest
import redis.asyncio as aioredis

from hw_server.embedded import Stack
from hw_server.topics.outbox import LOCK_SPACE
from tests.conftest import Running, free_port, until
from tests.proxy import Proxy
from tests.topics.conftest import Start, kill_valkey
from tests.topics.follower import Follower, subscribed


@pytest.fixture(scope="module")
def alice(tokens: dict[str, str]) -> str:
    return tokens["alice"]


class Writers:
    """Several clients that say numbered words in one room; `said` is what was acknowledged."""

    def __init__(self, runnings: list[Running], token: str, room: int) -> None:
        self._runnings, self._token, self._room = runnings, token, room
        self.said: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Writers":
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(6)]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def more(self, count: int) -> None:
        """Waits for so many more acknowledged words."""
        wanted = len(self.said) + count
        await until(lambda: len(self.said) >= wanted, 60)

    async def _write(self, number: int) -> None:
        async with self._runnings[number % len(self._runnings)].client(self._token) as client:
            while True:
                text = uuid.uuid4().hex
                with contextlib.suppress(httpx.TransportError):
                    response = await client.post(f"/api/rooms/{self._room}/words", json={"text": text})
                    if response.status_code == 201:
                        self.said.append(text)
                await asyncio.sleep(0.01)


@asynccontextmanager
async def busy(one: Running, two: Running, token: str, room: int) -> AsyncIterator[tuple[Writers, list[Follower]]]:
    """Writers and readers on two servers; in the end all that was acknowledged has arrived."""
    topic = f"rooms/{room}"
    async with Follower(one, token, topic) as here, Follower(two, token, topic) as there:
        async with Writers([one, two], token, room) as writers:
            await writers.more(50)
            yield writers, [here, there]
            await writers.more(50)
        await all_arrive([here, there], writers.said)


async def all_arrive(followers: list[Follower], said: list[str]) -> None:
    for follower in followers:
        if follower.resets:
            await until(lambda follower=follower: said[-1] in follower.texts, 30)  # type: ignore[misc]
            continue
        await until(lambda follower=follower: set(said) <= set(follower.texts), 30)  # type: ignore[misc]
        assert len(follower.texts) == len(set(follower.texts))
    for follower in followers:
        follower.check_order()


async def test_many_writers_many_readers(one: Running, two: Running, alice: str) -> None:
    async with busy(one, two, alice, 1) as (writers, followers):
        await writers.more(200)
    assert [follower.resets for follower in followers] == [0, 0]
    here, there = ({event[:2]: event[2] for event in follower.events} for follower in followers)
    assert len(here.keys() & there.keys()) >= 200
    assert all(here[position] == there[position] for position in here.keys() & there.keys())


async def test_a_broken_feed_is_repaired(one: Running, two: Running, alice: str, fragile: Stack) -> None:
    redis = aioredis.from_url(fragile.environment()["HW_REDIS__URL"])
    async with redis, busy(one, two, alice, 2) as (writers, followers):
        for _ in range(3):
            await redis.client_kill_filter(_type="pubsub", skipme=True)
            await writers.more(50)
    assert [follower.resets for follower in followers] == [0, 0]


@pytest.mark.parametrize("data", ["kept", "lost"])
async def test_a_killed_valkey_loses_nothing_without_a_word(
    one: Running, two: Running, alice: str, fragile: Stack, data: str
) -> None:
    async with busy(one, two, alice, 3) as (_, followers):
        await kill_valkey(fragile)
        if data == "lost":
            await asyncio.to_thread(shutil.rmtree, fragile.state / "valkey")
        await asyncio.to_thread(fragile.start_one, "valkey")
        before = [len(follower.events) for follower in followers]
        await until(lambda: all(len(f.events) > n for f, n in zip(followers, before, strict=True)), 30)
    assert all(follower.resets for follower in followers)


async def test_what_a_client_publishes_without_redis_is_kept(one: Running, alice: str, fragile: Stack) -> None:
    query, text = {"topic": "rooms/29"}, uuid.uuid4().hex
    async with one.client(alice) as client:
        await kill_valkey(fragile)
        published = await client.post("/api/topics/publish", params=query, json={"data": {"text": text}})
        await asyncio.to_thread(fragile.start_one, "valkey")
        assert published.status_code == 200

        async def arrived() -> bool:
            history = (await client.get("/api/topics/history", params=query)).json()
            return [event["data"]["text"] for event in history.get("events", [])] == [text]

        await until(arrived)


@contextlib.contextmanager
def replica(fragile: Stack, folder: Path) -> Iterator[int]:
    """Of the stack's Valkey; its port."""
    command = [*fragile.processes["valkey"].spec.command, "--dir", str(folder), "--port", str(port := free_port())]
    process = subprocess.Popen(
        [*command, "--replicaof", "127.0.0.1", str(fragile.ports.redis)], stdout=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


async def test_a_replica_that_is_promoted_without_the_last_events(
    start: Start, alice: str, fragile: Stack, environment: dict[str, str], tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        port = stack.enter_context(replica(fragile, tmp_path))
        redis = await stack.enter_async_context(aioredis.from_url(f"redis://127.0.0.1:{port}"))
        async with aioredis.from_url(environment["HW_REDIS__URL"]) as primary:
            await primary.config_set("repl-diskless-sync-delay", 0)
        await until(lambda: _follows(redis))
        proxy = stack.enter_context(Proxy.running(fragile.ports.redis))
        address = f"redis://127.0.0.1:{proxy.port}"
        pair = [stack.enter_context(start(HW_REDIS__URL=address)) for _ in range(2)]
        await make_holder(pair[0].process.pid, environment, "rooms/26")
        async with busy(*pair, alice, 26) as (writers, followers):
            await redis.replicaof("NO", "ONE")
            await writers.more(50)
            fail_over(proxy, port)
            await until(lambda: all(follower.resets for follower in followers))
    assert [len({epoch for epoch, _, _ in follower.events}) for follower in followers] == [2, 2]


def fail_over(proxy: Proxy, port: int) -> None:
    """Present connections break, new ones reach another server."""
    proxy._target = port
    for open_ in list(proxy._sockets):
        with contextlib.suppress(OSError):
            open_.shutdown(socket.SHUT_RDWR)


async def _follows(redis: Any) -> bool:
    with contextlib.suppress(aioredis.ConnectionError):
        return bool((await redis.info("replication"))["master_link_status"] == "up")
    return False


async def test_ephemeral_events_are_refused_without_redis(one: Running, alice: str, fragile: Stack) -> None:
    async with one.client(alice) as client:
        await kill_valkey(fragile)
        query, said = {"topic": "cursors/1"}, {"family": "cursors"}
        refused = await client.post("/api/topics/publish", params=query, json={"data": {"text": "lost"}})
        changed = await client.post("/api/rooms/1/words", params=said, json={"text": "lost"})
        await asyncio.to_thread(fragile.start_one, "valkey")
    assert (refused.status_code, changed.status_code) == (503, 201)
    async with Follower(one, alice, "cursors/1") as follower, one.client(alice) as client:
        await until(lambda: _published(client, query))
        await until(lambda: set(follower.texts) == {"again"})


async def _published(client: httpx.AsyncClient, query: dict[str, str]) -> bool:
    response = await client.post("/api/topics/publish", params=query, json={"data": {"text": "again"}})
    return response.status_code == 200


async def test_a_full_redis_loses_nothing(one: Running, two: Running, alice: str, fragile: Stack) -> None:
    redis = aioredis.from_url(fragile.environment()["HW_REDIS__URL"])
    async with redis, busy(one, two, alice, 11) as (writers, followers):
        await redis.config_set("maxmemory", 1)
        await writers.more(100)
        assert await _waiting(fragile) > 0
        await redis.config_set("maxmemory", 0)
    assert [follower.resets for follower in followers] == [0, 0]


async def _waiting(fragile: Stack) -> int:
    connection = await asyncpg.connect(fragile.owner()["HW_DATABASE__OWNER_URL"])
    try:
        return int(await connection.fetchval("SELECT count(*) FROM topic_outbox"))
    finally:
        await connection.close()


@contextlib.contextmanager
def behind_a_proxy(start: Start, fragile: Stack) -> Iterator[tuple[Running, Proxy]]:
    """A server that reaches Redis through a proxy."""
    with Proxy.running(fragile.ports.redis) as proxy, start(HW_REDIS__URL=f"redis://127.0.0.1:{proxy.port}") as running:
        yield running, proxy


async def test_a_blackholed_feed_is_noticed_and_repaired(
    one: Running, alice: str, fragile: Stack, start: Start
) -> None:
    with behind_a_proxy(start, fragile) as (behind, proxy):
        async with busy(one, behind, alice, 12) as (writers, followers):
            proxy.swallow()
            await until(lambda: [line for line in behind.log() if line["event"] == "topic_feed_broken"], 3)
            await writers.more(100)
            await until(lambda: set(writers.said[:100]) <= set(followers[1].texts))
    assert [follower.resets for follower in followers] == [0, 0]


async def test_a_client_from_a_quicker_process_has_missed_nothing(
    one: Running, alice: str, fragile: Stack, start: Start
) -> None:
    with behind_a_proxy(start, fragile) as (behind, proxy):
        async with one.socket(alice) as here, behind.socket(alice) as there, behind.socket(alice) as client:
            await until(lambda: subscribed(here, topic="rooms/24"))
            await until(lambda: subscribed(there, topic="rooms/24"))  # its feed may still be connecting
            proxy.swallow()
            async with one.client(alice) as writer:
                assert (await writer.post("/api/rooms/24/words", json={"text": "x"})).status_code == 201
            event = (await here.read())["params"]
            since = {"epoch": event["epoch"], "offset": event["offset"]}
            result = await until(lambda: subscribed(client, topic="rooms/24", recover=since))
    assert (result["recovered"], result["offset"], result["events"]) == (True, event["offset"], [])


async def test_two_sessions_that_change_one_row_are_in_order(one: Running, two: Running, alice: str) -> None:
    async with one.client(alice) as here, two.client(alice) as there:
        note = (await here.post("/api/notes", json={"title": uuid.uuid4().hex, "text": "0"})).json()["id"]

        async def count(client: httpx.AsyncClient) -> None:
            for _ in range(30):
                response = await client.post("/api/rooms/13/counts", params={"note": note})
                assert response.status_code == 201

        async with Follower(one, alice, "rooms/13") as follower:
            await asyncio.gather(*(count(client) for client in (here, there, here, there)))
            await until(lambda: len(follower.texts) >= 120)
    assert follower.texts == [str(number) for number in range(1, 121)]


async def test_ordered_topics_take_turns(one: Running, alice: str, fragile: Stack) -> None:
    connection = await asyncpg.connect(fragile.owner()["HW_DATABASE__OWNER_URL"])
    async with one.client(alice) as client, Follower(one, alice, "turns") as follower:
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK_SPACE}, hashtext('turns'))")
            insert = "INSERT INTO topic_outbox (partition, topic, data) VALUES (topic_partition($1), $1, $2)"
            await connection.execute(insert, "turns", '{"text": "first", "by": ""}')
            second = asyncio.create_task(client.post("/api/rooms/turns", json={"text": "second"}))
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1 AND NOT granted"
            await until(lambda: connection.fetchval(waiting, LOCK_SPACE))
            assert not second.done()
        assert (await second).status_code == 201
        await until(lambda: follower.texts == ["first", "second"])
    await connection.close()


async def test_many_topics_survive_a_broken_feed(alice: str, fragile: Stack, start: Start) -> None:
    redis = aioredis.from_url(fragile.environment()["HW_REDIS__URL"])
    with start(HW_TOPICS__MAX_PER_SOCKET="10000", HW_TOPICS__MAX_TOPICS="10000") as running:
        async with redis, running.socket(alice) as socket, running.client(alice) as client:
            for first in range(1, 10_001, 50):
                await until(lambda first=first: _all_subscribed(socket, range(first, first + 50)))  # type: ignore[misc]
            async with running.socket(alice) as other:
                assert (await other.call("topic.subscribe", topic="short/10001"))["error"]["code"] == -32053
            assert await redis.client_kill_filter(_type="pubsub", skipme=True)
            said = range(100, 10_001, 100)
            for number in said:
                body, query = {"text": str(number)}, {"family": "short"}
                response = await client.post(f"/api/rooms/{number}/words", json=body, params=query)
                assert response.status_code == 201
            found = [(await socket.read())["params"] for _ in said]
    assert sorted(int(event["data"]["text"]) for event in found) == list(said)
    assert all(event["topic"] == f"short/{event['data']['text']}" for event in found)


async def _all_subscribed(socket: Any, numbers: range) -> bool:
    await socket.raw.send(json.dumps([subscription(number) for number in numbers]))
    return all("result" in answer for answer in await socket.read())


def subscription(number: int) -> dict[str, Any]:
    params = {"topic": f"short/{number}"}
    return {"jsonrpc": "2.0", "id": number, "method": "topic.subscribe", "params": params}


async def test_a_killed_postgresql_loses_nothing(one: Running, two: Running, alice: str, fragile: Stack) -> None:
    async with busy(one, two, alice, 4) as (_, followers):
        pid = fragile.processes["postgresql"].pid
        assert pid is not None
        for process in [psutil.Process(pid), *psutil.Process(pid).children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await until(lambda: fragile.processes["postgresql"].pid is None)
        await asyncio.to_thread(fragile.start_one, "postgresql")
    assert [follower.resets for follower in followers] == [0, 0]


async def make_holder(pid: int, environment: dict[str, str], topic: str) -> None:
    """Ends the sessions of other relays until the process that connects to PostgreSQL as `pid` has the topic's partition."""
    connection = await asyncpg.connect(environment["HW_DATABASE__URL"])
    process = psutil.Process(pid)

    async def holds() -> bool:
        row = await connection.fetchrow(
            "SELECT a.pid, a.client_port FROM topic_relays r JOIN pg_stat_activity a ON a.pid = r.pid "
            "WHERE r.partition = topic_partition($1)",
            topic,
        )
        ports = [item.laddr.port for item in process.net_connections() if item.raddr]
        if row is not None and row["client_port"] not in ports:
            await connection.execute("SELECT pg_terminate_backend($1)", row["pid"])
        return row is not None and row["client_port"] in ports

    await until(holds, 60)
    await connection.close()


async def test_a_killed_relay_is_succeeded(
    one: Running, two: Running, alice: str, environment: dict[str, str], start: Start
) -> None:
    with start() as third:
        await make_holder(third.process.pid, environment, "rooms/5")
        async with busy(one, two, alice, 5) as (writers, followers):
            third.process.kill()
            await writers.more(100)
    assert [follower.resets for follower in followers] == [0, 0]


async def test_a_holder_that_cannot_reach_redis_gives_way(
    two: Running, alice: str, environment: dict[str, str], fragile: Stack, start: Start
) -> None:
    with (
        Proxy.running(fragile.ports.redis) as proxy,
        start(HW_REDIS__URL=f"redis://127.0.0.1:{proxy.port}") as third,
    ):
        await make_holder(third.process.pid, environment, "rooms/5")
        async with Follower(two, alice, "rooms/5") as follower, two.client(alice) as client:
            proxy.refuse()
            await client.post("/api/rooms/5/words", json={"text": "after"})
            await until(lambda: follower.texts == ["after"], 15)


async def test_a_subscription_whose_renewal_fails_has_ended(one: Running, alice: str, fragile: Stack) -> None:
    async with one.socket(alice) as socket:
        position = await until(lambda: subscribed(socket, topic="rooms/210"))
        await kill_valkey(fragile)
        ahead = {"epoch": position["epoch"], "offset": position["offset"] + 5}  # for which Redis is asked
        refused = await socket.call("topic.subscribe", topic="rooms/210", recover=ahead)
        await asyncio.to_thread(fragile.start_one, "valkey")
        assert refused["error"]["code"] == -32053
        assert (await socket.call("topic.unsubscribe", topic="rooms/210"))["error"]["code"] == -32004
        assert await until(lambda: subscribed(socket, topic="rooms/210"))


async def test_a_killed_process_is_followed_again_while_writers_write(
    one: Running, two: Running, alice: str, start: Start
) -> None:
    topic = "rooms/27"
    async with contextlib.AsyncExitStack() as stack, Follower(two, alice, topic) as there:
        with start() as third:
            here = await stack.enter_async_context(Follower(third, alice, topic))
            writers = await stack.enter_async_context(Writers([one, two], alice, 27))
            await writers.more(100)
            third.process.kill()
            await asyncio.to_thread(third.process.wait)
            await writers.more(100)
        heard = len(here.events)
        with start(HW_HTTP__PORT=third.environment["HW_HTTP__PORT"]):
            await until(lambda: len(here.events) > heard + 50, 30)
            await writers.stop()
            await all_arrive([here, there], writers.said)
    assert (here.resets, there.resets) == (0, 0)


async def test_what_was_published_and_not_deleted_is_not_published_again(
    two: Running, alice: str, environment: dict[str, str], fragile: Stack, start: Start
) -> None:
    """The holder is killed between the two; nobody tells PostgreSQL that it is gone."""
    with Proxy.running(fragile.ports.postgres) as proxy:
        address = environment["HW_DATABASE__URL"].replace(str(fragile.ports.postgres), str(proxy.port))
        with start(HW_DATABASE__URL=address) as third:
            await make_holder(os.getpid(), environment, "rooms/14")
            proxy.hold_at = b"DELETE FROM topic_outbox"
            async with two.client(alice) as client, Follower(two, alice, "rooms/14") as follower:
                await client.post("/api/rooms/14/words", json={"text": "once"})
                assert await asyncio.to_thread(proxy.held.wait, 20)
                third.process.kill()
                await client.post("/api/rooms/14/words", json={"text": "then"})
                await until(lambda: follower.texts[-1:] == ["then"], 15)
                await until(lambda: _is_zero(fragile), 30)
    assert ([offset for _, offset, _ in follower.events], follower.texts) == ([1, 2], ["once", "then"])


async def _is_zero(fragile: Stack) -> bool:
    return await _waiting(fragile) == 0


async def test_a_relay_outlives_the_end_of_its_session(two: Running, alice: str, environment: dict[str, str]) -> None:
    connection = await asyncpg.connect(environment["HW_DATABASE__URL"])
    end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1"
    async with two.client(alice) as client, Follower(two, alice, "rooms/16") as follower:
        for turn in range(5):
            assert await until(lambda: connection.fetchval(end, RELAY))
            assert (await client.post("/api/rooms/16/words", json={"text": str(turn)})).status_code == 201
            await until(lambda turn=turn: follower.texts[-1:] == [str(turn)], 30)  # type: ignore[misc]
    assert follower.texts == [str(turn) for turn in range(5)]
    assert two.process.poll() is None
    await connection.close()


async def test_a_late_command_of_the_relay_publishes_nothing_twice(
    start: Start, fragile: Stack, environment: dict[str, str], tokens: dict[str, str]
) -> None:
    """It was on its way when the connection broke, and arrives after its retry was published and forgotten."""
    with Proxy.running(fragile.ports.redis) as proxy:
        address = environment["HW_REDIS__URL"].replace(str(fragile.ports.redis), str(proxy.port))
        with start(HW_REDIS__URL=address) as running:
            await make_holder(running.process.pid, environment, "rooms/23")
            async with (
                running.client(tokens["alice"]) as client,
                Follower(running, tokens["bob"], "rooms/23") as follower,
            ):
                before = await published_keys(fragile)
                proxy.hold_at = b"said once"
                await client.post("/api/rooms/23/words", json={"text": "said once"})
                assert await asyncio.to_thread(proxy.held.wait, 20)
                proxy.hold_at = b""
                await until(lambda: follower.texts == ["said once"])

                async def forgotten() -> bool:
                    return await published_keys(fragile) <= before

                await until(forgotten)
                proxy.release.set()
                await client.post("/api/rooms/23/words", json={"text": "said next"})
                await until(lambda: follower.texts[-1:] == ["said next"])
    assert [(offset, text) for _, offset, text in follower.events] == [(1, "said once"), (2, "said next")]


async def published_keys(fragile: Stack) -> set[bytes]:
    """Of events whose rows may still be in the outbox."""
    async with aioredis.from_url(fragile.environment()["HW_REDIS__URL"]) as redis:
        sets = await redis.keys("hw:topic-published:*")
        return set(await redis.sunion(sets)) if sets else set()


async def test_malformed_keys_of_published_events_are_forgotten(
    two: Running, alice: str, environment: dict[str, str]
) -> None:
    connection = await asyncpg.connect(environment["HW_DATABASE__URL"])
    partitions = range(await connection.fetchval("SELECT count(*) FROM topic_relays"))
    async with aioredis.from_url(environment["HW_REDIS__URL"]) as redis:

        async def forgotten() -> bool:
            return not any([await redis.sismember(f"hw:topic-published:{number}", "x:y") for number in partitions])

        for number in partitions:
            await redis.sadd(f"hw:topic-published:{number}", b"\xff", "x:y", "x:" + "9" * 30)
        assert await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", RELAY
        )
        await until(forgotten, 60)
    async with two.client(alice) as client, Follower(two, alice, "rooms/19") as follower:
        await client.post("/api/rooms/19/words", json={"text": "after it"})
        await until(lambda: follower.texts == ["after it"], 30)
    await connection.close()


async def test_a_restored_outbox_begins_new_epochs(
    two: Running, alice: str, environment: dict[str, str], fragile: Stack
) -> None:
    """Its ids and fencing numbers begin anew, as after a backup that is older than what Redis has."""
    owner = await asyncpg.connect(fragile.owner()["HW_DATABASE__OWNER_URL"])
    connection = await asyncpg.connect(environment["HW_DATABASE__URL"])
    async with two.client(alice) as client, Follower(two, alice, "rooms/15") as follower:
        assert await _says(client, "before")
        await until(lambda: follower.texts == ["before"])
        await until(lambda: _is_zero(fragile))
        await owner.execute(RESTORE)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", RELAY
        )
        assert await _says(client, "after")
        await until(lambda: follower.resets, 30)
        assert await _says(client, "and on")
        await until(lambda: follower.texts[-1:] == ["and on"], 30)
    assert len({epoch for epoch, _, _ in follower.events}) == 2
    follower.check_order()
    await owner.close()
    await connection.close()


RELAY = "hw-server topic relay"
RESTORE = """
    CREATE TABLE topic_outbox_2 (LIKE topic_outbox INCLUDING ALL);
    GRANT SELECT, INSERT, DELETE ON topic_outbox_2 TO hw;
    DROP TABLE topic_outbox;
    ALTER TABLE topic_outbox_2 RENAME TO topic_outbox;
    ALTER SEQUENCE topic_outbox_2_id_seq RENAME TO topic_outbox_id_seq;
    SELECT setval('topic_fences', 1);
"""


async def _says(client: httpx.AsyncClient, text: str) -> bool:
    return (await client.post("/api/rooms/15/words", json={"text": text})).status_code == 201


async def test_a_stopped_relay_does_not_publish_after_its_successor(
    one: Running, two: Running, alice: str, environment: dict[str, str], start: Start
) -> None:
    with start() as third:
        await make_holder(third.process.pid, environment, "rooms/6")
        async with busy(one, two, alice, 6) as (writers, followers):
            third.process.send_signal(signal.SIGSTOP)
            said = await until(lambda: writers.said[-1:])
            await until(lambda: said[0] in followers[0].texts, 15)  # by the successor
            third.process.send_signal(signal.SIGCONT)
            await writers.more(100)
    assert [follower.resets for follower in followers] == [0, 0]


async def test_a_long_transaction_delays_nobody(two: Running, alice: str, environment: dict[str, str]) -> None:
    """Both rooms are of one partition, and its relay has raised the floor from which it reads."""
    connection = await asyncpg.connect(environment["HW_DATABASE__URL"])
    assert await connection.fetchval("SELECT topic_partition('rooms/9') = topic_partition('rooms/10')")
    async with Follower(two, alice, "rooms/9") as follower, Follower(two, alice, "rooms/10") as late:
        async with connection.transaction():
            insert = "INSERT INTO topic_outbox (partition, topic, data) VALUES (topic_partition($1), $1, $2)"
            await connection.execute(insert, "rooms/10", '{"text": "late", "by": ""}')
            async with Writers([two], alice, 9) as writers:
                await _heartbeats(environment, "rooms/9", 3)
                await writers.more(100)
            await all_arrive([follower], writers.said)
        await until(lambda: late.texts == ["late"])
    await connection.close()


async def _heartbeats(environment: dict[str, str], topic: str, count: int) -> None:
    """Waits for so many more of the partition's relay."""
    connection, seen = await asyncpg.connect(environment["HW_DATABASE__URL"]), set()

    async def enough() -> bool:
        sql = "SELECT heartbeat FROM topic_relays WHERE partition = topic_partition($1)"
        seen.add(await connection.fetchval(sql, topic))
        return len(seen) > count

    await until(enough)
    await connection.close()


async def test_a_refused_event_is_a_dead_letter_and_the_others_go_on(
    two: Running, alice: str, environment: dict[str, str]
) -> None:
    async with aioredis.from_url(environment["HW_REDIS__URL"]) as redis:
        async with two.client(alice) as client, Follower(two, alice, "rooms/10") as follower:
            async with Follower(two, alice, "rooms/9") as first:
                await client.post("/api/rooms/9/words", json={"text": "good"})
                await until(lambda: first.texts == ["good"])
            await redis.set("hw:topic:history:rooms%2F9", "no stream")
            await client.post("/api/rooms/9/words", json={"text": "poison"})
            await client.post("/api/rooms/10/words", json={"text": "fine"})
            await until(lambda: follower.texts == ["fine"])
        [letter] = await until(lambda: dead_letters(environment), 30)
        await redis.delete("hw:topic:history:rooms%2F9")
    assert (letter["topic"], letter["data"]["text"], "WRONGTYPE" in letter["error"]) == ("rooms/9", "poison", True)
    async with Follower(two, alice, "rooms/9") as follower:
        assert hw(environment, "retry", str(letter["id"])) == "it is in the outbox again\n"
        await until(lambda: follower.texts == ["poison"])
    assert dead_letters(environment) == []


async def test_a_refused_event_blocks_its_topic_until_its_tries_are_over(
    start: Start, alice: str, environment: dict[str, str], fragile: Stack
) -> None:
    owner, history = await asyncpg.connect(fragile.owner()["HW_DATABASE__OWNER_URL"]), "hw:topic:history:rooms%2F28"
    async with aioredis.from_url(environment["HW_REDIS__URL"]) as redis:
        with start(HW_TOPICS__TRIES="3") as running:
            await make_holder(running.process.pid, environment, "rooms/28")
            async with running.client(alice) as client, Follower(running, alice, "rooms/28") as follower:
                await redis.set(history, "no stream")
                for text in ("poison", "next", "last"):
                    await client.post("/api/rooms/28/words", json={"text": text})
                buried = "DELETE FROM topic_dead_letters WHERE topic = 'rooms/28' RETURNING data::json ->> 'text'"
                assert await until(lambda: owner.fetchval(buried)) == "poison"
                await redis.delete(history)
                await until(lambda: len(follower.texts) == 2)
            tries = [line["tries"] for line in running.log() if line["event"] == "topic_event_refused"]
    assert (follower.texts, follower.resets, tries[:3]) == (["next", "last"], 0, [1, 2, 3])
    follower.check_order()
    await owner.close()


async def test_a_dead_letter_is_discarded_once(two: Running, alice: str, environment: dict[str, str]) -> None:
    connection = await asyncpg.connect(environment["HW_DATABASE__URL"])
    letter = 2**62  # which the sequence never reaches
    await connection.execute(
        "INSERT INTO topic_dead_letters (id, topic, data, error, created_at) VALUES ($1, 'rooms/9', '{}', 'test', now())",
        letter,
    )
    await connection.close()
    assert hw(environment, "discard", str(letter)) == "discarded\n"
    for action in ("discard", "retry"):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            hw(environment, action, str(letter))
        assert refused.value.stderr == f"there is no dead letter {letter}\n"


def dead_letters(environment: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in hw(environment, "list").splitlines()]


def hw(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "hw_server.cli", "topics", "dead", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True).stdout
