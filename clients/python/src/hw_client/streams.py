"""Topics over HTTP: Server-Sent Events."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, NamedTuple

import httpx

from hw_client.connection import Token, token_of
from hw_client.errors import HistoryLost, Refused, SignInFailed
from hw_client.events import Event, Position, Reset
from hw_client.reconnect import STABLE, Backoff

log = logging.getLogger("hw_client")

READ_TIMEOUT = 60.0  # seconds; the server sends a comment every 15


class Message(NamedTuple):
    """`id` alone moves the place in the stream; then `event` and `data` are empty."""

    id: str | None
    event: str
    data: str


class EventStream:
    """An async iterator of events and resets. It connects again where it breaks; `last_event_id` says from where, and with
    it the next process goes on. What the consumer does not read stays with the server, which ends a stream that is
    too far behind; then it connects again."""

    def __init__(
        self,
        url: str,
        token: Token | None,
        topics: list[str],
        last_event_id: str | None,
        backoff: Backoff,
        timeout: float,
        *,
        raise_resets: bool,
        trust_env: bool,
    ) -> None:
        self.last_event_id = last_event_id
        self.positions: dict[str, Position] = {}
        self.connected = False
        self._url = f"{url}/api/topics/events"
        self._token = token
        self._topics = topics
        self._backoff = backoff
        self._timeout = httpx.Timeout(timeout, read=READ_TIMEOUT)
        self._raise_resets = raise_resets
        self._drain_delay = 0.0  # seconds to wait before the next attempt, as the server said when it began to drain
        self._trust_env = trust_env
        self._items = self._read()

    async def __aenter__(self) -> "EventStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncIterator[Event | Reset]:
        # A generator, so that `break` ends the stream, too.
        try:
            async for item in self._items:
                yield item
        finally:
            await self.aclose()

    async def __anext__(self) -> Event | Reset:
        return await anext(self._items)

    async def aclose(self) -> None:
        await self._items.aclose()  # type: ignore[attr-defined]  # it is a generator

    async def _read(self) -> AsyncIterator[Event | Reset]:
        failures, first = 0, True
        async with httpx.AsyncClient(timeout=self._timeout, trust_env=self._trust_env) as http:
            while True:
                opened, delay = None, 0.0
                try:
                    async with http.stream(
                        "GET", self._url, params={"topic": self._topics}, headers=await self._headers()
                    ) as response:
                        if response.status_code != 200:
                            raise await _refusal(response)
                        opened, first = time.monotonic(), False
                        self.connected = True
                        async for message in parse(response.aiter_bytes()):
                            if (item := self._take(message)) is not None:
                                yield item
                except Refused as refused:
                    if not refused.passing:
                        raise
                    delay = refused.retry_after
                except httpx.TransportError:
                    pass
                except (SignInFailed, HistoryLost):
                    raise
                except Exception as error:
                    # Of the token callback: at first it is shown, later it may pass.
                    if first:
                        raise
                    log.warning("the event stream failed: %r", error)
                finally:
                    self.connected = False
                failures = 0 if opened is not None and time.monotonic() - opened > STABLE else failures + 1
                delay, self._drain_delay = max(delay, self._drain_delay), 0.0
                await asyncio.sleep(delay + self._backoff.delay(failures))

    async def _headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {await token_of(self._token)}"
        if self.last_event_id is not None:
            headers["Last-Event-ID"] = self.last_event_id
        return headers

    def _take(self, message: Message) -> Event | Reset | None:
        if message.id is not None:
            self.last_event_id = message.id
        if message.event == "server.draining":
            self._drain_delay = float(json.loads(message.data).get("delay") or 0)
        if message.event not in ("topic.event", "topic.reset"):
            return None
        body: dict[str, Any] = json.loads(message.data)
        topic, at = body["topic"], Position(body["epoch"], body["offset"])
        if message.event == "topic.reset":
            self.positions[topic] = at
            reset = Reset(topic, at.epoch, at.offset)
            if self._raise_resets:
                raise HistoryLost(reset)
            return reset
        before = self.positions.get(topic)
        if before is not None and before.epoch == at.epoch and at.offset <= before.offset:
            return None
        self.positions[topic] = at
        return Event(topic, at.epoch, at.offset, body["data"])


async def _refusal(response: httpx.Response) -> Refused:
    await response.aread()
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    return Refused(response.status_code, problem, response.headers.get("Retry-After"))


async def parse(chunks: AsyncIterable[bytes]) -> AsyncIterator[Message]:
    """The messages of an event stream, as the HTML standard reads them (section 9.2.6). Lines are split as bytes: text may
    hold other line separators of Unicode. Only LF and CR LF end a line here; the server sends no lone CR."""
    rest = b""
    last_id: str | None = None
    event, data = "", list[str]()
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").decode().partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event":
                event = value
            elif name == "id":
                last_id = value
            elif not line.removesuffix(b"\r"):
                if data or last_id is not None:
                    yield Message(last_id, event if data else "", "\n".join(data))
                event, data = "", []
