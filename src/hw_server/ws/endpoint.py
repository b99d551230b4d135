"""`/web`: the handshake. A raw ASGI application, because one coroutine per socket is what an idle socket costs."""

import time

from starlette.types import Receive, Scope, Send

from hw_server.errors import DomainError, Unauthenticated
from hw_server.http.addresses import client_address, header
from hw_server.operations import Call
from hw_server.settings import Settings
from hw_server.ws.codes import Close
from hw_server.ws.connection import Connection
from hw_server.ws.dispatcher import Dispatcher
from hw_server.ws.hub import Hub
from hw_server.ws.protocol import PROTOCOL

PATH = "/web"


class Endpoint:
    def __init__(self, settings: Settings, hub: Hub, dispatcher: Dispatcher) -> None:
        self._hub = hub
        self._dispatcher = dispatcher
        self._trusted = settings.http.trusted_proxies
        own = (settings.http.public_url,)
        self._origins = frozenset((*settings.ws.allowed_origins, *settings.http.cors_origins, *own))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        refusal = self._refusal(scope)
        if refusal is not None:
            self._hub.count(refusal[1])
            await _refuse(scope, send, *refusal)
            return
        connection = Connection(
            self._dispatcher,
            scope[PROTOCOL],
            client_address(scope, self._trusted),
            header(scope, b"user-agent"),
        )
        scope[PROTOCOL].deliver_to(connection.on_message)
        credentials = header(scope, b"authorization")
        if credentials is not None and (status := await self._sign_in(connection, credentials)):
            self._hub.count(Close.UNAUTHENTICATED.name.lower())
            await _refuse(scope, send, status, "unauthenticated")
            return
        self._hub.add(connection)
        try:
            await send({"type": "websocket.accept"})
            await receive()
        finally:
            await self._hub.remove(connection)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        origin = header(scope, b"origin")
        if scope["path"] != PATH:
            return 404, "not_found"
        if self._hub.draining or self._hub.full:
            return 503, "too_many_connections"
        # A browser always sends its origin; other programs are not bound by it.
        if origin is not None and origin.decode("latin-1") not in self._origins:
            return 403, "origin_not_allowed"
        return None

    async def _sign_in(self, connection: Connection, credentials: bytes) -> int | None:
        """The HTTP status to refuse the handshake with, None where the caller is in."""
        scheme, _, token = credentials.decode("latin-1").partition(" ")
        call = Call("ws", connection.id, connection.client_ip, time.perf_counter())
        try:
            if scheme.lower() != "bearer":
                raise Unauthenticated("malformed")
            await self._dispatcher.sign_in(connection, call, token.strip())
        except Unauthenticated:
            return 401
        except DomainError as error:
            return 429 if error.code == "rate_limited" else 503
        return None


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="hw", error="invalid_token"'))
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": reason.encode(), "more_body": False})
    scope[PROTOCOL].refused()
