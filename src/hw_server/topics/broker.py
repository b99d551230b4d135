"""The topics that have subscribers in this process. One position and one subscription of Redis serve all subscribers of a topic;
gaps are repaired here, from history, and clients hear of a reset only when history is gone."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import structlog
from pydantic_core import to_json

from hw_server.errors import Unavailable
from hw_server.observability.metrics import Metrics
from hw_server.operations import Topic
from hw_server.redis import Keys
from hw_server.settings import TopicSettings
from hw_server.topics.conflation import OVERHEAD, ConflatingBuffer, Keyed
from hw_server.topics.feed import Feed
from hw_server.topics.store import PAGE, TopicStore
from hw_server.ws.connection import WebSocketConnection
from hw_server.ws.hub import Hub
from hw_server.ws.protocol import text_frame

log = structlog.get_logger()

SWEEP_INTERVAL = 1.0  # seconds
LINGER = 10.0  # seconds a topic without subscribers is still followed
WRITES = 250  # subscribers served before the event loop runs other tasks
FRAME_BYTES = 131_072  # bytes of events in one frame
RECENT_BYTES = 262_144  # bytes of the last events of one topic
READS = 5  # attempts to catch up one subscription: more events may come during each read of the history
MAX_RECOVERED = 524_288  # bytes of events that one subscription recovers
REPAIRS = 16  # at the same time
REPAIR_WAIT = 5.0  # seconds that a client waits for one

EventBatch = Sequence[tuple[int, bytes]]  # (offset, JSON), in order


class TopicsFull(Unavailable):
    """This process follows `topics.max_topics` topics already. 503: a retry may reach another process."""

    code = "topics_full"
    title = "Topic limit reached"


class Stream(Protocol):
    """An event stream."""

    def deliver(self, channel: "Channel", events: EventBatch) -> None: ...

    def reset(self, channel: "Channel") -> None:
        """Events were lost; it continues from the channel's position."""


class Position(NamedTuple):
    """The last event that a subscriber has. Offsets are comparable within one epoch only."""

    epoch: str
    offset: int


class Channel:
    """One topic in this process. `offset` is that of the last event given to subscribers; `recent` holds the last events up to
    it without a gap; `receivers` are the sockets that the event at hand has not been written to."""

    __slots__ = (
        "checked", "delivering", "early", "epoch", "joining", "key", "live", "name", "offset", "pins", "receivers", "recent",
        "recent_bytes", "settled", "stale", "streams", "topic", "topic_json", "unused_since",
    )  # fmt: skip

    def __init__(self, topic: Topic[Any], name: str, key: bytes) -> None:
        self.topic = topic
        self.name = name
        self.key = key
        self.topic_json = to_json(name)
        self.epoch = ""
        self.offset = 0
        self.recent: deque[tuple[int, bytes]] = deque()
        self.recent_bytes = 0
        self.streams: dict[Stream, None] = {}
        self.receivers: set[WebSocketConnection] = set()
        self.live = False  # whether the position is known
        self.settled = asyncio.Event()  # not while it joins or is repaired
        self.delivering = asyncio.Lock()  # held by the feed, or by a repair: one of them moves the position
        self.stale = False  # the feed reconnected during a join or repair: what was read may be outdated
        self.early: list[tuple[str, int, bytes]] = []  # received while joining or repairing
        self.joining: asyncio.Task[None] | None = None
        self.pins = 0  # subscriptions under way
        self.unused_since = self.checked = time.monotonic()

    @property
    def repairing(self) -> bool:
        return not self.settled.is_set()

    @property
    def conflates(self) -> bool:
        return self.topic.when_full == "conflate"

    def keyed(self, events: EventBatch) -> Keyed:
        return [(self.topic.key_of(event[1]), event) for event in events]

    def since(self, offset: int) -> list[tuple[int, bytes]] | None:
        """The events after `offset`, None where they are not all at hand."""
        missing = self.offset - offset
        if missing == 0:
            return []
        if missing < 0 or len(self.recent) < missing:
            return None
        return list(self.recent)[-missing:]

    def position(self) -> dict[str, object]:
        return {"topic": self.name, "epoch": self.epoch, "offset": self.offset}

    def frames(self, events: list[tuple[int, bytes]]) -> Iterator[bytes]:
        return map(self.frame, _batches(events))

    def frame(self, events: EventBatch) -> bytes:
        """A ready frame for every socket. One event is a `topic.event`, several are `topic.events`."""
        if len(events) == 1:
            offset, data = events[0]
            body = b'{"jsonrpc":"2.0","method":"topic.event","params":{"topic":%s,"epoch":"%s","offset":%d,"data":%s}}'
            return text_frame(body % (self.topic_json, self.epoch.encode(), offset, data))
        joined = b",".join(b'{"offset":%d,"data":%s}' % event for event in events)
        body = b'{"jsonrpc":"2.0","method":"topic.events","params":{"topic":%s,"epoch":"%s","events":[%s]}}'
        return text_frame(body % (self.topic_json, self.epoch.encode(), joined))


