"""JSON-RPC 2.0: from a text message to an operation, and the response back."""

import math
import re
import time
from collections.abc import Callable
from functools import partial
from random import getrandbits
from typing import Any

import structlog
from pydantic_core import from_json, to_json

from hw_server.admission import Accounting, Admission
from hw_server.errors import DomainError, InternalError, PayloadTooLarge, RateLimited
from hw_server.observability.logging import current_call
from hw_server.observability.metrics import Metrics
from hw_server.operations import BoundOperation, Call, Executor, limit_members
from hw_server.settings import Settings
from hw_server.ws.codes import CloseCode, InvalidRequest, MethodNotFound, ParseError, ResponseLimit, error_object
from hw_server.ws.connection import WebSocketConnection

log = structlog.get_logger("ws")

PREFIX = b'{"jsonrpc":"2.0","id":'
MAX_ID = 200  # characters
ID_TYPES = (str, int, float)
METHOD = re.compile(rb'"method"\s*:\s*"([a-z_.]+)"')

# Operation, id (None for a notification) and arguments.
Request = tuple[BoundOperation, int | str | None, dict[str, Any]]


class Dispatcher:
    """Answers the messages of every socket of this process."""

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        admission: Admission,
        accounting: Accounting,
        metrics: Metrics,
    ) -> None:
        self._max_batch = settings.ws.max_batch
        self._max_members = settings.http.max_json_members
        self._executor = executor
        self._admission = admission
        self._accounting = accounting
        self._received = metrics.ws_messages.labels("in")

    async def handle(self, connection: WebSocketConnection, data: bytes) -> None:
        """Answers one message; never raises for what a client sent."""
        self._received.inc()
        after: list[Callable[[], None]] = []
        message, request = self._parse(data)
        if isinstance(message, list):
            response = await self._batch(connection, message, after)
        else:
            response = await self._call(connection, message, after, request)
        if response is not None:
            connection.send(response)
        for call in after:
            call()

    async def _batch(
        self, connection: WebSocketConnection, calls: list[Any], after: list[Callable[[], None]]
    ) -> bytes | None:
        """In order, so that one client's batch holds one database connection at a time."""
        responses: list[bytes] = []
        size = 0
        try:
            for call in calls:
                response = await self._call(connection, call, after)
                if not connection.open:
                    return None
                if response is not None:
                    responses.append(response)
                    size += len(response)
                    connection.hold(len(response))
        finally:
            connection.hold(-size)
        return b"[" + b",".join(responses) + b"]" if responses else None

    def _parse(self, data: bytes) -> tuple[Any, Request | None]:
        """`(None, request)` for a valid request of a known operation, else `(message, None)`; an unusable message is given as the
        error to answer it with."""
        try:
            limit_members(data, self._max_members)
        except PayloadTooLarge as refusal:
            return refusal.with_traceback(None), None  # its frames would keep the message in memory
        request = self._parse_valid(data)
        if request is not None:
            return None, request
        try:
            message = from_json(data, allow_inf_nan=False)
        except ValueError:
            return ParseError(), None
        if isinstance(message, list) and not 0 < len(message) <= self._max_batch:
            return InvalidRequest(f"a batch holds 1 to {self._max_batch} calls"), None
        return message, None

    def _parse_valid(self, data: bytes) -> Request | None:
        """One valid request, parsed once; None for anything else. The search only guesses which operation it is for: that
        operation's own validator decides."""
        name = METHOD.search(data)
        bound = self._executor.operations.get(name[1].decode()) if name is not None else None
        request = bound.binder.from_request(data) if bound is not None else None
        return (bound, *request) if bound is not None and request is not None else None

    async def _call(
        self,
        connection: WebSocketConnection,
        message: Any,
        after: list[Callable[[], None]],
        request: Request | None = None,
    ) -> bytes | None:
        """The response to one call, None for a notification. `message` is the parsed message, or the error to answer
        it with, which counts as a call, too; it is unused with a `request`. `after` gets calls to make once the response was
        sent."""
        if connection.closed:
            return None
        principal = connection.principal
        if principal is not None and principal.expires_at <= time.time():
            connection.close(CloseCode.TOKEN_EXPIRED)
            return None
        call = Call(
            "ws", _request_id(), connection.client_ip, time.perf_counter(),
            caller=principal, socket=connection, after_response=after,
        )  # fmt: skip
        current_call.set(call)
        if connection.calls is None:
            connection.calls = set()
        connection.calls.add(call)
        method, code = "invalid", "ok"
        call_id = _usable_id(message) if request is None else request[1]
        follows = len(after)
        try:
            await self._admit(connection, call)
            if request is None:
                name, params = _method_and_params(message)
                method = name if name in self._executor.operations else "unknown"
                bound, arguments = self._operation(name), None
            else:
                bound, _, arguments = request
                method, params = bound.operation.name, arguments
            result = await self._run(call, bound, params, arguments)
            response = b'%s%s,"result":%s}' % (PREFIX, to_json(call_id), result or b"null")
            # Changes, and subscriptions that begin after the answer, cannot be undone: a client too slow for it is closed.
            done = bound.operation.changes or len(after) > follows
            if not (done or connection.takes(len(response))):
                # Counted until the whole message is answered, so that the rest of its batch is refused, too.
                connection.hold(len(response))
                after.append(partial(connection.hold, -len(response)))
                raise ResponseLimit("the answer is larger than what may wait for the client; ask for less at a time")
        except DomainError as error:
            code = error.code
            response = _error(call_id, error, call.request_id)
        except Exception:
            log.exception("ws_call_failed", method=method)
            code = InternalError.code
            response = _error(call_id, InternalError(), call.request_id)
        finally:
            connection.calls.discard(call)
            call.asked = None  # the arguments may include the call: a cycle
        self._accounting.rpc(call, method, code)
        if request is not None:
            notification = request[1] is None
        else:
            notification = code != InvalidRequest.code and isinstance(message, dict) and "id" not in message
        return None if notification else response

    async def _admit(self, connection: WebSocketConnection, call: Call) -> None:
        try:
            await self._admission.admit("ws", call)
        except RateLimited:
            connection.count_refusal()
            raise
        if not connection.room:
            if connection.principal is None:
                connection.count_refusal()
            raise ResponseLimit(
                "the answers in progress are as large as they may be; read them, or send smaller batches"
            )
        connection.reset_refusals()

    def _operation(self, name: str) -> BoundOperation:
        bound = self._executor.operations.get(name)
        if bound is None:
            raise MethodNotFound(name[:100])
        return bound

    async def _run(
        self, call: Call, bound: BoundOperation, params: dict[str, Any], arguments: dict[str, Any] | None
    ) -> bytes | None:
        async def bind() -> dict[str, Any]:
            return bound.binder.from_rpc(params) if arguments is None else arguments

        call.asked = params
        return await self._executor.run(bound, call, bind)


def _method_and_params(message: Any) -> tuple[str, dict[str, Any]]:
    """Method and params of a request object; raises `InvalidRequest`, or the error given in place of a message."""
    if isinstance(message, DomainError):
        raise message
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
    if isinstance(value, bool) or not isinstance(value, ID_TYPES):
        return None
    if isinstance(value, str):
        return value if len(value) <= MAX_ID else None
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None  # JSON has no bound; past 4,300 digits Python writes none
    return value if math.isfinite(value) else None  # `1e999` is read as infinity, which JSON cannot say back


def _request_id() -> str:
    return f"{getrandbits(64):016x}"


def _error(call_id: Any, error: DomainError, request_id: str) -> bytes:
    return to_json({"jsonrpc": "2.0", "id": call_id, "error": error_object(error, request_id)})
