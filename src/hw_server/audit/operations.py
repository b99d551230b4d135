from datetime import datetime

from hw_server.audit import repository
from hw_server.audit.models import AUDIT_READ, AuditEntry, AuditQuery
from hw_server.errors import NotFound
from hw_server.operations import Cursor, Id, Operations, Page, Read

operations = Operations("/audit-logs")
EntryPage = Page[AuditEntry]


@operations.get("audit.list", role=AUDIT_READ)
async def list_entries(db: Read, query: AuditQuery) -> EntryPage:
    """List audit rows, newest first."""
    before = _position(query.cursor) if query.cursor else None
    rows = await repository.page(db, query, before, query.per_page + 1)
    items, more = rows[: query.per_page], len(rows) > query.per_page
    cursor = Cursor.encode(items[-1].occurred_at, items[-1].id) if more else None
    return EntryPage(items=items, per_page=query.per_page, next_cursor=cursor)


@operations.get("audit.get", "/{id}", role=AUDIT_READ)
async def get_entry(db: Read, id: Id) -> AuditEntry:
    """Get one audit row."""
    entry = await repository.by_id(db, id)
    if entry is None:
        raise NotFound(f"there is no audit row {id}")
    return entry


def _position(cursor: str) -> tuple[datetime, int]:
    occurred_at, entry_id = Cursor.decode(cursor, datetime, int)
    return occurred_at, entry_id
