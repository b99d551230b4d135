"""Server-Sent Events: topics over an HTTP response instead of a socket."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Annotated
from urllib.parse import quote, unquote

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from prometheus_client import Counter
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from hw_server.auth import Principal
from hw_server.auth.authentication import Authentication
from hw_server.auth.revocations import Revocation
from hw_server.errors import InvalidInput, Unavailable
from hw_server.http.dependencies import provided, require
from hw_server.http.problems import problem_responses
from hw_server.observability.metrics import Metrics
from hw_server.operations import SIGNED_IN
from hw_server.ratelimit import ConnectionLimiter, RateLimiter
from hw_server.ratelimit.connections import RENEWAL
from hw_server.settings import Settings
from hw_server.topics.broker import Broker, Channel, EventBatch, Position
from hw_server.topics.conflation import ConflatingBuffer
from hw_server.topics.registry import Registry
from hw_server.ws.hub import DRAIN_TICK, Drain

HEARTBEAT = 15.0  # seconds between comments that keep proxies from closing the stream
RETRY = 1000  # milliseconds that a browser waits before it connects again
CHUNK = 65_536  # bytes in the buffer past which recovery waits, and conflating topics conflate
MAX_NAMES = 8192  # bytes of the topics' names in an id, which comes back in a header
router = APIRouter(prefix="/topics", tags=["topic"])


class EventStream:
    """One response. What waits for its client is bounded in bytes: one that does not read is ended and comes back with its
    position, or gets the newest events of topics that conflate."""

    def __init__(self, caller: Principal, positions: dict[str, Position], max_bytes: int, conflated: Counter) -> None:
        self.id = secrets.token_hex(8)
        self.caller = caller
        self.ended: str | None = None  # why
        self._max_bytes = max_bytes
        self._conflated = conflated
        self._buffer: deque[bytes] = deque()
        self._size = 0
        self._backlog = ConflatingBuffer()
        self._filled = asyncio.Event()
        self._positions = positions  # the client has them, whether or not the topic is recovered yet

    def start(self, channel: Channel, *, recovered: bool) -> None:
        """From here on the stream gets every event of the channel; it has those before, unless they are gone."""
        self._positions[channel.name] = Position(channel.epoch, channel.offset)
        if recovered:
            # A position to reconnect with, before the first event.
            self._append(b"id: %s\n\n" % self._place())
        else:
            self._put("topic.reset", to_json(channel.position()))

    def put_some(self, channel: Channel, events: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Takes as many events as a client reads at once; returns the others."""
        for index, event in enumerate(events):
            if self._size > CHUNK:
                return events[index:]
            self._put_events(channel, [event])
        return []

    def deliver(self, channel: Channel, events: EventBatch) -> None:
        if self.ended is not None:
            return  # the response may last longer, until its client has read what it was sent
        if channel.conflates and (self._size > CHUNK or channel in self._backlog):
            self._conflated.inc(self._backlog.add(channel, channel.keyed(events)))
            self._check_size()
        else:
            self._put_events(channel, events)

    def reset(self, channel: Channel) -> None:
        if self.ended is not None:
            return
        self._backlog.discard(channel)
        self._positions[channel.name] = Position(channel.epoch, channel.offset)
        self._put("topic.reset", to_json(channel.position()))

    def drain(self, delay: float) -> None:
        """`retry` is for browsers: milliseconds that they wait before they connect again."""
        self._append(b'retry: %d\nevent: server.draining\ndata: {"delay":%s}\n\n' % (delay * 1000, str(delay).encode()))

    def end(self, reason: str) -> None:
        if self.ended in (None, "going_away"):
            self.ended = reason
        self._filled.set()

    def _put_events(self, channel: Channel, events: EventBatch) -> None:
        for offset, data in events:
            if self.ended == "slow_consumer":
                return
            self._positions[channel.name] = Position(channel.epoch, offset)
            body = b'{"topic":%s,"epoch":"%s","offset":%d,"data":%s}'
            self._put("topic.event", body % (channel.topic_json, channel.epoch.encode(), offset, data))

    def _put(self, event: str, data: bytes) -> None:
        self._append(b"id: %s\nevent: %s\ndata: %s\n\n" % (self._place(), event.encode(), data))

    def _place(self) -> bytes:
        places = (f"{quote(name, safe='')}@{at.epoch}:{at.offset}" for name, at in self._positions.items())
        return ",".join(places).encode()

    def _append(self, message: bytes) -> None:
        self._buffer.append(message)
        self._size += len(message)
        self._check_size()
        self._filled.set()

    def _check_size(self) -> None:
        if self._size + self._backlog.size > self._max_bytes:
            self.end("slow_consumer")
            self._buffer.clear()
            self._backlog = ConflatingBuffer()

    def take(self) -> bytes:
        """Empties the buffer and returns it; then moves the backlog into it."""
        messages = b"".join(self._buffer)
        self._buffer.clear()
        self._size = 0
        for channel, events in self._backlog.take():
            self._put_events(channel, events)
        return messages

    async def read(self) -> AsyncIterator[bytes]:
        """Ends with the token at the latest. Buffered events are sent before a `going_away`; they are dropped where the caller
        may not have them any more, or does not read."""
        while True:
            expires_in = self.caller.expires_at - time.time()
            if expires_in <= 0:
                self.end("token_expired")
            if self.ended is not None and (self.ended != "going_away" or not self._buffer):
                return
            if self._buffer:
                yield self.take()
                continue
            self._filled.clear()
            try:
                await asyncio.wait_for(self._filled.wait(), min(HEARTBEAT, expires_in))
            except TimeoutError:
                # Just before the token expires the timer may fire early, several times.
                if expires_in > HEARTBEAT:
                    yield b": heartbeat\n\n"


