"""This process's sockets. One sweep a second looks after deadlines, expiry and leases for all of them."""

import asyncio
import time

from hw_server.observability.metrics import Metrics
from hw_server.ratelimit import ConnectionLimiter
from hw_server.ratelimit.connections import RENEWAL
from hw_server.settings import WebSocketSettings
from hw_server.ws.codes import CloseCode
from hw_server.ws.connection import WebSocketConnection

EXPIRY_WARNING = 60.0  # seconds before the token expires; half its remaining life where that is shorter


class Hub:
    """A supervised service."""

    name = "sockets"

    def __init__(self, settings: WebSocketSettings, limiter: ConnectionLimiter, metrics: Metrics) -> None:
        self._settings = settings
        self._limiter = limiter
        self._open = metrics.ws_open
        self._outcomes = metrics.ws_outcomes
        self.connections: set[WebSocketConnection] = set()
        self.draining = False

    @property
    def full(self) -> bool:
        return len(self.connections) >= self._settings.max_connections

    def add(self, connection: WebSocketConnection) -> None:
        self.connections.add(connection)
        self._open.inc()

    async def remove(self, connection: WebSocketConnection) -> None:
        self.connections.discard(connection)
        self._open.dec()
        self.count(connection.outcome)
        connection.forget()
        if connection.principal is not None:
            await self._limiter.release(connection.id)

    def count(self, outcome: str) -> None:
        self._outcomes.labels(outcome).inc()

    def on_revoked(self, entry: str) -> None:
        """Closes the sockets of a revoked session, or of a user (`sub:<sub>`)."""
        for connection in list(self.connections):
            principal = connection.principal
            if principal is not None and entry in (principal.session_id, f"sub:{principal.sub}"):
                connection.close(CloseCode.SESSION_REVOKED)

    async def run(self) -> None:
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(1)
            self._sweep()
            if time.monotonic() - renewed >= RENEWAL:
                renewed = time.monotonic()
                await self._limiter.renew()

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

    async def drain(self) -> None:
        return None

    async def close_all(self, timeout: float) -> None:
        """Tells every client, lets calls in flight end for at most `timeout` seconds, then closes."""
        self.draining = True
        for connection in list(self.connections):
            connection.notify("server.draining", {})
        deadline = time.monotonic() + timeout
        while any(connection.busy for connection in self.connections) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for index, connection in enumerate(list(self.connections)):
            connection.close(CloseCode.GOING_AWAY)
            if index % 500 == 499:
                await asyncio.sleep(0)
