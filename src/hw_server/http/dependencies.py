"""FastAPI dependencies for routes that only HTTP speaks: who may call a route, and the application's parts."""

from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Depends, Request

from hw_server.auth import Principal
from hw_server.http.middleware import CALL
from hw_server.operations import Call, authorize
from hw_server.runtime.parts import Parts

RouteAudit = Literal["direct", "queued", "reads", "never"]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call a route, `role` None for everybody; `audit` is when the audit row of a success is written, as for
    operations, None for what the method says: `direct` where it changes something, `reads` where it does not."""

    role: str | None
    audit: RouteAudit | None

    async def __call__(self, request: Request) -> Principal | None:
        call = call_of(request)
        authorize(self.role, call)
        return call.caller


def call_of(request: Request) -> Call:
    """The request, as the audit trail sees it. A route may set its `resource`."""
    call: Call = request.scope[CALL]
    return call


def require(role: str, *, audit: RouteAudit | None = None) -> Any:
    """`caller: Annotated[Principal, require("audit:read")]`: 401 or 403 unless the caller has the role, before the body is
    read. `audit="reads"` for a POST that changes nothing; `audit="never"` where the route writes its row itself, such as in its
    own transaction: refusals and failures are recorded all the same."""
    return Depends(Access(role, audit))


def public(*, audit: RouteAudit | None = None) -> Any:
    """`dependencies=[public()]`: everybody may call the route. `caller: Annotated[Principal | None, public()]` says who did."""
    return Depends(Access(None, audit))


def provided(kind: type) -> Any:
    """`db: Annotated[Database, provided(Database)]`: the application's part of a type."""

    async def part(request: Request) -> Any:
        parts: Parts = request.app.state.parts
        return parts[kind]

    return Depends(part)
