"""`/web`: the handshake. A raw ASGI application, so that an idle socket costs one coroutine."""

import asyncio
import time

from starlette.types import Message, Receive, Scope, Send

from hw_server.admission import Accounting, Admission
from hw_server.errors import DomainError, NotFound, OriginNotAllowed, Timeout, Unavailable
from hw_server.http.addresses import Hosts, client_address, header, origin
from hw_server.http.middleware import add_default_headers, request_id_of
from hw_server.http.problems import problem_response
from hw_server.observability.logging import current_call
from hw_server.observability.metrics import Metrics
from hw_server.operations import AuditTrail, Call, Failures, action_row
from hw_server.ratelimit import Rate
from hw_server.settings import Settings
from hw_server.ws.codes import CloseCode
from hw_server.ws.connection import MAX_REFUSALS, Handle, WebSocketConnection
from hw_server.ws.hub import Hub
from hw_server.ws.protocol import PROTOCOL, DirectWebSocketProtocol
from hw_server.ws.sign_in import SignIn

PATH = "/web"
ACTION = "session.authenticate"  # in the audit trail, as the operation of that name


class WebSocketEndpoint:
    """Accepts or refuses sockets; `handle` answers their messages."""

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        handle: Handle,
        metrics: Metrics,
        admission: Admission,
        sign_in: SignIn,
        audit: AuditTrail,
        failures: Failures,
        accounting: Accounting,
    ) -> None:
        self._settings = settings.ws
        # Higher than the limit on calls: who exceeds it has ignored `MAX_REFUSALS` refusals.
        self._messages = Rate(settings.ratelimit.ws_per_minute, settings.ratelimit.ws_per_minute + MAX_REFUSALS)
        self._timeout = settings.http.request_timeout
        self._hub = hub
        self._handle = handle
        self._sent = metrics.ws_messages.labels("out")
        self._admission = admission
        self._sign_in = sign_in
        self._audit = audit
        self._failures = failures
        self._accounting = accounting
        self._trusted = settings.http.trusted_proxies
        self._hosts = Hosts(settings.http.allowed_hosts)
        own = origin(settings.http.public_url)
        self._origins = frozenset((*settings.ws.allowed_origins, *settings.http.cors_origins, own))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        agent = header(scope, b"user-agent")
        call = Call(
            "ws", request_id_of(scope), client_address(scope, self._trusted), time.perf_counter(),
            user_agent=agent.decode("latin-1") if agent else None,
        )  # fmt: skip
        current_call.set(call)
        protocol: DirectWebSocketProtocol = scope.pop(PROTOCOL)  # whose scope this is
        connection = WebSocketConnection(
            self._handle, self._settings, self._messages, self._sent, protocol, call.client_ip, call.user_agent
        )
        self._hub.arriving += 1
        try:
            async with asyncio.timeout(self._timeout):
                await self._admit(scope, call, connection)
        except TimeoutError:
            await self._refuse(Timeout(), call, protocol, scope, receive, send)
            return
        except DomainError as refusal:
            await self._refuse(refusal, call, protocol, scope, receive, send)
            return
        finally:
            self._hub.arriving -= 1
        self._hub.add(connection)
        try:
            await send({"type": "websocket.accept"})
            protocol.deliver_to(connection)
            if self._hub.draining:
                connection.close(CloseCode.GOING_AWAY)  # admitted before, and not among those that the drain closes
            await receive()
        finally:
            await self._hub.remove(connection)

    async def _admit(self, scope: Scope, call: Call, connection: WebSocketConnection) -> None:
        """Raises what refuses the handshake."""
        self._hosts.check(scope)
        if scope["path"] != PATH:
            raise NotFound(f"the socket is at {PATH}")
        if self._hub.draining:
            raise Unavailable("the server is stopping")
        if self._hub.full:
            raise Unavailable("this process holds as many sockets as it may")
        authorization = header(scope, b"authorization")
        await self._admission.handshake(call, authorization)
        # A browser always sends its origin; other programs are not bound by it.
        page = header(scope, b"origin")
        if page is not None and page.decode("latin-1") not in self._origins:
            raise OriginNotAllowed("pages of this origin may not open a socket here")
        if authorization is None:
            return
        try:
            if call.refusal is not None:
                raise call.take_refusal()
            assert call.caller is not None
            await self._sign_in.accept(connection, call.caller)
        except DomainError as error:
            self._failures.record(call, ACTION, None, error.status, error.code)
            raise
        self._audit.record(action_row(call, ACTION, f"sessions/{call.caller.session_id}", status=200))

    async def _refuse(
        self,
        refusal: DomainError,
        call: Call,
        protocol: DirectWebSocketProtocol,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._accounting.refused_handshake(call, refusal.code)

        async def send_with_headers(message: Message) -> None:
            if message["type"].endswith("response.start"):
                add_default_headers(message, call.request_id)
            await send(message)

        await problem_response(refusal, call.request_id)(scope, receive, send_with_headers)
        protocol.refused()
