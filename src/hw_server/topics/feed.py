"""Redis publish and subscribe for one process: one connection for all topics that have subscribers here."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog
from redis.exceptions import RedisError

from hw_server.errors import Unavailable
from hw_server.redis import CacheRedis, Keys
from hw_server.settings import RedisSettings

log = structlog.get_logger()

PROOF_INTERVAL = 1.0  # seconds between two messages of the feed to itself
SILENCE = 2.5  # seconds without one before the connection is given up
RETRY = 0.3  # seconds
MAX_BATCH = 256  # messages handled together

OnMessages = Callable[[list[tuple[bytes, bytes]]], Awaitable[None]]


class Feed:
    """A supervised service. `on_messages` gets `(channel, payload)` in order, those that arrived together in one list;
    `on_restored` is called after the connection was made anew and all channels are subscribed again: what was published in
    between was missed."""

    name = "topic-feed"

    def __init__(self, settings: RedisSettings, redis: CacheRedis, keys: Keys) -> None:
        self._timeout = settings.timeout
        self._redis = redis
        self._pool = redis.client.connection_pool
        self._own = keys.topic_feed(secrets.token_hex(8)).encode()
        self._wake = keys.topic_wake.encode()
        self._connection: Any = None
        self._channels: set[bytes] = set()
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        self._heard = 0.0
        self._send_lock = asyncio.Lock()
        self.on_messages: OnMessages = _ignore
        self.on_restored: Callable[[], Awaitable[None]] = _nothing
        self.on_wake: Callable[[], Any] = lambda: None

    async def subscribe(self, channel: str) -> None:
        """Returns once Redis has confirmed it; raises `Unavailable`."""
        name = channel.encode()
        self._channels.add(name)
        if self._connection is None:
            self._channels.discard(name)
            raise Unavailable("the feed of topics is not connected")
        confirmation = self._confirmations.get(name)
        if confirmation is None:
            confirmation = self._confirmations[name] = asyncio.get_running_loop().create_future()
            await self._send("SUBSCRIBE", name)
        try:
            await asyncio.wait_for(asyncio.shield(confirmation), 4 * self._timeout)
        except (TimeoutError, ConnectionError) as error:
            self._channels.discard(name)
            raise Unavailable("the feed of topics does not answer") from error

    async def unsubscribe(self, channel: str) -> None:
        self._channels.discard(channel.encode())
        if self._connection is not None:
            await self._send("UNSUBSCRIBE", channel.encode())

    async def _send(self, *command: Any) -> None:
        connection = self._connection
        try:
            async with self._send_lock:
                await connection.send_command(*command)
        except (RedisError, OSError) as error:
            raise Unavailable("the feed of topics is broken") from error

    async def run(self) -> None:
        first = True
        while True:
            try:
                await self._follow(restored=not first)
            except (RedisError, OSError, TimeoutError, Unavailable) as error:
                if self._connection is not None:
                    log.warning("topic_feed_broken", error=f"{type(error).__name__}: {error}"[:200])
            finally:
                await self._disconnect()
            first = False
            await asyncio.sleep(RETRY)

    async def _follow(self, *, restored: bool) -> None:
        connection = self._pool.make_connection()
        connection.protocol = 2  # with RESP3 redis-py takes messages out of the responses
        async with asyncio.timeout(4 * self._timeout):
            await connection.connect()
        connection.socket_timeout = None  # reads are timed by `SILENCE`
        self._connection = connection
        self._heard = time.monotonic()
        proof = asyncio.create_task(self._prove(), name="topic-feed-proof")
        try:
            await self._send("SUBSCRIBE", self._own, self._wake, *self._channels)
            if restored:
                await self._confirmed(connection)
                await self.on_restored()
                self._heard = time.monotonic()
            while True:
                messages = await self._read(connection)
                began = time.monotonic()
                await self._handle(messages)
                self._heard += time.monotonic() - began  # nothing is read while messages are handled: not silence
        finally:
            proof.cancel()

    async def _confirmed(self, connection: Any) -> None:
        """Reads until every channel is subscribed again."""
        missing = {self._own, self._wake, *self._channels}
        while missing:
            for kind, channel, payload in await self._read(connection):
                if kind == b"subscribe":
                    missing.discard(channel)
                await self._handle([(kind, channel, payload)])

    async def _read(self, connection: Any) -> list[tuple[bytes, bytes, Any]]:
        """At least one message, and those that came with it."""
        remaining = self._heard + SILENCE - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("nothing heard")
        async with asyncio.timeout(remaining):
            messages = [await connection.read_response(timeout=None)]
        reader = getattr(connection._parser, "_reader", None)
        while reader is not None and len(messages) < MAX_BATCH and (more := reader.gets()) is not False:
            messages.append(more)
        return [tuple(message[:3]) for message in messages if isinstance(message, list)]

    async def _handle(self, messages: list[tuple[bytes, bytes, Any]]) -> None:
        events: list[tuple[bytes, bytes]] = []
        for kind, channel, payload in messages:
            if kind == b"message":
                if channel == self._own:
                    self._heard = time.monotonic()
                elif channel == self._wake:
                    self.on_wake()
                else:
                    events.append((channel, payload))
            elif kind == b"subscribe":
                confirmation = self._confirmations.pop(channel, None)
                if confirmation is not None and not confirmation.done():
                    confirmation.set_result(None)
        if events:
            await self.on_messages(events)

    async def _prove(self) -> None:
        """Publishes a heartbeat over a second connection, to notice a subscription to a Redis that is dead or no longer the
        primary."""
        while True:
            with suppress(Unavailable):  # the reader notices that no heartbeat comes
                await self._redis.run("topics", lambda client: client.publish(self._own, b""))
            await asyncio.sleep(PROOF_INTERVAL)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        for confirmation in self._confirmations.values():
            if not confirmation.done():
                confirmation.set_exception(ConnectionError("the feed of topics is broken"))
                confirmation.exception()
        self._confirmations.clear()
        if connection is not None:
            await connection.disconnect(nowait=True)


async def _ignore(_messages: list[tuple[bytes, bytes]]) -> None:
    return None


async def _nothing() -> None:
    return None
