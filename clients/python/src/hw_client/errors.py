"""All errors of the client are an `HwError`; a time limit is Python's own TimeoutError."""

from collections.abc import Mapping
from typing import Any

from hw_client.events import Position, Reset

UNAVAILABLE, RATE_LIMITED = -32053, -32029


class HwError(Exception):
    """Base of all errors of this package."""


class RpcError(HwError):
    """The server's answer to a call is an error. `data["code"]` is its name, such as `not_found`."""

    def __init__(self, code: int, message: str, data: Mapping[str, Any]) -> None:
        super().__init__(f"{code} {message}" + (f": {data['detail']}" if "detail" in data else ""))
        self.code = code
        self.message = message
        self.data = data

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed a little later."""
        return self.code in (UNAVAILABLE, RATE_LIMITED)

    @property
    def retry_after(self) -> float:
        """Seconds that the server asks to wait; 0 where it does not say."""
        return _seconds(self.data.get("retry_after"))


class Closed(HwError):
    """The connection ended for good: by `close`, or by the server with a code that says not to reconnect."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed: {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class ConnectionLost(HwError):
    """The connection broke while a call was under way. Whether the server carried it out is unknown, so it is not
    sent again."""


class NotCarriedOut(ConnectionLost):
    """The server went away in good order, without having taken the call: it is sent again over the next connection."""


class Unreachable(HwError):
    """No connection within the time limit; the cause is the last failure."""


class Refused(HwError):
    """The server refused the handshake or the event stream; `problem` is its problem document (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: object = None) -> None:
        detail = problem.get("detail") or problem.get("title") or ""
        super().__init__(f"refused: {status} {detail}".rstrip())
        self.status = status
        self.problem = problem
        self.retry_after = _seconds(retry_after)

    @property
    def passing(self) -> bool:
        return self.status == 429 or self.status >= 500


class SignInFailed(HwError):
    """For the token callback to raise when there will be no token any more: ends the client. Its other exceptions are
    taken for failures that pass, once the client was connected."""


class AlreadySubscribed(HwError):
    """The client has one subscription of each topic, as the server has for each socket."""


class Unsubscribed(HwError):
    """The server ended the subscription, for example because a role was taken away."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"{topic}: {reason}")
        self.topic = topic
        self.reason = reason


class SlowConsumer(HwError):
    """The buffer was full. Everything in it was given out before this error; nothing is lost for those who subscribe
    again with `since=position`."""

    def __init__(self, what: str, position: Position | None = None) -> None:
        super().__init__(f"{what}: the buffer was full")
        self.position = position


class HistoryLost(HwError):
    """A `Reset`, where the caller asked for an error."""

    def __init__(self, reset: Reset) -> None:
        super().__init__(f"{reset.topic}: events before {reset.epoch}:{reset.offset} are lost")
        self.reset = reset


def _seconds(value: object) -> float:
    try:
        return max(0.0, float(value))  # type: ignore[arg-type]  # anything else is refused by float itself
    except (TypeError, ValueError):
        return 0.0
