"""The export: NDJSON, streamed. A page at a time, so that a client that reads slowly holds no connection of the pool."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from hw_server.audit import repository
from hw_server.audit.models import AUDIT_READ, AuditEntry, AuditFilter
from hw_server.auth import Principal
from hw_server.auth.authentication import Authentication
from hw_server.db import Database
from hw_server.errors import DomainError
from hw_server.http.dependencies import call_of, provided, require
from hw_server.http.problems import problem_responses
from hw_server.operations import AuditTrail, action_row

PAGE = 500
ACTION, RESOURCE = "audit.export", "audit-logs"
router = APIRouter(prefix="/audit-logs", tags=["audit"])


@router.get(
    "/export",
    operation_id="audit.export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}}, **problem_responses(401, 403, 422, 429, 500, 503)},
)
async def export(
    request: Request,
    caller: Annotated[Principal, require(AUDIT_READ)],
    filters: Annotated[AuditFilter, Query()],
    db: Annotated[Database, provided(Database)],
    trail: Annotated[AuditTrail, provided(AuditTrail)],
    authentication: Annotated[Authentication, provided(Authentication)],
) -> StreamingResponse:
    """Export all matching rows up to now, one JSON object a line, oldest first."""
    call = call_of(request)
    now = datetime.now(UTC)
    # Without an end the export would run after the rows that are written meanwhile.
    until_now = filters.model_copy(update={"until": min(filters.until or now, now)})

    async def page(last: AuditEntry | None) -> list[AuditEntry]:
        async with db.read() as connection:
            position = (last.occurred_at, last.id) if last else None
            return await repository.page(connection, until_now, position, PAGE, oldest_first=True)

    async def lines(entries: list[AuditEntry]) -> AsyncIterator[bytes]:
        while entries:
            yield b"".join(entry.model_dump_json().encode() + b"\n" for entry in entries)
            if len(entries) < PAGE:
                return
            # The client may take hours; its right to read may end before.
            await authentication.recheck(caller)
            entries = await page(entries[-1])

    try:
        # Before the status is sent: what refuses the first page is still a problem that the client can read.
        first = await page(None)
    except DomainError as error:
        row = action_row(call, ACTION, RESOURCE, outcome="failure", status=error.status, error=error.code)
        trail.record(row)
        raise
    trail.record(action_row(call, ACTION, RESOURCE, status=200))
    return StreamingResponse(lines(first), media_type="application/x-ndjson")
