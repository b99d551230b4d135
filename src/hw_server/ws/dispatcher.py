"""JSON-RPC 2.0: from a text frame to operations and platform methods, and the answer back."""

import secrets
import time
from collections.abc import Awaitable, Callable
from random import getrandbits
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json, to_json

from hw_server.auth import Principal
from hw_server.auth.authentication import Authentication
from hw_server.errors import Conflict, DomainError, InvalidInput, RateLimited
from hw_server.observability.logging import RequestLog
from hw_server.observability.metrics import Metrics
from hw_server.operations import SIGNED_IN, AuditTrail, Call, Executor, action_row, authorize
from hw_server.operations.binder import Binder, Input
from hw_server.ratelimit import ConnectionLimiter, RateLimiter
from hw_server.settings import Settings
from hw_server.ws.codes import CloseCode, InvalidRequest, MethodNotFound, ParseError, error_object
from hw_server.ws.connection import WebSocketConnection

log = structlog.get_logger("ws")

PREFIX = b'{"jsonrpc":"2.0","id":'
UNSIGNED = frozenset({"session.authenticate", "ping", "rpc.discover"})


class TokenParams(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: str


class Dispatcher:
    """`document` gives the OpenRPC description for `rpc.discover`."""

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        identification: Authentication,
        limiter: RateLimiter,
        connection_limiter: ConnectionLimiter,
        audit: AuditTrail,
        metrics: Metrics,
        requests_log: RequestLog,
        document: Callable[[], dict[str, Any]],
    ) -> None:
        self.max_in_flight = settings.ws.max_in_flight
        self.send_buffer_bytes = settings.ws.send_buffer_bytes
        self.sent = metrics.ws_messages.labels("out")
        self._received = metrics.ws_messages.labels("in")
        self._max_batch = settings.ws.max_batch
        self._requests_log = requests_log
        self._executor = executor
        self._identification = identification
        self._limiter = limiter
        self._connection_limiter = connection_limiter
        self._audit = audit
        self._metrics = metrics
        self._durations: dict[tuple[str, str], Any] = {}
        self._document = document
        self._platform: dict[str, Callable[[WebSocketConnection, Call, dict[str, Any]], Awaitable[bytes]]] = {
            "session.authenticate": self._authenticate,
            "session.refresh": self._refresh,
            "rpc.discover": self._discover,
            "ping": self._ping,
        }
        clash = self._platform.keys() & executor.operations.keys()
        if clash:
            raise ValueError(f"operation {clash.pop()} has the name of a platform method")

    async def handle(self, connection: WebSocketConnection, data: bytes) -> None:
        """Answers one frame; never raises for what a client sent."""
        self._received.inc()
        try:
            message = from_json(data, allow_inf_nan=False)
        except ValueError:
            connection.send(_error(None, ParseError(), secrets.token_hex(8)))
            return
        if not isinstance(message, list):
            answer = await self._call(connection, message)
        elif not 0 < len(message) <= self._max_batch:
            error = InvalidRequest(f"a batch holds 1 to {self._max_batch} calls")
            answer = _error(None, error, secrets.token_hex(8))
        else:
            # In order, so that one client's batch holds one database connection at a time.
            answers = [item for part in message if (item := await self._call(connection, part)) is not None]
            answer = b"[" + b",".join(answers) + b"]" if answers else None
        if answer is not None:
            connection.send(answer)

    async def _call(self, connection: WebSocketConnection, message: Any) -> bytes | None:
        """The answer to one call, None for a notification."""
        call = Call("ws", f"{getrandbits(64):016x}", connection.client_ip, time.perf_counter(), connection.principal)
        method, code, answer, call_id = "invalid", "ok", None, None
        try:
            call_id, method_name, params = _request(message)
            method = (
                method_name if method_name in self._platform or method_name in self._executor.operations else "unknown"
            )
            result = await self._run(connection, call, method_name, params)
            answer = b'%s%s,"result":%s}' % (PREFIX, to_json(call_id), result or b"null")
        except DomainError as error:
            code = error.code
            answer = _error(_usable_id(message), error, call.request_id)
        except Exception:
            log.exception("ws_call_failed", request_id=call.request_id, method=method)
            code = "internal_error"
            answer = _error(call_id, DomainError(), call.request_id)
        self._account(call, method, code)
        notification = code not in ("invalid_request",) and isinstance(message, dict) and "id" not in message
        return None if notification else answer

    async def _run(
        self, connection: WebSocketConnection, call: Call, method: str, params: dict[str, Any]
    ) -> bytes | None:
        await self._count(connection, call)
        if call.caller is not None:
            try:
                await self._identification.check(call.caller)
            except DomainError as refusal:
                call.refusal = refusal
        if (platform := self._platform.get(method)) is not None:
            if method not in UNSIGNED:
                authorize(SIGNED_IN, call)
            return await platform(connection, call, params)
        bound = self._executor.operations.get(method)
        if bound is None:
            raise MethodNotFound(method[:100])

        async def raw(binder: Binder) -> Input:
            return binder.from_params(params)

        return await self._executor.run(bound, call, raw)

    async def _count(self, connection: WebSocketConnection, call: Call) -> None:
        who = f"user:{call.caller.sub}" if call.caller else f"address:{call.client_ip}"
        try:
            await self._limiter.check("ws", who)
        except RateLimited:
            connection.limited(refused=True)
            raise
        connection.limited(refused=False)

    # Platform methods

    async def _authenticate(self, connection: WebSocketConnection, call: Call, params: dict[str, Any]) -> bytes:
        if connection.principal is not None:
            raise Conflict("the socket is signed in; use session.refresh")
        return to_json(await self.sign_in(connection, call, _token(params)))

    async def sign_in(self, connection: WebSocketConnection, call: Call, token: str) -> dict[str, Any]:
        """Signs the socket in; a bad token, or a socket too many, closes it after the error is sent."""
        try:
            principal = await self._identification.by_token(token, connection.client_ip, connection.user_agent)
            if connection.principal is None:
                await self._connection_limiter.acquire(principal.sub, connection.id)
        except DomainError as error:
            self._audit.record(action_row(call, "session.authenticate", outcome="denied", error=error.code))
            close = CloseCode.FLOODING if isinstance(error, RateLimited) else CloseCode.UNAUTHENTICATED
            connection.close_soon(close)
            raise
        call.caller = principal
        connection.principal, connection.warned = principal, False
        self._audit.record(action_row(call, "session.authenticate", f"sessions/{principal.session_id}", status=200))
        return _session(principal)

    async def _refresh(self, connection: WebSocketConnection, call: Call, params: dict[str, Any]) -> bytes:
        principal = await self._identification.by_token(_token(params), connection.client_ip, connection.user_agent)
        assert connection.principal is not None
        if principal.sub != connection.principal.sub:
            raise Conflict("the token is another user's")
        connection.principal, connection.warned = principal, False
        return to_json(_session(principal))

    async def _discover(self, _connection: WebSocketConnection, _call: Call, _params: dict[str, Any]) -> bytes:
        return to_json(self._document())

    async def _ping(self, _connection: WebSocketConnection, _call: Call, _params: dict[str, Any]) -> bytes:
        return b'"pong"'

    def _account(self, call: Call, method: str, code: str) -> None:
        series = self._durations.get((method, code))
        if series is None:
            series = self._durations[method, code] = self._metrics.ws_rpc.labels(method, code)
        elapsed = time.perf_counter() - call.started
        series.observe(elapsed)
        fields = {
            "request_id": call.request_id,
            "route": method,
            "code": code,
            "duration_ms": round(elapsed * 1000, 2),
            "user_id": call.caller.sub if call.caller else None,
            "client_ip": call.client_ip,
        }
        self._requests_log.write("call", fields)


