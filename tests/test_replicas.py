"""Several servers behind the real Traefik, as `hw up --replicas` starts them, under load: restarts and deaths of one."""

import asyncio
import contextlib
import os
import re
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import redis.asyncio as aioredis
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from hw_client import Backoff, Client, Event, EventStream, HwError, Reset, Subscription
from hw_server.embedded import Ports, Stack
from hw_server.ratelimit.connections import LEASE
from tests.conftest import PROJECT, until
from tests.notes import environment as notes
from tests.provider import Provider
from tests.shell import Shell

SERVERS = ("hw-server-1", "hw-server-2", "hw-server-3")
WRITERS = 6
SOCKETS = 3
CAP = 4  # sockets of one user
QUICK = Backoff(first=0.05, longest=0.5)


class Replicas:
    """Three servers with rooms, and the shell that started them."""

    def __init__(self, shell: Shell, provider: Provider) -> None:
        self._shell, self.provider = shell, provider
        self.url = f"http://127.0.0.1:{shell.ports['--port']}"
        self.ports = Ports(*(int(port) for port in shell.ports.values()))
        self._environment = {
            "HW_FEATURES": "tests.rooms:FEATURES", "PYTHONPATH": str(PROJECT), "HW_RATELIMIT__SOCKETS_PER_USER": str(CAP),
            "HW_RATELIMIT__HTTP_PER_MINUTE": "1000000", **provider.settings(),
        }  # fmt: skip

    async def hw(self, *arguments: str, **environment: str) -> str:
        result = await asyncio.to_thread(self._shell.run, *arguments, **self._environment, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    async def up(self) -> str:
        ports = (part for pair in self._shell.ports.items() for part in pair)
        output = await self.hw("up", *ports, "--replicas", "3")
        self.proxy = int(re.findall(r"127.0.0.1:(\d+)/dashboard/", output)[0])
        return output

    def pids(self) -> dict[str, Any]:
        return {name: item["pid"] for name, item in self._shell.status().items() if name in SERVERS}

    def client(self, user: str) -> Client:
        return Client(self.url, token=lambda: self.provider.token(sub=user), backoff=QUICK, trust_env=False)

    async def unanswered(self) -> float:
        """Attempts of the proxy to ask a server that did not answer; it tries another where nothing was sent."""
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"http://127.0.0.1:{self.proxy}/metrics")).text
        counts = re.findall(r'^traefik_service_requests_total{code="502",.*} (\S+)$', text, re.M)
        return sum(map(float, counts))

    async def holder(self) -> str | None:
        """The server that has the only socket there is."""
        held = {}
        async with httpx.AsyncClient(trust_env=False) as client:
            for name, item in self._shell.status().items():
                if name in SERVERS:
                    text = (await client.get(f"http://127.0.0.1:{item['port']}/metrics")).text
                    [count] = re.findall(r"^ws_connections_open (\S+)$", text, re.M)
                    held[name] = float(count)
        return max(held, key=lambda name: held[name]) if sum(held.values()) == 1 else None

    async def refusal(self, user: str) -> int:
        """The status of a handshake that is refused."""
        headers = {"Authorization": f"Bearer {self.provider.token(sub=user)}"}
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{self.url.replace('http', 'ws')}/web", additional_headers=headers, proxy=None)
        return refused.value.response.status_code


@pytest.fixture(scope="module")
async def replicas() -> AsyncIterator[Replicas]:
    with Shell.temporary() as shell, Provider.running() as provider:
        replicas = Replicas(shell, provider)
        await replicas.up()
        await notes.create_table(Stack(shell.state, replicas.ports))
        yield replicas


