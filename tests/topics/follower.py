"""A subscriber that comes back after every break, and remembers what it was told."""

import asyncio
import contextlib
import json
from typing import Any

import websockets

from tests.conftest import Running, Socket


class Follower:
    """`events` are `(epoch, offset, text)` in the order they came; `resets` counts how often events were lost to it, `gaps` tells
    how often nobody said so."""

    def __init__(self, running: Running, token: str, topic: str) -> None:
        self._running, self._token, self.topic = running, token, topic
        self.events: list[tuple[str, int, str]] = []
        self.resets = 0
        self.gaps: list[str] = []
        self.position: dict[str, Any] | None = None
        self.ready = asyncio.Event()
        self.failure = ""  # the last one

    async def __aenter__(self) -> "Follower":
        self._task = asyncio.create_task(self._follow())
        try:
            await asyncio.wait_for(self.ready.wait(), 30)
        except TimeoutError:
            self._task.cancel()
            raise AssertionError(f"no subscription of {self.topic}: {self.failure}") from None
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def texts(self) -> list[str]:
        return [text for _, _, text in self.events]

    async def _follow(self) -> None:
        while True:
            try:
                headers = {"Authorization": f"Bearer {self._token}"}
                connecting = websockets.connect(self._running.ws_url, proxy=None, additional_headers=headers)
                async with asyncio.timeout(20):
                    socket = await connecting
                try:
                    await self._read(socket)
                finally:
                    await socket.close()
            except (OSError, websockets.WebSocketException, TimeoutError) as error:
                self.failure = repr(error)
            await asyncio.sleep(0.2)

    async def _read(self, socket: Any) -> None:
        params = {"topic": self.topic, **({"recover": self.position} if self.position else {})}
        await socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "topic.subscribe", "params": params}))
        while True:
            message = json.loads(await socket.recv())
            if "error" in message:
                self.failure = str(message["error"])
                return
            if "result" in message:
                self._subscribed(message["result"])
            elif message["method"] == "topic.reset":
                self.resets += 1
                self.position = {key: message["params"][key] for key in ("epoch", "offset")}
            elif message["method"] == "topic.event":
                self._add(message["params"]["epoch"], [message["params"]])
            elif message["method"] == "topic.events":
                self._add(message["params"]["epoch"], message["params"]["events"])

    def _subscribed(self, result: dict[str, Any]) -> None:
        position = {"epoch": result["epoch"], "offset": result["offset"]}
        if not result["recovered"]:
            self.resets += self.position is not None
            self.position = position
        self._add(result["epoch"], result["events"])
        if self.position != position:
            self.gaps.append(f"{self.position} is not {position}")
        self.ready.set()

    def _add(self, epoch: str, events: list[dict[str, Any]]) -> None:
        for event in events:
            if self.position != {"epoch": epoch, "offset": event["offset"] - 1}:
                self.gaps.append(f"{epoch} {event['offset']} came after {self.position}")
            self.events.append((epoch, event["offset"], event["data"]["text"]))
            self.position = {"epoch": epoch, "offset": event["offset"]}

    def check_order(self) -> None:
        """Once per offset, in order, and without a gap that no reset told of."""
        seen = [(epoch, offset) for epoch, offset, _ in self.events]
        assert not self.gaps, self.gaps
        assert len(seen) == len(set(seen))


async def subscribed(socket: Socket, **params: Any) -> Any:
    """What `topic.subscribe` answers; None where it is refused."""
    return (await socket.call("topic.subscribe", **params)).get("result")
