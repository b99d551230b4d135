"""Reading the audit trail: routes below `/api/audit-logs` and methods of the socket."""

from hw_server.audit import repository
from hw_server.audit.models import AUDIT_READ, AuditEntry, AuditQuery, EntryPage
from hw_server.errors import NotFound
from hw_server.operations import Id, Operations, Read

operations = Operations("/audit-logs")


@operations.get("audit.list", role=AUDIT_READ)
async def list_entries(db: Read, query: AuditQuery) -> EntryPage:
    """List audit rows, newest first."""
    return EntryPage.from_rows(await repository.page(db, query), query, repository.NEWEST_FIRST)


@operations.get("audit.get", "/{id}", role=AUDIT_READ)
async def get_entry(db: Read, id: Id) -> AuditEntry:
    """Get one audit row."""
    entry = await repository.by_id(db, id)
    if entry is None:
        raise NotFound(f"there is no audit row {id}")
    return entry
