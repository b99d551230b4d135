"""What the platform gives to an operation: a table with one row for each kind, read when a signature is read (start) and when
a call is bound (each request)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from hw_server.auth import Principal
from hw_server.db import Connection
from hw_server.operations.call import Call
from hw_server.operations.events import Events, Outbox
from hw_server.runtime.parts import Parts

T = TypeVar("T")
READ, WRITE, PROVIDED, SOCKET = "hw:read", "hw:write", "hw:provided", "hw:socket"

Read = Annotated[Connection, READ]  # a connection in autocommit mode
Write = Annotated[Connection, WRITE]  # a connection in the transaction of this call
Provided = Annotated[T, PROVIDED]  # the application's part of this type
Socket = Annotated[T, SOCKET]  # the connection that the call came over


class AfterCommit(list[Callable[[], Awaitable[None]]]):
    """Calls to make once the operation's transaction has committed; a failure of one is logged, never answered."""


@dataclass(slots=True)
class Context:
    """What is at hand while one operation runs. `committing` is whether its COMMIT was sent."""

    call: Call
    outbox: Outbox
    connection: Connection | None = None
    committing: bool = False
    after_commit: AfterCommit = field(default_factory=AfterCommit)
    events: Events | None = None

    def buffer(self) -> Events:
        """The events of this call; only where the operation takes them."""
        self.events = Events(self.outbox)
        return self.events


class Injected(NamedTuple):
    """One kind. Two parameters of one `group` are refused, where it has one; `value` gives the argument of a call,
    `constant` one that is the same for all calls."""

    group: Literal["connection", "caller", "Call", "AfterCommit", "Events", "socket"] | None
    matches: Callable[[Any], bool]
    value: Callable[[Context], Any] | None = None
    constant: Callable[[Any, Parts], Any] | None = None


def _marked(mark: str) -> Callable[[Any], bool]:
    return lambda annotation: mark in get_args(annotation)[1:]


INJECTED = {
    "read": Injected("connection", _marked(READ), value=lambda context: context.connection),
    "write": Injected("connection", _marked(WRITE), value=lambda context: context.connection),
    "caller": Injected(
        "caller",
        lambda annotation: annotation is Principal or annotation == Principal | None,
        value=lambda context: context.call.caller,
    ),
    "call": Injected("Call", lambda annotation: annotation is Call, value=lambda context: context.call),
    "after_commit": Injected(
        "AfterCommit", lambda annotation: annotation is AfterCommit, value=lambda context: context.after_commit
    ),
    "events": Injected("Events", lambda annotation: annotation is Events, value=lambda context: context.buffer()),
    "socket": Injected("socket", _marked(SOCKET), value=lambda context: context.call.socket),
    "provided": Injected(None, _marked(PROVIDED), constant=lambda annotation, parts: parts[get_args(annotation)[0]]),
}
