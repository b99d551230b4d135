"""Error and close codes: the one table. RPC codes map one-to-one to the problems of HTTP."""

from enum import IntEnum
from typing import Any

from hw_server.errors import DomainError

RPC_CODE: dict[str, int] = {
    "parse_error": -32700,
    "invalid_request": -32600,
    "method_not_found": -32601,
    "validation_error": -32602,
    "internal_error": -32603,
    "malformed_request": -32000,
    "unauthenticated": -32001,
    "forbidden": -32003,
    "not_found": -32004,
    "conflict": -32009,
    "payload_too_large": -32013,
    "rate_limited": -32029,
    "unavailable": -32053,
    "timeout": -32054,
}


class CloseCode(IntEnum):
    """CloseCode codes; the reason sent with each is its name in lower case, with 1002 and 1009 the library's own words."""

    GOING_AWAY = 1001  # the server drains; connect again
    PROTOCOL_ERROR = 1002
    BINARY_FRAME = 1003
    MESSAGE_TOO_BIG = 1009
    UNAUTHENTICATED = 4401  # no sign-in in time, or a bad token
    TOKEN_EXPIRED = 4402
    SESSION_REVOKED = 4403
    SLOW_CONSUMER = 4408  # the client does not read its messages
    FLOODING = 4429  # the client ignores rate limits, or has too many sockets


class ParseError(DomainError):
    code = "parse_error"
    title = "The message is not valid JSON"


class InvalidRequest(DomainError):
    code = "invalid_request"
    title = "The message is not a JSON-RPC 2.0 request"


class MethodNotFound(DomainError):
    code = "method_not_found"
    title = "There is no such method"


def error_object(error: DomainError, request_id: str) -> dict[str, Any]:
    """`error` of a JSON-RPC answer; `data` holds what the HTTP problem would."""
    data = {"code": error.code, "request_id": request_id, **error.extra}
    if error.detail:
        data["detail"] = error.detail
    return {"code": RPC_CODE.get(error.code, -32603), "message": error.title, "data": data}