class Broker:
    """Follows topics for all subscribers of this process, with one position for each topic: delivers what the feed receives, and
    repairs a gap from the history. A supervised service."""

    name = "topics"

    def __init__(
        self, settings: TopicSettings, store: TopicStore, feed: Feed, hub: Hub, keys: Keys, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._store = store
        self._feed = feed
        self._hub = hub
        self._keys = keys
        self._metrics = metrics
        self._channels: dict[bytes, Channel] = {}
        self._recent_bytes = 0
        self._repairs: set[asyncio.Task[None]] = set()
        self._repair_slots = asyncio.Semaphore(REPAIRS)
        self._reads: dict[bytes, dict[int, asyncio.Task[tuple[list[tuple[int, bytes]], bool]]]] = {}
        self._delivered = {name: metrics.topic_delivered.labels(name) for name in ("ws", "sse")}
        self._conflated = metrics.topic_conflated.labels("ws")
        self._failures = metrics.service_failures.labels(self.name)
        feed.on_messages = self._on_messages
        feed.on_restored = self._on_restored

    # Subscribing

    async def join(self, name: str, topic: Topic[Any]) -> Channel:
        """The channel of a topic, with its position known, pinned until `release`. Raises `TopicsFull` past
        `topics.max_topics`, and `Unavailable`."""
        key = self._keys.topic_channel(name).encode()
        channel = self._channels.get(key)
        if channel is None:
            if len(self._channels) >= self._settings.max_topics:
                raise TopicsFull("this process follows as many topics as it may")
            channel = self._channels[key] = Channel(topic, name, key)
            channel.joining = asyncio.create_task(self._join(channel), name="topic-join")
        channel.pins += 1
        try:
            assert channel.joining is not None
            await asyncio.shield(channel.joining)
        except BaseException:
            self.release(channel)
            raise
        return channel

    def release(self, channel: Channel) -> None:
        channel.pins -= 1
        channel.unused_since = time.monotonic()

    async def _join(self, channel: Channel) -> None:
        subscribed = False
        try:
            await self._feed.subscribe(channel.key.decode())
            subscribed = True
            stored = await self._store.read(channel.name)
        except BaseException:
            self._channels.pop(channel.key, None)
            if subscribed:
                with suppress(Unavailable):
                    await self._feed.unsubscribe(channel.key.decode())
            raise
        channel.epoch, channel.offset = stored.epoch, stored.offset
        channel.live = True
        await self._settle(channel)

    async def missed(self, channel: Channel, since: Position) -> list[tuple[int, bytes]] | None:
        """The events after a position up to the channel's, None where they are gone, or too many. Those who ask at the same
        time share one read of the history."""
        for _ in range(READS):
            if since.epoch != channel.epoch or since.offset > channel.offset:
                if not await self._was_behind(channel):
                    return None
                continue
            events = channel.since(since.offset)
            if events is None:
                history = await self._history(channel, since.offset + 1)
                if since.epoch != channel.epoch:
                    return None
                events = [event for event in history if since.offset < event[0] <= channel.offset]
                if not events or events[0][0] != since.offset + 1:
                    return None
                later = channel.since(events[-1][0])
                if later is None:
                    continue  # newer events have left `recent` meanwhile
                events += later
            return events if sum(len(data) + OVERHEAD for _, data in events) <= MAX_RECOVERED else None
        return None

    async def _was_behind(self, channel: Channel) -> bool:
        """Reads Redis where a client's offset is higher than ours. Returns whether this process had missed events, after they were
        delivered."""
        stored = await self._store.read(channel.name)
        if stored.epoch == channel.epoch and stored.offset <= channel.offset:
            return False
        if not channel.repairing:
            self._start_repair(channel)
        try:
            async with asyncio.timeout(REPAIR_WAIT):
                await channel.settled.wait()
        except TimeoutError:
            raise Unavailable("the topic's history cannot be read") from None
        return True

    async def _history(self, channel: Channel, first: int) -> list[tuple[int, bytes]]:
        """The events from `first` on, as many as one subscription may recover."""
        earlier = max((start for start in self._reads.get(channel.key, ()) if start <= first), default=first)
        events, truncated = await asyncio.shield(self._reading(channel, earlier))
        if truncated and earlier < first:
            events, _ = await asyncio.shield(self._reading(channel, first))
        return events

    def _reading(self, channel: Channel, first: int) -> "asyncio.Task[tuple[list[tuple[int, bytes]], bool]]":
        reads = self._reads.setdefault(channel.key, {})
        if first not in reads:
            task = reads[first] = asyncio.create_task(self._read_history(channel, first), name="topic-history")
            task.add_done_callback(lambda done: self._read_ended(channel.key, first, done))
        return reads[first]

    def _read_ended(self, key: bytes, first: int, task: asyncio.Task[Any]) -> None:
        del self._reads[key][first]
        if not self._reads[key]:
            del self._reads[key]
        if not task.cancelled():
            task.exception()  # the waiting tasks raise it; mark it retrieved

    async def _read_history(self, channel: Channel, first: int) -> tuple[list[tuple[int, bytes]], bool]:
        """The events, and whether there are more than one subscription may recover (`MAX_RECOVERED`)."""
        events: list[tuple[int, bytes]] = []
        size = 0
        while size <= MAX_RECOVERED:
            stored = await self._store.read(channel.name, first, PAGE)
            events += stored.events
            size += sum(len(data) + OVERHEAD for _, data in stored.events)
            if len(stored.events) < PAGE:
                return events, False
            first = events[-1][0] + 1
        return events, True

    def attach_socket(self, channel: Channel, connection: WebSocketConnection, position: Position) -> None:
        """From now on the socket gets every event after `position`, which it has; those that came meanwhile at once."""
        self._hub.subscribe(connection, channel.name)
        self._metrics.topic_subscriptions.inc()
        events = channel.since(position.offset) if position.epoch == channel.epoch else None
        if events is None:
            self._reset_socket(channel, connection)
        elif channel.conflates and connection.stalled:
            self._hold(channel, connection, channel.keyed(events))
        else:
            for frame in channel.frames(events):
                connection.send_frame(frame)

    def detach_socket(self, connection: WebSocketConnection, name: str) -> None:
        """Not even the event that is being written reaches it any more."""
        self._hub.unsubscribe(connection, name)
        self._metrics.topic_subscriptions.dec()
        channel = self._channels.get(self._keys.topic_channel(name).encode())
        if channel is not None:
            channel.receivers.discard(connection)
            if connection.backlog is not None:
                connection.backlog.discard(channel)

    def attach_stream(self, channel: Channel, stream: Stream) -> None:
        """The stream has the channel's position."""
        channel.streams[stream] = None
        self._metrics.topic_subscriptions.inc()

    def detach_stream(self, channel: Channel, stream: Stream) -> None:
        if channel.streams.pop(stream, False) is None:
            channel.unused_since = time.monotonic()
            self._metrics.topic_subscriptions.dec()

    # Receiving

    async def _on_messages(self, messages: list[tuple[bytes, bytes]]) -> None:
        by_channel: dict[Channel, list[tuple[str, int, bytes]]] = {}
        for key, payload in messages:
            channel = self._channels.get(key)
            if channel is None:
                continue
            try:
                epoch, offset, data = payload.split(b" ", 2)
                message = epoch.decode(), int(offset), data
            except ValueError:
                log.warning("topic_message_malformed", topic=channel.name)
                self._failures.inc()
                continue
            by_channel.setdefault(channel, []).append(message)
        for channel, heard in by_channel.items():
            self._metrics.topic_received.inc(len(heard))
            if not channel.live or channel.repairing:
                channel.early += heard
                continue
            async with channel.delivering:
                follows = await self._take(channel, heard)
            if not follows and not channel.repairing:
                self._start_repair(channel)

    async def _take(self, channel: Channel, heard: list[tuple[str, int, bytes]]) -> bool:
        """Delivers what follows the position. False for a gap or another epoch, which history must repair."""
        events: list[tuple[int, bytes]] = []
        follows = True
        for epoch, offset, data in heard:
            expected = channel.offset + len(events) + 1
            if epoch == channel.epoch and offset == expected:
                events.append((offset, data))
            elif epoch != channel.epoch or offset > expected:
                follows = False
                break
        await self._deliver(channel, events)
        return follows

    async def _deliver(self, channel: Channel, events: list[tuple[int, bytes]]) -> None:
        if not events:
            return
        for index, batch in enumerate(_batches(events)):
            if index:
                await asyncio.sleep(0)  # so that the previous batch is sent
            channel.offset = batch[-1][0]
            self._cache_recent(channel, batch)
            await self._deliver_batch(channel, batch)

    async def _deliver_batch(self, channel: Channel, events: list[tuple[int, bytes]]) -> None:
        receivers = channel.receivers = set(self._hub.subscribers(channel.name))
        streams = list(channel.streams)
        for delivered, stream in enumerate(streams, 1):
            stream.deliver(channel, events)
            if delivered % WRITES == 0:
                await asyncio.sleep(0)
        self._delivered["sse"].inc(len(streams) * len(events))
        if not receivers:
            return
        self._delivered["ws"].inc(len(receivers) * len(events))
        frame, conflates = channel.frame(events), channel.conflates
        keyed: Keyed | None = None
        written = 0
        while receivers:
            connection = receivers.pop()
            if conflates and connection.stalled:
                keyed = channel.keyed(events) if keyed is None else keyed
                self._hold(channel, connection, keyed)
            else:
                connection.write_event(frame)
            written += 1
            if written % WRITES == 0:
                await asyncio.sleep(0)

    def _hold(self, channel: Channel, connection: WebSocketConnection, keyed: Keyed) -> None:
        """Keeps the newest event of each key until the client reads again."""
        if not connection.open:
            return
        if connection.backlog is None:
            connection.backlog = ConflatingBuffer()
        self._conflated.inc(connection.backlog.add(channel, keyed))
        connection.check_backlog()

    def _cache_recent(self, channel: Channel, events: list[tuple[int, bytes]]) -> None:
        size = sum(len(data) + OVERHEAD for _, data in events)
        channel.recent += events
        channel.recent_bytes += size
        self._recent_bytes += size
        while channel.recent and (
            channel.recent_bytes > RECENT_BYTES or self._recent_bytes > self._settings.recent_bytes
        ):
            forgotten = len(channel.recent.popleft()[1]) + OVERHEAD
            channel.recent_bytes -= forgotten
            self._recent_bytes -= forgotten

    def _clear_recent(self, channel: Channel) -> None:
        self._recent_bytes -= channel.recent_bytes
        channel.recent.clear()
        channel.recent_bytes = 0

    # Repairing

    async def _on_restored(self) -> None:
        for channel in list(self._channels.values()):
            if channel.live and not channel.repairing:
                self._start_repair(channel)
            else:
                channel.stale = True

    def _start_repair(self, channel: Channel) -> None:
        channel.settled.clear()
        task = asyncio.create_task(self._repair(channel), name="topic-repair")
        self._repairs.add(task)
        task.add_done_callback(self._repairs.discard)

    async def _repair(self, channel: Channel) -> None:
        async with channel.delivering:
            await self._read_missing(channel)
            await self._settle(channel)

    async def _settle(self, channel: Channel) -> None:
        """Delivers what was received meanwhile, until the channel has caught up with its feed."""
        while True:
            heard, channel.early = channel.early, []
            stale, channel.stale = channel.stale, False
            if not await self._take(channel, heard) or stale:
                await self._read_missing(channel)
            elif not (channel.early or channel.stale):
                channel.settled.set()
                return

    async def _read_missing(self, channel: Channel) -> None:
        self._metrics.topic_repairs.inc()
        while True:
            # The read below covers what was received before it.
            channel.early.clear()
            try:
                async with self._repair_slots:
                    if await self._catch_up(channel):
                        return
            except Unavailable:
                await asyncio.sleep(0.2)

    async def _catch_up(self, channel: Channel) -> bool:
        """Reads and delivers one page of what is missing; True once nothing is."""
        stored = await self._store.read(channel.name, channel.offset + 1, PAGE)
        complete = stored.epoch == channel.epoch and stored.offset >= channel.offset
        if complete and stored.offset > channel.offset:
            complete = bool(stored.events) and stored.events[0][0] == channel.offset + 1
        if not complete:
            channel.epoch, channel.offset = stored.epoch, stored.offset
            self._clear_recent(channel)
            for stream in list(channel.streams):
                self._metrics.topic_resets.inc()
                stream.reset(channel)
            for connection in list(self._hub.subscribers(channel.name)):
                self._reset_socket(channel, connection)
            return True
        await self._deliver(channel, stored.events)
        return channel.offset >= stored.offset

    def _reset_socket(self, channel: Channel, connection: WebSocketConnection) -> None:
        self._metrics.topic_resets.inc()
        if connection.backlog is not None:
            connection.backlog.discard(channel)
        connection.notify("topic.reset", channel.position())

    # Running

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            self._metrics.topic_channels.set(len(self._channels))
            limit = time.monotonic() - LINGER
            await self._check_positions()
            for channel in list(self._channels.values()):
                used = channel.streams or channel.pins or self._hub.subscribers(channel.name)
                if used or not channel.live or channel.repairing:
                    channel.unused_since = time.monotonic()
                elif channel.unused_since < limit:
                    await self._leave(channel)

    async def _check_positions(self) -> None:
        """Asks Redis now and then whether the position of a topic is right, which also keeps it from expiring there."""
        due = time.monotonic() - self._settings.check_interval
        for channel in list(self._channels.values()):
            if channel.checked > due or not channel.live or channel.repairing:
                continue
            channel.checked = time.monotonic()
            try:
                stored = await self._store.read(channel.name)
            except Unavailable:
                return
            behind = stored.offset > channel.offset or stored.epoch != channel.epoch
            if behind and not channel.repairing:
                self._start_repair(channel)

    async def _leave(self, channel: Channel) -> None:
        del self._channels[channel.key]
        self._clear_recent(channel)
        try:
            await self._feed.unsubscribe(channel.key.decode())
        except Unavailable:
            return


def _batches(events: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Events that travel together: a client refuses a message that is too long."""
    first = size = 0
    for index, (_, data) in enumerate(events):
        if size + len(data) > FRAME_BYTES and index > first:
            yield events[first:index]
            first, size = index, 0
        size += len(data)
    if events:
        yield events[first:]
