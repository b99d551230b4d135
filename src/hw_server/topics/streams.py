"""Server-Sent Events: topics for those who read a response instead of a socket."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import quote, unquote

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from hw_server.auth import Principal
from hw_server.auth.revocations import Revocation, Revocations
from hw_server.errors import InvalidInput, Unavailable
from hw_server.http.dependencies import provided, require
from hw_server.http.problems import problem_responses
from hw_server.operations import SIGNED_IN
from hw_server.settings import Settings
from hw_server.topics.broker import Broker, Channel, Events, Position
from hw_server.topics.registry import Registry

HEARTBEAT = 15.0  # seconds between comments that keep proxies from closing the stream
router = APIRouter(prefix="/topics", tags=["topic"])


class EventStream:
    """One response. Its buffer is bounded in bytes: a client that does not read is ended and comes back with its position."""

    def __init__(self, caller: Principal, max_bytes: int) -> None:
        self.caller = caller
        self._max_bytes = max_bytes
        self._buffer: deque[bytes] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self._positions: dict[str, Position] = {}
        self.ended = False

    def start(self, channel: Channel, position: Position, events: Events, *, recovered: bool) -> None:
        """Where the stream begins, with the events that were missed."""
        self._positions[channel.name] = position
        if not recovered:
            self._put("topic.reset", to_json(channel.position()))
        self._put_events(channel, events)

    def deliver(self, channel: Channel, events: Events) -> None:
        self._put_events(channel, events)

    def reset(self, channel: Channel) -> None:
        self._positions[channel.name] = Position(channel.epoch, channel.offset)
        self._put("topic.reset", to_json(channel.position()))

    def end(self) -> None:
        self.ended = True
        self._filled.set()

    def _put_events(self, channel: Channel, events: Events) -> None:
        for offset, data in events:
            self._positions[channel.name] = Position(channel.epoch, offset)
            body = b'{"topic":%s,"epoch":"%s","offset":%d,"data":%s}'
            self._put("topic.event", body % (channel.topic_json, channel.epoch.encode(), offset, data))

    def _put(self, event: str, data: bytes) -> None:
        ids = ",".join(f"{quote(name, safe='')}@{at.epoch}:{at.offset}" for name, at in self._positions.items())
        message = b"id: %s\nevent: %s\ndata: %s\n\n" % (ids.encode(), event.encode(), data)
        self._buffer.append(message)
        self._size += len(message)
        if self._size > self._max_bytes:
            self.end()
        self._filled.set()

    async def read(self) -> AsyncIterator[bytes]:
        yield b": open\n\n"
        while not self.ended and self.caller.expires_at > time.time():
            if not self._buffer:
                self._filled.clear()
                left = max(0.0, min(HEARTBEAT, self.caller.expires_at - time.time()))
                try:
                    await asyncio.wait_for(self._filled.wait(), left)
                except TimeoutError:
                    yield b": heartbeat\n\n"
                continue
            messages = b"".join(self._buffer)
            self._buffer.clear()
            self._size = 0
            yield messages


class EventStreams:
    """The event streams of this process."""

    def __init__(self, settings: Settings, broker: Broker, registry: Registry, revocations: Revocations) -> None:
        self._settings = settings
        self._broker = broker
        self._registry = registry
        self._streams: set[EventStream] = set()
        self._draining = False
        revocations.listeners.append(self._on_revoked)

    async def open(self, caller: Principal, topics: list[str], last_event_id: str | None) -> AsyncIterator[bytes]:
        """Raises what refuses the stream; then the stream's bytes."""
        if self._draining:
            raise Unavailable("the server is stopping")
        for topic in topics:
            await self._registry.authorize("subscribe", topic, caller)
        since = _positions(last_event_id or "")
        stream = EventStream(caller, self._settings.ws.send_buffer_bytes)
        channels: list[Channel] = []
        try:
            for topic in topics:
                channel = await self._broker.join(topic)
                channels.append(channel)
                events = await self._broker.missed(channel, since[topic]) if topic in since else []
                position = Position(channel.epoch, channel.offset)
                stream.start(channel, position, events or [], recovered=events is not None)
                self._broker.attach_stream(channel, stream)
        except BaseException:
            self._close(stream, channels)
            raise
        self._streams.add(stream)
        return self._read(stream, channels)

    async def _read(self, stream: EventStream, channels: list[Channel]) -> AsyncIterator[bytes]:
        try:
            async for data in stream.read():
                yield data
        finally:
            self._close(stream, channels)

    def _close(self, stream: EventStream, channels: list[Channel]) -> None:
        self._streams.discard(stream)
        for channel in channels:
            self._broker.detach_stream(channel, stream)
            self._broker.release(channel)

    def _on_revoked(self, revocation: Revocation) -> None:
        for stream in self._streams:
            if revocation.covers(stream.caller):
                stream.end()

    def close_all(self) -> None:
        self._draining = True
        for stream in self._streams:
            stream.end()


@router.get(
    "/events",
    operation_id="topic.events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}, **problem_responses(401, 403, 404, 422, 429, 500, 503)},
)
async def events(
    caller: Annotated[Principal, require(SIGNED_IN, audit="queued")],
    topic: Annotated[list[str], Query(min_length=1, description="Names of topics; may be given several times.")],
    settings: Annotated[Settings, provided(Settings)],
    streams: Annotated[EventStreams, provided(EventStreams)],
    last_event_id: Annotated[str | None, Header(max_length=32_000)] = None,
) -> StreamingResponse:
    """Follow topics as Server-Sent Events. `Last-Event-ID` brings what was missed, or a `topic.reset` where it is gone."""
    names = list(dict.fromkeys(topic))
    if len(names) > settings.topics.max_per_socket:
        message = f"at most {settings.topics.max_per_socket} topics"
        raise InvalidInput([{"field": "topic", "message": message, "type": "too_long"}])
    stream = await streams.open(caller, names, last_event_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


def _positions(last_event_id: str) -> dict[str, Position]:
    """What an id of this server says; anything else is no position, and so answered with a reset."""
    found = {}
    for part in last_event_id.split(","):
        name, _, position = part.rpartition("@")
        epoch, _, offset = position.partition(":")
        if name and offset.isdigit() and len(offset) < 17:
            found[unquote(name)] = Position(epoch, int(offset))
    return found
