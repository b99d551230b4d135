"""The export: NDJSON, streamed from a server-side cursor in one snapshot."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from hw_server.audit import repository
from hw_server.audit.models import AUDIT_READ, AuditFilter
from hw_server.auth import Principal
from hw_server.db import Database
from hw_server.http.plain import call_of, provided, require
from hw_server.operations import AuditTrail, action_row

router = APIRouter(prefix="/audit-logs", tags=["audit"])


@router.get("/export", operation_id="audit.export", response_class=StreamingResponse)
async def export(
    request: Request,
    caller: Annotated[Principal, require(AUDIT_READ)],
    filters: Annotated[AuditFilter, Query()],
    db: Annotated[Database, provided(Database)],
    trail: Annotated[AuditTrail, provided(AuditTrail)],
) -> StreamingResponse:
    """Export all matching rows, one JSON object a line, oldest first."""
    trail.record(action_row(call_of(request), "audit.export", "audit-logs", status=200))

    async def lines() -> AsyncIterator[bytes]:
        chunk: list[bytes] = []
        async with db.write() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            async for entry in repository.stream(connection, filters):
                chunk.append(entry.model_dump_json().encode() + b"\n")
                if len(chunk) == 500:
                    yield b"".join(chunk)
                    chunk.clear()
        yield b"".join(chunk)

    return StreamingResponse(lines(), media_type="application/x-ndjson")
