"""The export: NDJSON, streamed. A page at a time, so that a client that reads slowly holds no connection of the pool; each is a
call of its user, which waits its turn."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from hw_server.audit import repository
from hw_server.audit.models import AUDIT_READ, AuditEntry, AuditFilter, AuditQuery, EntryPage
from hw_server.auth import Principal
from hw_server.auth.authentication import Authentication
from hw_server.db import Database
from hw_server.http.dependencies import call_of, provided, require
from hw_server.http.problems import problem_responses
from hw_server.operations import Page, Turns

PAGE = 500
# JSON leaves these as they are, and readers of lines (str.splitlines, httpx) end a line at them.
LINE_ENDS = str.maketrans({"\x85": r"\u0085", "\u2028": r"\u2028", "\u2029": r"\u2029"})
router = APIRouter(prefix="/audit-logs", tags=["audit"])


@router.get(
    "/export",
    operation_id="audit.export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}}, **problem_responses(401, 403, 422, 429, 500, 503)},
)
async def export(
    request: Request,
    caller: Annotated[Principal, require(AUDIT_READ, audit="queued")],
    filters: Annotated[AuditFilter, Query()],
    db: Annotated[Database, provided(Database)],
    authentication: Annotated[Authentication, provided(Authentication)],
    turns: Annotated[Turns, provided(Turns)],
) -> StreamingResponse:
    """Export all matching rows up to now, one JSON object a line, oldest first."""
    call_of(request).resource = "audit-logs"
    now = datetime.now(UTC)
    # Without an end the export would run after the rows that are written meanwhile.
    until_now = {**filters.model_dump(), "until": min(filters.until or now, now), "per_page": PAGE}

    async def next_page(cursor: str) -> Page[AuditEntry]:
        query = AuditQuery(**until_now, cursor=cursor)
        async with turns.turn(caller.budget_key), db.read() as connection:
            rows = await repository.page(connection, query, repository.OLDEST_FIRST)
        return EntryPage.from_rows(rows, query, repository.OLDEST_FIRST)

    async def lines(page: Page[AuditEntry]) -> AsyncIterator[bytes]:
        while True:
            yield b"".join(entry.model_dump_json().translate(LINE_ENDS).encode() + b"\n" for entry in page.items)
            if page.next_cursor is None:
                return
            # The client may take hours; its right to read may end before.
            await authentication.recheck(caller)
            page = await next_page(page.next_cursor)

    # Before the status is sent: what refuses the first page is still a problem that the client can read.
    # As a file: a page that showed years of rows would hang its browser.
    headers = {"Content-Disposition": 'attachment; filename="audit-logs.ndjson"'}
    return StreamingResponse(lines(await next_page("")), media_type="application/x-ndjson", headers=headers)
