"""Bad days: parts stop for twenty seconds, the application is killed; nothing acknowledged is lost."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest

from hw_server.embedded import Stack
from tests.conftest import Running, free_port, run_server, run_stack, sign_in, until

OUTAGE = 20.0  # seconds
BOUND = 12.0  # seconds; http.request_timeout and a little


@pytest.fixture(scope="module")
def fragile() -> Iterator[Stack]:
    """A stack of its own, to be broken."""
    with run_stack() as stack:
        yield stack


@pytest.fixture(scope="module")
def running(fragile: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_server(fragile.environment(), tmp_path_factory.mktemp("log")) as server:
        yield server


@pytest.fixture
async def dave(fragile: Stack, running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with running.client(sign_in(fragile, "dave")["access_token"]) as client:
        yield client


@contextlib.asynccontextmanager
async def stopped(stack: Stack, name: str) -> AsyncIterator[float]:
    """Without one server for the whole block; gives the moment at which the outage may end."""
    await asyncio.to_thread(stack.processes[name].stop)
    try:
        yield time.monotonic() + OUTAGE
    finally:
        await asyncio.to_thread(stack.start_one, name)


async def healthy(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health")).json()["status"] == "ok")


async def exercise(client: httpx.AsyncClient, ends: float) -> tuple[set[int], list[int]]:
    """Reads and writes until the outage ends: all statuses, and the ids of acknowledged notes."""
    statuses, made = set(), []
    while time.monotonic() < ends:
        started = time.monotonic()
        read, write = await asyncio.gather(
            client.get("/api/notes"), client.post("/api/notes", json={"title": str(uuid.uuid4())})
        )
        assert time.monotonic() - started < BOUND
        statuses |= {read.status_code, write.status_code}
        if write.status_code == 201:
            made.append(write.json()["id"])
        await asyncio.sleep(0.2)
    return statuses, made


async def audited(stack: Stack, made: list[int]) -> int:
    connection = await asyncpg.connect(stack.environment()["HW_DATABASE__URL"])
    resources = [f"notes/{note}" for note in made]
    query = "SELECT count(*) FROM user_actions WHERE action = 'notes.create' AND resource = ANY($1)"
    count = await connection.fetchval(query, resources)
    await connection.close()
    return int(count)


async def test_without_redis_work_goes_on(fragile: Stack, dave: httpx.AsyncClient) -> None:
    async with stopped(fragile, "valkey") as ends:
        statuses, made = await exercise(dave, ends)
        report = (await dave.get("/health")).json()
    assert statuses == {200, 201}
    assert (report["status"], report["components"]["redis_cache"]["status"]) == ("degraded", "down")
    await until(lambda: healthy(dave))
    assert await audited(fragile, made) == len(made)


async def test_without_postgresql_nothing_is_acknowledged(
    fragile: Stack, running: Running, dave: httpx.AsyncClient
) -> None:
    async with stopped(fragile, "postgresql") as ends:
        statuses, made = await exercise(dave, ends)
        health, ready = await dave.get("/health"), await dave.get("/health/ready")
        seen = (await dave.get("/api/notes")).headers["x-request-id"]
    assert (statuses, made) == ({503}, [])
    assert (health.status_code, health.json()["components"]["postgresql"]["status"]) == (503, "down")
    assert ready.status_code == 200
    await until(lambda: healthy(dave))
    assert (await dave.post("/api/notes", json={"title": str(uuid.uuid4())})).status_code == 201

    async def replayed() -> bool:
        return bool((await dave.get("/api/audit-logs", params={"request_id": seen})).json()["items"])

    await until(replayed)


async def test_without_the_provider_known_keys_work(fragile: Stack, dave: httpx.AsyncClient) -> None:
    assert (await dave.get("/api/me")).status_code == 200
    async with stopped(fragile, "nanoidp") as ends:
        statuses, made = await exercise(dave, ends)
        report = (await dave.get("/health")).json()
    assert statuses == {200, 201}
    assert (report["status"], report["components"]["identity"]["status"]) == ("degraded", "down")
    await until(lambda: healthy(dave))
    assert await audited(fragile, made) == len(made)


async def test_a_killed_server_keeps_what_it_acknowledged(
    fragile: Stack, dave: httpx.AsyncClient, tmp_path: Path
) -> None:
    environment = {**fragile.environment(), "HW_HTTP__PORT": str(free_port()), "HW_AUDIT__SPILL_DIR": str(tmp_path)}
    made: list[int] = []

    async def write(client: httpx.AsyncClient) -> None:
        with contextlib.suppress(httpx.TransportError):
            while True:
                response = await client.post("/api/notes", json={"title": str(uuid.uuid4())})
                made.append(response.json()["id"])

    with run_server(environment, tmp_path) as victim:
        async with victim.client(dave.headers["Authorization"].split()[1]) as client:
            writers = [asyncio.create_task(write(client)) for _ in range(8)]
            await until(lambda: len(made) > 200)
            victim.process.kill()
            await asyncio.gather(*writers)
    assert await audited(fragile, made) == len(set(made)) == len(made)
    assert {(await dave.get(f"/api/notes/{note}")).status_code for note in made[-50:]} == {200}


@pytest.mark.parametrize("name", ["valkey", "nanoidp", "postgresql"])
async def test_a_hanging_part_costs_no_more_than_a_timeout(fragile: Stack, dave: httpx.AsyncClient, name: str) -> None:
    main = psutil.Process(fragile.processes[name].pid)
    processes = [main, *main.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        statuses, made = await exercise(dave, time.monotonic() + 6)
        report = (await dave.get("/health")).json()
    finally:
        for process in processes:
            process.resume()
    assert statuses == ({503} if name == "postgresql" else {200, 201})
    assert report["status"] == ("down" if name == "postgresql" else "degraded")
    await until(lambda: healthy(dave))
    assert await audited(fragile, made) == len(made)