def _request(message: Any) -> tuple[Any, str, dict[str, Any]]:
    """Id, method and params of a request object; raises `InvalidRequest`."""
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise InvalidRequest('an object with "jsonrpc": "2.0" is expected')
    method, params, call_id = message.get("method"), message.get("params", {}), message.get("id")
    if not isinstance(method, str):
        raise InvalidRequest("method must be a string")
    if not isinstance(params, dict):
        raise InvalidRequest("params must be an object")
    if _usable_id(message) is None and call_id is not None:
        raise InvalidRequest("id must be a short string, a number or null")
    return call_id, method, params


def _usable_id(message: Any) -> str | int | float | None:
    found = message.get("id") if isinstance(message, dict) else None
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        return None
    return None if isinstance(found, str) and len(found) > 200 else found


def _error(call_id: Any, error: DomainError, request_id: str) -> bytes:
    return to_json({"jsonrpc": "2.0", "id": call_id, "error": error_object(error, request_id)})


def _token(params: dict[str, Any]) -> str:
    try:
        return TokenParams.model_validate(params).token
    except ValidationError:
        raise InvalidInput(
            [{"field": "token", "message": "an access token is expected, and nothing else", "type": "token"}]
        ) from None


def _session(principal: Principal) -> dict[str, Any]:
    return {
        "sub": principal.sub,
        "username": principal.username,
        "roles": sorted(principal.roles),
        "session_id": principal.session_id,
        "expires_at": principal.expires_at,
    }