class Load:
    """Writers over HTTP, and readers over sockets, which make calls as well, and event streams. `failures` are those of each writer's
    requests, `lost` those of each socket's calls, `sent` all words, `said` the acknowledged ones, `heard` those of each reader in the
    order they came, with a None for each reset."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._topic, self._room = "", 0
        self.said: list[str] = []
        self.sent: set[str] = set()
        self.failures: list[list[str]] = [[] for _ in range(WRITERS)]
        self.lost: list[list[str]] = []
        self.heard: list[list[str | None]] = []
        self._streams: list[EventStream] = []

    @asynccontextmanager
    async def running(self, room: int) -> AsyncIterator["Load"]:
        """In the end each reader has heard all that was acknowledged, once and in one order."""
        self._topic, self._room = f"rooms/{room}", room
        async with contextlib.AsyncExitStack() as stack:
            readers = [
                asyncio.create_task(self._listen(user, stream)) for user in ("s1", "s2", "s3") for stream in (0, 1)
            ]
            await until(lambda: len(self.heard) == len(readers) and all(stream.connected for stream in self._streams))
            writers = [asyncio.create_task(self._write(failures)) for failures in self.failures]
            stack.callback(lambda: [task.cancel() for task in (*readers, *writers)])
            await self.more(50)
            yield self
            await self.more(50)
            for task in writers:
                task.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
            await until(lambda: all(set(self.said) <= set(heard) for heard in self.heard))
        await asyncio.gather(*readers, return_exceptions=True)
        shortest = min(map(len, self.heard))
        for heard in self.heard:
            assert len(heard) == len(set(heard))
            assert set(heard) <= self.sent
            assert heard[:shortest] == self.heard[0][:shortest]

    async def more(self, count: int) -> None:
        wanted = len(self.said) + count
        await until(lambda: len(self.said) >= wanted, 30)

    async def _write(self, failures: list[str]) -> None:
        headers = {"Authorization": f"Bearer {self._replicas.provider.token()}"}
        async with httpx.AsyncClient(
            base_url=self._replicas.url, headers=headers, timeout=20, trust_env=False
        ) as client:
            while True:
                text = uuid.uuid4().hex
                self.sent.add(text)
                try:
                    (await client.post(f"/api/rooms/{self._room}/words", json={"text": text})).raise_for_status()
                    self.said.append(text)
                    (await client.get("/api/notes")).raise_for_status()
                except httpx.HTTPError as error:
                    failures.append(repr(error))
                await asyncio.sleep(0.02)

    async def _call(self, client: Client) -> None:
        lost: list[str] = []
        self.lost.append(lost)
        while True:
            try:
                await client.call("notes.count")
            except HwError as error:
                lost.append(repr(error))
            await asyncio.sleep(0.05)

    async def _listen(self, user: str, stream: int) -> None:
        heard: list[str | None] = []
        client = self._replicas.client(user)
        async with contextlib.AsyncExitStack() as stack:
            if stream:
                events: EventStream | Subscription[Event | Reset] = client.events(self._topic)
                self._streams.append(events)
            else:
                await stack.enter_async_context(client)
                calling = asyncio.create_task(self._call(client))
                stack.callback(calling.cancel)
                events = client.subscribe(self._topic)
            await stack.enter_async_context(events)
            self.heard.append(heard)
            async for event in events:
                heard.append(None if isinstance(event, Reset) else event.data["text"])


async def test_each_server_can_be_looked_at_and_stopped(replicas: Replicas) -> None:
    assert [name for name in SERVERS if f"/{name}.log <==" in await replicas.hw("logs")] == [*SERVERS]
    assert "==>" not in await replicas.hw("logs", "hw-server-2")
    completing = {"_HW_COMPLETE": "complete_bash", "COMP_WORDS": "hw down ", "COMP_CWORD": "2"}
    assert {*SERVERS, "traefik"} <= {*(await replicas.hw(**completing)).split()}
    assert await replicas.hw("down", "hw-server-1") == "  hw-server-1 stopped\n"
    assert [name for name, pid in replicas.pids().items() if pid is None] == ["hw-server-1"]
    async with httpx.AsyncClient(base_url=replicas.url, trust_env=False) as client:
        assert [(await client.get("/api/notes/count")).status_code for _ in range(6)] == [200] * 6
    await replicas.up()


async def test_a_rolling_restart_fails_nothing(replicas: Replicas) -> None:
    before, unanswered = replicas.pids(), await replicas.unanswered()
    load = Load(replicas)
    async with load.running(room=1):
        output = await replicas.hw("restart", "--rolling")
    # A server is asked nothing any more before it closes; without its drain each of the three leaves several writers unanswered.
    assert await replicas.unanswered() - unanswered < WRITERS
    assert (load.failures, load.lost) == ([[]] * WRITERS, [[]] * SOCKETS)
    assert [line.strip() for line in output.splitlines()[:3]] == [f"{name} serves again" for name in SERVERS]
    assert not set(before.values()) & set(replicas.pids().values())


async def test_a_killed_server_fails_only_what_it_was_asked(replicas: Replicas) -> None:
    load = Load(replicas)
    async with load.running(room=2):
        os.kill(replicas.pids()["hw-server-2"], signal.SIGKILL)
        await load.more(300)
    assert await replicas.unanswered() > 0
    # Each writer waits for one answer at a time. Traefik may give its next request to a connection whose end it has not read yet.
    assert max(len(failures) for failures in load.failures) <= 2
    assert not [failure for failures in load.failures for failure in failures if "502" not in failure]
    # A call without an answer may have been carried out, and is not sent again.
    assert max(len(lost) for lost in load.lost) <= 1
    assert not [error for lost in load.lost for error in lost if "ConnectionLost" not in error]
    assert replicas.pids()["hw-server-2"] is None
    await replicas.up()
    assert None not in replicas.pids().values()


async def test_a_socket_of_a_killed_server_counts_for_a_lease(replicas: Replicas) -> None:
    key = "hw:sockets:capped"
    async with aioredis.from_url(f"redis://127.0.0.1:{replicas.ports.redis}") as redis:
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(replicas.client("capped"))
            victim = await until(replicas.holder)
            os.kill(replicas.pids()[victim], signal.SIGKILL)
            killed = (await redis.time())[0]

            async def is_back() -> bool:
                return bool(await redis.zcard(key) == 2) and first.connected

            await until(is_back)
            for _ in range(CAP - 2):
                await stack.enter_async_context(replicas.client("capped"))
            assert await replicas.refusal("capped") == 429

        async def left() -> list[tuple[bytes, float]] | None:
            leases: list[tuple[bytes, float]] = await redis.zrange(key, 0, -1, withscores=True)
            return leases if len(leases) == 1 else None

        [(_, ends)] = await until(left)
        assert ends <= killed + LEASE
    await replicas.up()


def test_one_server_stands_behind_the_proxy_where_that_is_asked_for() -> None:
    with Shell.temporary() as shell:
        assert shell.up("--proxy").returncode == 0
        status = shell.status()
        assert {"traefik", "hw-server"} < status.keys()
        assert str(status["traefik"]["port"]) == shell.ports["--port"]
        assert shell.get("/api/me", shell.token("dave")).status_code == 200
        assert "other options" in shell.up().stderr
        assert "needs several servers" in shell.run("restart", "--rolling").stderr
        assert shell.up("--reload", "--replicas", "2").returncode == 2
        assert shell.run("restart").returncode == 0
