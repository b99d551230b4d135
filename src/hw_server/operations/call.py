from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hw_server.auth import Principal
from hw_server.errors import DomainError


@dataclass(slots=True)
class Call:
    """One HTTP request or one call of a socket, from its first byte to its answer. `started` is `time.perf_counter()`;
    `refusal` is why there is no caller; `answered` is whether the answer has begun; `socket` is the connection that a call
    came over, None for HTTP; `resource` is what the audit row names instead of the operation's path;
    `after_response` are calls to make once the response was sent over the socket; `asked` holds the fields of the path as the
    caller sent them, not validated, among others."""

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

    @property
    def user_id(self) -> str | None:
        return self.caller.sub if self.caller else None
