"""Error and close codes of the socket. RPC codes of domain errors stand on their classes (`hw_server.errors`)."""

from enum import IntEnum
from typing import Any

from hw_server import errors
from hw_server.errors import DomainError, Malformed, NotFound, PayloadTooLarge


class CloseCode(IntEnum):
    """The reason sent with each is its name in lower case. Ranges say what a client does next: after 1001, 1012, 1013 and
    4500 to 4599 it connects again, after 4400 to 4499 not unchanged."""

    GOING_AWAY = 1001  # the server drains, and has answered every call that it took; connect again
    PROTOCOL_ERROR = 1002
    BINARY_FRAME = 1003
    INVALID_DATA = 1007  # a text that is not UTF-8
    MESSAGE_TOO_BIG = 1009
    SERVICE_RESTART = 1012  # the drain's time is over, with calls in progress
    TRY_AGAIN_LATER = 1013  # what the sign-in needs is out of reach
    UNAUTHENTICATED = 4401  # no sign-in in time, or a bad token
    TOKEN_EXPIRED = 4402
    SESSION_REVOKED = 4403
    FLOODING = 4429  # the client ignores rate limits, or has too many sockets
    SLOW_CONSUMER = 4508  # the client does not read its messages
    PING_TIMEOUT = 4509  # the client does not answer pings


# The client broke the protocol or a limit: what else it sends is not read.
FAILURES = frozenset({
    CloseCode.PROTOCOL_ERROR, CloseCode.BINARY_FRAME, CloseCode.INVALID_DATA, CloseCode.MESSAGE_TOO_BIG, CloseCode.FLOODING,
})  # fmt: skip


class ParseError(Malformed):
    """The message is no JSON."""

    code = "parse_error"
    title = "Parse error"
    rpc_code = -32700


class InvalidRequest(Malformed):
    """The message is JSON, but no request object or batch of JSON-RPC 2.0."""

    code = "invalid_request"
    title = "Invalid request"
    rpc_code = -32600


class MethodNotFound(NotFound):
    """`detail` is the method, cut after 100 characters."""

    code = "method_not_found"
    title = "Method not found"
    rpc_code = -32601


class ResponseLimit(PayloadTooLarge):
    """The answer is larger than the room left in the socket's send buffer."""

    code = "response_limit"
    title = "Response too large"
    rpc_code = -32014


PLATFORM_ERRORS: list[type[DomainError]] = [
    kind
    for kind in (*vars(errors).values(), ParseError, InvalidRequest, MethodNotFound, ResponseLimit)
    if isinstance(kind, type) and issubclass(kind, DomainError) and kind is not DomainError
]
# Those with an RPC code of their own; the others occur over HTTP only.
RPC_ERRORS = [kind for kind in PLATFORM_ERRORS if "rpc_code" in vars(kind)]


def error_object(error: DomainError, request_id: str) -> dict[str, Any]:
    """`error` of a JSON-RPC response; `data` holds what the HTTP problem would."""
    data = {"code": error.code, "request_id": request_id, **error.extra}
    if error.detail:
        data["detail"] = error.detail
    return {"code": error.rpc_code, "message": error.title, "data": data}