class EventStreams:
    """The event streams of this process. A supervised service."""

    name = "event-streams"

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        registry: Registry,
        authentication: Authentication,
        rate: RateLimiter,
        limiter: ConnectionLimiter,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._registry = registry
        self._authentication = authentication
        self._rate = rate
        self._limiter = limiter
        self._open = metrics.topic_streams
        self._outcomes = metrics.topic_streams_ended
        self._conflated = metrics.topic_conflated.labels("sse")
        self._streams: set[EventStream] = set()
        self._draining = False

    async def open(self, caller: Principal, topics: list[str], last_event_id: str | None) -> "EventStreamResponse":
        """Raises what refuses the stream."""
        if self._draining:
            raise Unavailable("the server is stopping")
        if len(self._streams) >= self._settings.ws.max_connections:
            raise Unavailable("this process serves as many event streams as it may")
        places = _positions(last_event_id) if last_event_id else None
        known = {name: place for name, place in (places or {}).items() if name in topics}
        stream = EventStream(caller, known, self._settings.ws.send_buffer_bytes, self._conflated)
        channels: list[Channel] = []
        self._streams.add(stream)
        self._open.inc()
        try:
            # Each topic costs Redis as much as a `topic.subscribe` of a socket, so it counts as one call.
            await self._rate.check("ws", caller.budget_key, cost=len(topics))
            await self._limiter.acquire(caller.sub, stream.id)
            for name in topics:
                topic = await self._registry.authorize("subscribe", name, caller)
                channel = await self._broker.join(name, topic)
                channels.append(channel)
                if places is None:
                    stream.start(channel, recovered=True)
                    self._broker.attach_stream(channel, stream)
            # Revoked since its token was verified, when it was not among the streams that a revocation ends.
            await self._authentication.recheck(caller)
            if stream.ended == "going_away":
                raise Unavailable("the server is stopping")
        except BaseException:
            await self._close(stream, channels, "refused")
            raise
        recovering = channels if places is not None else []
        reading = self._read(stream, [(channel, known.get(channel.name)) for channel in recovering])
        return EventStreamResponse(reading, lambda: self._close(stream, channels, stream.ended or "closed_by_client"))

    async def _read(
        self, stream: EventStream, recovering: list[tuple[Channel, Position | None]]
    ) -> AsyncIterator[bytes]:
        yield b"retry: %d\n\n" % RETRY
        try:
            for channel, since in recovering:
                async for data in self._recover(stream, channel, since):
                    yield data
        except Unavailable:
            return  # the client reconnects with its position
        async for data in stream.read():
            yield data

    async def _recover(self, stream: EventStream, channel: Channel, since: Position | None) -> AsyncIterator[bytes]:
        """Recovers a topic as fast as the client reads: the missed events may be more than the buffer holds."""
        while stream.ended is None:
            if stream.caller.expires_at <= time.time():
                stream.end("token_expired")
                return
            events = await self._broker.missed(channel, since) if since is not None else None
            later = [] if events is None else stream.put_some(channel, events)
            if later:
                since = Position(channel.epoch, later[0][0] - 1)
            else:
                stream.start(channel, recovered=events is not None)
                self._broker.attach_stream(channel, stream)
            if waiting := stream.take():
                yield waiting
            if not later:
                return

    async def _close(self, stream: EventStream, channels: list[Channel], outcome: str) -> None:
        self._streams.discard(stream)
        self._open.dec()
        self._outcomes.labels(outcome).inc()
        for channel in channels:
            self._broker.detach_stream(channel, stream)
            self._broker.release(channel)
        await self._limiter.release(stream.id)

    def on_revoked(self, revocation: Revocation) -> None:
        for stream in self._streams:
            if revocation.covers(stream.caller):
                stream.end(revocation.reason)

    def on_keys_withdrawn(self, fingerprints: Collection[str]) -> None:
        """Ends the streams whose tokens these keys had signed."""
        for stream in self._streams:
            if stream.caller.key in fingerprints:
                stream.end("unauthenticated")

    async def run(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL)
            while not await self._limiter.renew([stream.id for stream in self._streams]):
                await asyncio.sleep(1)

    async def close_all(self, timeout: float) -> None:
        """Tells every client when to come back, then ends their streams over some time."""
        self._draining = True
        streams = list(self._streams)
        drain = Drain(len(streams), self._settings.ws.drain_rate, timeout)
        for stream in streams:
            stream.drain(drain.delay())
        ended = 0
        while self._streams and not drain.over:
            due = streams[ended : drain.due()]
            for stream in due:
                stream.end("going_away")
            ended += len(due)
            if ended == len(streams):
                break
            await asyncio.sleep(DRAIN_TICK)
        for stream in self._streams:
            stream.end("going_away")


class EventStreamResponse(StreamingResponse):
    """Closes its stream however it ends: a client may be gone before the first byte is asked for."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


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
    if sum(len(quote(name, safe="")) for name in names) > MAX_NAMES:
        raise InvalidInput([{"field": "topic", "message": "the names are too long together", "type": "too_long"}])
    if len(names) > settings.topics.max_per_socket:
        message = f"at most {settings.topics.max_per_socket} topics"
        raise InvalidInput([{"field": "topic", "message": message, "type": "too_long"}])
    return await streams.open(caller, names, last_event_id)


def _positions(last_event_id: str) -> dict[str, Position]:
    """The positions in an event id of this server. A topic without one is answered with a reset."""
    positions = {}
    for part in last_event_id.split(","):
        name, _, position = part.rpartition("@")
        epoch, _, offset = position.partition(":")
        if name and offset.isascii() and offset.isdecimal() and len(offset) < 17:
            positions[unquote(name)] = Position(epoch, int(offset))
    return positions
