"""`/web`: the handshake. A raw ASGI application, because one coroutine per socket is what an idle socket costs."""

import time

from starlette.types import Message, Receive, Scope, Send

from hw_server.errors import DomainError, NotFound, OriginNotAllowed, Unauthenticated, Unavailable
from hw_server.http.addresses import Hosts, client_address, header, origin
from hw_server.http.middleware import DEFAULT_HEADERS, request_id_of
from hw_server.http.problems import response_of
from hw_server.observability.logging import RequestLog
from hw_server.operations import Call
from hw_server.ratelimit import RateLimiter
from hw_server.settings import Settings
from hw_server.ws.connection import WebSocketConnection
from hw_server.ws.dispatcher import Dispatcher
from hw_server.ws.hub import Hub
from hw_server.ws.protocol import PROTOCOL

PATH = "/web"


class WebSocketEndpoint:
    def __init__(
        self, settings: Settings, hub: Hub, dispatcher: Dispatcher, limiter: RateLimiter, requests_log: RequestLog
    ) -> None:
        self._hub = hub
        self._dispatcher = dispatcher
        self._limiter = limiter
        self._requests_log = requests_log
        self._trusted = settings.http.trusted_proxies
        self._hosts = Hosts(settings.http.allowed_hosts)
        own = origin(settings.http.public_url)
        self._origins = frozenset((*settings.ws.allowed_origins, *settings.http.cors_origins, own))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        call = Call("ws", request_id_of(scope), client_address(scope, self._trusted), time.perf_counter())
        connection = WebSocketConnection(
            self._dispatcher, scope[PROTOCOL], call.client_ip, header(scope, b"user-agent")
        )
        scope[PROTOCOL].deliver_to(connection.on_message, connection.on_control)
        try:
            await self._admit(scope, call, connection)
        except DomainError as refusal:
            await self._refuse(refusal, call, scope, receive, send)
            return
        self._hub.add(connection)
        try:
            await send({"type": "websocket.accept"})
            await receive()
        finally:
            await self._hub.remove(connection)

    async def _admit(self, scope: Scope, call: Call, connection: WebSocketConnection) -> None:
        """Raises what refuses the handshake. Whoever shows no good token is counted by address."""
        self._hosts.check(scope)
        if scope["path"] != PATH:
            raise NotFound(f"the socket is at {PATH}")
        if self._hub.draining:
            raise Unavailable("the server is stopping")
        if self._hub.full:
            raise Unavailable("this process holds as many sockets as it may")
        # A browser always sends its origin; other programs are not bound by it.
        page = header(scope, b"origin")
        if page is not None and page.decode("latin-1") not in self._origins:
            raise OriginNotAllowed
        credentials = header(scope, b"authorization")
        if credentials is None:
            await self._limiter.check("ws", f"address:{call.client_ip}")
            return
        try:
            scheme, _, token = credentials.decode("latin-1").partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthenticated("malformed")
            await self._dispatcher.sign_in(connection, call, token.strip())
        except Unauthenticated:
            await self._limiter.check("ws", f"address:{call.client_ip}")
            raise

    async def _refuse(self, refusal: DomainError, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        self._hub.count(refusal.code)
        self._requests_log.write(
            "socket_refused", {"request_id": call.request_id, "code": refusal.code, "client_ip": call.client_ip}
        )

        async def with_headers(message: Message) -> None:
            if message["type"].endswith("response.start"):
                own = {name for name, _ in message["headers"]}
                message["headers"] += [item for item in DEFAULT_HEADERS if item[0] not in own]
                message["headers"].append((b"x-request-id", call.request_id.encode()))
            await send(message)

        await response_of(refusal, call.request_id)(scope, receive, with_headers)
        scope[PROTOCOL].refused()
