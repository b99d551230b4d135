"""Domain errors. They know nothing of HTTP or WebSocket; each protocol translates them once
(`http/problems.py`, `ws/codes.py`)."""

from typing import Any


class DomainError(Exception):
    """Something the caller is told about. `code` is stable and for programs, `title` is for people."""

    code = "internal_error"
    title = "Internal server error"

    def __init__(self, detail: str | None = None, **extra: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.extra = extra


class InvalidInput(DomainError):
    """Input that does not fit the declaration. `errors` holds `{"field", "message", "type"}` objects."""

    code = "validation_error"
    title = "The request is not valid"

    def __init__(self, errors: list[dict[str, str]], detail: str | None = None) -> None:
        super().__init__(detail, errors=errors)
        self.errors = errors


class Malformed(DomainError):
    code = "malformed_request"
    title = "The request could not be read"


class Unauthenticated(DomainError):
    """`reason` is a bounded word for metrics and `WWW-Authenticate`, never a piece of the token."""

    code = "unauthenticated"
    title = "A valid access token is required"

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason


class Forbidden(DomainError):
    code = "forbidden"
    title = "The caller lacks the required role"


class NotFound(DomainError):
    code = "not_found"
    title = "There is no such thing"


class MethodNotAllowed(DomainError):
    code = "method_not_allowed"
    title = "The resource does not support this method"


class Conflict(DomainError):
    code = "conflict"
    title = "The request conflicts with what is stored"


class PayloadTooLarge(DomainError):
    code = "payload_too_large"
    title = "The request is larger than the server accepts"


class UnsupportedMediaType(DomainError):
    code = "unsupported_media_type"
    title = "The body must be application/json"


class HostNotAllowed(DomainError):
    code = "host_not_allowed"
    title = "The server does not answer for this host"


class OriginNotAllowed(DomainError):
    code = "origin_not_allowed"
    title = "Pages of this origin may not open a socket here"


class Disconnected(DomainError):
    """Nobody reads this answer; metrics and the audit trail tell it from a defect."""

    code = "client_disconnected"
    title = "The client went away before its request was whole"


class RateLimited(DomainError):
    """`retry_after` is in whole seconds, at least 1."""

    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, retry_after: int, detail: str | None = None) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.retry_after = retry_after


class Unavailable(DomainError):
    """A part the answer needs is out of reach; the same request may succeed later."""

    code = "unavailable"
    title = "The service cannot answer right now"


class Timeout(DomainError):
    code = "timeout"
    title = "The request took too long"
