"""Three replicas by docker-compose.replicas.yml: found by all who look for them, restarted one after the other, killed."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from hw_client import Client, Event, HwError
from tests.conftest import PROJECT, until
from tests.stack.conftest import (
    V2,
    blocks,
    containers,
    figure,
    inside,
    load,
    operate,
    run,
    sign_in,
    wait_until_routed,
)

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("replicas")]
OVERLAYS = ("docker/docker-compose.replicas.yml", "tests/stack/loopback.yml")
FILES = [part for file in ("docker/docker-compose.yml", *OVERLAYS) for part in ("-f", str(PROJECT / file))]


def compose(*arguments: str) -> None:
    run(V2, "-p", "hwstack", *FILES, *arguments)


def servers() -> list[str]:
    return sorted(name for name in containers() if name.startswith("hwstack-hw-server-"))


@pytest.fixture(scope="module")
def replicas(images: None) -> Iterator[None]:
    compose("down", "-v", "--remove-orphans")
    compose("up", "-d", "--no-build", "--wait", "--wait-timeout", "240", "--scale", "hw-server=3")
    wait_until_routed()
    yield
    compose("down", "-v", "--remove-orphans", "-t", "2")


def through_traefik() -> httpx.AsyncClient:
    headers = {"Host": "api.localhost", "Authorization": f"Bearer {sign_in('alice')['access_token']}"}
    return httpx.AsyncClient(base_url="http://127.0.0.1", headers=headers, timeout=20)


@asynccontextmanager
async def subscribers(count: int, streams: int = 0, lost: list[str] | None = None) -> AsyncIterator[list[list[Any]]]:
    """What each of so many, the last of them by event streams, hears of the topic `authors`; they reconnect as any client does. Those
    with a socket make calls as well, where there is a list for what fails."""
    heard: list[list[Any]] = [[] for _ in range(count)]

    async def call(client: Client, failures: list[str]) -> None:
        while True:
            try:
                await client.call("me.get")
            except HwError as error:
                failures.append(repr(error))
            await asyncio.sleep(0.1)

    # One for all: Keycloak takes many sign-ins of a user at the same moment for an attack.
    token = str(sign_in("alice")["access_token"])

    async def listen(ready: asyncio.Event, items: list[Any], stream: bool) -> None:
        client = Client("http://127.0.0.1", token=token)
        async with contextlib.AsyncExitStack() as stack:
            if stream:
                events: Any = await stack.enter_async_context(client.events("authors"))
            else:
                await stack.enter_async_context(client)
                if lost is not None:
                    stack.callback(asyncio.create_task(call(client, lost)).cancel)
                events = await stack.enter_async_context(client.subscribe("authors"))
            ready.set()
            async for event in events:
                items.append(event)

    readies = [asyncio.Event() for _ in heard]
    tasks = [
        asyncio.create_task(listen(ready, items, place >= count - streams))
        for place, (ready, items) in enumerate(zip(readies, heard, strict=True))
    ]
    await asyncio.wait_for(asyncio.gather(*(ready.wait() for ready in readies)), 30)
    try:
        yield heard
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def writing(client: httpx.AsyncClient) -> AsyncIterator[list[str]]:
    """Creates authors, ten a second; the names of those that the server has acknowledged."""
    names: list[str] = []
    refused: list[int] = []
    over = asyncio.Event()

    async def write() -> None:
        while not over.is_set():
            name = str(uuid.uuid4())
            answer = await client.post("/api/authors", json={"name": name})
            (names.append(name) if answer.status_code == 201 else refused.append(answer.status_code))
            await asyncio.sleep(0.1)

    task = asyncio.create_task(write())
    try:
        yield names
    finally:
        over.set()
        await task
    assert refused == []


def names_of(items: list[Any]) -> list[str]:
    assert all(isinstance(item, Event) for item in items)
    return [item.data["author"]["name"] for item in items]


def test_each_replica_runs_and_migrations_ran_once() -> None:
    assert len(servers()) == 3
    assert [name for name in containers() if "migrate" in name] == ["hw-migrate"]


async def test_redis_away_fails_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async with through_traefik() as client, load(client, "/api/authors?per_page=5") as answers:
        await asyncio.sleep(2)
        await asyncio.to_thread(run, "docker", "kill", "hw-redis")
        await asyncio.sleep(20)
        await asyncio.to_thread(run, "docker", "start", "hw-redis")
        await asyncio.sleep(5)
    figure(capsys, "Redis away for 20 s, three replicas", answers)
    assert set(answers.kinds()) == {"200 application/json"}, answers.kinds()


async def test_prometheus_finds_every_replica() -> None:
    addresses = {containers()[name]["NetworkSettings"]["Networks"]["hw-network"]["IPAddress"] for name in servers()}

    async def found() -> bool:
        async with httpx.AsyncClient() as client:
            targets = (await client.get("http://127.0.0.1:9090/api/v1/targets")).json()["data"]["activeTargets"]
        up = {t["labels"]["instance"] for t in targets if t["labels"]["job"] == "fastapi" and t["health"] == "up"}
        return up == {f"{address}:8000" for address in addresses}

    await until(found, 120)


async def test_a_rolling_restart_fails_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {containers()[name]["Id"] for name in servers()}
    script = blocks("Several servers: restart and upgrade", "docs/deployment/docker.md")
    lost: list[str] = []
    async with through_traefik() as client, subscribers(9, streams=3, lost=lost) as heard:
        async with writing(client) as written, load(client, "/api/authors?per_page=5") as answers:
            await asyncio.sleep(2)
            await asyncio.to_thread(operate, script, tmp_path, " ".join(FILES[2:]))
            await asyncio.sleep(5)
        await until(lambda: all(len(items) >= len(written) for items in heard), 60)
    figure(capsys, "three replicas restarted one after the other", answers)
    assert {containers()[name]["Id"] for name in servers()}.isdisjoint(before)
    assert set(answers.kinds()) == {"200 application/json"}, answers.kinds()
    assert lost == []
    assert len(written) > 100
    assert [names_of(items) == written for items in heard] == [True] * 9


def leases() -> int:
    """Sockets that count for a user's limit now."""
    count = """local n, now = 0, redis.call('TIME')[1]
    for _, key in ipairs(redis.call('KEYS', '*sockets:*')) do n = n + redis.call('ZCOUNT', key, '(' .. now, '+inf') end
    return n"""
    return int(inside("hw-redis", "redis-cli", "EVAL", count, "0"))


