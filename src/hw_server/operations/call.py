"""One call of HTTP or of a socket, and its state while it is served."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hw_server.auth import Principal
from hw_server.errors import DomainError
from hw_server.ratelimit import client_key


@dataclass(slots=True, eq=False)
class Call:
    """One HTTP request or one call of a socket, from its first byte to its answer. `started` is `time.perf_counter()`;
    `refusal` is why there is no caller; `answered` is whether the answer has begun; `socket` is the connection that a call
    came over, None for HTTP; `resource` is what the audit row names instead of the operation's path;
    `after_response` are calls to make once the response was sent over the socket; `asked` holds the fields of the path as the
    caller sent them, not validated, among others; `reading` is the task that serves it, as long as it may
    be cancelled; `abandoned` is whether its client has gone."""

    source: str  # http | ws
    request_id: str
    client_ip: str | None
    started: float
    user_agent: str | None = None
    caller: Principal | None = None
    refusal: DomainError | None = None
    answered: bool = False
    socket: Any = None
    resource: str | None = None
    after_response: list[Callable[[], None]] | None = None
    asked: Mapping[str, Any] | None = None
    reading: "asyncio.Task[object] | None" = None
    abandoned: bool = False

    def take_refusal(self) -> DomainError:
        """The refusal, to be raised: a call that kept it would be in its traceback, a cycle that only a collection frees."""
        assert self.refusal is not None
        try:
            return self.refusal
        finally:
            self.refusal = None

    @property
    def address_key(self) -> str:
        return f"address:{client_key(self.client_ip)}"

    @property
    def budget_key(self) -> str:
        """Whose limits it counts for: the caller's or, where there is none, those of the client's address."""
        return self.caller.budget_key if self.caller is not None else self.address_key

    @property
    def user_id(self) -> str | None:
        return self.caller.sub if self.caller else None

    def abandon(self) -> None:
        """The client has gone: nobody reads the answer, so what only reads is cancelled."""
        if self.reading is not None and not self.abandoned:
            self.abandoned = True
            self.reading.cancel()
