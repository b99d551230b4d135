"""For routes that only HTTP speaks: the caller's role as a dependency, and the application's parts."""

from typing import Any

from fastapi import Depends, Request

from hw_server.auth import Principal
from hw_server.errors import DomainError
from hw_server.http.middleware import CALL
from hw_server.http.problems import status_of
from hw_server.operations import AuditTrail, Call, action_row, authorize


def call_of(request: Request) -> Call:
    call: Call = request.scope[CALL]
    return call


def require(role: str) -> Any:
    """`caller: Annotated[Principal, require("audit:read")]`: 401 or 403 unless the caller has the role."""

    async def caller(request: Request) -> Principal:
        call = call_of(request)
        try:
            authorize(role, call)
        except DomainError as error:
            route = request.scope["route"]
            trail: AuditTrail = request.app.state.provided[AuditTrail]
            row = action_row(call, route.operation_id, outcome="denied", status=status_of(error), error=error.code)
            trail.record(row)
            raise
        assert call.caller is not None
        return call.caller

    return Depends(caller)


def provided(kind: Any) -> Any:
    """`db: Annotated[Database, provided(Database)]`: a part of the application, by its type."""

    async def part(request: Request) -> Any:
        return request.app.state.provided[kind]

    return Depends(part)
