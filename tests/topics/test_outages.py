"""Topics on bad days: parts are killed while writers write; every committed event arrives once and in order, or a reset says
otherwise."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import psutil
import pytest
import redis.asyncio as aioredis

from hw_server.embedded import Stack
from tests.conftest import Running, until
from tests.topics.conftest import Start
from tests.topics.follower import Follower


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


async def test_a_killed_valkey_loses_nothing_without_a_word(
    one: Running, two: Running, alice: str, fragile: Stack
) -> None:
    async with busy(one, two, alice, 3) as (_, followers):
        pid = fragile.processes["valkey"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: fragile.processes["valkey"].pid is None)
        await asyncio.to_thread(fragile.start_one, "valkey")
        before = [len(follower.events) for follower in followers]
        await until(lambda: all(len(f.events) > n for f, n in zip(followers, before, strict=True)), 30)
    assert all(follower.resets for follower in followers)


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


async def make_holder(running: Running, environment: dict[str, str], topic: str) -> None:
    """Ends the sessions of other relays until this server has the topic's partition."""
    connection = await asyncpg.connect(environment["HW_DATABASE__URL"])
    process = psutil.Process(running.process.pid)

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
        await make_holder(third, environment, "rooms/5")
        async with busy(one, two, alice, 5) as (writers, followers):
            third.process.kill()
            await writers.more(100)
    assert [follower.resets for follower in followers] == [0, 0]


async def test_a_stopped_relay_does_not_publish_after_its_successor(
    one: Running, two: Running, alice: str, environment: dict[str, str], start: Start
) -> None:
    with start() as third:
        await make_holder(third, environment, "rooms/6")
        async with busy(one, two, alice, 6) as (writers, followers):
            third.process.send_signal(signal.SIGSTOP)
            said = await until(lambda: writers.said[-1:])
            await until(lambda: said[0] in followers[0].texts, 30)  # by the successor
            third.process.send_signal(signal.SIGCONT)
            await writers.more(100)
    assert [follower.resets for follower in followers] == [0, 0]


async def test_a_long_transaction_delays_nobody(two: Running, alice: str, environment: dict[str, str]) -> None:
    connection = await asyncpg.connect(environment["HW_DATABASE__URL"])
    async with connection.transaction(), Follower(two, alice, "rooms/7") as follower:
        insert = "INSERT INTO topic_outbox (partition, topic, data) VALUES (topic_partition($1), $1, $2)"
        await connection.execute(insert, "rooms/8", '{"text": "late", "by": ""}')
        async with Writers([two], alice, 7) as writers:
            await writers.more(100)
        await all_arrive([follower], writers.said)
    async with Follower(two, alice, "rooms/8") as late:
        history = await until(lambda: late.position and late.position["offset"])
        assert history == 1
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


def dead_letters(environment: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in hw(environment, "list").splitlines()]


def hw(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "hw_server.cli", "topics", "dead", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True).stdout
