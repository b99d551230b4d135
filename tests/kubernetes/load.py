"""Runs in a pod: readers, a writer, a subscriber over a socket and one over an event stream, through the Service, until SIGTERM
or for so many seconds. The last line printed is what they met. With `hard` the readers hardly pause, and nothing else runs."""

import asyncio
import json
import signal
import sys
import time
import uuid
from collections import Counter
from typing import Any

import httpx

from hw_client import Client

URL = "http://hw-server.hw.svc.cluster.local:8000"
PROVIDER = "http://nanoidp.hw.svc.cluster.local:8080/token"
SIGN_IN = {"grant_type": "password", "client_id": "hw-web", "username": "alice", "password": "alice", "scope": "openid"}
READERS = 8
PAUSE, SHORT_PAUSE = 0.1, 0.02  # seconds between two requests of one
SETTLE = 15.0  # seconds for the last events to arrive


class Load:
    def __init__(self, seconds: float, hard: bool) -> None:
        self.ends = time.monotonic() + seconds
        self.pause = SHORT_PAUSE if hard else PAUSE
        self.hard = hard
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.written: list[int] = []
        self.heard: dict[str, list[int]] = {"socket": [], "stream": []}

    async def request(self, client: httpx.AsyncClient, method: str, **arguments: Any) -> httpx.Response | None:
        """No retry: what a client loses is what we count."""
        try:
            response = await client.request(method, "/api/authors", **arguments)
        except httpx.HTTPError as error:
            self.failures.append(f"{method}: {error!r}")
            return None
        self.answers[f"{method} {response.status_code}"] += 1
        if not response.is_success:
            self.failures.append(f"{method}: {response.status_code} {response.text}")
        return response

    async def read(self, client: httpx.AsyncClient) -> None:
        while time.monotonic() < self.ends:
            await self.request(client, "GET", params={"per_page": 20})
            await asyncio.sleep(self.pause)

    async def write(self, client: httpx.AsyncClient) -> None:
        while time.monotonic() < self.ends:
            response = await self.request(client, "POST", json={"name": f"load {uuid.uuid4()}"})
            if response is not None and response.is_success:
                self.written.append(response.json()["id"])
            await asyncio.sleep(self.pause)

    async def hear(self, events: Any, heard: list[int]) -> None:
        async for event in events:
            heard.append(event.data["author"]["id"])  # a reset has none, and is a failure

    def end(self) -> None:
        self.ends = 0.0

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.end)
        async with httpx.AsyncClient(trust_env=False) as provider:
            token = (await provider.post(PROVIDER, data=SIGN_IN)).raise_for_status().json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=URL, headers=headers, trust_env=False, timeout=15) as client:
            readers = [self.read(client) for _ in range(READERS)]
            if self.hard:
                await asyncio.gather(*readers)
                return
            async with Client(URL, token=token, trust_env=False) as socket, socket.subscribe("authors") as events:
                stream = socket.events(["authors"])
                listeners = [
                    asyncio.create_task(self.hear(events, self.heard["socket"])),
                    asyncio.create_task(self.hear(stream, self.heard["stream"])),
                ]
                while not (stream.connected or listeners[1].done()):
                    await asyncio.sleep(0.05)
                await asyncio.gather(*readers, self.write(client))
                for _ in range(int(SETTLE / 0.1)):
                    if all(len(heard) >= len(self.written) for heard in self.heard.values()):
                        break
                    await asyncio.sleep(0.1)
                for listener in listeners:
                    if listener.done() and listener.exception():
                        self.failures.append(repr(listener.exception()))
                    listener.cancel()

    def report(self) -> dict[str, Any]:
        return {
            "answers": self.answers,
            "failures": self.failures,
            "written": len(self.written),
            "lost": {name: len(set(self.written) - set(heard)) for name, heard in self.heard.items()},
            "doubled": {name: len(heard) - len(set(heard)) for name, heard in self.heard.items()},
        }


if __name__ == "__main__":
    load = Load(float(sys.argv[1]), sys.argv[2:] == ["hard"])
    asyncio.run(load.run())
    print(json.dumps(load.report()))