async def counted(sockets: int) -> None:
    async def same() -> bool:
        return await asyncio.to_thread(leases) == sockets

    await until(same, 70)


async def create(client: httpx.AsyncClient, count: int) -> list[str]:
    answers = [await client.post("/api/authors", json={"name": str(uuid.uuid4())}) for _ in range(count)]
    return [answer.json()["name"] for answer in answers]


async def test_a_replica_that_is_killed_costs_what_it_was_answering(capsys: pytest.CaptureFixture[str]) -> None:
    victim = servers()[0]
    async with through_traefik() as client, load(client, "/api/authors?per_page=5") as answers:
        await asyncio.sleep(2)
        await asyncio.to_thread(run, "docker", "kill", victim)
        await asyncio.sleep(8)
        await asyncio.to_thread(run, "docker", "start", victim)
        await asyncio.sleep(3)
    figure(capsys, "one of three replicas killed", answers)
    # Of 20 a second; Traefik sends what it cannot deliver to the next replica.
    assert answers.kinds().total() - answers.kinds()["200 application/json"] <= 3, answers.kinds()


async def test_a_replica_of_the_release_before_starts_beside_a_newer_schema() -> None:
    def revision(sql: str) -> None:
        inside("hw-server-shell", "psql", "postgresql://postgres:postgres@hw-db/hw_db", "-c", sql)

    revision("CREATE TABLE kept AS SELECT version_num FROM alembic_version")
    revision("UPDATE alembic_version SET version_num = '299912310000'")
    try:
        run("docker", "restart", "-t", "30", servers()[0])
        await until(lambda: containers()[servers()[0]]["State"]["Health"]["Status"] == "healthy", 60)
    finally:
        revision("UPDATE alembic_version SET version_num = (SELECT version_num FROM kept)")
        revision("DROP TABLE kept")


async def test_sockets_of_a_killed_replica_come_back_elsewhere_and_count_for_a_lease() -> None:
    victim = servers()[0]
    await counted(0)
    async with through_traefik() as client, subscribers(6) as heard:
        written = await create(client, 5)
        await asyncio.to_thread(run, "docker", "kill", victim)
        await asyncio.sleep(4)  # until Traefik no longer asks it
        written += await create(client, 5)
        await until(lambda: all(len(items) >= 10 for items in heard), 30)
        assert leases() > 6
        await counted(6)
        await asyncio.to_thread(run, "docker", "start", victim)
    assert [names_of(items) for items in heard] == [written] * 6
