"""Domain errors. Each class carries its HTTP status and its JSON-RPC code; a subclass inherits those of its nearest ancestor,
so that a feature's own error works on both protocols at once:

    class LoanLimit(Conflict):
        code = "loan_limit"
        title = "Loan limit reached"
"""

from typing import Any, ClassVar


class DomainError(Exception):
    """An error that the caller is told about. `code` is stable and for programs, `title` is for people, `detail` says what is
    wrong with this request, `extra` holds further members of the answer."""

    code: ClassVar[str]
    title: ClassVar[str]
    status: ClassVar[int]
    rpc_code: ClassVar[int]

    def __init_subclass__(cls) -> None:
        missing = [name for name in ("code", "title", "status", "rpc_code") if not hasattr(cls, name)]
        if missing:
            raise TypeError(f"{cls.__qualname__}: `{missing[0]}` is neither set nor inherited")

    def __init__(self, detail: str | None = None, **extra: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.extra = extra


class InternalError(DomainError):
    """500: any exception that is no domain error; the log has its traceback, the caller gets no detail."""

    code = "internal_error"
    title = "Internal server error"
    status = 500
    rpc_code = -32603


class InvalidInput(DomainError):
    """Input that does not fit the declaration. `errors` holds `{"field", "message", "type"}` objects."""

    code = "validation_error"
    title = "Validation error"
    status = 422
    rpc_code = -32602

    def __init__(self, errors: list[dict[str, str]], detail: str | None = None) -> None:
        super().__init__(detail, errors=errors)
        self.errors = errors


class Malformed(DomainError):
    """Input that cannot be parsed."""

    code = "malformed_request"
    title = "Malformed request"
    status = 400
    rpc_code = -32000


class HostNotAllowed(Malformed):
    """400: the `Host` header names none of `http.allowed_hosts`; HTTP only."""

    code = "host_not_allowed"
    title = "Host not allowed"


class MethodNotAllowed(Malformed):
    """405, HTTP only. `allow` lists the methods of the path, as the `Allow` header wants them."""

    code = "method_not_allowed"
    title = "Method not allowed"
    status = 405


class UnsupportedMediaType(Malformed):
    """415: the operation takes JSON, the body is declared as something else; HTTP only."""

    code = "unsupported_media_type"
    title = "Unsupported media type"
    status = 415


class Unauthenticated(DomainError):
    """`reason` is a bounded word for metrics and `WWW-Authenticate`, never a piece of the token."""

    code = "unauthenticated"
    title = "Unauthorized"
    status = 401
    rpc_code = -32001

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason


class Forbidden(DomainError):
    """403: the caller is known, but may not do this; `detail` names the missing role or right."""

    code = "forbidden"
    title = "Forbidden"
    status = 403
    rpc_code = -32003


class OriginNotAllowed(Forbidden):
    """403 to a handshake: pages of this `Origin` may not open sockets (`ws.allowed_origins`, `http.cors_origins`)."""

    code = "origin_not_allowed"
    title = "Origin not allowed"


class NotFound(DomainError):
    """404: no such row, route, method or topic, or none that the caller may see. `detail` names it."""

    code = "not_found"
    title = "Not found"
    status = 404
    rpc_code = -32004


class Conflict(DomainError):
    """409: the request contradicts the stored state. Violated unique and foreign keys raise it with the `detail` of
    `Feature.conflicts`; raise it for rules that the database does not know."""

    code = "conflict"
    title = "Conflict"
    status = 409
    rpc_code = -32009


class PayloadTooLarge(DomainError):
    """413: a body, message, event or answer over a limit; `detail` says which."""

    code = "payload_too_large"
    title = "Payload too large"
    status = 413
    rpc_code = -32013


class RateLimited(DomainError):
    """`retry_after` is in whole seconds, at least 1."""

    code = "rate_limited"
    title = "Too many requests"
    status = 429
    rpc_code = -32029

    def __init__(self, retry_after: int, detail: str | None = None) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.retry_after = retry_after


class ClientDisconnected(Malformed):
    """The client went away before its request was whole. Nobody reads this answer; metrics and the audit trail tell it from
    a defect. 499 is nginx's status for it."""

    code = "client_disconnected"
    title = "Client disconnected"
    status = 499


class Unavailable(DomainError):
    """A part the answer needs is out of reach; the same request may succeed later."""

    code = "unavailable"
    title = "Service unavailable"
    status = 503
    rpc_code = -32053


class Timeout(DomainError):
    """504: the operation took longer than `http.request_timeout`, or a statement longer than `database.command_timeout`. A
    change was rolled back, unless `detail` begins with "the outcome is unknown": then COMMIT was not answered."""

    code = "timeout"
    title = "Timeout"
    status = 504
    rpc_code = -32054
