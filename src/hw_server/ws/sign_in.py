"""Signing a socket in: at the handshake, by `session.authenticate`, and again by `session.refresh`."""

from collections.abc import Awaitable, Callable

from hw_server.auth import Principal
from hw_server.auth.authentication import Authentication
from hw_server.errors import ClientDisconnected, Conflict
from hw_server.ratelimit import ConnectionLimiter
from hw_server.ws.connection import WebSocketConnection
from hw_server.ws.hub import Hub


class SignIn:
    """Gives a connection its principal and its lease of the user's limit on open sockets. `on_refreshed` is told of each newer
    token, with the roles that it brings."""

    def __init__(self, authentication: Authentication, limiter: ConnectionLimiter, hub: Hub) -> None:
        self._authentication = authentication
        self._limiter = limiter
        self._hub = hub
        self.on_refreshed: list[Callable[[WebSocketConnection, Principal], Awaitable[None]]] = []

    async def by_token(self, connection: WebSocketConnection, token: str) -> Principal:
        """Raises `Unauthenticated`, `RateLimited` for a socket too many, or `Unavailable`."""
        if connection.principal is not None:
            raise Conflict("the socket is signed in; use session.refresh")
        principal = await self._authentication.authenticate(token, connection.client_ip, connection.user_agent)
        await self.accept(connection, principal)
        return principal

    async def accept(self, connection: WebSocketConnection, principal: Principal) -> None:
        """Signs an authenticated caller in. Raises `RateLimited` for a socket too many, `Unauthenticated` for a session revoked
        since, or `Unavailable`."""
        if connection.principal is not None:
            raise Conflict("the socket is signed in; use session.refresh")
        if connection.signing_in:
            raise Conflict("the socket is being signed in")
        connection.signing_in = True
        try:
            await self._limiter.acquire(principal.sub, connection.id)
            try:
                # Revoked since its token was verified: the hub, which closes revoked sockets, did not know this one yet.
                await self._authentication.recheck(principal)
                if not connection.open:
                    # It may have been removed before its lease existed: the lease is released here.
                    raise ClientDisconnected
            except BaseException:  # the handshake's timeout, too
                await self._limiter.release(connection.id)
                raise
        finally:
            connection.signing_in = False
        connection.principal, connection.warned = principal, False
        self._hub.signed_in(connection)

    async def refresh(self, connection: WebSocketConnection, token: str) -> Principal:
        """Replaces the token of a connection by a newer one of the same user; raises `Conflict` for another user's."""
        principal = await self._authentication.authenticate(token, connection.client_ip, connection.user_agent)
        assert connection.principal is not None
        if principal.sub != connection.principal.sub:
            raise Conflict("the token is another user's")
        older, connection.principal = connection.principal, principal
        try:
            await self._authentication.replace(older, principal)
        except BaseException:
            if connection.principal is principal:  # no later refresh has succeeded meanwhile
                connection.principal = older
            raise
        connection.warned = False
        for listener in self.on_refreshed:
            await listener(connection, principal)
        return principal
