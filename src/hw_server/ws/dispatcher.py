"""JSON-RPC 2.0: from a text message to an operation, and the response back."""

import math
import re
import time
from collections.abc import Callable
from random import getrandbits
from typing import Any

import structlog
from pydantic_core import from_json, to_json

from hw_server.admission import Accounting, Admission
from hw_server.errors import DomainError, InternalError, RateLimited
from hw_server.observability.logging import current_call
from hw_server.observability.metrics import Metrics
from hw_server.operations import Call, Executor
from hw_server.settings import WebSocketSettings
from hw_server.ws.codes import InvalidRequest, MethodNotFound, ParseError, error_object
from hw_server.ws.connection import WebSocketConnection

log = structlog.get_logger("ws")

PREFIX = b'{"jsonrpc":"2.0","id":'
MAX_ID = 200  # characters
METHOD = re.compile(rb'"method"\s*:\s*"([a-z_.]+)"')


class Dispatcher:
    """Answers the messages of every socket of this process."""

    def __init__(
        self,
        settings: WebSocketSettings,
        executor: Executor,
        admission: Admission,
        accounting: Accounting,
        metrics: Metrics,
    ) -> None:
        self._max_batch = settings.max_batch
        self._executor = executor
        self._admission = admission
        self._accounting = accounting
        self._received = metrics.ws_messages.labels("in")

    async def handle(self, connection: WebSocketConnection, data: bytes) -> None:
        """Answers one message; never raises for what a client sent."""
        self._received.inc()
        after: list[Callable[[], None]] = []
        message, arguments = self._parse_valid(data)
        if message is None:
            try:
                message = from_json(data, allow_inf_nan=False)
            except ValueError:
                connection.send(_error(None, ParseError(), _request_id()))
                return
        if not isinstance(message, list):
            response = await self._call(connection, message, after, arguments)
        elif not 0 < len(message) <= self._max_batch:
            error = InvalidRequest(f"a batch holds 1 to {self._max_batch} calls")
            response = _error(None, error, _request_id())
        else:
            # In order, so that one client's batch holds one database connection at a time.
            responses = [item for part in message if (item := await self._call(connection, part, after)) is not None]
            response = b"[" + b",".join(responses) + b"]" if responses else None
        if response is not None:
            connection.send(response)
        for call in after:
            call()

    def _parse_valid(self, data: bytes) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Request object and arguments of one valid request, parsed once; None for anything else. The search only guesses
        which operation it is for: that operation's own validator decides."""
        name = METHOD.search(data)
        bound = self._executor.operations.get(name[1].decode()) if name is not None else None
        request = bound.binder.from_request(data) if bound is not None else None
        if bound is None or request is None:
            return None, None
        return {"jsonrpc": "2.0", "id": request[0], "method": bound.operation.name}, request[1]

    async def _call(
        self,
        connection: WebSocketConnection,
        message: Any,
        after: list[Callable[[], None]],
        arguments: dict[str, Any] | None = None,
    ) -> bytes | None:
        """The response to one call, None for a notification. `arguments` are those of the operation where they are bound
        already."""
        call = Call(
            "ws", _request_id(), connection.client_ip, time.perf_counter(),
            caller=connection.principal, socket=connection, after_response=after,
        )  # fmt: skip
        current_call.set(call)
        method, code, call_id = "invalid", "ok", _usable_id(message)
        try:
            name, params = _parse(message)
            method = name if name in self._executor.operations else "unknown"
            result = await self._run(connection, call, name, params, arguments)
            response = b'%s%s,"result":%s}' % (PREFIX, to_json(call_id), result or b"null")
        except DomainError as error:
            code = error.code
            response = _error(call_id, error, call.request_id)
        except Exception:
            log.exception("ws_call_failed", method=method)
            code = InternalError.code
            response = _error(call_id, InternalError(), call.request_id)
        self._accounting.rpc(call, method, code)
        notification = code != InvalidRequest.code and isinstance(message, dict) and "id" not in message
        return None if notification else response

    async def _run(
        self,
        connection: WebSocketConnection,
        call: Call,
        method: str,
        params: dict[str, Any],
        arguments: dict[str, Any] | None,
    ) -> bytes | None:
        try:
            await self._admission.admit("ws", call)
        except RateLimited:
            connection.count_refusal()
            raise
        connection.reset_refusals()
        bound = self._executor.operations.get(method)
        if bound is None:
            raise MethodNotFound(method[:100])

        async def bind() -> dict[str, Any]:
            return bound.binder.from_rpc(params) if arguments is None else arguments

        call.asked = params if arguments is None else arguments
        return await self._executor.run(bound, call, bind)


def _parse(message: Any) -> tuple[str, dict[str, Any]]:
    """Method and params of a request object; raises `InvalidRequest`."""
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise InvalidRequest('an object with "jsonrpc": "2.0" is expected')
    method, params = message.get("method"), message.get("params", {})
    if not isinstance(method, str):
        raise InvalidRequest("method must be a string")
    if not isinstance(params, dict):
        raise InvalidRequest("params must be an object")
    if message.get("id") is not None and _usable_id(message) is None:
        raise InvalidRequest("id must be a short string, a number or null")
    return method, params


def _usable_id(message: Any) -> str | int | float | None:
    value = message.get("id") if isinstance(message, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):  # `1e999`, which is JSON, but its echo would not be
        return None
    return None if isinstance(value, str) and len(value) > MAX_ID else value


def _request_id() -> str:
    return f"{getrandbits(64):016x}"


def _error(call_id: Any, error: DomainError, request_id: str) -> bytes:
    return to_json({"jsonrpc": "2.0", "id": call_id, "error": error_object(error, request_id)})
