"""This process's sockets. One sweep a second looks after deadlines, expiry and leases for all of them."""

import asyncio
import math
import random
import sys
import time
from collections.abc import Callable, Collection

import structlog

from hw_server.auth.revocations import Revocation
from hw_server.observability.metrics import Metrics
from hw_server.ratelimit import ConnectionLimiter
from hw_server.ratelimit.connections import RENEWAL
from hw_server.settings import WebSocketSettings
from hw_server.ws.codes import CloseCode
from hw_server.ws.connection import WebSocketConnection

log = structlog.get_logger("ws")

SWEEP_INTERVAL = 1.0  # seconds
EXPIRY_WARNING = 60.0  # seconds before the token expires; half its remaining life where that is shorter
DRAIN_TICK = 0.02  # seconds
NOTICES = 500  # sent before the event loop runs other tasks


class Hub:
    """A supervised service. Connections are found by the user that signed in and by the name of a topic."""

    name = "sockets"

    def __init__(self, settings: WebSocketSettings, limiter: ConnectionLimiter, metrics: Metrics) -> None:
        self._settings = settings
        self._limiter = limiter
        self._open = metrics.ws_open
        metrics.ws_limit.set(settings.max_connections)
        self._outcomes = metrics.ws_outcomes
        self._by_user: dict[str, set[WebSocketConnection]] = {}
        self._by_topic: dict[str, set[WebSocketConnection]] = {}
        self.connections: set[WebSocketConnection] = set()
        self.on_removed: list[Callable[[WebSocketConnection], None]] = []
        self.draining = False
        self.arriving = 0  # handshakes in progress

    @property
    def full(self) -> bool:
        """Whether there is no room for the handshake in progress, which is counted already."""
        return len(self.connections) + self.arriving > self._settings.max_connections

    def add(self, connection: WebSocketConnection) -> None:
        self.connections.add(connection)
        if connection.principal is not None:
            self._by_user.setdefault(connection.principal.sub, set()).add(connection)
        self._open.inc()

    def signed_in(self, connection: WebSocketConnection) -> None:
        """Indexes a connection, added earlier, by the user that has now signed in."""
        if connection.principal is not None and connection in self.connections:
            self._by_user.setdefault(connection.principal.sub, set()).add(connection)

    async def remove(self, connection: WebSocketConnection) -> None:
        self.connections.discard(connection)
        for listener in self.on_removed:
            listener(connection)
        self._open.dec()
        self._outcomes.labels(connection.outcome).inc()
        connection.abandon()
        if connection.principal is not None:
            _discard(self._by_user, connection.principal.sub, connection)
        await self._limiter.release(connection.id)

    def of_user(self, sub: str) -> Collection[WebSocketConnection]:
        return self._by_user.get(sub, ())

    def subscribe(self, connection: WebSocketConnection, topic: str) -> None:
        self._by_topic.setdefault(topic, set()).add(connection)

    def unsubscribe(self, connection: WebSocketConnection, topic: str) -> None:
        _discard(self._by_topic, topic, connection)

    def subscribers(self, topic: str) -> Collection[WebSocketConnection]:
        return self._by_topic.get(topic, ())

    def on_revoked(self, revocation: Revocation) -> None:
        """Closes the sockets that a revocation covers."""
        candidates = self.connections if revocation.sub is None else self.of_user(revocation.sub)
        for connection in list(candidates):
            if connection.principal is not None and revocation.covers(connection.principal):
                connection.close(CloseCode[revocation.reason.upper()])

    def on_keys_withdrawn(self, fingerprints: Collection[str]) -> None:
        """Closes the sockets whose tokens these keys had signed."""
        for connection in list(self.connections):
            if connection.principal is not None and connection.principal.key in fingerprints:
                connection.close(CloseCode.UNAUTHENTICATED)

    async def run(self) -> None:
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            self._sweep()
            now = time.monotonic()
            if now - renewed >= RENEWAL and await self._limiter.renew([socket.id for socket in self.connections]):
                renewed = now

    def _sweep(self) -> None:
        now, clock = time.time(), time.monotonic()
        for connection in list(self.connections):
            principal = connection.principal
            if principal is None:
                if clock - connection.opened > self._settings.auth_timeout:
                    connection.close(CloseCode.UNAUTHENTICATED)
                continue
            left = principal.expires_at - now
            if left <= 0:
                connection.close(CloseCode.TOKEN_EXPIRED)
            elif not connection.warned and left <= min(
                EXPIRY_WARNING, (principal.expires_at - principal.issued_at) / 2
            ):
                connection.warned = True
                connection.notify("session.expiring", {"expires_at": principal.expires_at})

    async def close_all(self, timeout: float) -> None:
        """Tells every client when to come back, then closes their sockets over some time, each once its calls have ended or
        `timeout` seconds are over."""
        self.draining = True
        log.info("closing_sockets", sockets=len(self.connections))
        drain = Drain(len(self.connections), self._settings.drain_rate, timeout)
        for index, connection in enumerate(list(self.connections), 1):
            connection.notify("server.draining", {"delay": drain.delay()})
            if index % NOTICES == 0:
                await asyncio.sleep(0)
        closed = 0
        while not drain.over:
            open_ = [connection for connection in self.connections if not connection.closed]
            if not open_ and not self.arriving:
                return
            for connection in [item for item in open_ if not item.busy][: max(0, drain.due() - closed)]:
                connection.close(CloseCode.GOING_AWAY)
                closed += 1
            await asyncio.sleep(DRAIN_TICK)
        for connection in list(self.connections):
            connection.close(CloseCode.SERVICE_RESTART if connection.busy else CloseCode.GOING_AWAY)


class Drain:
    """Spreads the closing of `count` connections, `rate` a second, so that their clients do not reconnect to other processes all
    at once; over half of `timeout` seconds at most."""

    def __init__(self, count: int, rate: float, timeout: float) -> None:
        self._count = count
        self._spread = min(count / rate, timeout / 2)
        self._began = time.monotonic()
        self._deadline = self._began + timeout

    def delay(self) -> float:
        """Seconds that one client waits before it reconnects, random."""
        return round(random.uniform(0, self._spread), 2)  # noqa: S311 - no secret

    def due(self) -> int:
        """How many may be closed by now; unlimited after the spread, to include those that arrived meanwhile."""
        passed = time.monotonic() - self._began
        return math.ceil(self._count * passed / self._spread) if passed < self._spread else sys.maxsize

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._deadline


def _discard(index: dict[str, set[WebSocketConnection]], name: str, connection: WebSocketConnection) -> None:
    connections = index.get(name)
    if connections is not None:
        connections.discard(connection)
        if not connections:
            del index[name]
