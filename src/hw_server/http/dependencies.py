"""FastAPI dependencies for routes that only HTTP speaks: the caller with a role, and the application's parts."""

from typing import Any

from fastapi import Depends, Request

from hw_server.auth import Principal
from hw_server.errors import DomainError
from hw_server.http.middleware import CALL
from hw_server.operations import AuditTrail, Call, action_row, authorize
from hw_server.runtime.parts import Parts


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
            action = request.scope["route"].operation_id
            row = action_row(call, action, outcome="denied", status=error.status, error=error.code)
            _parts_of(request)[AuditTrail].record(row)
            raise
        assert call.caller is not None
        return call.caller

    return Depends(caller)


def provided(kind: type) -> Any:
    """`db: Annotated[Database, provided(Database)]`: the application's part of a type."""

    async def part(request: Request) -> Any:
        return _parts_of(request)[kind]

    return Depends(part)


def _parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts
